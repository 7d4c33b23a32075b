"""What experiments judge images with: classifiers that are trained here, and the FID that chance alone gives."""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossbook import data, models
from lossbook.tasks import epochs
from lossbook.training import derived_seed, generator

BATCH = 128


def training_order(name: str, seed: int) -> Tensor:
    """Positions of the training images, shuffled: classifiers learn from the first, what is held out are the last."""
    return torch.randperm(data.SETS[name].train, generator=generator("split", seed))


@functools.lru_cache(maxsize=4)
def classifier(
    name: str, model: str, purpose: str, seed: int, size: int, count: int, learning_rate: float, device: torch.device
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
    everything, order = torch.arange(len(images), device=device), generator(f"{purpose} order", seed)
    list(epochs(network, optimiser, everything, BATCH, count, order,
                lambda batch: F.cross_entropy(network(images[batch]), labels[batch]), counted=False))  # fmt: skip
    return network.eval().requires_grad_(False)


def fid(x: Tensor, y: Tensor) -> float:
    """‖μ1 - μ2‖² + tr(Σ1 + Σ2 - 2 (Σ1 Σ2)^{1/2}) of two sets of features (n, d).

    With the centred sets X = Q1 R1 √(n-1) and Y alike, Σ1 = R1ᵀ R1, and the trace of the root is the sum of the
    singular values of R1 R2ᵀ. torchmetrics takes roots of the eigenvalues of Σ1 Σ2, which rounding makes negative where
    there are fewer points than features: a set of 100 is then -3e-6 from itself. A test compares the two elsewhere.
    """
    x, y = x.double(), y.double()
    r1, r2 = (torch.linalg.qr(z - z.mean(0), mode="r").R / math.sqrt(len(z) - 1) for z in (x, y))
    overlap = torch.linalg.svdvals(r1 @ r2.T).sum()
    squared = (x.mean(0) - y.mean(0)).square().sum() + r1.square().sum() + r2.square().sum() - 2 * overlap
    return squared.clamp_min(0).item()


def expected_fid(covariance: Tensor, n: int, m: int) -> float:
    """What FID comes to, to first order, for two samples of n and m from one Gaussian: it is not zero.

    With eigenvalues λ of the covariance: (1/n + 1/m) / 2 (2 Σ_i λ_i + Σ_i λ_i / 2 + Σ_ij λ_i λ_j / (λ_i + λ_j)).
    The first sum is the means' share. For the unit matrix and n = m this is (2d + d (d + 1) / 2) / n.
    """
    values = torch.linalg.eigvalsh(covariance).clamp_min(0)
    pairs = torch.outer(values, values) / (values[:, None] + values).clamp_min(torch.finfo(values.dtype).tiny)
    return ((1 / n + 1 / m) / 2 * (2.5 * values.sum() + pairs.sum())).item()
