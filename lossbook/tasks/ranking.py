"""Finding a rare class: losses that rank against losses that classify, judged by average precision.

One class of an image set is relevant and thinned to a given share of the training images; all others are not. Seed k
takes class k modulo the number of classes, so that no one class decides. A run chooses its own learning rate: it trains
one network for each, from the same initial weights and on the same batches, and keeps the one of the best average
precision on validation images. These and the test set are not thinned.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossbook import data, losses, models
from lossbook.checks import check_fields, check_range
from lossbook.tasks import Runs, Task, check_network, epochs, outputs
from lossbook.training import derived_seed, generator

DEFAULT = ("digits", "mlp")
PAPER = (("fashion_mnist", "mlp"), ("cifar10", "cnn_small"))
# The losses by name; `balance` is the number of irrelevant training images for each relevant one.
LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "cross_entropy": lambda scores, relevant, balance: F.binary_cross_entropy_with_logits(scores, relevant),
    "balanced_cross_entropy": lambda scores, relevant, balance: (
        (1 + balance) / (2 * balance) * F.binary_cross_entropy_with_logits(scores, relevant, pos_weight=balance)
    ),
    "average_precision_hinge": lambda scores, relevant, balance: losses.average_precision_hinge(scores, relevant),
    "ndcg_hinge": lambda scores, relevant, balance: losses.ndcg_hinge(scores, relevant),
}
RATES = (1.0, 3.0, 10.0, 30.0, 100.0)  # learning rates tried, in units of the lowest
VALIDATION_SHARE = 0.2  # of the training images, before the class is thinned


@dataclass(frozen=True, kw_only=True)
class Ranking(Task):
    """Networks with one output, trained to score images of the rare class above all others.

    loss           one of `LOSSES`
    learning_rate  the lowest of those tried, which are `factors` times this; each falls to zero along a cosine
    share          of the rare class among the training images, in (0, 0.1] and at most one in as many as there are
                   classes, which is all of its images
    epochs         passes over the thinned training images
    batch_size     images a step, drawn without regard to their class; the last, smaller batch of an epoch is dropped
    """

    learning_rate: float = 3e-4
    factors: tuple[float, ...] = RATES
    share: float = 0.05
    epochs: int = 10
    batch_size: int = 512

    def __post_init__(self):
        super().__post_init__()
        check_fields(self, dict(dataset=data.NAMES, loss=LOSSES), dict(epochs="[1, inf)", batch_size="[2, inf)"))
        check_range("share", self.share, f"(0, {_largest_share(self.dataset)}]")
        check_network(self.model, self.dataset)
        if not isinstance(self.factors, list | tuple) or not self.factors:
            raise ValueError(f"factors={self.factors!r} was given; allowed: a list of numbers, one at least")
        for factor in self.factors:
            check_range("factors", factor, "(0, inf)")
        object.__setattr__(self, "factors", tuple(map(float, self.factors)))

    @property
    def rare(self) -> int:
        """The class that is relevant."""
        return self.seed % len(data.SETS[self.dataset].classes)

    def run(self, device: torch.device) -> dict[str, object]:
        """average_precision and ndcg on the test set of the network that validation chose, and its chosen_rate.

        validation_score is its average precision there; validation_scores has a value for each rate tried.
        """
        images, labels, test, test_labels = _tensors(self.dataset, device)
        train, validation = (part.to(device) for part in self.split(labels.cpu()))
        if len(train) < self.batch_size:
            raise ValueError(
                f"batch_size={self.batch_size} was given for {len(train)} training images; give a smaller one"
            )
        relevant = (labels == self.rare).float()
        rates = [self.learning_rate * factor for factor in self.factors]
        networks = [self.trained(rate, images, relevant, train) for rate in rates]
        scores = [
            average_precision(outputs(network, images[validation]).squeeze(1), relevant[validation])
            for network in networks
        ]
        best = max(range(len(rates)), key=lambda k: (scores[k], -k))
        if scores[best] < 0:
            return {"status": "diverged", "validation_score": math.nan, "validation_scores": scores}
        found, wanted = outputs(networks[best], test).squeeze(1), test_labels == self.rare
        return {
            "validation_score": scores[best],
            "validation_scores": scores,
            "chosen_rate": rates[best],
            "average_precision": average_precision(found, wanted),
            "ndcg": ndcg(found, wanted),
            "rare_class": data.SETS[self.dataset].classes[self.rare],
            "positives": int(relevant[train].sum()),
            "train_images": len(train),
        }

    def split(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Positions of the training images, the rare class thinned, and of the validation images, among all (N,)."""
        random = generator("split", self.seed)
        validation, train = torch.randperm(len(labels), generator=random).tensor_split(
            [round(VALIDATION_SHARE * len(labels))]
        )
        rare = labels[train] == self.rare
        others = train[~rare]
        return torch.cat([others, train[rare][: round(self.share / (1 - self.share) * len(others))]]), validation

    def trained(self, rate: float, images: Tensor, relevant: Tensor, train: Tensor) -> nn.Module:
        """A network trained on the images at the positions `train`, by Adam."""
        criterion, balance = LOSSES[self.loss], len(train) / relevant[train].sum() - 1
        shape, initial = data.SETS[self.dataset].input_shape, derived_seed("initialisation", self.seed)
        network = models.create(self.model, shape, 1, initial).to(images.device)
        optimiser = torch.optim.Adam(network.parameters(), lr=rate, fused=True)
        order = generator("order", self.seed)
        list(epochs(network, optimiser, train, self.batch_size, self.epochs, order,
                    lambda batch: criterion(network(images[batch]).squeeze(1), relevant[batch], balance)))  # fmt: skip
        return network


def _largest_share(dataset: str) -> float:
    """Of a class among the training images: a tenth, or all of its images where there are fewer."""
    return min(0.1, 1 / len(data.spec(dataset).classes))


@functools.lru_cache(maxsize=2)
def _tensors(name: str, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images, standardised, and labels; test images and labels. Kept on the device between runs."""
    loaded, mean, std = data.load_with_statistics(name)
    images, test = (data.standardise(x, mean, std).to(device) for x in (loaded.x_train, loaded.x_test))
    labels, test_labels = (torch.from_numpy(y).long().to(device) for y in (loaded.y_train, loaded.y_test))
    return images, labels, test, test_labels


def average_precision(scores: Tensor, relevant: Tensor) -> float:
    """Average precision of scores (n,), by scikit-learn; -1 where a score is not finite."""
    from sklearn.metrics import average_precision_score

    if not scores.isfinite().all():
        return -1.0
    return float(average_precision_score(relevant.cpu().numpy().astype(bool), scores.cpu().numpy()))


def ndcg(scores: Tensor, relevant: Tensor) -> float:
    """NDCG of finite scores (n,), by scikit-learn."""
    from sklearn.metrics import ndcg_score

    return float(ndcg_score(relevant.cpu().numpy()[None].astype(float), scores.cpu().numpy()[None]))


def runs(profile: str, dataset: str, model: str) -> Runs:
    """Every loss at every share. The runs choose their learning rates themselves, so there is no tuning before them."""
    shares, seeds, recipe = (0.01, 0.05, 0.1), range(10), {}
    if profile == "smoke":
        shares, seeds, recipe = (0.05,), range(2), dict(epochs=2, batch_size=256)
    elif profile == "quick":
        shares, seeds, recipe = (0.01,), range(4), dict(epochs=4)
        if dataset == "digits":
            recipe = dict(factors=RATES[::2], epochs=8, batch_size=256)
    elif dataset == "cifar10":  # what a CPU carries
        shares, seeds, recipe = (0.01,), range(5), dict(epochs=4)
    shares = dict.fromkeys(min(share, _largest_share(dataset)) for share in shares)
    recipe |= dict(dataset=dataset, model=model)
    cells = itertools.product(seeds, shares, LOSSES)
    return Runs(tuple(Ranking(loss=loss, share=share, seed=seed, **recipe) for seed, share, loss in cells))
