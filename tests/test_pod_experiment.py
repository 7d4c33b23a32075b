"""The experiment that sets POD beside its relatives, and what its notebook concludes from the committed table."""

import functools
import math

import numpy
import pytest
import torch

from lossbook import models, results, sweep
from lossbook.losses import hypersphere
from lossbook.tasks import pod, row

CE, FIXED, LEARNED = "cross_entropy", "squared_cosine", "squared_cosine(centroids='learned')"


@functools.cache
def found(loss, **changes):
    """The row of one run on the digits."""
    fields = dict(dataset="digits", model="mlp", learning_rate=0.08, epochs=4) | changes
    return row(pod.Latent(loss=loss, **fields))


def curve(of, name):
    return numpy.array(of[f"{name}_curve"])


@pytest.mark.parametrize("loss", [CE, "pod", "pedcc", "am_softmax"])
def test_same_configuration_gives_the_same_row(loss):
    first, again = found(loss, epochs=2), found.__wrapped__(loss, epochs=2)
    same = [key for key in first if key not in ("seconds", "images_per_second")]
    assert [first[key] for key in same] == [again[key] for key in same]


def test_another_seed_is_another_run():
    assert curve(found("pod"), "train_loss")[0] != curve(found("pod", seed=1), "train_loss")[0]


def test_heads_meet_the_same_backbone_and_batches():
    """POD without delta and decorrelation is the squared cosine, so the runs are the same; with them it is not."""
    plain, bare = found(FIXED), found("pod(delta='zero', decorrelation=0.0)")
    for name in ("train_loss", "validation_accuracy", *pod.MEASURES):
        assert (curve(plain, name) == curve(bare, name)).all()
    assert (curve(plain, "mean_norm") != curve(found("pod"), "mean_norm")).any()


def test_growing_delta_reaches_the_norm_at_the_end():
    task = pod.Latent(dataset="digits", model="mlp", loss="pod", learning_rate=0.1, epochs=7)
    head = task.head()
    assert head.alpha == 1 / 7
    assert hypersphere.scheduled_delta(head.schedule, task.epochs, 3.0, head.alpha) == pytest.approx(3.0)
    given = pod.Latent(dataset="digits", model="mlp", loss="pod(alpha=0.5)", learning_rate=0.1)
    assert given.head().alpha == 0.5


@pytest.mark.parametrize("profile", sweep.PROFILES)
def test_profiles_are_valid_paired_and_fair(profile):
    for dataset, model in (pod.DEFAULT, *pod.PAPER) if profile == "paper" else (pod.DEFAULT, ("cifar100", "cnn_small")):
        runs = pod.runs(profile, dataset, model)  # each checks itself as it is made
        assert len({task.hash for task in runs.grid + runs.tuning}) == len(runs.grid + runs.tuning)
        of_seed, budget = {}, {}
        for task in runs.grid:
            of_seed.setdefault(task.seed, set()).add(task.loss)
        for task in runs.tuning:
            budget.setdefault(task.loss, []).append(task.learning_rate)
            assert task.seed == sweep.TUNING_SEED and task.seed not in of_seed
        assert len(of_seed) >= 2 and all(losses == set(budget) for losses in of_seed.values())
        assert len({tuple(rates) for rates in budget.values()}) == 1
        assert {CE, FIXED, "pod"} <= set(budget)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("dataset", "digit", "digits"),
        ("dataset", "iris", "allowed"),
        ("model", "resnet", "resnet18"),
        ("model", "airbench", "allowed"),
        ("loss", "podd", "pod"),
        ("loss", "pod(decorelation=1.0)", "decorrelation"),
        ("loss", "pod(delta='shrinking')", "growing"),
        ("loss", "squared_cosine(centroids='fixed')", "simplex"),
        ("dim", 8, "at least 9"),
        ("dim", 0, r"\[1, inf\)"),
        ("batch_size", 1, "batch_size"),
        ("epochs", 0, "epochs"),
        ("epochs", 1.5, "whole number"),
        ("learning_rate", 0.0, "learning_rate"),
        ("weight_decay", -1.0, "weight_decay"),
        ("mode", "quick", "exact"),
        ("augment", "flip", "shift_flip"),
        ("seed", -1, "seed"),
    ],
)
def test_parameters_are_refused_before_any_work(field, value, said):
    fields = dict(dataset="digits", model="mlp", loss="pod", learning_rate=0.1) | {field: value}
    with pytest.raises(ValueError, match=said):
        pod.Latent(**fields)


def test_a_batch_larger_than_the_training_split_is_refused():
    with pytest.raises(ValueError, match="batch_size=5000"):
        found("pod", batch_size=5000)


@pytest.mark.parametrize("loss", [CE, "fixed_etf", FIXED, "pod", "pod(decorrelation=100.0)", "pedcc"])
def test_a_run_learns_the_digits_and_collapses(loss):
    """Accuracy far from chance; the scatter within classes falls, and the class means near a simplex."""
    of = found(loss)
    assert of["status"] == "done" and of["test_accuracy"] > 0.8
    assert of["validation_score"] == curve(of, "validation_accuracy")[-1]
    for name in ("within_class", "within_class_direction", "simplex"):
        values = curve(of, name)
        assert len(values) == 4 and values[-1] < values[0]


def test_fixed_centroids_collapse_nearer_to_a_simplex():
    assert curve(found(FIXED), "simplex")[-1] < curve(found(CE), "simplex")[-1] / 2


def test_learned_centroids_have_nothing_to_keep_them_apart():
    """The squared cosine to learned class vectors stays far from a simplex, and behind the same loss to fixed ones."""
    learned, fixed = found(LEARNED), found(FIXED)
    assert curve(learned, "simplex")[-1] > 3 * curve(fixed, "simplex")[-1]
    assert learned["test_accuracy"] < fixed["test_accuracy"] - 0.05


def test_collapse_measures_of_collapsed_features():
    """Zero where every feature is a multiple of its centroid; lengths alone show in within_class and not in ẑ."""
    centroids = hypersphere.simplex_centroids(4, 6)
    labels = torch.arange(4).repeat(5)
    still = pod.collapse(3 * centroids[labels], labels, 4)
    assert still["mean_norm"] == pytest.approx(3)
    assert all(abs(still[name]) < 1e-9 for name in pod.MEASURES[:-1])
    lengths = torch.linspace(1, 2, 20, dtype=torch.float64)[:, None]
    moved = pod.collapse(lengths * centroids[labels], labels, 4)
    assert moved["within_class"] > 1e-3 and abs(moved["within_class_direction"]) < 1e-9


def test_divergence_is_a_status():
    of = found(CE, learning_rate=1e4)
    assert of["status"] == "diverged" and math.isnan(of["validation_score"])
    of = found("pod(delta='norm')", learning_rate=1e4, epochs=2)  # the loss stays finite, the norm does not
    assert of["status"] == "diverged"
    of = found(CE, learning_rate=1e20, epochs=1, batch_size=1024)  # one step: the only loss is that before it
    assert of["status"] == "diverged"


def test_fast_arithmetic_learns_too():
    fast, exact = found("pod", mode="fast"), found("pod")
    assert abs(fast["test_accuracy"] - exact["test_accuracy"]) < 0.03


def test_densenet_keeps_the_resolution_of_its_images():
    network = models.create("densenet121", (3, 32, 32), 64, seed=0).eval()
    assert network.features.pool0(network.features.conv0(torch.zeros(1, 3, 32, 32))).shape == (1, 64, 32, 32)
    with torch.no_grad():
        assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 64)
    assert models.create("densenet121", (1, 32, 32), 10).features.conv0.in_channels == 1


# --- what the committed table says; verdicts are about Fashion-MNIST with the multi-layer perceptron ----------------

THREE_SETS = "model == 'mlp' or dataset == 'cifar10'"  # each with the network that the verdicts name


def here(rows):
    return rows[(rows["dataset"] == "fashion_mnist") & (rows["model"] == "mlp")]


@pytest.fixture(scope="module")
def fashion():
    return here(sweep.published("pod"))


@pytest.fixture(scope="module")
def tried():
    """Tuning runs: validation score, a line a head and a column a learning rate."""
    rows = here(results.published("pod")).query("seed == @sweep.TUNING_SEED")
    return rows.pivot(index="loss", columns="learning_rate", values="validation_score")


def mean_curve(rows, loss, name):
    """The mean over seeds, a value an epoch."""
    return numpy.mean(numpy.stack(rows.loc[rows["loss"] == loss, f"{name}_curve"]), axis=0)


def less(rows, baseline):
    """Paired differences of test accuracy to a baseline in points, by head, with their ends."""
    table = results.paired_differences(rows, baseline, ["dataset", "model"]).set_index("loss")
    mean, half = 100 * table["difference"], 100 * table["half_width"]
    return table.assign(low=mean - half, high=mean + half)


def assert_spreads_again(rows):
    """Under POD the norm grows with every epoch, and in the end the directions of a class are not at their closest."""
    norm, direction = (mean_curve(rows, "pod", name) for name in ("mean_norm", "within_class_direction"))
    assert (numpy.diff(norm) > 0).all() and direction[-1] > 1.1 * direction.min()


def test_published_heads_share_their_seeds_and_images():
    """In each data set and network five seeds of every head, by one recipe."""
    published = sweep.published("pod")
    for _, rows in published.groupby(["dataset", "model"]):
        counts = rows.groupby("loss")["seed"].nunique()
        assert (counts == 5).all() and set(counts.index) == set(pod.LOSSES)
        assert len(rows[["epochs", "batch_size", "dim", "weight_decay", "mode", "augment"]].drop_duplicates()) == 1
        assert (rows.loc[rows["loss"].isin([CE, FIXED, "pod"]), "status"] == "done").all()


def test_published_curves_have_a_value_an_epoch():
    """All measures of collapse are stored for each finished run, not negative."""
    for run in sweep.published("pod").query("status == 'done'").to_dict("records"):
        for name in pod.MEASURES:
            assert len(curve(run, name)) == run["epochs"] and (curve(run, name) >= 0).all()


def test_verdict_pod_is_not_better(fashion):
    """POD as released stands more than a point behind cross-entropy, and behind the squared cosine, beyond chance."""
    behind_ce, behind_cosine = less(fashion, CE).loc["pod"], less(fashion, FIXED).loc["pod"]
    assert behind_ce["high"] < -1 and behind_ce["p_holm"] < 0.05
    assert behind_cosine["high"] < -1 and behind_cosine["p_holm"] < 0.05


@pytest.mark.parametrize("dataset", ["mnist", "fashion_mnist", "cifar10"])
def test_verdict_pod_is_behind_on_every_set(dataset):
    """Beyond chance after Holm's correction, behind cross-entropy and behind the squared cosine."""
    rows = sweep.published("pod").query(THREE_SETS).query("dataset == @dataset")
    for rival in (CE, FIXED):
        found = less(rows, rival).loc["pod"]
        assert found["high"] < -1 and found["p_holm"] < 0.05
    assert_spreads_again(rows)


def test_verdict_another_network_on_fashion_mnist():
    """In a small CNN POD is behind by its delta; the squared cosine is level, and the center loss ahead a little."""
    rows = sweep.published("pod").query("dataset == 'fashion_mnist' and model == 'cnn_small'")
    to_entropy, to_cosine = less(rows, CE), less(rows, FIXED)
    for table in (to_entropy, to_cosine):
        assert table.loc["pod", "high"] < -2.5 and table.loc["pod", "p_holm"] < 0.05
    assert (to_entropy.loc[[FIXED, "pod(delta='zero')", "am_softmax", "pedcc", "sphereface"], "p_holm"] > 0.05).all()
    assert to_entropy.loc["pod(delta='norm')", "high"] < -5.5
    assert to_cosine.loc["squared_cosine(centroids='learned')", "high"] < -10
    assert to_entropy.loc["fixed_etf", "high"] < -0.5 and to_entropy.loc["fixed_etf", "p_holm"] < 0.05
    ahead = to_entropy[(to_entropy["difference"] > 0) & (to_entropy["p_holm"] < 0.05)]
    assert list(ahead.index) == ["center"] and ahead["high"].item() < 0.7 and ahead["p_holm"].item() > 0.04
    assert_spreads_again(rows)


def test_verdict_another_network_on_mnist():
    """In a small CNN POD is nearly a point behind, by its delta; the squared cosine is level, and learned vectors fail.

    Cross-entropy on the simplex falls short a little, AM-softmax, PEDCC and SphereFace by a third of a point at most.
    """
    rows = sweep.published("pod").query("dataset == 'mnist' and model == 'cnn_small'")
    to_entropy, to_cosine = less(rows, CE), less(rows, FIXED)
    for table in (to_entropy, to_cosine):
        assert table.loc["pod", "high"] < -0.8 and table.loc["pod", "p_holm"] < 0.05
    assert to_entropy.loc[[FIXED, "pod(delta='zero')"], ["low", "high"]].abs().max(axis=None) < 0.2
    assert to_entropy.loc["pod(delta='norm')", "high"] < -1.4
    assert to_cosine.loc["squared_cosine(centroids='learned')", "high"] < -5
    assert to_entropy.loc["fixed_etf", "high"] < -0.1 and to_entropy.loc["fixed_etf", "p_holm"] < 0.05
    assert to_entropy.loc[["am_softmax", "pedcc", "sphereface"], "low"].min() > -0.35
    assert not ((to_entropy["difference"] > 0) & (to_entropy["p_holm"] < 0.05)).any()


def test_verdict_fixed_centroids_train_and_learned_ones_do_not(fashion):
    """Learned vectors lose ten points, on each set seven and more; the squared cosine to fixed ones is level."""
    table = less(fashion, CE)
    assert table.loc["squared_cosine(centroids='learned')", "high"] < -9
    assert abs(100 * table.loc[FIXED, "difference"]) < 0.3
    for _, rows in sweep.published("pod").query(THREE_SETS).groupby("dataset"):
        assert less(rows, FIXED).loc["squared_cosine(centroids='learned')", "high"] < -7


def test_verdict_margins_gain_nothing():
    """No head with a margin is ahead of cross-entropy beyond chance; on CIFAR10 three are behind, and SphereFace level.

    Nor is the smallest rate the best for AM-softmax there; and ArcFace fails at rates that a tuning run had chosen.
    """
    published = sweep.published("pod").query(THREE_SETS)
    for dataset, rows in published.groupby("dataset"):
        table = less(rows, CE)
        margins = table.loc[["am_softmax", "arcface", "pedcc", "center", "sphereface"]]
        assert not ((margins["difference"] > 0) & (margins["p_holm"] < 0.05)).any()
        assert margins.loc["arcface", "high"] < -8
        behind = margins.loc[["am_softmax", "pedcc"]]
        assert ((behind["high"] < -1) & (behind["p_holm"] < 0.05)).all() == (dataset == "cifar10")
    tried = results.published("pod").query(
        "dataset == 'cifar10' and loss == 'am_softmax' and seed == @sweep.TUNING_SEED"
    )
    assert tried.set_index("learning_rate")["validation_score"].idxmax() == pod.RATES[1]


def test_verdict_delta_explains_it_and_decorrelation_does_not(fashion, tried):
    """Without decorrelation POD stays where it is at each learning rate; without delta it is the squared cosine."""
    change = 100 * (tried.loc["pod"] - tried.loc["pod(decorrelation=0.0)"])
    assert change.notna().all() and list(change.index) == list(pod.RATES) and change.abs().max() < 0.5
    assert abs(100 * less(fashion, "pod").loc["pod(decorrelation=0.0)", "difference"]) < 0.5
    assert less(fashion, "pod").loc[FIXED, "low"] > 1
    chosen = fashion.groupby("loss")["learning_rate"].unique()
    assert list(chosen["pod"]) == list(chosen["pod(decorrelation=0.0)"]) == [tried.columns[3]]
    assert tried.loc["pod"].max() < tried.loc[CE].max() - 0.01
    without = less(fashion, FIXED)
    assert abs(100 * without.loc["pod(delta='zero')", "difference"]) < 0.5  # with decorrelation, the first version
    assert less(fashion, CE).loc["pod(delta='norm')", "high"] < -6


def test_verdict_the_simplex_costs_nothing(fashion):
    """On the fixed simplex, cross-entropy and the squared cosine stay within 0.3 points of cross-entropy learned."""
    table = less(fashion, CE).loc[["fixed_etf", FIXED]]
    assert (table["low"] > -0.3).all() and (table["high"] < 0.3).all()


def test_verdict_features_under_a_softmax_are_farther_from_a_simplex():
    """In every run, than those under the squared cosine; the means are what the table of claims says."""
    rows = sweep.published("pod").query(THREE_SETS).query("loss in (@CE, @FIXED)")
    rows = rows.assign(off=rows["simplex_curve"].str[-1])
    off = rows.pivot(index=["dataset", "seed"], columns="loss", values="off")
    assert (off[CE] > 1.4 * off[FIXED]).all()
    means = off.groupby("dataset").mean().round(2).loc[["mnist", "fashion_mnist", "cifar10"]]
    assert means[CE].tolist() == [0.24, 0.28, 0.41] and means[FIXED].tolist() == [0.04, 0.13, 0.26]


def test_verdict_the_squared_cosine_is_an_effective_loss_of_features_alone():
    """Nothing in it is learned but the features; on the grey sets it is no worse than cross-entropy."""
    head = hypersphere.head(FIXED, 10, 64)
    assert not list(head.parameters())
    rows = sweep.published("pod").query(THREE_SETS)
    for dataset in ("mnist", "fashion_mnist"):
        assert less(rows[rows["dataset"] == dataset], CE).loc[FIXED, "low"] > -0.3


def test_verdict_what_drops_the_norm_is_behind_on_cifar10():
    """Every head that judges by directions, on the simplex or learned, beyond chance; no head that keeps the norm."""
    table = less(sweep.published("pod").query("dataset == 'cifar10'"), CE)
    keep = ["center", "cot", "sphereface"]
    assert (table.loc[keep, "p_holm"] > 0.05).all() and (table.loc[keep, "low"] > -1.5).all()
    rest = table.drop(index=keep)
    assert {"fixed_etf", "fixed_etf(centroids='learned')", FIXED, "pod(delta='zero')"} <= set(rest.index)
    assert (rest["high"] < -1).all() and (rest["p_holm"] < 0.05).all()


def test_verdict_norms_run_ahead_of_directions(fashion):
    """Under POD norms grow elevenfold; directions and angles between classes draw in, then out; accuracy falls.

    The squared cosine, on the same images, goes the same way all along. All mean curves over seeds.
    """
    norm, direction, angles, accuracy = (
        mean_curve(fashion, "pod", name)
        for name in ("mean_norm", "within_class_direction", "equiangular", "validation_accuracy")
    )
    assert 8 < norm[-1] / norm[0] < 12 and (numpy.diff(norm) > 0).all()
    for scatter in (direction, angles):
        turn = scatter.argmin()
        assert 0 < turn < len(scatter) - 1 and scatter[-1] > 1.2 * scatter[turn]
        assert (numpy.diff(scatter[turn:]) > 0).all() and (numpy.diff(accuracy[turn:]) < 0).all()
    assert accuracy[-1] < accuracy.max() - 0.01
    for name in ("within_class_direction", "equiangular"):
        assert (numpy.diff(mean_curve(fashion, FIXED, name)) < 0).all()
    assert (numpy.diff(mean_curve(fashion, FIXED, "validation_accuracy")) > 0).all()


def test_verdict_distances_train_at_rates_where_cross_entropy_does_not(tried):
    """At the two largest rates cross-entropy diverges; every head on the simplex loses less than four points.

    One tuning run a rate.
    """
    large = tried.columns[-2:]
    assert tried.loc[CE, large].isna().all()
    for loss in (FIXED, "pod", "fixed_etf"):
        assert (tried.loc[loss].max() - tried.loc[loss, large] < 0.04).all()


def test_verdict_pod_is_not_faster(fashion):
    """No run of POD comes within a point of what cross-entropy has at its end; every run of the squared cosine does."""
    goal = fashion[fashion["loss"] == CE].set_index("seed")["validation_score"] - 0.01
    best = {
        loss: fashion[fashion["loss"] == loss].set_index("seed")["validation_accuracy_curve"].map(max)
        for loss in ("pod", FIXED)
    }
    assert (best["pod"] < goal[best["pod"].index]).all()
    assert (best[FIXED] >= goal[best[FIXED].index]).all()
