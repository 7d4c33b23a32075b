"""Losses of real numbers that torch.nn has not: quantiles, and Tukey's biweight. Squared, absolute and Huber it has.

`lossbook.symbolic.location` and `lossbook.symbolic.robust_regression` derive what is stated here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lossbook.checks import check_range
from lossbook.losses._registry import check_tensors

MAD_CONSISTENCY = 1.482602218505602  # 1/Φ⁻¹(3/4): what makes the MAD of a Gaussian its standard deviation


def _pair(name: str, prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Prediction and target of one shape (batch,) or (batch, outputs), in float32 or wider."""
    check_tensors(name, prediction, target)
    good = prediction.is_floating_point() and not target.is_complex() and target.dtype != torch.bool
    if not good or prediction.shape != target.shape or prediction.ndim not in (1, 2):
        raise ValueError(
            f"{name}: prediction is {prediction.dtype} of shape {tuple(prediction.shape)}, target {target.dtype} of "
            f"shape {tuple(target.shape)}; allowed: real numbers of one shape, (batch,) or (batch, outputs). "
            "Broadcasting would compare every example with every other: squeeze or unsqueeze one of them"
        )
    wide = torch.float64 if torch.float64 in (prediction.dtype, target.dtype) else torch.float32
    return prediction.to(wide), target.to(wide)


def _per_example(values: Tensor) -> Tensor:
    return values if values.ndim == 1 else values.sum(-1)


def pinball(prediction: Tensor, target: Tensor, *, tau: float = 0.5) -> Tensor:
    """Σ_d max((1 - τ)(f - y), τ (y - f))

    prediction f and target y (batch,) or (batch, outputs), of one unit. Returns (batch,), range [0, inf).
    Gradient in f: 1 - τ above y, -τ below, by convention (1 - 2τ)/2 at y. Convex, not bounded. The τ-quantile of y
    minimises its mean; τ = 1/2 is half of the absolute error. Source: Koenker & Bassett 1978.
    ValueError for a τ outside (0, 1) and for shapes that differ.
    """
    check_range("pinball: tau", tau, "(0, 1)")
    prediction, target = _pair("pinball", prediction, target)
    r = prediction - target
    # a product a side: what is left of one when two are added has lost the digits of a τ near 0 or 1
    beside = torch.where(r < 0, -tau * r, (0.5 - tau) * r)
    return _per_example(torch.where(r > 0, (1 - tau) * r, beside))


def mad(residual: Tensor) -> Tensor:
    """1.4826 · median |r - median r| over the batch: a standard deviation that outliers cannot carry away

    residual (batch,) or (batch, outputs). Returns () or (outputs,), in the unit of the residual. Any part of the
    batch that is less than half may be replaced by anything and it stays bounded. 0 if more than half of the
    residuals are equal.
    The median of an even number is the mean of the middle two, where torch.median takes the lower one. The gradient
    is the true one: it flows to the few examples that are the medians. ValueError for a batch of none.
    """
    if not len(residual):
        raise ValueError("mad: a batch of 0 was given; allowed: at least 1")
    deviation = (residual - _median(residual)).abs()
    return MAD_CONSISTENCY * _median(deviation)


def _median(values: Tensor) -> Tensor:
    ordered, n = values.sort(0).values, len(values)
    return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2


def tukey(prediction: Tensor, target: Tensor, *, c: float = 4.6851, scale: float | str | Tensor = "mad") -> Tensor:
    """Σ_d s² (c²/6)(1 - (1 - min(1, r²/(cs)²))³), with r = f - y: Tukey's biweight

    prediction f and target y (batch,) or (batch, outputs), of one unit. Returns (batch,), range [0, c² s²/6] an
    output. Gradient in f at a given s: r (1 - (r/cs)²)² for |r| < cs, and 0 from there on. Near zero r²/2; symmetric;
    bounded at a given s; not convex, so that it needs a good start. Source: Beaton & Tukey 1974; as a loss of networks
    Belagiannis et al., arXiv 1505.06606, whose loss is this one over s².

    c      in (0, inf); 4.6851 has 95 % efficiency under Gaussian noise of standard deviation s
    scale  s: "mad" is the `mad` of the residuals of this batch, for each output; or a number; or a tensor () or
           (outputs,), which is not asked whether it is positive. With "mad" the gradient goes through it, so that it
           is the derivative of the value. The factor s² is why that works: without it, the value would not change if
           all residuals grew together. To hold it constant pass regression.mad(prediction - target).detach(). That
           trains better while up to 30 % of the targets are wrong (`notebooks/experiments/robust_regression.ipynb`):
           the gradient of a median rests on few examples.

    MAD = 0, where more than half of the residuals are equal: value and gradient are 0, their limit as s → 0.
    ValueError for shapes that differ, a bad c or scale, and for "mad" with fewer than two examples.
    """
    check_range("tukey: c", c, "(0, inf)")
    prediction, target = _pair("tukey", prediction, target)
    r = prediction - target
    if isinstance(scale, Tensor):
        if scale.shape not in ((), r.shape[1:]):
            raise ValueError(
                f"tukey: scale has shape {tuple(scale.shape)}; allowed: () or {tuple(r.shape[1:])}, one an output"
            )
        s = scale.to(r.dtype)
    elif scale == "mad":
        if len(r) < 2:
            raise ValueError(f"tukey: scale='mad' with a batch of {len(r)}; allowed: at least 2, or a number as scale")
        s = mad(r)
    elif isinstance(scale, str):
        raise ValueError(f"tukey: scale={scale!r} was given; allowed: 'mad', a positive number or a tensor")
    else:
        check_range("tukey: scale", scale, "(0, inf)")
        s = torch.as_tensor(scale, dtype=r.dtype, device=r.device)
    limit = c * s
    inside = ~(r.abs() >= limit)  # so that what is no number stays none, and is no outlier
    # Where an example is outside, or s = 0, the quotient is replaced before it is taken: no 0/0 in the backward pass.
    t = (torch.where(inside, r, 0) / torch.where(limit > 0, limit, 1)).square()
    rho = torch.where(inside, t * (3 - 3 * t + t * t), 1.0)  # 1 - (1 - t)³ without cancellation at small t
    return _per_example(limit.square() / 6 * rho)
