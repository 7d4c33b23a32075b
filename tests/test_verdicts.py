"""What the experiment notebooks conclude, computed from the committed tables."""

import pytest

from lossbook import figures, results, sweep

ORDERED, SHUFFLED = "fourier", "fourier(placement='permuted')"
SETS = ("mnist", "fashion_mnist")  # on which the multi-layer perceptron was run


@pytest.fixture(scope="module")
def labels():
    rows = sweep.published("noisy_labels")
    return rows.assign(setting=figures.setting_names(rows))


def against(rows, baseline, by=("dataset", "setting")):
    """Paired differences to a baseline in percentage points, by loss and setting."""
    table = results.paired_differences(rows, baseline, list(by))
    return table.assign(difference=100 * table["difference"], half_width=100 * table["half_width"])


def test_published_grid_is_whole(labels):
    """Five seeds of every loss in every setting of the multi-layer perceptron; none diverged."""
    mlp = labels[labels["model"] == "mlp"]
    counts = mlp.groupby(["dataset", "loss", "setting"])["seed"].nunique()
    settings = {"clean", "symmetric 20 %", "symmetric 40 %", "symmetric 60 %", "asymmetric 40 %"}
    assert set(mlp["dataset"]) == set(SETS) and set(mlp["setting"]) >= settings
    assert set(mlp["loss"]) == set(sweep.noisy_labels("paper", "mnist", "mlp").losses)
    assert (counts >= 5).all()
    assert (mlp["status"] == "done").all()
    symmetric = mlp[mlp["noise_kind"] == "symmetric"]
    assert (symmetric["realised_noise_rate"] - symmetric["noise_rate"]).abs().max() < 0.01


def test_verdict_accuracy_is_competitive_on_clean_labels(labels):
    """Order one and one half stay within one point of cross-entropy on clean labels."""
    clean = labels[(labels["setting"] == "clean") & (labels["model"] == "mlp")]
    table = against(clean, "cross_entropy", ["dataset"])
    ours = table[table["loss"].isin([ORDERED, "fourier(s=0.5)"])]
    assert len(ours) == 4 and ours["difference"].between(-1, 1).all()


def test_verdict_accuracy_is_not_competitive_on_cifar10(labels):
    """Order one trails cross-entropy by more than two points on CIFAR10, at either learning rate, clean and noisy."""
    rows = results.published("noisy_labels").query("dataset == 'cifar10' and model == 'cnn_small' and seed < 1000")
    rows = rows[rows["loss"].isin([ORDERED, "cross_entropy"])].assign(setting=figures.setting_names)
    table = against(rows, "cross_entropy", ["setting", "learning_rate"])
    assert set(table["learning_rate"]) == {0.001, 0.003} and len(table) == 4
    assert (table["difference"] < -2).all()
    whole = table[(table["learning_rate"] == 0.001)]
    assert (whole["n"] == 5).all() and (whole["difference"] + whole["half_width"] < -1.5).all()


def test_verdict_not_more_robust_than_brier(labels):
    """Order one and two fall behind Brier, their own order zero, under symmetric noise of 40 and 60 %."""
    noisy = labels[labels["setting"].isin(["symmetric 40 %", "symmetric 60 %"]) & (labels["model"] == "mlp")]
    colour = labels[(labels["dataset"] == "cifar10") & (labels["setting"] == "symmetric 40 %")]
    for rows, count in ((noisy, 8), (colour, 2)):
        table = against(rows, "brier")
        ours = table[table["loss"].isin([ORDERED, "fourier(s=2)"])]
        assert len(ours) == count and (ours["difference"] < 0).all()


def test_verdict_order_of_the_classes_is_irrelevant(labels):
    """Natural against shuffled classes: no difference under symmetric noise that survives Holm's correction."""
    mlp = labels[labels["model"] == "mlp"]
    pair = mlp[mlp["loss"].isin([ORDERED, SHUFFLED]) & mlp["setting"].str.startswith(("clean", "symmetric"))]
    table = against(pair, SHUFFLED)
    assert len(table) == 8
    assert not (results.holm(table["p"]) < 0.05).any()


def test_verdict_a_foreign_order_costs_on_cifar10(labels):
    """Shuffled classes do better than the order of the file, and Brier better than either."""
    rows = labels[(labels["dataset"] == "cifar10") & (labels["model"] == "cnn_small")]
    table = against(rows, SHUFFLED).set_index(["loss", "setting"])
    for setting in ("clean", "symmetric 40 %"):
        ours, brier = table.loc[(ORDERED, setting)], table.loc[("brier", setting)]
        assert ours["difference"] + ours["half_width"] < 0 < brier["difference"] - brier["half_width"]


def test_verdict_robust_losses_gain_more(labels):
    """At 60 % symmetric noise GCE and SCE beat every Fourier order, on both data sets."""
    noisy = labels[(labels["setting"] == "symmetric 60 %") & (labels["model"] == "mlp")]
    means = noisy.groupby(["dataset", "loss"])["test_accuracy"].mean().unstack()
    spectral = [loss for loss in means if loss.startswith("fourier")]
    assert (means[["gce", "sce"]].min(axis=1) > means[spectral].max(axis=1)).all()


def test_verdict_gains_on_noisy_images_are_not_fourier():
    """Tested on noise, order one beats cross-entropy on Fashion-MNIST; Brier and shuffled classes do so as well.

    It never beats Brier there, nothing is significant on MNIST, and nothing is gained by training on damaged images.
    """
    rows = sweep.published("noisy_images")
    panel = results.panel_rows(rows[rows["image_noise"] == "none"])
    strongest = panel[panel["level"] == panel.groupby("damage")["level"].transform("max")]
    tested = against(strongest, "cross_entropy", ["dataset", "damage"]).set_index(["dataset", "damage", "loss"])
    for damage in ("gaussian", "salt_pepper"):
        for loss in (ORDERED, SHUFFLED, "brier", "gce"):
            assert tested.loc[("fashion_mnist", damage, loss), "difference"] > 2
        ours = tested.loc[("fashion_mnist", damage, ORDERED)]
        assert ours["difference"] - ours["half_width"] > 0 and ours["n"] == 5
    for table in (
        against(strongest[strongest["dataset"] == "fashion_mnist"], "brier", ["damage"]),
        against(strongest[strongest["dataset"] == "mnist"], "cross_entropy", ["damage"]),
        against(rows.assign(setting=figures.setting_names(rows)), "cross_entropy"),
    ):
        ours = table[table["loss"] == ORDERED]
        assert len(ours) and not ((results.holm(ours["p"]) < 0.05) & (ours["difference"] > 0)).any()


# --- the loss as a hyper-parameter, rooted losses in deep networks --------------------------------------------


@pytest.fixture(scope="module")
def study():
    return sweep.published("loss_study").rename(columns={"variant": "setting"})


def gaps(rows, loss, other):
    """Differences in test accuracy between two losses, run by run."""
    keys = ["dataset", "model", "setting", "seed"]
    one, two = (rows[rows["loss"] == name].set_index(keys)["test_accuracy"] for name in (loss, other))
    return (one - two).dropna()


def test_negative_controls_of_the_loss_study(study):
    """The divergence is cross-entropy in every run; losses that differ by a factor agree once the rate is matched.

    Rounding is amplified where training is erratic, as that of the absolute error is: there the difference must be
    chance, within its interval.
    """
    same = gaps(study, "kl_divergence", "cross_entropy")
    assert len(same) >= 30 and (same == 0).all()
    for first, *others in sweep.CONTROLS:
        for other in set(others) & set(study["loss"]):
            gap = gaps(study[study["setting"] == "sgd matched"], other, first)
            assert len(gap) >= 10
            for dataset, found in gap.groupby("dataset"):
                mean, half_width, _ = results.interval(found)
                erratic = first == "mae" and abs(mean) < half_width
                assert abs(mean) < 0.005 or erratic, (other, first, dataset)


def test_verdict_a_significant_difference_that_is_a_learning_rate(study):
    """Averaged over classes, the divergence trails cross-entropy at one rate, and equals it at the matched one."""
    rows = study[(study["dataset"] == "mnist") & study["setting"].isin(["sgd same", "sgd matched"])]
    table = against(rows, "cross_entropy", ["setting"]).set_index(["setting", "loss"])
    mean = "kl_divergence(class_reduction='mean')"
    one, two = table.loc[("sgd same", mean)], table.loc[("sgd matched", mean)]
    assert one["n"] == 5 and one["difference"] + one["half_width"] < -5 and one["p_holm"] < 0.001
    assert abs(two["difference"]) < 0.2


def test_verdict_no_loss_beats_cross_entropy_once_its_rate_is_chosen(study):
    """On four small sets no loss is significantly better at tuned rates; at shared ones SGD loses many comparisons."""
    small = study[study["dataset"] != "mnist"]
    table = against(small, "cross_entropy", ["dataset", "setting"])
    assert set(table["dataset"]) == {"iris", "wine", "breast_cancer", "digits"} and table["loss"].nunique() == 22
    significant = table[table["p_holm"] < 0.05]
    tuned = significant[significant["setting"].str.endswith("tuned")]
    assert len(tuned) and (tuned["difference"] < 0).all()
    shared = significant[significant["setting"] == "sgd same"]
    assert list(shared.loc[shared["difference"] > 0, "loss"]) == ["label_smoothing"]
    assert (shared["difference"] < 0).sum() > 10


@pytest.fixture(scope="module")
def rooted():
    return sweep.published("rooted_deep").rename(columns={"variant": "setting"})


def test_verdict_the_convex_form_diverges_at_the_shared_rate_of_sgd(rooted):
    there = rooted[
        (rooted["setting"] == "sgd shared") & rooted["loss"].isin(["rooted_logistic", "rooted_logistic(k=2)"])
    ]
    assert len(there) == 10 and (there["status"] == "diverged").all()
    assert (rooted.loc[rooted["loss"] == "cross_entropy", "status"] == "done").all()


def test_verdict_rooted_losses_gain_no_accuracy(rooted):
    """Tuned, the convex form trails cross-entropy under SGD, the bounded form is near; under Adam all are close."""
    tuned = against(rooted[rooted["setting"] == "sgd tuned"], "cross_entropy", ["setting"]).set_index("loss")
    convex = tuned.loc[["rooted_logistic", "rooted_logistic(k=2)"]]
    assert (convex["difference"] + convex["half_width"] < -1).all() and (convex["n"] == 5).all()
    assert -0.5 < tuned.loc["rooted_bounded", "difference"] < 0.1
    adam = against(rooted[rooted["setting"] == "adam shared"], "cross_entropy", ["setting"])
    assert (adam["difference"] < 0.1).all() and (adam["difference"] > -1).all()


def test_verdict_the_factor_calibrates_the_convex_form(rooted):
    there = rooted[(rooted["loss"] == "rooted_logistic") & rooted["setting"].isin(["adam shared", "sgd tuned"])]
    assert len(there) == 10
    assert (there["calibration_error_rescaled"] < 0.7 * there["calibration_error"]).all()
    assert (there["nll_rescaled"] < there["nll"]).all()


def test_verdict_some_losses_do_poorly(study):
    """At one rate; the matched rate mends Huber and leaves the losses of the absolute error behind."""
    rows = study[study["dataset"] == "mnist"].groupby(["setting", "loss"])["test_accuracy"].mean()
    same, matched = rows["sgd same"], rows["sgd matched"]
    assert same["hinge"] < 0.35 and same["huber"] < 0.5 < 0.96 < same["cross_entropy"]
    assert matched["huber"] > matched["cross_entropy"] and max(matched["hinge"], matched["mae"]) < 0.8


def test_verdict_the_order_of_losses_follows_the_protocol(study):
    """Brier is behind cross-entropy at the same rate, and ahead at the matched one; both beyond their intervals."""
    rows = study[(study["dataset"] == "mnist") & study["setting"].isin(["sgd same", "sgd matched"])]
    table = against(rows, "cross_entropy", ["setting"]).set_index(["setting", "loss"])
    same, matched = table.loc[("sgd same", "brier")], table.loc[("sgd matched", "brier")]
    assert same["difference"] + same["half_width"] < -1.5 and matched["difference"] - matched["half_width"] > 0


@pytest.fixture(scope="module")
def recipe():
    """The recipe of the notes and what is left of it without each part; variants stand where losses stand elsewhere."""
    rows = sweep.published("regularised_likelihood")
    rows = rows[rows["dataset"].isin(["mnist", "fashion_mnist"])]
    return rows.assign(loss=rows["variant"], last_train_loss=rows["train_loss_curve"].str[-1])


def test_recipe_runs_are_whole(recipe):
    """Five seeds of every variant, each at one learning rate; none diverged."""
    counts = recipe.groupby(["dataset", "variant"])[["seed", "learning_rate"]].nunique()
    assert len(counts) == 12 and (counts["seed"] >= 5).all() and (counts["learning_rate"] == 1).all()
    assert (recipe["status"] == "done").all()


def test_verdict_of_the_recipe_dropout_is_what_shows(recipe):
    """Dropout gains accuracy on Fashion-MNIST, on MNIST none; no other part moves accuracy beyond chance."""
    table = against(recipe, "whole recipe", ["dataset"]).set_index(["dataset", "loss"])
    without = table.loc[("fashion_mnist", "without dropout")]
    assert without["difference"] + without["half_width"] < -0.5 and without["p_holm"] < 0.01
    others = table.drop(("fashion_mnist", "without dropout"))
    assert (others["p_holm"] > 0.05).all() and (others["difference"].abs() < 0.5).all()


def test_verdict_of_the_recipe_it_serves_the_likelihood(recipe):
    """Without dropout the test log-likelihood is worse on every seed; that of the squared error is, on average."""
    nll = recipe.pivot_table(index=["dataset", "seed"], columns="variant", values="nll")
    assert (nll["without dropout"] > nll["whole recipe"] + 0.02).all()
    assert (nll["without all three"] > nll["without dropout"]).all()
    assert (nll.groupby("dataset")["squared error"].mean() > nll.groupby("dataset")["whole recipe"].mean() + 0.01).all()


@pytest.mark.parametrize("part", ["weight decay", "momentum"])
def test_verdict_of_the_recipe_a_part_does_not_show(recipe, part):
    """Left out, at a learning rate of its own: within 0.2 points of accuracy and 0.01 nats, and not beyond chance."""
    table = against(recipe, "whole recipe", ["dataset"]).set_index("loss").loc[f"without {part}"]
    assert len(table) == 2 and (table["difference"].abs() < 0.2).all() and (table["p_holm"] > 0.05).all()
    nll = recipe.pivot_table(index="dataset", columns="variant", values="nll")
    assert ((nll[f"without {part}"] - nll["whole recipe"]).abs() < 0.01).all()
