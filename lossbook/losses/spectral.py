"""The Fourier loss (arXiv 2102.02979) and the Fourier-based metric it comes from.

u is the difference of two distributions on a grid of M points, U its unnormalised discrete Fourier transform:

    L = (1/M) Σ_{k≠0} |U_k|² / m(k)^{2s}

The symbol m(k) says how a frequency is measured. The loss is the square of the metric, which is sqrt(L).
`lossbook.symbolic.fourier_loss` derives what is stated here.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import numbers
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType

import numpy
import torch
from torch import Tensor
from torch.nn._reduction import get_enum

from lossbook.checks import check_name, check_range, check_whole
from lossbook.losses import _kernel_cpu
from lossbook.losses._registry import check_tensors, distribution, reduced, register, transformed, wide

SYMBOLS = ("wrap", "sin", "raw")
PLACEMENTS = ("order", "permuted", "hypercube")
# Most classes on a ring for which the quadratic form is taken; above it the FFT. On a CPU they cost the same near 512
# classes where the length factors well (without AVX-512 below), near 1000 or above where it is a prime: `lossbook bench
# crossover` measures it into data/results/bench/crossover.csv. On an H100 the form leads by a seventh from 256 classes
# to 4096, where batches are small and both wait for their kernels to start; in large batches its product comes to cost.
LARGEST_QUADRATIC_FORM = 512


def frequency_weights(shape: Sequence[int], s: float = 1.0, symbol: str = "wrap") -> numpy.ndarray:
    """m(k)^{-2s} on the whole grid, float64, with an explicit 0 at k = 0.

    shape   points along each axis of the grid
    symbol  "wrap": |k| folded to the nearest period, min(k, N-k) along an axis, Euclidean norm over axes
            "sin":  m² = Σ_axes 4 sin²(π k/N), the graph Laplacian of the ring or torus
            "raw":  k = 0 ... N-1 not folded, Euclidean norm over axes
    """
    check_range("fourier: s", s, "[0, inf)")
    check_name("symbol of fourier", symbol, SYMBOLS)
    squared = numpy.zeros(tuple(shape))
    for axis, points in enumerate(shape):
        k = numpy.arange(points, dtype=float)
        along = {"wrap": numpy.minimum(k, points - k), "sin": 2 * numpy.sin(math.pi * k / points), "raw": k}[symbol]
        squared += numpy.expand_dims(along**2, [a for a in range(len(shape)) if a != axis])
    squared.flat[0] = 1.0  # set to zero below: never divide by it
    with numpy.errstate(over="ignore"):
        weights = squared**-s
    weights.flat[0] = 0.0
    if not numpy.isfinite(weights).all():
        raise ValueError(f"fourier: s={s} was given, which makes weights too large for float64; take a smaller s")
    return weights


def class_points(num_classes: int, placement="order", permutation_seed: int = 0) -> numpy.ndarray:
    """Where each class sits on the grid: integers (C, d).

    placement  "order":     class c at point c of a ring of C points
               "permuted":  the same ring, classes shuffled by permutation_seed
               "hypercube": class c at the unit vertex e_c of {0, 1}^C, so that all pairs are alike
               or a sequence of C distinct points: integers on a ring, or tuples of d integers on a d-dimensional grid
    """
    if isinstance(placement, str):
        check_name("placement of fourier", placement, PLACEMENTS)
        if placement == "hypercube":
            if num_classes > 16:
                raise ValueError(
                    f"fourier: placement='hypercube' has 2^C points, and C={num_classes} was given; allowed: C <= 16. "
                    "All pairs being alike, the loss is a multiple of Brier: use brier"
                )
            return numpy.eye(num_classes, dtype=int)
        order = numpy.arange(num_classes)
        if placement == "permuted":
            order = numpy.random.default_rng(permutation_seed).permutation(num_classes)
        return order[:, None]
    points = numpy.asarray(placement)
    points = points[:, None] if points.ndim == 1 else points
    if points.ndim != 2 or len(points) != num_classes or points.dtype.kind not in "iu" or points.min() < 0:
        raise ValueError(
            f"fourier: placement={placement!r} was given; allowed: {', '.join(PLACEMENTS)}, or {num_classes} "
            "points with coordinates 0, 1, 2, ..., one for each class"
        )
    if len(numpy.unique(points, axis=0)) != num_classes:
        raise ValueError(f"fourier: placement={placement!r} puts two classes on one point; give each its own")
    return points


def quadratic_form(
    num_classes: int,
    s: float = 1.0,
    symbol: str = "wrap",
    placement="order",
    pad: int = 0,
    permutation_seed: int = 0,
) -> numpy.ndarray:
    """The matrix Q (C, C), float64, with L = uᵀ Q u: symmetric, positive semidefinite, circulant on a ring.

    pad adds empty points along every axis of the grid, which opens the ring towards a line.
    """
    pad, permutation_seed = _check_pad(pad, permutation_seed)
    points = class_points(num_classes, placement, permutation_seed)
    shape = tuple(int(n) for n in points.max(0) + 1 + pad)
    _check_grid(shape)
    green = numpy.fft.ifftn(frequency_weights(shape, s, symbol)).real  # (1/M) Σ_k w_k cos(2π k·x / N)
    difference = (points[:, None, :] - points[None, :, :]) % numpy.asarray(shape)
    return green[tuple(numpy.moveaxis(difference, -1, 0))]


def _square_root(matrix: numpy.ndarray) -> numpy.ndarray:
    """Symmetric R with R R = matrix: as ‖u R‖² the loss cannot turn negative by rounding."""
    values, vectors = numpy.linalg.eigh(matrix)
    return (vectors * numpy.sqrt(values.clip(0))) @ vectors.T


def _constant(function):
    """Cache a table that depends on hyper-parameters alone, and tell torch.compile that it is a constant."""

    @functools.lru_cache(maxsize=64, typed=True)
    def cached(dtype, device, *key) -> Tensor:
        # Made in a thread of its own, where no transform of torch.func and no inference mode of the caller is on: a
        # table made under one of them could not be used outside.
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(checked, dtype, device, *key).result()

    def checked(dtype, device, *key) -> Tensor:
        made = torch.from_numpy(function(dtype, device, *key)).to(dtype)
        if not made.isfinite().all():
            raise ValueError(f"fourier: {key} was given, which has weights too large for {dtype}; take a smaller s")
        return made.to(device)

    def table(*key) -> Tensor:
        return cached(*key)

    # What torch.compiler.assume_constant_result sets, without the seconds that its import of the compiler takes.
    table._dynamo_marked_constant = True
    table.__code__ = table.__code__.replace(co_name=function.__name__)  # by it torch 2.11 tells two tables apart
    return table


@_constant
def _root(dtype, device, scale: int, *key) -> numpy.ndarray:
    """R with R R = scale Q."""
    _hessian(dtype, device, *key)  # refuses weights of which the loss, their square, would be infinite
    return _square_root(scale * quadratic_form(*key))


@_constant
def _hessian(dtype, device, *key) -> numpy.ndarray:
    """2 Q, the second derivative of the loss in p."""
    return 2 * quadratic_form(*key)


@_constant
def _spectrum(dtype, device, s: float, symbol: str, *shape: int) -> numpy.ndarray:
    """What the squares of the real and imaginary parts of a real FFT count for in the loss, one after the other."""
    axes = tuple(range(len(shape)))
    weights = frequency_weights(shape, s, symbol)
    weights = (weights + numpy.roll(numpy.flip(weights, axes), 1, axes)) / 2  # of "raw", real u sees this part only
    half = weights[..., : shape[-1] // 2 + 1].copy()
    half[..., 1 : (shape[-1] + 1) // 2] *= 2  # a frequency stands for its conjugate too, but for zero and Nyquist
    return half.ravel().repeat(2) / weights.size


def _by_fft(u: Tensor, shape: tuple[int, ...], s: float, symbol: str) -> Tensor:
    """The loss of u (*batch, *grid), its grid filled up with zeros to the given shape, in O(M log M)."""
    coefficients = torch.view_as_real(torch.fft.rfftn(u, s=shape, dim=tuple(range(-len(shape), 0))))
    power = coefficients.flatten(-1 - len(shape)).square()
    return (power * _spectrum(power.dtype, power.device, s, symbol, *shape)).sum(-1)


class _OfLabels(torch.autograd.Function):
    """The loss of logits (B, C) at class indices (B,), with its gradient in the logits at the price of one product.

    A kernel does all of it where there is one for the tensors. Autograd by itself would multiply by Q (C, C), most of
    the cost at a hundred classes, once forward and once backward. Without a kernel every step reuses the memory of an
    earlier one, so that all of it stays in a core's cache.
    """

    @staticmethod
    def forward(
        ctx, logits: Tensor, labels: Tensor, hessian: Tensor, reduction: str, kernel: ModuleType | None
    ) -> Tensor:
        ctx.share = 1 / logits.shape[0] if reduction == "mean" else 1.0
        ctx.save_for_backward(logits, labels, hessian)
        if kernel:
            value, ctx.gradient = kernel.both(logits, labels, hessian, ctx.share)
            return value if reduction == "none" else value.sum()
        p, label = logits.softmax(-1), labels.unsqueeze(-1)  # contiguous, whatever the logits are
        of_label = p.gather(-1, label)
        u = p.scatter_(-1, label, of_label - 1)  # p - y
        in_p = torch.addmm(u, u, hessian, beta=0, alpha=ctx.share)
        value = (u * in_p).sum(-1) if reduction == "none" else u.view(-1).dot(in_p.view(-1))
        p = u.scatter_(-1, label, of_label)
        ctx.gradient = torch._softmax_backward_data(in_p, p, -1, p.dtype, grad_input=in_p)
        # Rounding can take it below zero. What is returned is no result of an operation in place: torch.compile, of
        # torch 2.11, would make its gradient zero.
        return value.clamp_min_(0) / 2

    @staticmethod
    def backward(ctx, slope: Tensor):
        compiling = torch.compiler.is_compiling()
        many = not compiling and (torch._C._functorch.is_legacy_batchedtensor(slope) or transformed())
        if ctx.gradient is not None and not torch.is_grad_enabled() and not many:
            gradient, ctx.gradient = ctx.gradient, None  # handed on, and scaled in its place
            if slope.ndim:
                gradient.mul_(slope.unsqueeze(-1))
            elif compiling or not slope.is_cpu or slope.item() != 1:  # a GPU would be waited for
                gradient.mul_(slope)
            return gradient, None, None, None, None
        # asked for a second time, for many slopes at once (is_grads_batched), or to be differentiated: by its formula
        logits, labels, hessian = ctx.saved_tensors
        p, label = torch.softmax(logits, -1), labels.unsqueeze(-1)
        u = p.scatter_add(-1, label, p.new_full(label.shape, -1))
        in_p = torch.addmm(u, u, hessian, beta=0, alpha=ctx.share)  # the share enters as above, to the last bit
        slope = slope.unsqueeze(-1) if slope.ndim else slope
        return slope * torch._softmax_backward_data(in_p, p, -1, p.dtype), None, None, None, None


def _kernel_for(logits: Tensor, labels: Tensor) -> ModuleType | None:
    """The module with one kernel for all of it, where it takes these."""
    if logits.is_cpu:
        return _kernel_cpu if _kernel_cpu.takes(logits, labels) else None
    if not logits.is_cuda or logits.dtype != torch.float32:
        return None
    if logits.device.index != torch.cuda.current_device():  # the one that Triton starts its kernels on
        return None
    kernel = _kernel_gpu()
    return kernel if kernel and logits.shape[-1] <= kernel.MOST_CLASSES else None


@functools.cache
def _kernel_gpu() -> ModuleType | None:
    return importlib.import_module("lossbook.losses._kernel_gpu") if importlib.util.find_spec("triton") else None


def _by_form(logits: Tensor, target: Tensor, reduction: str, classes: int, *key) -> Tensor:
    """The loss of logits (B, C) through the matrix `quadratic_form(C, *key)`, of class indices or distributions."""
    few, soft, compiling = classes < 16, target.is_floating_point(), torch.compiler.is_compiling()
    # Of nothing there is no mean, and transforms and exports need operations that have every rule.
    plain = not logits.shape[0] or transformed() or torch.compiler.is_exporting()
    # Without a kernel, along a row shorter than a vector register, 16 numbers with AVX-512, softmax on a CPU goes
    # number by number. Along the batch it is vectorised, nine times faster at ten classes: there classes come first.
    first = few and logits.is_cpu and not compiling
    if not (soft or plain):
        kernel = None if compiling else _kernel_for(logits, target)
        if kernel or not few or compiling:
            hessian = _hessian(logits.dtype, logits.device, classes, *key)
            return _OfLabels.apply(logits, target, hessian, reduction, kernel)
    dtype = logits.dtype
    if compiling and soft:
        # compiled in an autocast region, the backward of a product would be taken in bfloat16; of float64 it is not
        logits, target = logits.double(), target.double()
    p = logits.mT.softmax(0) if first else logits.softmax(-1)
    # A mean and a sum are taken by the kernel that squares, where it is not for the compiler to put them together. Its
    # mean is over classes, too, which the root makes up for.
    at_once = not (plain or compiling)
    root = _root(p.dtype, p.device, classes if at_once and reduction == "mean" else 1, classes, *key)
    if soft:
        label = root @ target.mT if first else target @ root
    else:
        label = root.index_select(int(first), target)  # of a class index, R y is a row of R
    seen, over_classes = root @ p if first else p @ root, 0 if first else 1
    if not at_once:
        return reduced((seen - label).square().sum(over_classes), reduction).to(dtype)
    # in one kernel each way; F.mse_loss would make views first, which cost as much in a small batch
    squares = torch._C._nn.mse_loss(seen, label, get_enum(reduction))
    return squares.sum(over_classes) if reduction == "none" else squares


@register(
    proper=True,
    symmetric=False,
    bounded=True,
    convex=False,
    smooth=True,
    source="Auricchio et al., arXiv 2102.02979; s, symbol and grid are not known from it",
    ranges={"s": "[0, inf)"},
)
def fourier(
    logits: Tensor,
    target: Tensor,
    *,
    s: float = 1.0,
    symbol: str = "wrap",
    placement="order",
    pad: int = 0,
    permutation_seed: int = 0,
    reduction: str = "none",
) -> Tensor:
    """(1/M) Σ_{k≠0} |U_k|² / m(k)^{2s}, with U the DFT of p - y over the M grid points

    logits (*batch, C); target indices (*batch) or distributions (*batch, C). Returns (*batch), or their mean or sum;
    range [0, max over two labels]. s = 0 is `brier`. Gradient in z: p * (g - p·g) with g = 2 Q (p - y) and Q =
    `quadratic_form(...)`. Strictly proper, not symmetric, convex in p and not in z, infinitely often differentiable.

    s          order >= 0 of the metric
    symbol     "wrap", "sin" or "raw": see `frequency_weights`
    placement  of the classes on the grid: see `class_points`
    pad        empty points added along every axis of the grid. They scale the loss, too: at ten classes and "wrap" ten
               take its gradient to 0.44 of what it was, by `gradient_scale`, and 90 to 0.025; with "sin" it rises
    reduction  "none", "mean" or "sum" over the batch: a mean or sum is cheaper here than of the values
    """
    shape, placement = logits.shape, placement if isinstance(placement, str) else _hashable(placement)
    classes = shape[-1]
    if torch.compiler.is_compiling():
        _check_pad(pad, permutation_seed)  # elsewhere asked where a table is made: a call that finds it there is faster
        s, *whole = _as_constants(s, classes, pad, permutation_seed)
        classes, pad, permutation_seed = [int(n) for n in whole]
    if placement == "order" and classes > LARGEST_QUADRATIC_FORM:
        pad, _ = _check_pad(pad, permutation_seed)
        _check_grid((classes + pad,))
        values = _by_fft(torch.softmax(logits, -1) - distribution(target, logits), (classes + pad,), s, symbol)
        return reduced(values, reduction)
    if len(shape) != 2:
        target = target.reshape(-1, classes) if target.ndim == len(shape) else target.reshape(-1)
        logits = logits.reshape(-1, classes)
    value = _by_form(logits, target, reduction, classes, s, symbol, placement, pad, permutation_seed)
    return value if len(shape) == 2 or reduction != "none" else value.view(shape[:-1])


def _as_constants(*values: float) -> list[float]:
    """The numbers that tables depend on, as constants to torch.compile: the way through a string drops its symbols."""
    return [float.fromhex(float(value).hex()) for value in values]


def _check_pad(pad: object, permutation_seed: object) -> tuple[int, int]:
    """Both as Python's own integers, also NumPy's, whose narrow types would overflow in the shape of a grid."""
    for what, value in (("permutation_seed", permutation_seed), ("pad", pad)):
        # from 2^53 on torch.compile would round it
        if not isinstance(value, numbers.Integral) or isinstance(value, bool) or not 0 <= value < 2**53:
            raise ValueError(f"fourier: {what}={value!r} was given; allowed: an integer >= 0, below 2^53")
    return int(pad), int(permutation_seed)


def _check_grid(shape: tuple[int, ...]) -> None:
    if math.prod(shape) > 2**24:
        raise ValueError(
            f"fourier: the grid {shape} has more than 2^24 points; place the classes closer together, or pad less"
        )


def _hashable(placement):
    """Lists and arrays as tuples, at any depth; all else as it is, for `class_points` to judge."""
    placement = placement.tolist() if hasattr(placement, "tolist") else placement
    return tuple(map(_hashable, placement)) if isinstance(placement, list | tuple | range) else placement


def fourier_distance(x: Tensor, y: Tensor, *, s: float = 1.0, symbol: str = "wrap", dims: int = 1) -> Tensor:
    """The Fourier-based metric sqrt(L) between distributions on a periodic grid, by FFT in O(M log M).

    x, y    (*batch, N_1, ..., N_dims), of equal total mass (the mass itself, k = 0, is not seen); half precision is
            raised to float32
    returns (*batch). Where x = y it has a kink; the gradient there is zero, as that of its square.
    """
    check_tensors("fourier_distance", x, y)
    if x.is_complex() or y.is_complex():
        raise ValueError(f"fourier_distance: {x.dtype} and {y.dtype} were given; allowed: real numbers")
    dims = check_whole("fourier_distance: dims", dims, "[1, inf)")
    if x.shape != y.shape or x.ndim < dims:
        raise ValueError(
            f"fourier_distance: shapes {tuple(x.shape)} and {tuple(y.shape)}; allowed: equal, >= {dims} axes"
        )
    shape = tuple(x.shape[x.ndim - dims :])
    if torch.compiler.is_compiling():
        s, *whole = _as_constants(s, *shape)
        shape = tuple([int(n) for n in whole])
    squared = _by_fft(wide(x) - wide(y), shape, s, symbol)
    return torch.where(squared == 0, 1, squared).sqrt() * (squared != 0)
