"""Which data a task trains on, chooses by and is judged on; and the units of what it says."""

import itertools
import math
import re
import sys
from dataclasses import fields, replace

import numpy
import pytest
import torch

from lossbook import data, judges, models, style_gan, tasks
from lossbook.losses import hypersphere
from lossbook.tasks import (
    distances,
    epochs,
    outputs,
    perceptual,
    pod,
    ranking,
    robust_regression,
    rooted_gan,
    rooted_linear,
    segmentation,
)
from lossbook.training import PROBE, prepare

CPU = torch.device("cpu")
DISTANCES = distances.Distances(
    dataset="digits", model="cnn_small", loss="fid", images=50, classifier_size=200, epochs=1
)
PERCEPTUAL = perceptual.Perceptual(
    dataset="digits", model="cnn_small", loss="pixel", learning_rate=1e-2, factor=2, train_size=400, epochs=1,
    test_size=100, classifier_size=500, classifier_epochs=1,
)  # fmt: skip
LATENT = pod.Latent(dataset="digits", model="mlp", loss="pod", learning_rate=0.08, epochs=2)
RANKING = ranking.Ranking(dataset="digits", model="mlp", loss="cross_entropy", epochs=1, batch_size=256)
REGRESSION = robust_regression.RobustRegression(
    dataset="digits", model="mlp", loss="absolute", learning_rate=1e-3, epochs=1, views=1
)
SEGMENTATION = segmentation.Segmentation(
    dataset="digits", model="fcn_small", loss="bce", learning_rate=1e-2, epochs=1, train_size=64, test_size=40
)
LINEAR = rooted_linear.RootedLinear(
    dataset="overlapping", model="linear", loss="rooted_logistic(k=2)", learning_rate=1.0, question="noise",
    rule="tuned",
)  # fmt: skip
FINE_TUNING = rooted_gan.FineTuning(
    dataset="digits", model="style_small", learning_rate=1e-2, source="digits", classes="56789", loss="logistic",
    pretraining_steps=8, steps=30, pieces=1, samples=60,
)  # fmt: skip


# --- tasks.epochs ---------------------------------------------------------------------------------------------


def test_epochs_shuffle_fall_along_a_cosine_and_give_the_mean_loss():
    network = torch.nn.Linear(1, 1)
    optimiser, rates, seen = torch.optim.SGD(network.parameters(), lr=0.4), [], []

    def loss(batch):
        assert network.training
        seen.append(batch.tolist())
        rates.append(optimiser.param_groups[0]["lr"])
        network.eval()  # as an evaluation between two epochs leaves it
        network.train(len(seen) % 2 == 1)
        return network.weight.sum() * 0 + len(seen)

    means = list(epochs(network, optimiser, torch.arange(100, 109), 4, 2, torch.Generator().manual_seed(0), loss))
    assert means == [1.5, 3.5] and [len(batch) for batch in seen] == [4] * 4
    assert rates == pytest.approx([0.2 * (1 + math.cos(math.pi * i / 4)) for i in range(4)])
    assert seen[0] + seen[1] != seen[2] + seen[3] and sorted(seen[0] + seen[1]) != seen[0] + seen[1]
    assert len(set(seen[0] + seen[1])) == 8 and set(seen[0]) <= set(range(100, 109))


def test_a_row_has_the_images_that_steps_were_taken_with_a_second():
    for task in (replace(LATENT, epochs=3), LATENT):
        row, images = tasks.row(task), len(prepare(task.config(), CPU).train)
        taken = images // task.batch_size * task.batch_size * task.epochs
        assert row["images_per_second"] * row["seconds"] == pytest.approx(taken)
    judges.classifier.cache_clear()  # what trains a judge is not the run's own
    for task in (LINEAR, DISTANCES):
        assert math.isnan(tasks.row(task)["images_per_second"])


@pytest.mark.parametrize(
    "task", [DISTANCES, PERCEPTUAL, LATENT, RANKING, REGRESSION, SEGMENTATION, LINEAR, FINE_TUNING]
)
def test_a_number_of_any_type_is_the_same_run(task):
    """And what is no number, or none that a row can hold, is refused."""
    for field in (field for field in fields(task) if field.type == "float"):
        name, value = field.name, 0.03125  # a power of two, which float32 holds
        if name == "level":
            task = replace(task, damage="gaussian")
        one = replace(task, **{name: value})
        assert [replace(task, **{name: kind(value)}).hash for kind in (numpy.float32, numpy.float64)] == [one.hash] * 2
        if name in ("learning_rate", "level", "weight_decay", "pretraining_rate", "gamma", "l2"):
            assert replace(task, **{name: 1}).hash == replace(task, **{name: 1.0}).hash
        for wrong in (math.nan, math.inf, "1", None, True):
            with pytest.raises(ValueError, match=re.escape(f"{name}={wrong!r} was given; allowed: a number in ")):
                replace(task, **{name: wrong})


# --- judges ---------------------------------------------------------------------------------------------------


def test_classifiers_learn_from_the_first_images_alone_and_each_purpose_begins_elsewhere(recorded):
    judges.classifier.cache_clear()
    given = recorded(data, "standardise")
    first = judges.classifier("digits", "cnn_small", "features", 3, 200, 0, 1e-3, CPU)
    other = judges.classifier("digits", "cnn_small", "judge", 3, 200, 0, 1e-3, CPU)
    order = judges.training_order("digits", 3)
    assert numpy.array_equal(given[0][0], data.load("digits").x_train[order[:200]])
    assert not torch.equal(next(first.parameters()), next(other.parameters()))
    assert not torch.equal(order, judges.training_order("digits", 4))


# --- distances ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fid", "sliced_features", "sinkhorn_features", "sliced_pixels", "sinkhorn_pixels"])
def test_every_distance_is_a_length(name):
    random = torch.Generator().manual_seed(0)
    x = distances.Sample(torch.randn(60, 1, 3, 3, generator=random), torch.randn(60, 9, generator=random))
    far = [distances.Sample(x.images + k, x.features + k) for k in (1, 2)]
    one, two = (distances.DISTANCES[name](x, y, 0) for y in far)
    assert two == pytest.approx(2 * one, rel=0.02)


def test_features_are_those_before_the_decision_of_images_that_the_classifier_has_not_seen(monkeypatch):
    task = DISTANCES
    network = judges.classifier("digits", "cnn_small", "features", 0, 200, 1, 1e-3, CPU)
    sample = task.sample("first")
    assert sample.features.shape[1] == network[-1].in_features != 10
    loaded = data.load("digits")
    learnt = {image.tobytes() for image in loaded.x_train[judges.training_order("digits", 0)[:200]]}
    for part in ("first", "other"):
        shown = task.sample(part).images.mul(255).round().to(torch.uint8)[:, 0].numpy()
        assert not learnt & {image.tobytes() for image in shown}
    row = task.run(CPU)
    covariance = torch.cov(sample.features.double().T)
    assert row["expected_floor"] ** 2 == pytest.approx(judges.expected_fid(covariance, 50, 50))


def test_the_seed_turns_the_projections():
    x, y = (torch.randn(30, 5, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    assert distances.sliced(x, y, 0) != distances.sliced(x, y, 1)


# --- perceptual -----------------------------------------------------------------------------------------------


def test_sharpening_is_chosen_on_held_out_images_and_judged_on_the_test_set(monkeypatch, recorded):
    asked, validated = recorded(perceptual, "classifier", lambda *given: given[2]), []
    judged = recorded(
        perceptual,
        "judgement",
        lambda images, original, labels, judge, classify: (original, labels, judge, classify),
    )
    monkeypatch.setattr(
        perceptual.Perceptual,
        "_criterion",
        lambda *given: lambda x, y: validated.append(y) or torch.full((len(y),), 0.25),
    )
    monkeypatch.setattr(perceptual.Perceptual, "_trained", lambda self, *given: perceptual.Upscaler(1, 2))
    row = PERCEPTUAL.run(CPU)
    assert row["validation_score"] == -0.25  # higher is better
    loaded, order = data.load("digits"), judges.training_order("digits", 0)
    held = data.to_tensor(loaded.x_train[order[-perceptual.VALIDATION :]])
    assert len(validated) == 1 and torch.equal(validated[0], held)
    label_of = {image.tobytes(): label for image, label in zip(loaded.x_test, loaded.y_test, strict=True)}
    original, labels, judge, classify = judged[0]
    shown = original.mul(255).round().to(torch.uint8)[:, 0].numpy()
    assert [label_of[image.tobytes()] for image in shown] == labels.tolist()
    assert asked == ["features", "judge", "judge"]  # one to learn by, another to be judged by
    assert torch.equal(next(judge.network.parameters()), next(classify.parameters()))


def test_originals_restored_and_interpolated_images_are_each_judged(monkeypatch):
    monkeypatch.setattr(
        perceptual,
        "judgement",
        lambda images, original, **rest: {"accuracy": 1.0 if torch.equal(images, original) else 0.25},
    )
    row = PERCEPTUAL.run(CPU)
    assert row["original_accuracy"] == 1 and row["accuracy"] == row["interpolated_accuracy"] == 0.25


# --- pod ------------------------------------------------------------------------------------------------------


def test_heads_are_chosen_on_validation_images_and_judged_on_the_test_set(recorded):
    judged = recorded(pod, "accuracy", lambda head, features, labels: labels)
    probed = recorded(pod, "collapse", lambda features, labels, n: labels)
    shown_images = recorded(pod.Latent, "features", lambda task, network, images: images)
    task = replace(LATENT, augment="shift_flip", seed=3)
    task.run(CPU)
    split = prepare(task.config(), CPU)
    held, shown = split.labels[split.validation], split.labels[split.train[:PROBE]]
    assert len(judged) == 3 and torch.equal(judged[0], held) and torch.equal(judged[1], held)
    assert torch.equal(judged[2], split.test_labels) and torch.equal(probed[0], shown)
    assert torch.equal(shown_images[0], split.images[split.train[:PROBE]])  # as they are, not as an epoch saw them


def test_the_delta_of_pod_hears_of_every_epoch(recorded):
    ended = recorded(hypersphere.Pod, "end_epoch")
    replace(LATENT, epochs=3).run(CPU)
    assert len(ended) == 3


@pytest.mark.parametrize(
    ("module", "measure", "task", "curve"),
    [(pod, "accuracy", LATENT, "validation_accuracy_curve"), (segmentation, "iou", SEGMENTATION, "validation_curve")],
)
def test_the_last_epoch_is_what_chooses(module, measure, task, curve, monkeypatch):
    """Where it falls from epoch to epoch: no better one before is taken."""
    falls = itertools.count(1)
    monkeypatch.setattr(module, measure, lambda *given: 1 / next(falls))
    row = replace(task, epochs=3).run(CPU)
    assert row["validation_score"] == row[curve][-1] == 1 / 3


def test_heads_and_backbones_of_two_seeds_differ_and_augmentation_is_of_every_epoch(recorded):
    one, other = (replace(LATENT, loss="fixed_etf", learning_rate=0.1, seed=seed) for seed in (0, 1))
    assert not torch.equal(one.head().class_vectors(), other.head().class_vectors())
    begun = recorded(models, "create")
    augmented = recorded(pod, "augment", lambda images, kind, epoch, *rest: epoch)
    for task in (one, other):
        replace(task, augment="shift_flip").run(CPU)
    assert augmented == [0, 1] * 2 and len({given[-1] for given in begun}) == 2


# --- ranking --------------------------------------------------------------------------------------------------


def test_a_rate_is_chosen_on_validation_images_and_the_result_is_of_the_test_set(recorded):
    judged = recorded(ranking, "average_precision", lambda scores, relevant: relevant.bool())
    task = replace(RANKING, seed=3)
    row = task.run(CPU)
    loaded = data.load("digits")
    labels, tested = (torch.from_numpy(y).long() for y in (loaded.y_train, loaded.y_test))
    train, validation = task.split(labels)
    held = labels[validation] == task.rare
    assert row["positives"] == (labels[train] == task.rare).sum()
    assert (
        len(judged) == 6 and all(torch.equal(one, held) for one in judged[:5]) and torch.equal(judged[5], tested == 3)
    )


def test_of_equal_rates_the_lowest_is_taken(monkeypatch):
    monkeypatch.setattr(ranking, "average_precision", lambda scores, relevant: 0.5)
    row = RANKING.run(CPU)
    assert row["chosen_rate"] == pytest.approx(3e-4)


# --- robust regression ----------------------------------------------------------------------------------------


def test_units_and_parts_of_robust_regression(monkeypatch):
    """Of a network that is wrong by a tenth in angle and two tenths to the right."""
    moved, shown = robust_regression.moved, []

    def spy(images, random):
        turned, truth = moved(images, random)
        shown.append((images, truth))
        return turned, truth

    monkeypatch.setattr(robust_regression, "moved", spy)
    monkeypatch.setattr(
        robust_regression, "outputs", lambda network, turned: shown[-1][1] + torch.tensor([-0.1, 0.2, 0.0])
    )
    row = REGRESSION.run(CPU)
    assert row["angle_error"] == pytest.approx(4.5, rel=1e-4)  # degrees: a tenth of 45
    assert row["shift_error"] == pytest.approx(0.2, rel=1e-4)  # pixels: two tenths of an eighth of 8
    assert row["bias"] == pytest.approx(0.1 / 3, rel=1e-3) and row["validation_score"] == pytest.approx(-0.1, rel=1e-4)
    loaded = data.load("digits")
    trained, held, tested = (images for images, _ in shown)
    assert torch.equal(tested, data.to_tensor(loaded.x_test)) and len(trained) + len(held) == len(loaded.x_train)
    both = torch.cat([trained, held]).flatten(1)
    assert torch.equal(both.sort(0).values, data.to_tensor(loaded.x_train).flatten(1).sort(0).values)


def test_every_part_of_robust_regression_is_moved_by_chances_of_its_own(recorded):
    asked = recorded(robust_regression, "generator", lambda purpose, seed: purpose)
    REGRESSION.run(CPU)
    assert len(asked) == len(set(asked)) == 6


# --- segmentation ---------------------------------------------------------------------------------------------


def test_parts_share_no_picture(monkeypatch):
    """Pictures that hold their own number, and whether they are of the test set."""

    def numbered(name):
        number = torch.arange(200, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 8, 8)
        return {test: torch.cat([number, torch.full_like(number, 255 * test)], 1) for test in (False, True)}

    monkeypatch.setattr(segmentation, "_pictures", numbered)
    monkeypatch.setattr(segmentation, "compose", lambda digits, backgrounds, share, random: (digits, digits))
    found = {
        part: replace(SEGMENTATION, seed=5).composed(part, count, CPU)[0]
        for part, count in (("train", 64), ("validation", 16), ("test", 40))
    }
    number = {part: set(images[:, 0, 0, 0].mul(255).round().int().tolist()) for part, images in found.items()}
    assert len(number["train"]) == 64 and len(number["validation"]) == 16 and not number["train"] & number["validation"]
    assert found["test"][:, 1].min() == 1 and found["train"][:, 1].max() == found["validation"][:, 1].max() == 0


def test_the_threshold_is_chosen_on_validation_images(monkeypatch):
    """Best at 0.15 to 0.25 there; on test images at 0.05 to 0.4, and nothing is above one half."""
    masks, composed = {}, segmentation.Segmentation.composed

    def spy(self, part, count, device):
        images, mask = composed(self, part, count, device)
        masks[len(images)] = (part, mask)
        return images, mask

    chances = {"validation": (0.3, 0.12), "test": (0.45, 0.03)}

    def known(network, inputs):
        part, mask = masks[len(inputs)]
        return torch.where(mask.bool(), *(torch.tensor(p).logit() for p in chances[part]))

    monkeypatch.setattr(segmentation.Segmentation, "composed", spy)
    monkeypatch.setattr(segmentation, "outputs", known)
    row = SEGMENTATION.run(CPU)
    assert row["chosen_threshold"] == 0.15 and row["iou"] == 0 and row["iou_at_chosen"] == 1
    chances["test"] = (0.9, 0.8)  # everything is marked
    row = SEGMENTATION.run(CPU)
    assert row["recall"] == 1 and row["precision"] == pytest.approx(row["iou"]) == pytest.approx(0.03, rel=0.1)


def test_pull_curves_begin_as_the_derivation_has_it():
    row = SEGMENTATION.run(CPU)
    assert row["foreground_pull_curve"][0] < 0.1 * row["background_pull_curve"][0]


# --- linear models --------------------------------------------------------------------------------------------


def test_penalty_and_step_are_chosen_on_held_out_labels(recorded):
    judged = recorded(rooted_linear, "accuracies", lambda weights, x, y: (x, y))
    went = recorded(rooted_linear, "descent", lambda rows, loss, steps, penalties: (rows, steps))
    LINEAR.run(CPU)
    (x, _), (x_test, y_test) = rooted_linear.examples("overlapping", 0)
    (held, _), (tested, labels) = judged
    assert torch.equal(tested, x_test) and torch.equal(labels, y_test) and len(held) == 50
    rows, steps = went[0]
    trained = {tuple(row.abs().tolist()) for row in rows}
    assert len(rows) == 150 and not trained & {tuple(row.abs().tolist()) for row in held}
    assert {tuple(row.abs().tolist()) for row in torch.cat([held, rows])} == {tuple(row.abs().tolist()) for row in x}
    curvature = rooted_linear.curvature(rooted_linear.margin_loss(LINEAR.loss))
    assert sorted(set(steps.tolist())) == pytest.approx([step / (4 * curvature) for step in rooted_linear.NOISE_STEPS])


def test_held_out_labels_are_turned_as_those_in_training_are(recorded):
    judged = recorded(rooted_linear, "accuracies", lambda weights, x, y: (x, y))
    replace(LINEAR, flips=0.4).run(CPU)
    (x, y), _ = rooted_linear.examples("overlapping", 0)
    label = {tuple(one.tolist()): sign for one, sign in zip(x, y.tolist(), strict=True)}
    turned = [label[tuple(one.tolist())] != sign for one, sign in zip(*judged[0], strict=True)]
    assert 0.2 < numpy.mean(turned) < 0.6


def test_a_noisy_problem_is_walked_for_its_iterations(monkeypatch):
    monkeypatch.setattr(rooted_linear, "NOISE_ITERATIONS", 7)
    asked, descent = [], rooted_linear.descent
    monkeypatch.setattr(rooted_linear, "descent", lambda *given: (asked.append(1) or pair for pair in descent(*given)))
    LINEAR.run(CPU)
    assert len(asked) == 8  # the beginning, and as many steps


def test_of_equals_the_larger_penalty_and_the_smaller_step(monkeypatch):
    monkeypatch.setattr(
        rooted_linear, "accuracies", lambda weights, x, y: torch.ones(len(weights), dtype=torch.float64)
    )
    row = replace(LINEAR, loss="logistic").run(CPU)
    assert (row["chosen_l2"], row["step"]) == (max(rooted_linear.PENALTIES), min(rooted_linear.NOISE_STEPS))


def test_outliers_lie_far_out_on_the_wrong_side(recorded):
    went = recorded(rooted_linear, "descent", lambda rows, *rest: rows)
    for outliers in (0, 6):
        replace(LINEAR, outliers=outliers).run(CPU)
    clean, spoilt = went
    moved = (clean != spoilt).any(1)
    assert moved.sum() == 6
    factor = torch.full((clean.shape[1],), -rooted_linear.LEVERAGE, dtype=torch.float64)
    factor[-1] = -1  # the constant is no coordinate
    torch.testing.assert_close(spoilt[moved], clean[moved] * factor)


def test_features_of_real_sets_have_a_deviation_of_one_in_training():
    for name in ("iris", "wine", "breast_cancer"):
        (x, _), _ = rooted_linear.examples(name, 0)
        torch.testing.assert_close(x[:, :-1].std(0), torch.ones(x.shape[1] - 1, dtype=torch.float64))


# --- the generator --------------------------------------------------------------------------------------------


class Maker(torch.nn.Module):
    latent = 2

    def __init__(self):
        super().__init__()
        self.grey = torch.nn.Parameter(torch.zeros(()))

    def forward(self, z, random):
        return self.grey.expand(len(z), 1, 2, 2)


class Critic(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def forward(self, images):
        return self.weight * images.mean((1, 2, 3))


def networks():
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    maker = Maker()
    return rooted_gan.Networks(maker, Critic(), AveragedModel(maker, multi_avg_fn=get_ema_multi_avg_fn(0.9)))


def test_the_critic_learns_what_is_real_and_the_generator_goes_there():
    made = networks()
    list(rooted_gan.fit(made, torch.ones(20, 1, 2, 2), FINE_TUNING, "fine-tuning"))
    assert made.critic.weight > 0.1 and made.generator.grey > 0.1 and 0 < made.average.module.grey < made.generator.grey


def test_the_penalty_counts_as_if_it_were_taken_at_every_step(monkeypatch):
    made, slopes = networks(), []
    monkeypatch.setattr(rooted_gan.style_gan, "gradient_penalty", lambda critic, images: critic.weight)
    monkeypatch.setattr(rooted_gan, "margin_loss", lambda spec: lambda margins: 0 * margins)
    made.critic.weight.register_hook(lambda slope: slopes.append(slope.item()))
    list(rooted_gan.fit(made, torch.ones(20, 1, 2, 2), replace(FINE_TUNING, gamma=3.0, steps=16), "fine-tuning"))
    assert sum(slopes) == pytest.approx(16 * 3.0 / 2)  # gamma / 2 a step


def test_the_lowest_margin_is_that_of_all_pieces(monkeypatch):
    fit = rooted_gan.fit

    def lower(*given):
        for (end, values), lowest in zip(fit(*given), (-5.0, -1.0), strict=False):
            yield end, values | {"lowest_margin": lowest}

    monkeypatch.setattr(rooted_gan, "fit", lower)
    assert replace(FINE_TUNING, steps=2, pieces=2).run(CPU)["lowest_margin"] == -5


def test_the_critic_pays_for_real_and_for_made_images():
    begin = replace(FINE_TUNING, steps=1, pieces=1)
    ((_, values),) = rooted_gan.fit(networks(), torch.ones(20, 1, 2, 2), begin, "fine-tuning")
    assert values["critic_loss"] == pytest.approx(2 * math.log(2))  # of margins of zero


def test_the_judge_of_generators_knows_its_classes():
    assert rooted_gan._judge("digits", "56789", 60, CPU).accuracy > 0.9


def test_pretraining_sees_none_of_the_classes_that_come_later(monkeypatch):
    seen = []
    monkeypatch.setattr(
        rooted_gan, "fit", lambda networks, images, task, phase: seen.append((phase, images)) or iter(())
    )
    rooted_gan._pretrained.cache_clear()
    rooted_gan._pretrained(FINE_TUNING, CPU)
    rooted_gan._pretrained.cache_clear()
    images, labels = rooted_gan._part("digits", "train")
    assert seen[0][0] == "pre-training" and torch.equal(seen[0][1], rooted_gan.to_signed(images[labels < 5]))


def test_the_average_makes_the_images_and_the_score_is_of_validation_images(recorded):
    maker, critic = style_gan.create("style_small", (1, 8, 8), 0)
    from torch.optim.swa_utils import AveragedModel

    both = rooted_gan.Networks(maker, critic, AveragedModel(maker))
    before = both.make(4, 0, CPU)
    with torch.no_grad():
        for parameter in maker.parameters():
            parameter.zero_()
    assert torch.equal(both.make(4, 0, CPU), before)
    judged = recorded(rooted_gan.Judge, "fid", lambda self, part, images: part)
    rooted_gan._judge.cache_clear()
    row = replace(FINE_TUNING, steps=2).run(CPU)
    assert judged[-1] == "validation" and set(judged[:-1]) == {"test"}
    judge = rooted_gan._judge("digits", "56789", 60, CPU)
    real = rooted_gan.select("digits", "validation", "56789")[:60]
    assert (
        torch.equal(judge.real["validation"], judge.features(real))
        and row["validation_score"] == -row["validation_fid"]
    )


def test_outputs_are_those_of_evaluation_whatever_the_network_was_in():
    network, images = torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.Dropout(0.5)).train(), torch.randn(50, 3)
    found = outputs(network, images)
    torch.testing.assert_close(found, images / math.sqrt(1 + 1e-5))
    assert network[0].num_batches_tracked == 0 and not found.requires_grad


@pytest.mark.parametrize(
    "task",
    [
        replace(DISTANCES, damage="gaussian", level=0.1, seed=7),
        replace(PERCEPTUAL, seed=7),
        replace(LATENT, epochs=1, seed=7),
        replace(RANKING, seed=7),
        replace(REGRESSION, corrupted=0.2, seed=7),
        replace(FINE_TUNING, pretraining_steps=4, steps=4, seed=7),
        replace(LINEAR, flips=0.1, seed=7),
        replace(SEGMENTATION, seed=7),
    ],
    ids=lambda task: type(task).__name__,
)
def test_every_source_of_chance_takes_the_seed_of_the_task(task, recorded):
    asked = [
        recorded(module, name, lambda purpose, seed, *rest: (purpose, seed))
        for module in (tasks, sys.modules[type(task).__module__], judges)
        for name in ("generator", "derived_seed")
        if hasattr(module, name)
    ]
    for kept in (judges.classifier, rooted_gan._pretrained):
        kept.cache_clear()
    tasks.row(task)
    fixed = {"test images"}  # the same for all seeds: images that are shown side by side, and the judge of generators
    if isinstance(task, rooted_gan.FineTuning):
        fixed |= {"split", "judge initialisation", "judge order"}
    assert {seed for calls in asked for purpose, seed in calls if purpose not in fixed} == {7}
