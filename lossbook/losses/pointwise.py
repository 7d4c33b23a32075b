"""Losses that Keras applies to softmax outputs class by class: Poisson, Huber, log-cosh and the hinge family.

All but `categorical_hinge` are means over the C classes, as in Keras, so their gradients carry a factor 1/C.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lossbook.losses._registry import distribution, expected, register, transformed


@register(
    proper=True,
    symmetric=False,
    bounded=False,
    convex=True,
    smooth=True,
    source="Keras 2, losses.poisson; there epsilon = 1e-7",
    ranges={"epsilon": "[0, 1)"},
)
def poisson(logits: Tensor, target: Tensor, *, epsilon: float = 0.0) -> Tensor:
    """(1/C) Σ_k (p_k - y_k ln(p_k + ε)), which is (1 + cross_entropy) / C at ε = 0

    logits (*batch, C); target indices (*batch) or distributions (*batch, C). Returns (*batch), range [1/C, inf) at
    ε = 0, else [(1 - ln(1 + ε))/C, (1 - ln ε)/C]. Gradient in z at ε = 0: (p - y) / C. Strictly proper, convex in z,
    unbounded. The ε of Keras takes all three away: for a class y the gradient is multiplied by p_y / (p_y + ε), so
    that examples with p_y far below ε are ignored.
    """
    log_p = torch.log_softmax(logits, -1)
    if epsilon:
        log_p = torch.logaddexp(log_p, torch.full_like(log_p, math.log(epsilon)))
    return (1 - expected(log_p, target)) / logits.shape[-1]


@register(
    proper=True,
    symmetric=False,
    bounded=True,
    convex=False,
    smooth=True,
    source="Huber 1964; Keras 2, losses.huber",
    ranges={"delta": "(0, inf)"},
)
def huber(logits: Tensor, target: Tensor, *, delta: float = 1.0) -> Tensor:
    """(1/C) Σ_k h(p_k - y_k), with h(u) = u²/2 for |u| <= δ, else δ (|u| - δ/2)

    logits (*batch, C); target indices (*batch) or distributions (*batch, C). Returns (*batch), range [0, 1/C].
    Gradient in z: p * (g - p·g) with g = (p - y) / C cut off at ±δ/C. Errors of probabilities never exceed 1: for
    δ >= 1 this is `brier` / (2 C). Below, it is not proper, and its gradient has a corner at |p_k - y_k| = δ.
    """
    error = torch.softmax(logits, -1) - distribution(target, logits)
    if not transformed():
        return F.huber_loss(error, torch.zeros_like(error), reduction="none", delta=delta).mean(-1)
    delta = min(delta, torch.finfo(error.dtype).max)
    small = error.clamp(-delta, delta)
    return (small * (error - small / 2)).mean(-1)  # F.huber_loss has no forward mode of its gradient


@register(
    proper=False,
    symmetric=False,
    bounded=True,
    convex=False,
    smooth=True,
    source="Keras 2, losses.log_cosh",
)
def log_cosh(logits: Tensor, target: Tensor) -> Tensor:
    """(1/C) Σ_k ln cosh(p_k - y_k)

    logits (*batch, C); target indices (*batch) or distributions (*batch, C). Returns (*batch), range
    [0, 2 ln cosh(1) / C]. Gradient in z: p * (g - p·g) with g = tanh(p - y) / C. Close to `brier` / (2 C), as
    ln cosh u = u²/2 - u⁴/12 + ..., but not proper.
    """
    error = torch.softmax(logits, -1) - distribution(target, logits)
    growth = torch.expm1(error)
    return torch.log1p(growth.square() / (2 + 2 * growth)).mean(-1)  # cosh u - 1 without cancellation, nor sinh: slow


@register(
    proper=False,
    symmetric=True,
    bounded=True,
    convex=False,
    smooth=True,
    source="Keras 2, losses.hinge, on probabilities",
)
def hinge(logits: Tensor, target: Tensor) -> Tensor:
    """(1/C) Σ_k max(0, 1 - (2 y_k - 1) p_k), which is 1 + (1 - 2 p_y) / C for a class y

    logits (*batch, C); target indices (*batch) or distributions (*batch, C). Returns (*batch), range
    [1 - 1/C, 1 + 1/C]. Gradient in z for a class y: (2/C) p_y (p - e_y). A probability cannot pass a margin of 1:
    the maximum never acts, and for a class y this is `mae` / C and a constant. Symmetric; on logits another loss.
    """
    p_y = expected(torch.softmax(logits, -1), target)
    return 1 + (1 - 2 * p_y) / logits.shape[-1]


@register(
    proper=False,
    symmetric=False,
    bounded=True,
    convex=False,
    smooth=True,
    source="Keras 2, losses.squared_hinge, on probabilities",
)
def squared_hinge(logits: Tensor, target: Tensor) -> Tensor:
    """(1/C) Σ_k max(0, 1 - (2 y_k - 1) p_k)²

    logits (*batch, C); target indices (*batch) or distributions (*batch, C). Returns (*batch), range
    [1 - 1/C, 1 + 3/C]. Gradient in z: p * (g - p·g) with g_k = -(2/C) t_k (1 - t_k p_k) and t = 2 y - 1. Not proper:
    under label probabilities q that stay above 1/(2C) the minimiser is 2 q - 1/C.
    """
    p, sign = torch.softmax(logits, -1), 2 * distribution(target, logits) - 1
    return (1 - sign * p).square().mean(-1)


@register(
    proper=False,
    symmetric=False,
    bounded=True,
    convex=False,
    smooth=False,
    source="Keras 2, losses.categorical_hinge, on probabilities",
)
def categorical_hinge(logits: Tensor, target: Tensor) -> Tensor:
    """max(0, 1 + max_k (1 - y_k) p_k - Σ_k y_k p_k), which is 1 + max_{k≠y} p_k - p_y for a class y

    logits (*batch, C); target indices (*batch) or distributions (*batch, C). Returns (*batch), range [0, 2].
    Gradient in z for a class y, with m the strongest other class: p_m (e_m - p) - p_y (e_y - p). The outer maximum
    never acts; the inner one has a kink where two other classes tie.
    """
    p, y = torch.softmax(logits, -1), distribution(target, logits)
    return 1 + ((1 - y) * p).amax(-1) - (y * p).sum(-1)
