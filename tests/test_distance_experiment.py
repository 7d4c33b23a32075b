"""The experiment on distances between sets of images: each distance on cases with a known answer, runs, verdicts."""

import math
from dataclasses import replace

import numpy
import pytest
import torch
from torchmetrics.image.fid import FrechetInceptionDistance

from lossbook import data, judges, results, sweep
from lossbook.tasks import distances, row
from lossbook.tasks.distances import DISTANCES, LEVELS, Distances, Sample, fid, fourier_of_means, sinkhorn, sliced

DIGITS = dict(dataset="digits", model="cnn_small", images=120, classifier_size=500, epochs=4)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_fid_is_that_of_torchmetrics():
    class Features(torch.nn.Module):
        num_features = 12

        def forward(self, images):
            return images.flatten(1).double() / 255

    random = torch.Generator().manual_seed(0)
    x, y = (torch.randint(0, high, (80, 3, 2, 2), generator=random, dtype=torch.uint8) for high in (256, 200))
    metric = FrechetInceptionDistance(Features(), input_img_size=(3, 2, 2)).set_dtype(torch.float64)
    metric.update(x, real=True)
    metric.update(y, real=False)
    features = Features()
    assert fid(features(x), features(y)) == pytest.approx(metric.compute().item(), rel=1e-6)


@pytest.mark.parametrize("n", [50, 8])  # more and fewer points than dimensions
def test_fid_of_a_shift_is_its_square(n):
    x, shift = normal(n, 10), normal(10, seed=1)
    assert fid(x, x + shift) == pytest.approx(shift.square().sum().item(), rel=1e-9)
    assert fid(x, x) == pytest.approx(0, abs=1e-12)


def test_sliced_and_sinkhorn_of_a_shift():
    x, shift = normal(60, 10), normal(10, seed=1)
    length = shift.norm().item()
    assert sliced(x, x + shift, 0) == pytest.approx(length / math.sqrt(10), rel=0.1)  # 200 directions of a sphere
    assert sinkhorn(x, x + shift) == pytest.approx(length, rel=0.01)
    assert sliced(x, x, 0) == sinkhorn(x, x) == 0


def test_fourier_of_means_sees_neither_brightness_nor_what_leaves_the_mean_unchanged():
    x = normal(40, 3, 6, 6)
    assert fourier_of_means(x, x + 0.3) == pytest.approx(0, abs=1e-9)
    assert fourier_of_means(x, x.mean(0, keepdim=True)) == pytest.approx(0, abs=1e-9)
    assert fourier_of_means(x, x.roll(1, -1)) > 1e-3


@pytest.mark.parametrize("loss", DISTANCES)
def test_distances_are_symmetric_and_see_a_doubling_of_the_spread(loss):
    x, y = (Sample(normal(60, 1, 4, 4, seed=seed), normal(60, 5, seed=seed + 9)) for seed in (0, 1))
    measure = DISTANCES[loss]
    assert measure(x, y, 0) == pytest.approx(measure(y, x, 0), rel=0.05)  # of Sinkhorn, x sets the blur
    assert measure(x, Sample(2 * y.images, 2 * y.features), 0) > measure(x, y, 0) > 0


def test_the_same_configuration_gives_the_same_row():
    task = Distances(loss="fid", damage="gaussian", level=0.2, **DIGITS)
    first = row(task)
    distances.distance.cache_clear()
    distances._sample.cache_clear()
    judges.classifier.cache_clear()
    again = row(task)
    for name in ("value", "floor", "ratio", "expected_floor"):
        assert first[name] == again[name]


@pytest.mark.parametrize("loss", DISTANCES)
@pytest.mark.parametrize("damage", LEVELS)
def test_heavy_damage_to_digits_counts_more_than_light_damage(damage, loss):
    low, high = (
        row(Distances(loss=loss, damage=damage, level=float(level), **DIGITS))
        for level in (LEVELS[damage][0], LEVELS[damage][2 if damage == "missing" else -1])
    )
    assert low["floor"] == high["floor"] > 0
    assert high["ratio"] > max(low["ratio"], 1.05)


def test_the_sets_share_no_image_and_missing_classes_are_missing():
    loaded = data.load("digits")
    where = {
        image.tobytes(): (number, label)
        for number, (image, label) in enumerate(zip(loaded.x_train, loaded.y_train, strict=True))
    }
    task = Distances(loss="fid", damage="missing", level=4.0, **DIGITS)

    def found(task, part):
        images = task.sample(part).images.mul(255).round().to(torch.uint8)[:, 0].numpy()
        return [where[image.tobytes()] for image in images]

    undamaged = replace(task, damage="none", level=0.0)
    first, other, damaged = found(task, "first"), found(undamaged, "other"), found(task, "other")
    assert len(first) == len(other) == len(damaged) == 120
    assert not {number for number, _ in first} & {number for number, _ in other + damaged}
    assert len({label for _, label in other}) == 10 and len({label for _, label in damaged}) == 6


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(damage="gausian"), "Did you mean 'gaussian'"),
        (dict(images=900), "images=900"),
        (dict(damage="missing", level=2.5), r"level=2.5 .* allowed: a whole number in \[0, 9\]"),
        (dict(damage="missing", level=10.0), "level=10.0"),
        (dict(damage="gaussian", level=2000.0), r"level=2000.0 .* \[0, 1000\]"),
        (dict(level=1.0), "level=1.0"),
    ],
)
def test_refusals(changes, said):
    with pytest.raises(ValueError, match=said):
        Distances(loss="fid", **DIGITS | changes)


def test_more_images_than_some_classes_have_are_refused():
    with pytest.raises(ValueError, match="ask for fewer images or classes"):
        row(Distances(loss="fid", damage="missing", level=9.0, **DIGITS))


@pytest.mark.parametrize("profile", sweep.PROFILES)
def test_the_runs_of_every_profile_differ(profile):
    for dataset, model in sweep.pairs("distances", profile):
        plan = sweep.plan("distances", profile, dataset, model)
        assert not plan.tuning and len({task.hash for task in plan.grid}) == len(plan.grid)
        assert {task.loss for task in plan.grid} == set(DISTANCES)


@pytest.fixture(scope="module")
def published():
    """Geometric mean of the ratio to the floor and the ends of its interval, by data set, damage, level and loss."""
    rows = sweep.published("distances")
    if rows.empty:
        pytest.skip("no published table")
    groups = rows[rows["damage"] != "none"].groupby(["dataset", "damage", "level", "loss"])["ratio"]

    def summary(ratios):
        mean, half, n = results.interval(numpy.log(ratios))
        return {"mean": math.exp(mean), "low": math.exp(mean - half), "high": math.exp(mean + half), "n": n}

    table = groups.apply(summary).unstack()
    assert set(table.index.get_level_values("dataset")) == {"mnist", "cifar10"} and (table["n"] >= 5).all()
    return table


def test_verdict_features_see_every_damage(published):
    """The root of FID at the strongest level of each damage is more than twice its floor; where it begins to show."""
    low = published.xs("fid", level="loss")["low"]
    strongest = low.groupby(["dataset", "damage"]).last()
    assert len(strongest) == 6 and (strongest > 2).all()
    noticed = low[low > 1].reset_index("level").groupby(["dataset", "damage"])["level"].first()
    assert dict(noticed) == {
        ("cifar10", "blur"): 0.6, ("cifar10", "gaussian"): 0.02, ("cifar10", "missing"): 3,
        ("mnist", "blur"): 0.4, ("mnist", "gaussian"): 0.05, ("mnist", "missing"): 1,
    }  # fmt: skip


def test_verdict_transport_between_pixels_rewards_blur(published):
    """The Sinkhorn divergence of pixels falls below its floor under a blur of 0.6 and of 1 pixel, on both sets."""
    table = published.xs("sinkhorn_pixels", level="loss")
    for name in ("mnist", "cifar10"):
        for level in (0.6, 1.0):
            assert table.loc[(name, "blur", level), "high"] < 1


def test_verdict_mean_images_hide_blur_and_show_missing_digits(published):
    """The Fourier metric of mean images: blind to one pixel of blur on CIFAR10; one missing digit doubles it."""
    table = published.xs("fourier", level="loss")
    assert table.loc[[("cifar10", "blur", level) for level in (0.4, 0.6, 1.0)], "mean"].between(0.95, 1.05).all()
    assert table.loc[("mnist", "missing", 1.0), "low"] > 1.2


def test_verdict_one_missing_class_shows_on_mnist_and_hardly_on_cifar10(published):
    """On MNIST the root of FID lies furthest above its floor; on CIFAR10 the intervals of it and all others reach 1."""
    table = published["mean"].unstack()
    assert table.loc[("mnist", "missing", 1.0)].idxmax() == "fid"
    assert (published["low"].unstack().loc[("cifar10", "missing", 1.0)] < 1.01).all()


def test_verdict_the_floor_of_fid_is_its_bias():
    """FID itself, the square, lies within a fifth of what the formula for Gaussians predicts, at every size."""
    rows = sweep.published("distances")
    if rows.empty:
        pytest.skip("no published table")
    rows = rows[rows["loss"] == "fid"].drop_duplicates(["dataset", "images", "seed"])
    rows = rows.assign(measured=rows["floor"] ** 2, predicted=rows["expected_floor"] ** 2)
    floors = rows.groupby(["dataset", "images"])[["measured", "predicted"]].mean()
    share = floors["measured"] / floors["predicted"]
    for name, low, high in (("mnist", 0.86, 1.07), ("cifar10", 1.07, 1.27)):
        assert set(floors.loc[name].index) == {250, 500, 1000, 2000, 4000} and share[name].between(low, high).all()
        measured = floors.loc[name, "measured"]
        assert 0.2 < measured[4000] / measured[1000] < 0.3  # four times as many images, a quarter
