"""What experiments judge images with: classifiers that are trained here, and the FID that chance alone gives."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossbook import data, models
from lossbook.tasks import batches, one_epoch
from lossbook.training import derived_seed, generator

BATCH = 128


def training_order(name: str, seed: int) -> Tensor:
    """Positions of the training images, shuffled: classifiers learn from the first, what is held out are the last."""
    return torch.randperm(data.SETS[name].train, generator=generator("split", seed))


@functools.lru_cache(maxsize=4)
def classifier(
    name: str, model: str, purpose: str, seed: int, size: int, epochs: int, learning_rate: float, device: torch.device
) -> nn.Module:
    """A frozen network that was trained to classify the first `size` images of the data set's `training_order`.

    purpose  makes another of it: other initial weights, and another order of the batches
    It takes images standardised by `data.load_with_statistics`, (B, channels, height, width).
    """
    loaded, mean, std = data.load_with_statistics(name)
    order = training_order(name, seed)[:size]
    images = data.standardise(loaded.x_train[order], mean, std).to(device)
    labels = torch.from_numpy(loaded.y_train[order]).long().to(device)
    initial = derived_seed(f"{purpose} initialisation", seed)
    network = models.create(model, loaded.input_shape, loaded.num_classes, initial).to(device)
    optimiser = torch.optim.Adam(network.parameters(), learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, len(images) // BATCH * epochs)
    everything, random = torch.arange(len(images), device=device), generator(f"{purpose} order", seed)
    for _ in range(epochs):
        one_epoch(
            network, schedule, batches(everything, BATCH, random),
            lambda batch: F.cross_entropy(network(images[batch]), labels[batch]),
        )  # fmt: skip
    return network.eval().requires_grad_(False)


def expected_fid(covariance: Tensor, n: int, m: int) -> float:
    """What FID comes to, to first order, for two samples of n and m from one Gaussian: it is not zero.

    With eigenvalues λ of the covariance: (1/n + 1/m) / 2 (2 Σ_i λ_i + Σ_i λ_i / 2 + Σ_ij λ_i λ_j / (λ_i + λ_j)).
    The first sum is the means' share. For the unit matrix and n = m this is (2d + d (d + 1) / 2) / n.
    """
    values = torch.linalg.eigvalsh(covariance).clamp_min(0)
    pairs = torch.outer(values, values) / (values[:, None] + values).clamp_min(torch.finfo(values.dtype).tiny)
    return ((1 / n + 1 / m) / 2 * (2.5 * values.sum() + pairs.sum())).item()
