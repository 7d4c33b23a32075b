"""What distances between two sets of images see: noise, blur, and classes that are missing.

Two disjoint sets of real images are drawn, one of them is damaged, and a distance is taken. The same distance without
damage is not zero either, because the sets are finite: that floor is what the distance has to rise above.

Every distance is a length: FID and the Sinkhorn divergence, which are squares, enter by their root.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lossbook import data, noise
from lossbook.checks import check_fields, check_name, check_range
from lossbook.judges import classifier, expected_fid, fid, training_order
from lossbook.losses.spectral import fourier_distance
from lossbook.tasks import Runs, Task
from lossbook.training import derived_seed, generator

DEFAULT = ("digits", "cnn_small")
PAPER = (("mnist", "cnn_small"), ("cifar10", "cnn_small"))
LEVELS = {
    "gaussian": (0.02, 0.05, 0.1, 0.2, 0.4),  # standard deviation, of images with values in [0, 1]
    "blur": (0.4, 0.6, 1.0, 2.0),  # standard deviation in pixels
    "missing": (1, 3, 5, 7),  # classes
}
PROJECTIONS = 200  # of the sliced distance
SUBSAMPLE = 500  # images of each set that the Sinkhorn divergence compares: its cost grows with their square
BLUR = 0.1  # of the Sinkhorn divergence, in units of the root mean square distance within the first set


@dataclass(frozen=True)
class Sample:
    """A set of images: `images` (n, channels, height, width) in [0, 1], and the `features` (n, d) of a classifier."""

    images: Tensor
    features: Tensor

    @property
    def pixels(self) -> Tensor:
        return self.images.flatten(1)


def sliced(x: Tensor, y: Tensor, seed: int) -> float:
    """Sliced 2-Wasserstein distance of two sets of points (n, d), by POT."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python reports backslashes in POT's docstrings when it first compiles them
        import ot
    seed = derived_seed("projections", seed) % 2**32
    return float(ot.sliced_wasserstein_distance(x.numpy(), y.numpy(), n_projections=PROJECTIONS, seed=seed))


def sinkhorn(x: Tensor, y: Tensor) -> float:
    """Root of the debiased Sinkhorn divergence of the first points (n, d) of two sets, by geomloss.

    geomloss takes half the squared distance as the cost, so twice its value tends to W2² as the blur goes to zero.
    """
    import geomloss

    x, y = x[:SUBSAMPLE].double(), y[:SUBSAMPLE].double()
    blur = BLUR * math.sqrt(2 * x.var(0).sum().item())
    divergence = geomloss.SamplesLoss("sinkhorn", p=2, blur=blur, backend="tensorized")(x, y).item()
    return math.sqrt(max(0.0, 2 * divergence))


def fourier_of_means(x: Tensor, y: Tensor) -> float:
    """Fourier metric of order one between the mean images of two sets (n, channels, height, width).

    Root of the mean of its squares over the channels. The mean brightness is not seen: its frequency is zero.
    """
    return fourier_distance(x.double().mean(0), y.double().mean(0), dims=2).square().mean().sqrt().item()


DISTANCES: dict[str, Callable[[Sample, Sample, int], float]] = {
    "fid": lambda x, y, seed: math.sqrt(fid(x.features, y.features)),
    "sliced_features": lambda x, y, seed: sliced(x.features, y.features, seed),
    "sinkhorn_features": lambda x, y, seed: sinkhorn(x.features, y.features),
    "sliced_pixels": lambda x, y, seed: sliced(x.pixels, y.pixels, seed),
    "sinkhorn_pixels": lambda x, y, seed: sinkhorn(x.pixels, y.pixels),
    "fourier": lambda x, y, seed: fourier_of_means(x.images, y.images),
}


@dataclass(frozen=True, kw_only=True)
class Distances(Task):
    """One distance between two disjoint sets of training images that the classifier has not seen, one of them damaged.

    model            the classifier whose last hidden layer gives the features: "mlp" or "cnn_small"
    loss             one of `DISTANCES`
    learning_rate    of the classifier
    damage           "none", "gaussian" or "blur", as in `noise.corrupt_images`, or "missing"
    level            of the damage, 0 without; for "missing" the number of classes left out, which the seed draws
    images           of each set; where classes are missing, others fill their place
    classifier_size  training images of the classifier
    epochs           passes over them
    """

    learning_rate: float = 1e-3
    damage: str = "none"
    level: float = 0.0
    images: int = 2000
    classifier_size: int = 10000
    epochs: int = 5

    def __post_init__(self):
        super().__post_init__()
        check_fields(
            self,
            dict(dataset=data.NAMES, model=("mlp", "cnn_small"), loss=DISTANCES, damage=("none", *LEVELS)),
            dict(epochs="[1, inf)"),
        )
        spec = data.SETS[self.dataset]
        levels = noise.LEVELS | {"none": "[0, 0]", "missing": f"[0, {len(spec.classes) - 1}]"}
        check_range("level", self.level, levels[self.damage])
        if self.damage == "missing" and not self.level.is_integer():
            raise ValueError(
                f"level={self.level} was given for missing classes; allowed: a whole number in {levels['missing']}"
            )
        check_range("classifier_size", self.classifier_size, f"[128, {spec.train - 4}]")
        check_range("images", self.images, f"[2, {(spec.train - self.classifier_size) // 2}]")

    def run(self, device: torch.device) -> dict[str, object]:
        """value of the distance, its floor (the same without damage) and their ratio.

        expected_floor is what the formula for Gaussians predicts of the floor; NaN for all but "fid".
        """
        value, floor = distance(self), distance(replace(self, damage="none", level=0.0))
        expected = math.nan
        if self.loss == "fid":
            features = self.sample("first").features.double()
            expected = math.sqrt(expected_fid(torch.cov(features.T), self.images, self.images))
        return {"value": value, "floor": floor, "ratio": value / floor, "expected_floor": expected}

    def sample(self, part: str) -> Sample:
        """The "first" set, or the "other" one with the damage done."""
        damage = {} if part == "other" else dict(damage="none", level=0.0)
        return _sample(replace(self, loss="fid", **damage), part)


@functools.lru_cache(maxsize=64)
def distance(task: Distances) -> float:
    """The distance of the two sets of a task. Kept, because the same floor belongs to many levels of damage."""
    return DISTANCES[task.loss](task.sample("first"), task.sample("other"), task.seed)


@functools.lru_cache(maxsize=4)
def _sample(task: Distances, part: str) -> Sample:
    """A set of a task, whatever its distance; kept, because all distances share it."""
    loaded, mean, std = data.load_with_statistics(task.dataset)
    unseen = training_order(task.dataset, task.seed)[task.classifier_size :]
    chosen = unseen[: task.images] if part == "first" else unseen[task.images :]
    if task.damage == "missing":
        left_out = torch.randperm(loaded.num_classes, generator=generator("missing", task.seed))[: int(task.level)]
        kept = ~torch.isin(torch.from_numpy(loaded.y_train[chosen]), left_out)
        if kept.sum() < task.images:
            raise ValueError(
                f"{task.dataset}: {task.images} images without {int(task.level)} classes were asked for and "
                f"{kept.sum()} are there; ask for fewer images or classes"
            )
        chosen = chosen[kept]
    images = data.to_tensor(loaded.x_train[chosen[: task.images]])
    if task.damage in noise.IMAGE_KINDS:
        images = noise.corrupt_images(images, task.damage, task.level, generator("damage", task.seed))
    network = classifier(
        task.dataset, task.model, "features", task.seed, task.classifier_size, task.epochs, task.learning_rate,
        torch.device("cpu"),
    )  # fmt: skip
    with torch.no_grad():
        return Sample(images, network[:-1](data.standardise(images, mean, std)))


def runs(profile: str, dataset: str, model: str) -> Runs:
    """Every distance for every damage; FID's floor for several sizes of the sets. Nothing is tuned."""
    check_name("dataset", dataset, data.NAMES)
    levels, seeds, recipe, sizes = dict(LEVELS), range(5), {}, (250, 500, 1000, 4000)
    if profile != "paper" or dataset == "digits":
        recipe = dict(images=500, classifier_size=4000)
        seeds, sizes = range(3), (250, 1000)
        if dataset == "digits":
            recipe, sizes = dict(images=200, classifier_size=500, epochs=20), (100, 400)
            levels |= {"missing": LEVELS["missing"][:-1]}  # there are too few digits to leave out seven classes
    if profile == "quick":
        levels = {damage: values[::2] for damage, values in levels.items()}
    if profile == "smoke":
        levels = {damage: values[-1:] for damage, values in levels.items()}
        seeds, recipe, sizes = range(2), recipe | dict(epochs=2), sizes[:1]
    first = [Distances(dataset=dataset, model=model, loss=loss, **recipe) for loss in DISTANCES]
    settings = [(damage, float(level)) for damage, values in levels.items() for level in values]
    grid = [
        replace(task, seed=seed, damage=damage, level=level)
        for seed in seeds
        for damage, level in settings
        for task in first
    ]
    grid += [replace(first[0], seed=seed, images=size) for seed in seeds for size in (*sizes, first[0].images)]
    return Runs(tuple(grid))
