"""The experiment on perceptual losses: the judge, the network that restores, runs, verdicts."""

import math
from dataclasses import replace

import numpy
import pytest
import torch
import torch.nn.functional as F

from lossbook import data, judges, models, results, sweep
from lossbook.losses.perceptual import PerceptualLoss
from lossbook.tasks import row
from lossbook.tasks.perceptual import LAYERS, LOSSES, PICTURES, Perceptual, Upscaler, interpolated, judgement, roughness
from lossbook.training import generator

TINY = dict(
    dataset="digits", model="cnn_small", learning_rate=1e-2, factor=2, train_size=400, epochs=2, test_size=100,
    classifier_size=500, classifier_epochs=3,
)  # fmt: skip
JUDGED = ("psnr", "ssim", "accuracy", "judge_error", "sharpness")


def some_images(n=20, channels=1, size=8):
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(0))


def judged(images, original):
    network = models.create("cnn_small", tuple(original.shape[1:]), 10, 0).eval()
    channels = original.shape[1]
    judge = PerceptualLoss(network, LAYERS, mean=(0.5,) * channels, std=(0.25,) * channels)
    labels = network((original - 0.5) / 0.25).argmax(1)
    with torch.no_grad():
        return judgement(images, original, labels, judge, network)


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 32)])
def test_the_judge_of_equal_images(channels, size):
    images = some_images(channels=channels, size=size)
    found = judged(images, images)
    assert found.pop("psnr") == math.inf
    assert found == pytest.approx({"ssim": 1, "accuracy": 1, "judge_error": 0, "sharpness": 1}, abs=1e-6)


@pytest.mark.parametrize(("size", "sigma", "span"), [(32, 1.5, 11), (8, 0.5, 5)])
def test_ssim_from_its_definition(size, sigma, span):
    """Wang et al. 2004, with the published window where it fits the images, which are reflected at their border."""
    x, y = some_images(size=size), some_images(size=size).roll(1, 0)
    bell = torch.exp(-(torch.linspace(-(span // 2), span // 2, span) ** 2) / (2 * sigma**2))
    window = torch.outer(bell, bell)[None, None] / bell.sum() ** 2
    a, b, aa, bb, ab = (
        F.conv2d(F.pad(z, [span // 2] * 4, mode="reflect"), window) for z in (x, y, x * x, y * y, x * y)
    )
    light = (2 * a * b + 0.01**2) / (a**2 + b**2 + 0.01**2)
    structure = (2 * (ab - a * b) + 0.03**2) / (aa - a**2 + bb - b**2 + 0.03**2)
    assert judged(x, y)["ssim"] == pytest.approx((light * structure).mean().item(), abs=1e-4)


def test_psnr_of_an_offset_and_sharpness_of_half_the_contrast():
    images = some_images()
    assert judged(images + 0.1, images)["psnr"] == pytest.approx(20, abs=1e-3)  # -10 log10 0.1²
    assert judged(images / 2, images)["sharpness"] == pytest.approx(0.5)
    board = (torch.arange(8)[:, None] + torch.arange(8)) % 2
    assert roughness(board.float()[None, None]) == 1
    slope = torch.tensor([0.0, 0.3, 0.6]).expand(1, 1, 3, 3)  # one direction is as good as the other
    assert roughness(slope).item() == pytest.approx(0.15) == roughness(slope.mT).item()


@pytest.mark.parametrize("factor", [2, 4])
def test_the_network_begins_with_bicubic_interpolation(factor):
    low = some_images(channels=3)
    torch.testing.assert_close(Upscaler(3, factor)(low), interpolated(low, factor))
    assert interpolated(low, factor).shape == (20, 3, 8 * factor, 8 * factor)
    grey = torch.full((1, 3, 8, 8), 0.4)
    torch.testing.assert_close(interpolated(grey, factor), torch.full((1, 3, 8 * factor, 8 * factor), 0.4))


def test_both_terms_weigh_the_same_at_the_start():
    images, task = some_images(), Perceptual(loss="both", **TINY)
    shrunk = lambda x: F.avg_pool2d(x, 2)  # noqa: E731
    network = PerceptualLoss(models.create("cnn_small", (1, 8, 8), 10, 0), LAYERS, mean=(0.5,), std=(0.25,))
    rough = interpolated(shrunk(images), 2)
    pixel, both = (
        replace(task, loss=loss)._criterion(network, images, shrunk)(rough, images).mean().item()
        for loss in ("pixel", "both")
    )
    assert both == pytest.approx(2 * pixel, rel=1e-5)


def test_the_same_configuration_gives_the_same_row():
    task = Perceptual(loss="both", **TINY)
    first = row(task)
    judges.classifier.cache_clear()
    again = row(task)
    for name in (*JUDGED, "validation_score", "restored"):
        assert first[name] == again[name]


def test_training_gains_on_interpolation_and_the_pictures_are_those_judged():
    found = {loss: row(replace(Perceptual(loss="pixel", **TINY), loss=loss)) for loss in LOSSES}
    for loss, one in found.items():
        assert one["status"] == "done" and one["psnr"] > one["interpolated_psnr"], loss
        assert {name: one[f"interpolated_{name}"] for name in JUDGED} == {
            name: found["pixel"][f"interpolated_{name}"] for name in JUDGED
        }
    every = data.load("digits").x_test
    original = every[torch.randperm(len(every), generator=generator("test images", 0))[:PICTURES]]
    assert found["pixel"]["original"] == original.flatten().tolist()
    restored = numpy.reshape(found["pixel"]["restored"], original.shape) / 255.0
    errors = ((restored - original / 255.0) ** 2).mean((1, 2))
    assert abs((-10 * numpy.log10(errors)).mean() - found["pixel"]["psnr"]) < 3  # six images of the hundred


def test_a_loss_that_turns_infinite_is_recorded():
    found = row(Perceptual(loss="pixel", **TINY | dict(learning_rate=1e20)))
    assert found["status"] == "diverged" and math.isnan(found["validation_score"])


def test_refusals():
    with pytest.raises(ValueError, match="Did you mean 'perceptual'"):
        Perceptual(loss="perceptal", **TINY)
    with pytest.raises(ValueError, match="factor=3"):
        Perceptual(loss="pixel", **TINY | dict(factor=3))
    with pytest.raises(ValueError, match="train_size=600"):
        Perceptual(loss="pixel", **TINY | dict(train_size=600))
    with pytest.raises(ValueError, match="test_size=400"):
        Perceptual(loss="pixel", **TINY | dict(test_size=400))


@pytest.mark.parametrize("profile", sweep.PROFILES)
def test_every_loss_has_the_same_budget_in_every_profile(profile):
    for dataset, model in sweep.pairs("perceptual", profile):
        plan = sweep.plan("perceptual", profile, dataset, model)
        rates = [{task.learning_rate for task in plan.tuning if task.loss == loss} for loss in LOSSES]
        assert rates[0] == rates[1] == rates[2] and len(rates[0]) > 1
        assert not {task.seed for task in plan.tuning} & {task.seed for task in plan.grid}
        assert len({task.hash for task in plan.grid}) == len(plan.grid)


@pytest.fixture(scope="module")
def published():
    return sweep.published("perceptual")


def of_features(published, score):
    """Paired differences of each loss to pixels in a score, by data set and loss."""
    return results.paired_differences(published, "pixel", ["dataset"], value=score).set_index(["dataset", "loss"])


def test_published_runs_are_whole(published):
    assert (published.groupby(["dataset", "loss"])["seed"].nunique() >= 3).all()
    assert set(published["dataset"]) == {"fashion_mnist", "cifar10"} and (published["status"] == "done").all()


def test_verdict_features_cost_psnr_and_buy_sharpness(published):
    psnr, sharpness = of_features(published, "psnr"), of_features(published, "sharpness")
    for name in ("fashion_mnist", "cifar10"):
        cost, gain = psnr.loc[(name, "perceptual")], sharpness.loc[(name, "perceptual")]
        assert cost["difference"] + cost["half_width"] < -0.4 and cost["p_holm"] < 0.05
        assert gain["difference"] - gain["half_width"] > 0.1 and gain["p_holm"] < 0.05
    means = published.pivot_table(index="dataset", columns="loss", values="sharpness")
    assert (means["pixel"] < 0.7).all()
    assert means.loc["cifar10", "perceptual"] > 1 > 0.9 > means.loc["fashion_mnist", "perceptual"]


def test_verdict_a_second_network_sees_no_gain(published):
    accuracy, error = of_features(published, "accuracy"), of_features(published, "judge_error")
    assert (accuracy["p_holm"] > 0.05).all()
    there = error.xs("perceptual", level="loss")["difference"]
    assert (there > 0).all()
    assert error.loc[("cifar10", "perceptual"), "p_holm"] < 0.05


def test_verdict_both_terms_cost_next_to_nothing(published):
    psnr, sharpness = (of_features(published, score).xs("both", level="loss") for score in ("psnr", "sharpness"))
    assert (psnr["difference"].abs() + psnr["half_width"] < 0.11).all() and psnr["difference"].between(-0.1, 0).all()
    assert psnr.loc["cifar10", "p_holm"] < 0.05 < psnr.loc["fashion_mnist", "p_holm"]
    assert (sharpness["difference"] > sharpness["half_width"]).all() and (sharpness["p_holm"] < 0.05).all()
