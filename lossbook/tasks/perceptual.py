"""Sharpening small images with pixel and perceptual losses, judged by PSNR, SSIM and a classifier.

Images are made smaller by averaging blocks of pixels, and a small network learns to undo it. The features of the
perceptual loss come from a classifier that is trained here. The judge is a second classifier, from other initial
weights, so that no loss is judged by the network that it was trained with.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from lossbook import data
from lossbook.checks import check_fields, check_name, check_range
from lossbook.judges import classifier, training_order
from lossbook.losses.perceptual import PerceptualLoss, feature_distance
from lossbook.seeding import seeded
from lossbook.tasks import TUNING_SEED, Runs, Task, epochs
from lossbook.training import derived_seed, generator

DEFAULT = ("digits", "cnn_small")
PAPER = (("fashion_mnist", "cnn_small"), ("cifar10", "cnn_small"))
LOSSES = ("pixel", "perceptual", "both")
LAYERS = ("2", "5")  # of cnn_small: what its two convolutions give, after the ReLU
WIDTH = 32  # channels of the network that restores
VALIDATION = 200  # images of the training set that choose the learning rate
PICTURES = 6  # test images that a row keeps


@dataclass(frozen=True, kw_only=True)
class Perceptual(Task):
    """A network that enlarges images, trained by Adam with a rate that falls to zero along a cosine.

    model               the classifiers; `cnn_small`
    loss                "pixel": the mean squared error; "perceptual": features after both convolutions;
                        "both": their sum, the second weighted so that at the start the terms are equal
    factor              by which the sides of an image shrink; they must be multiples of it
    train_size          images to learn from
    epochs, batch_size  of that; the last, smaller batch of an epoch is dropped
    test_size           images of the test set, drawn once and for all seeds
    classifier_size     training images of the classifiers, those of train_size among them
    classifier_epochs   passes over them
    """

    factor: int = 4
    train_size: int = 5000
    epochs: int = 4
    batch_size: int = 32
    test_size: int = 1000
    classifier_size: int = 10000
    classifier_epochs: int = 5

    def __post_init__(self):
        super().__post_init__()
        check_fields(
            self,
            dict(dataset=data.NAMES, model=("cnn_small",), loss=LOSSES),
            dict(batch_size="[1, inf)", epochs="[1, inf)", classifier_epochs="[1, inf)"),
        )
        spec = data.SETS[self.dataset]
        if self.factor < 2 or any(side % self.factor for side in spec.input_shape[1:]):
            raise ValueError(
                f"factor={self.factor} was given for images of {spec.input_shape[1:]}; allowed: a divisor from 2"
            )
        for name, limit in (("train_size", self.classifier_size), ("test_size", spec.test)):
            least = self.batch_size if name == "train_size" else PICTURES
            check_range(name, getattr(self, name), f"[{least}, {limit}]")
        check_range("classifier_size", self.classifier_size, f"[128, {spec.train - VALIDATION}]")

    def run(self, device: torch.device) -> dict[str, object]:
        """On the test set, for restored images and, as `interpolated_...`, for those of bicubic interpolation:

        psnr, ssim    mean over images; decibels, and at most 1
        accuracy      of the judge, in [0, 1]; `original_accuracy` on the images themselves
        judge_error   perceptual loss with the judge's features
        sharpness     mean size of the differences between neighbouring pixels, in units of that of the originals
        validation_score is minus the loss itself on validation images: rates of one loss are compared, never losses.
        low, restored, original are uint8 pictures of the first of these test images, flat.
        """
        loaded, mean, std = data.load_with_statistics(self.dataset)
        order = training_order(self.dataset, self.seed)
        picked = (loaded.x_train[order[: self.train_size]], loaded.x_train[order[-VALIDATION:]])
        train, validation = (data.to_tensor(images).to(device) for images in picked)
        # drawn once, the same for every seed: in some sets the test images lie sorted by class
        shown = torch.randperm(len(loaded.y_test), generator=generator("test images", 0))[: self.test_size]
        test = data.to_tensor(loaded.x_test[shown]).to(device)
        labels = torch.from_numpy(loaded.y_test[shown]).long().to(device)
        seen, judge = (
            PerceptualLoss(self._classifier(purpose, device), LAYERS, mean=mean, std=std).to(device)
            for purpose in ("features", "judge")
        )
        shrunk = functools.partial(F.avg_pool2d, kernel_size=self.factor)
        criterion = self._criterion(seen, train[:VALIDATION], shrunk)
        network = self._trained(criterion, train, shrunk(train))
        with torch.no_grad():
            validation_loss = criterion(network(shrunk(validation)), validation).mean().item()
            if not math.isfinite(validation_loss):
                return {"status": "diverged", "validation_score": math.nan}
            restored = network(shrunk(test)).clamp(0, 1)
            judged = functools.partial(
                judgement, original=test, labels=labels, judge=judge, classify=self._classifier("judge", device)
            )
            rough = judged(interpolated(shrunk(test), self.factor).clamp(0, 1))
            found, same = judged(restored), judged(test)
        return {
            "validation_score": -validation_loss,
            **found,
            **{f"interpolated_{name}": value for name, value in rough.items()},
            "original_accuracy": same["accuracy"],
            "low": picture(shrunk(test)),
            "restored": picture(restored),
            "original": picture(test),
        }

    def _classifier(self, purpose: str, device: torch.device) -> nn.Module:
        return classifier(
            self.dataset, self.model, purpose, self.seed, self.classifier_size, self.classifier_epochs, 1e-3, device
        )

    def _criterion(
        self, perceptual: PerceptualLoss, some: Tensor, shrunk: Callable[[Tensor], Tensor]
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """The loss of images against images, (B,). `some` images, interpolated, weight the terms of "both"."""
        if self.loss == "both":
            with torch.no_grad():
                rough = interpolated(shrunk(some), self.factor)
                weight = feature_distance(rough, some).mean() / perceptual(rough, some).mean()
            return lambda x, y: feature_distance(x, y) + weight * perceptual(x, y)
        return {"pixel": feature_distance, "perceptual": perceptual}[self.loss]

    def _trained(self, criterion: Callable[[Tensor, Tensor], Tensor], images: Tensor, low: Tensor) -> nn.Module:
        with seeded(derived_seed("initialisation", self.seed)):
            network = Upscaler(images.shape[1], self.factor).to(images.device)
        optimiser = torch.optim.Adam(network.parameters(), self.learning_rate)
        everything, order = torch.arange(len(images), device=images.device), generator("order", self.seed)
        list(epochs(network, optimiser, everything, self.batch_size, self.epochs, order,
                    lambda batch: criterion(network(low[batch]), images[batch]).mean()))  # fmt: skip
        return network


class Upscaler(nn.Module):
    """Bicubic interpolation, and what three convolutions on the small image add to it; at the start that is nothing."""

    def __init__(self, channels: int, factor: int):
        super().__init__()
        self.factor = factor
        last = nn.Conv2d(WIDTH, channels * factor**2, 3, padding=1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.added = nn.Sequential(
            nn.Conv2d(channels, WIDTH, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
            nn.ReLU(),
            last,
            nn.PixelShuffle(factor),
        )

    def forward(self, low: Tensor) -> Tensor:
        """Images (B, channels, height, width), both sides enlarged; values may leave [0, 1]."""
        return interpolated(low, self.factor) + self.added(low)


def interpolated(low: Tensor, factor: int) -> Tensor:
    """Images enlarged by bicubic interpolation; values may leave [0, 1]."""
    return F.interpolate(low, scale_factor=factor, mode="bicubic", align_corners=False)


def judgement(
    images: Tensor, original: Tensor, labels: Tensor, judge: PerceptualLoss, classify: nn.Module
) -> dict[str, float]:
    """How images (n, channels, height, width) in [0, 1] compare with the originals: see `Perceptual.run`."""
    # The window of the published index spans 11 pixels; images of 8 are given one of 5.
    sigma = 1.5 if min(images.shape[-2:]) > 16 else 0.5
    logits = classify((images - judge.mean) / judge.std)
    return {
        "psnr": peak_signal_noise_ratio(images, original, data_range=1.0, dim=(1, 2, 3)).item(),
        "ssim": structural_similarity_index_measure(images, original, sigma=sigma, data_range=1.0).item(),
        "accuracy": (logits.argmax(1) == labels).double().mean().item(),
        "judge_error": judge(images, original).mean().item(),
        "sharpness": (roughness(images) / roughness(original)).item(),
    }


def roughness(images: Tensor) -> Tensor:
    """Mean size of the differences between pixels that lie side by side or one above the other."""
    return (images.diff(dim=-1).abs().mean() + images.diff(dim=-2).abs().mean()) / 2


def picture(images: Tensor) -> list[int]:
    """The first images as bytes, flat, in the order (PICTURES, channels, height, width)."""
    return images[:PICTURES].mul(255).round().to(torch.uint8).flatten().tolist()


def runs(profile: str, dataset: str, model: str) -> Runs:
    """Every loss, each at the best of as many learning rates."""
    check_name("dataset", dataset, data.NAMES)
    seeds, rates, recipe = range(5), (1e-3, 3e-3, 1e-2), {}
    if dataset == "digits":
        recipe = dict(factor=2, train_size=600, test_size=200, classifier_size=1000, classifier_epochs=6)
    elif profile != "paper":
        recipe = dict(train_size=2000, test_size=500, classifier_size=4000)
    if profile != "paper":
        seeds, rates = range(3), rates[1:]
    if profile == "smoke":
        seeds, recipe = range(2), recipe | dict(epochs=1, classifier_epochs=2)
    first = [Perceptual(dataset=dataset, model=model, loss=loss, learning_rate=rates[0], **recipe) for loss in LOSSES]
    tuning = [replace(task, learning_rate=rate, seed=TUNING_SEED) for rate in rates for task in first]
    return Runs(tuple(replace(task, seed=seed) for seed in seeds for task in first), tuple(tuning))
