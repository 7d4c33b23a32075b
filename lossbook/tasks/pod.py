"""Classifying by distances to fixed centroids: the heads of `losses.hypersphere` on one backbone, judged side by side.

A backbone gives D features an image, a head makes a loss and a decision of them. What is compared: class vectors that
are learned or sit on a fixed simplex; cross-entropy, the squared cosine, the norm-adaptive cosine and losses with a
margin; the decorrelation term off, on, and a hundred times as strong; the schedules of delta. All heads meet the same
images in the same order, on the same initial backbone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lossbook import data, models
from lossbook.checks import check_fields
from lossbook.losses import hypersphere, parse
from lossbook.tasks import TUNING_SEED, Runs, Task, epochs, outputs
from lossbook.training import PROBE, Config, Split, arithmetic, augment, derived_seed, generator, precision, prepare

DEFAULT = ("digits", "mlp")
PAPER = (
    ("fashion_mnist", "mlp"),
    ("mnist", "mlp"),
    ("mnist", "cnn_small"),
    ("fashion_mnist", "cnn_small"),
    ("cifar10", "cnn_small"),
    ("cifar10", "resnet18"),
    ("cifar100", "resnet18"),
    ("cifar10", "densenet121"),
)
BACKBONES = ("mlp", "cnn_small", "cnn8", "resnet18", "densenet121")
DEEP = ("resnet18", "densenet121")
LOSSES = (
    "cross_entropy",
    "fixed_etf",
    "fixed_etf(centroids='learned')",
    "squared_cosine",
    "squared_cosine(centroids='learned')",
    "pod",
    "pod(decorrelation=0.0)",
    "pod(decorrelation=100.0)",
    "pod(delta='zero')",
    "pod(delta='norm')",
    "am_softmax",
    "arcface",
    "pedcc",
    "center",
    "sphereface",
    "cot",
)
SMOKE = ("cross_entropy", "squared_cosine", "pod")
QUICK = (*SMOKE, "squared_cosine(centroids='learned')", "pod(decorrelation=0.0)")
FEW = (*SMOKE, "fixed_etf", "pod(decorrelation=0.0)", "pod(delta='norm')", "am_softmax", "pedcc")
RATES = (0.00125, 0.005, 0.02, 0.08, 0.32, 1.28)
MEASURES = ("within_class", "within_class_direction", "equiangular", "simplex", "mean_norm")


@dataclass(frozen=True, kw_only=True)
class Latent(Task):
    """A backbone and a head on its features, trained together by SGD with momentum 0.9.

    dataset        one of `data.NAMES`
    model          the backbone, one of BACKBONES
    loss           the spec of a head of `hypersphere.HEADS`; "pod" grows its delta to the norm over the epochs of the
                   run, alpha = 1/epochs, unless the spec gives an alpha
    learning_rate  at the start, from where it falls to zero along a cosine
    dim            D, the number of features
    weight_decay   coupled L2, of backbone and head
    epochs         passes over the training images
    batch_size     images a step; the last, smaller batch of an epoch is dropped
    mode           "exact" or "fast", the arithmetic of the backbone; heads are in float32 always
    augment        of the training images, as in `training.Config`
    """

    dim: int = 64
    weight_decay: float = 5e-4
    epochs: int = 10
    batch_size: int = 64
    mode: str = "exact"
    augment: str = "none"

    def __post_init__(self):
        super().__post_init__()
        names = dict(dataset=data.NAMES, model=BACKBONES)
        check_fields(self, names, dict(batch_size="[2, inf)"))  # the decorrelation needs two
        self.config()
        self.head()

    def config(self) -> Config:
        """The settings that this run shares with every classifier: data, split, batches, arithmetic."""
        shared = ("dataset", "model", "augment", "weight_decay", "epochs", "batch_size", "mode", "seed")
        return Config(**{name: getattr(self, name) for name in shared})

    def head(self) -> hypersphere.Head:
        """The head, its weights and the rotation of its centroids from the seed. ValueError for a spec not allowed."""
        classes = len(data.SETS[self.dataset].classes)
        made = hypersphere.head(self.loss, classes, self.dim, derived_seed("head", self.seed))
        if isinstance(made, hypersphere.Pod) and "alpha" not in parse(self.loss)[1]:
            made.alpha = 1 / self.epochs
        return made

    def run(self, device: torch.device) -> dict[str, object]:
        """test_accuracy after the last epoch, and curves with a value an epoch.

        train_loss, validation_accuracy (the last is the validation_score), and of the features of training images that
        stay the same all along: `hypersphere.neural_collapse`, its within_class of the directions ẑ too, and mean_norm.
        """
        with arithmetic(self.mode, device):
            return self._train(prepare(self.config(), device), device)

    def _train(self, split: Split, device: torch.device) -> dict[str, object]:
        images, labels, seen = split.images, split.labels, split.images
        shape, initial = split.dataset.input_shape, derived_seed("initialisation", self.seed)
        network = models.create(self.model, shape, self.dim, initial)
        network = network.to(device, memory_format=models.memory_format(self.model, device))
        head = self.head().to(device)
        weights = [*network.parameters(), *head.parameters()]
        optimiser = torch.optim.SGD(
            weights, lr=self.learning_rate, momentum=0.9, weight_decay=self.weight_decay, fused=True
        )
        probe = split.train[:PROBE]
        order, random = generator("order", self.seed), generator("augmentation", self.seed)
        if self.augment != "none":
            seen = torch.empty_like(images)
        curves = {name: [] for name in ("train_loss", "validation_accuracy", *MEASURES)}

        def loss(batch: Tensor) -> Tensor:
            with precision(self.mode, device):
                features = network(seen.index_select(0, batch))
            return head(features.float(), labels[batch])

        training = epochs(network, optimiser, split.train, self.batch_size, self.epochs, order, loss)
        for epoch in range(self.epochs):
            if self.augment != "none":
                augment(images, self.augment, epoch, random, seen)
            mean_loss = next(training)
            head.end_epoch()
            curves["train_loss"].append(mean_loss)
            probed = self.features(network, images[probe])
            # The loss is that before the last step, which may itself go too far; the δ of some heads follows the norm.
            if not math.isfinite(mean_loss + getattr(head, "delta", 0.0) + probed.norm(dim=1).mean().item()):
                return {"status": "diverged", "validation_score": math.nan, "test_accuracy": math.nan}
            found = self.features(network, images[split.validation])
            curves["validation_accuracy"].append(accuracy(head, found, labels[split.validation]))
            measures = collapse(probed, labels[probe], head.num_classes)
            for name in MEASURES:
                curves[name].append(measures[name])
        return {
            "test_accuracy": accuracy(head, self.features(network, split.test), split.test_labels),
            "validation_score": curves["validation_accuracy"][-1],
            **{f"{name}_curve": values for name, values in curves.items()},
        }

    def features(self, network: nn.Module, images: Tensor) -> Tensor:
        """Features (n, D) of images (n, channels, height, width), in evaluation mode and float32."""
        with precision(self.mode, images.device):
            return outputs(network, images).float()


@torch.no_grad()
def accuracy(head: hypersphere.Head, features: Tensor, labels: Tensor) -> float:
    """Share of the features (n, D) that the head gives their label (n,)."""
    return (head.predict(features) == labels).double().mean().item()


def collapse(features: Tensor, labels: Tensor, num_classes: int) -> dict[str, float]:
    """MEASURES of features (n, D) with labels (n,)."""
    directions = hypersphere.neural_collapse(hypersphere.direction(features), labels, num_classes)
    return {
        **hypersphere.neural_collapse(features, labels, num_classes),
        "within_class_direction": directions["within_class"],
        "mean_norm": features.norm(dim=1).mean().item(),
    }


def runs(profile: str, dataset: str, model: str) -> Runs:
    """Every head with every seed, its learning rate chosen among the same ones on validation data."""
    losses, seeds, rates, recipe = LOSSES, range(5), RATES, dict(epochs=6, batch_size=256, mode="fast")
    if profile == "smoke":
        losses, seeds, rates, recipe = SMOKE, range(2), (0.08, 0.32), dict(epochs=2)
    elif profile == "quick":
        losses, seeds, rates = QUICK, range(3), (0.08, 0.32)
    if dataset == "digits":
        recipe = dict(epochs={"smoke": 2, "quick": 4, "paper": 8}[profile])
    elif model in DEEP and profile == "paper":
        losses, seeds = FEW, range(3)
        recipe = dict(epochs=15, batch_size=128, mode="fast", dim=128, augment="shift_flip")
    elif dataset == "cifar100":
        recipe["dim"] = 128  # at least C - 1
    first = [Latent(dataset=dataset, model=model, loss=loss, learning_rate=rates[0], **recipe) for loss in losses]
    return Runs(
        tuple(replace(task, seed=seed) for seed in seeds for task in first),
        tuple(replace(task, learning_rate=rate, seed=TUNING_SEED) for rate in rates for task in first),
    )
