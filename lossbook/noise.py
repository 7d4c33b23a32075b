"""Noise on labels and on images, drawn from a generator of its own.

Label noise is a transition matrix T with T[y, z] = P(noisy label z | true label y). Every kind has the form
T = (1 - rate) I + rate M, and the kinds differ only in M. The conventions and their traps (does a symmetric
flip exclude the true class? which classes does asymmetric noise touch?) are parameters here, never implied.
"""

import math

import numpy
import torch

from lossbook.checks import check_name, check_range, check_whole
from lossbook.data import CHUNK

LABEL_KINDS = ("none", "symmetric", "uniform", "pair", "ring", "asymmetric")
# The levels of each kind of noise on images; beyond 1000 nothing is left to change.
LEVELS = {"none": "[0, inf)", "gaussian": "[0, 1000]", "salt_pepper": "[0, 1]", "blur": "[0, 1000]"}
IMAGE_KINDS = tuple(LEVELS)
DRAWN_IMAGE_KINDS = ("gaussian", "salt_pepper")  # by a generator; the others are the same for every seed

# The superclass of each fine class of CIFAR-100, in the order of the fine labels.
CIFAR100_COARSE = (
    *(4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11, 6, 11, 5, 10, 7),
    *(6, 13, 15, 3, 15, 0, 11, 1, 10, 12, 14, 16, 9, 11, 5, 5, 19, 8, 8, 15, 13, 14, 17, 18, 10),
    *(16, 4, 17, 4, 2, 0, 17, 4, 18, 17, 10, 3, 2, 12, 12, 16, 12, 1, 9, 19, 2, 10, 0, 1, 16),
    *(12, 9, 13, 15, 13, 16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0, 17, 8, 14, 13),
)


def _next_in_superclass() -> dict[int, int]:
    successor = {}
    for coarse in range(20):
        members = [fine for fine, group in enumerate(CIFAR100_COARSE) if group == coarse]
        successor |= dict(zip(members, members[1:] + members[:1], strict=True))
    return successor


_MNIST_MAP = {7: 1, 2: 7, 5: 6, 6: 5, 3: 8}
# The standard asymmetric maps: a class that is not named keeps its label.
ASYMMETRIC_MAPS = {
    "digits": _MNIST_MAP,
    "mnist": _MNIST_MAP,
    # boot -> sneaker, sneaker -> sandal, pullover -> shirt, coat <-> dress
    "fashion_mnist": {9: 7, 7: 5, 2: 6, 4: 3, 3: 4},
    # truck -> automobile, bird -> airplane, deer -> horse, cat <-> dog
    "cifar10": {9: 1, 2: 0, 4: 7, 3: 5, 5: 3},
    "cifar100": _next_in_superclass(),
}


def transition_matrix(kind: str, rate: float, num_classes: int, dataset: str | None = None) -> torch.Tensor:
    """The matrix T[y, z] = P(noisy label z | true label y), float64, `(num_classes, num_classes)`.

    `kind`, with the share of labels that change where the classes are balanced:

    - `none`: T = I, whatever the rate; 0.
    - `symmetric`: to one of the *other* K-1 classes, all alike; `rate`.
    - `uniform`: drawn anew from *all* K classes, the true one among them; `rate` (1 - 1/K).
    - `pair`: to the next class, circularly; `rate`.
    - `ring`: to the class before or after, circularly, half each; `rate`.
    - `asymmetric`: along `ASYMMETRIC_MAPS[dataset]`; `rate` times the share of classes in the map,
      which is one half for the sets of ten classes and one for CIFAR-100.

    `rate` lies in [0, 1]; `num_classes` is at least 2; `dataset` is read by `asymmetric` alone.
    ValueError otherwise, and for a set that has no standard asymmetric map.
    """
    check_name("label noise", kind, LABEL_KINDS)
    check_range("rate of label noise", rate, "[0, 1]")
    check_whole("num_classes of label noise", num_classes, "[2, inf)")
    identity = torch.eye(num_classes, dtype=torch.float64)
    if kind == "none":
        return identity
    if kind == "symmetric":
        moved = (1 - identity) / (num_classes - 1)
    elif kind == "uniform":
        moved = torch.full_like(identity, 1 / num_classes)
    elif kind == "pair":
        moved = identity.roll(1, dims=1)
    elif kind == "ring":
        moved = (identity.roll(1, dims=1) + identity.roll(-1, dims=1)) / 2
    else:
        moved = identity[_asymmetric_targets(num_classes, dataset)]
    return (1 - rate) * identity + rate * moved


def _asymmetric_targets(num_classes: int, dataset: str | None) -> list[int]:
    if dataset not in ASYMMETRIC_MAPS:
        others = ", ".join(kind for kind in LABEL_KINDS if kind != "asymmetric")
        raise ValueError(
            f"no standard map for asymmetric label noise on the data set {dataset!r}; "
            f"maps exist for {', '.join(ASYMMETRIC_MAPS)}; kinds that work on every set: {others}"
        )
    expected = 100 if dataset == "cifar100" else 10
    if num_classes != expected:
        raise ValueError(f"the asymmetric map of {dataset} has {expected} classes, got {num_classes}")
    return [ASYMMETRIC_MAPS[dataset].get(label, label) for label in range(num_classes)]


def flip_labels(
    labels: torch.Tensor | numpy.ndarray,
    kind: str,
    rate: float,
    num_classes: int,
    generator: torch.Generator,
    dataset: str | None = None,
) -> torch.Tensor:
    """Draw a noisy label for each label, independently, from its row of `transition_matrix`.

    `labels` are integers `(n,)` from 0 to `num_classes` - 1; returns a new tensor, int64 `(n,)`, on
    their device. All randomness comes from `generator`: the same seed gives the same noise, whatever was
    drawn elsewhere. The draws are independent, so the realised rate scatters about the given one.
    """
    matrix = transition_matrix(kind, rate, num_classes, dataset)
    labels = _labels(labels, num_classes)
    if kind == "none" or rate == 0 or not len(labels):
        return labels
    rows = matrix.to(generator.device)[labels.to(generator.device)]
    return torch.multinomial(rows, 1, generator=generator).squeeze(1).to(labels.device)


def _labels(labels: torch.Tensor | numpy.ndarray, num_classes: int) -> torch.Tensor:
    """Checked labels as a new int64 tensor."""
    labels = labels.clone() if isinstance(labels, torch.Tensor) else torch.tensor(labels)
    if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"labels must be integers (n,), got {labels.dtype} of shape {tuple(labels.shape)}")
    labels = labels.long()
    if len(labels):
        low, high = labels.min().item(), labels.max().item()
        if low < 0 or high >= num_classes:
            raise ValueError(f"labels must lie in 0 to {num_classes - 1}, got {low} to {high}")
    return labels


def corrupt_images(images: torch.Tensor, kind: str, level: float, generator: torch.Generator | None) -> torch.Tensor:
    """Images with noise: a new tensor of the same shape, dtype and device, values in [0, 1].

    `images` are float NCHW in [0, 1]. `kind`, with the meaning of `level`:

    - `none`: unchanged, whatever the level.
    - `gaussian`: independent normal noise on each value, `level` its standard deviation in units of the
      full intensity range, then clipped to [0, 1]; clipping makes the realised deviation smaller.
    - `salt_pepper`: each pixel, all its channels together, is set to 0 or to 1, each with probability
      `level` / 2; level in [0, 1].
    - `blur`: Gaussian of standard deviation `level` pixels, truncated at ceil(3 `level`) pixels. The
      borders are reflected, so it is also truncated at one pixel less than the shorter side: on 8x8 images
      this bites above level 7/3. No randomness: `generator` may be None.
    """
    check_name("image noise", kind, IMAGE_KINDS)
    check_range(f"level of image noise, {kind}", level, LEVELS[kind])
    if not images.is_floating_point() or images.ndim != 4 or not images.numel():
        raise ValueError(f"images must be float, NCHW, not empty, got {images.dtype} of {tuple(images.shape)}")
    if not (images.min() >= 0 and images.max() <= 1):
        raise ValueError(
            f"images must lie in [0, 1], got {images.min():g} to {images.max():g}; add the noise before standardising"
        )
    noisy = images.clone()
    if kind == "none" or level == 0:
        return noisy
    for chunk in noisy.split(CHUNK):
        _CORRUPT[kind](chunk, level, generator)
    return noisy


def _gaussian(chunk: torch.Tensor, level: float, generator: torch.Generator) -> None:
    normal = torch.randn(chunk.shape, generator=generator, device=generator.device)
    chunk.add_(normal.to(chunk), alpha=level).clamp_(0, 1)


def _salt_pepper(chunk: torch.Tensor, level: float, generator: torch.Generator) -> None:
    n, _, height, width = chunk.shape
    u = torch.rand((n, 1, height, width), generator=generator, device=generator.device).to(chunk.device)
    chunk.masked_fill_(u < level / 2, 0).masked_fill_(u >= 1 - level / 2, 1)


def _blur(chunk: torch.Tensor, level: float, generator: None) -> None:
    from torchvision.transforms.v2.functional import gaussian_blur

    radius = min(math.ceil(3 * level), min(chunk.shape[-2:]) - 1)
    # Below a deviation of 0.01 pixels the kernel is the identity in every dtype; much smaller ones underflow.
    chunk.copy_(gaussian_blur(chunk, [2 * radius + 1] * 2, [max(level, 0.01)] * 2)).clamp_(0, 1)


_CORRUPT = {"gaussian": _gaussian, "salt_pepper": _salt_pepper, "blur": _blur}
