"""Reading how far a digit is turned and shifted, from training targets of which a share is grossly wrong.

Every image is turned about its centre and shifted by amounts drawn once. A network with three outputs is to recover
them: angle, shift to the right, shift downwards, each in units of its greatest value. Wrong targets are one-sided, as
those of a sensor that saturates: in all three outputs 2 to 6 units are added. The test targets are true.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from lossbook import data, losses, models
from lossbook.checks import check_fields
from lossbook.losses import regression
from lossbook.tasks import TUNING_SEED, Runs, Task, check_network, epochs, outputs
from lossbook.training import derived_seed, generator

DEFAULT = ("digits", "mlp")
PAPER = (("mnist", "mlp"), ("mnist", "cnn_small"))
GREATEST_ANGLE = 45.0  # degrees, to either side
GREATEST_SHIFT = 1 / 8  # of the width of the image, to either side
VALIDATION_SHARE = 0.2


def huber(prediction: Tensor, target: Tensor) -> Tensor:
    """Huber's loss with δ = 1.345 MAD of the batch, held constant, for each output: value (batch,)."""
    error = prediction - target
    delta = 1.345 * regression.mad(error).detach()
    clipped = error.clamp(-delta, delta)
    return (clipped * (error - clipped / 2)).sum(-1)


def tukey_held(prediction: Tensor, target: Tensor) -> Tensor:
    """Tukey's biweight with the MAD of the batch held constant: value (batch,)."""
    return losses.tukey(prediction, target, scale=regression.mad(prediction - target).detach())


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "squared": lambda prediction, target: F.mse_loss(prediction, target, reduction="none").sum(-1),
    "absolute": lambda prediction, target: F.l1_loss(prediction, target, reduction="none").sum(-1),
    "huber": huber,
    "tukey": losses.tukey,
    "tukey_held": tukey_held,
}


@dataclass(frozen=True, kw_only=True)
class RobustRegression(Task):
    """A network trained to read angle and shift, a share of its training targets wrong.

    loss        one of `LOSSES`; "tukey" is differentiated through its scale, "tukey_held" holds it constant
    corrupted   share of wrong training targets, in [0, 0.5)
    views       turned and shifted copies of each image
    epochs      passes over all copies
    batch_size  copies a step; the last, smaller batch of an epoch is dropped
    """

    corrupted: float = 0.0
    views: int = 4
    epochs: int = 20
    batch_size: int = 128

    def __post_init__(self):
        super().__post_init__()
        check_fields(
            self,
            dict(dataset=data.SETS, loss=LOSSES),
            dict(corrupted="[0, 0.5)", views="[1, inf)", epochs="[1, inf)", batch_size="[2, inf)"),
        )
        check_network(self.model, self.dataset)

    def run(self, device: torch.device) -> dict[str, object]:
        """angle_error (degrees) and shift_error (pixels): mean absolute angle and mean distance, on the test set.

        validation_score is minus the mean absolute error of all outputs, in their units, on held-out true targets.
        """
        images, test = _images(self.dataset, device)
        order = torch.randperm(len(images), generator=generator("split", self.seed))
        held, kept = order.to(device).tensor_split([round(VALIDATION_SHARE * len(images))])
        inputs, targets = moved(images[kept].repeat(self.views, 1, 1, 1), generator("training motion", self.seed))
        if len(inputs) < self.batch_size:
            raise ValueError(f"batch_size={self.batch_size} was given for {len(inputs)} copies; give a smaller one")
        given, wrong = corrupt(targets, self.corrupted, generator("corruption", self.seed))

        initial, shape = derived_seed("initialisation", self.seed), data.SETS[self.dataset].input_shape
        network = models.create(self.model, shape, 3, initial).to(device)
        optimiser = torch.optim.Adam(network.parameters(), lr=self.learning_rate, fused=True)
        everything, order = torch.arange(len(inputs), device=device), generator("order", self.seed)
        list(epochs(network, optimiser, everything, self.batch_size, self.epochs, order,
                    lambda batch: LOSSES[self.loss](network(inputs[batch]), given[batch]).mean()))  # fmt: skip

        errors = []
        for part, purpose in ((images[held], "validation motion"), (test, "test motion")):
            turned, truth = moved(part, generator(purpose, self.seed))
            errors.append(outputs(network, turned) - truth)
        validation, tested = errors
        if not (validation.isfinite().all() and tested.isfinite().all()):
            return {"status": "diverged", "validation_score": math.nan}
        return {
            "validation_score": -validation.abs().mean().item(),
            "angle_error": GREATEST_ANGLE * tested[:, 0].abs().mean().item(),
            "shift_error": GREATEST_SHIFT * shape[-1] * tested[:, 1:].norm(dim=1).mean().item(),
            "bias": tested.mean().item(),
            "wrong_targets": int(wrong.sum()),
            "copies": len(inputs),
        }


@functools.lru_cache(maxsize=2)
def _images(name: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Training and test images, with values in [0, 1]."""
    loaded = data.load(name)
    return tuple(data.to_tensor(x).to(device) for x in (loaded.x_train, loaded.x_test))


def moved(images: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images (n, channels, height, width) turned and shifted, and by how much: targets (n, 3) in [-1, 1].

    The targets are the angle (anticlockwise, in units of `GREATEST_ANGLE`) and the shifts of the content to the right
    and downwards (in units of `GREATEST_SHIFT` of the width). What leaves the frame is lost; what enters is 0.
    """
    targets = (2 * torch.rand(len(images), 3, generator=random) - 1).to(images.device)
    angle = math.radians(GREATEST_ANGLE) * targets[:, 0]
    cos, sin = angle.cos(), angle.sin()
    # affine_grid says where each output pixel is taken from, x to the right and y downwards, the frame from -1 to 1:
    # first the shift is undone, then the turn.
    shift = 2 * GREATEST_SHIFT * targets[:, 1:]
    undo = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)
    matrix = torch.cat([undo, -undo @ shift[:, :, None]], 2)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False), targets


def corrupt(targets: Tensor, share: float, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Targets (n, outputs) of which round(share · n) rows are raised by 2 to 6 units, and which (n,).

    The order of the rows and the amounts do not depend on the share: a larger share corrupts the same rows, and more.
    """
    order = torch.randperm(len(targets), generator=random)
    amount = (2 + 4 * torch.rand(targets.shape, generator=random)).to(targets.device)
    wrong = torch.zeros(len(targets), dtype=torch.bool)
    wrong[order[: round(share * len(targets))]] = True
    wrong = wrong.to(targets.device)
    return torch.where(wrong[:, None], targets + amount, targets), wrong


def runs(profile: str, dataset: str, model: str) -> Runs:
    """Every loss at every share; each chooses among the same learning rates, on clean targets."""
    shares, seeds, rates, recipe = (0.0, 0.1, 0.2, 0.3, 0.4), range(5), (3e-4, 1e-3, 3e-3, 1e-2), {}
    if profile == "smoke":
        shares, seeds, rates, recipe = (0.0, 0.3), range(2), (1e-3,), dict(epochs=2, views=1)
    elif profile == "quick":
        shares, seeds, rates, recipe = (0.0, 0.4), range(3), rates[2:], dict(epochs=5, views=1, batch_size=64)
    else:
        recipe = dict(epochs=10, views=2, batch_size=256)
    common = dict(dataset=dataset, model=model, learning_rate=rates[0], **recipe)
    first = [RobustRegression(loss=loss, **common) for loss in LOSSES]
    tuning = [replace(task, learning_rate=rate, seed=TUNING_SEED) for rate in rates for task in first]
    grid = [replace(task, corrupted=share, seed=seed) for seed in seeds for share in shares for task in first]
    return Runs(tuple(grid), tuple(tuning) if len(rates) > 1 else ())
