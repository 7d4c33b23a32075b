"""Losses proposed against label noise: generalised, symmetric and normalised cross-entropy, Jensen-Shannon."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lossbook.losses._registry import expected, one_minus_exp, register

FOR_ZERO = 1e-4  # what the SCE and APL code put for 0 under the logarithm in the reverse cross-entropy
LOG_OF_ZERO = math.log(FOR_ZERO)


@register(
    proper=False,
    symmetric=False,
    bounded=True,
    convex=False,
    smooth=True,
    source="Zhang & Sabuncu, arXiv 1805.07836",
    ranges={"q": "[1e-30, 1]"},
)
def gce(logits: Tensor, target: Tensor, *, q: float = 0.7) -> Tensor:
    """Σ_k y_k (1 - p_k^q) / q: generalised cross-entropy

    logits (*batch, C); target indices (*batch) or distributions (*batch, C). Returns (*batch), range [0, 1/q].
    Gradient in z for a class y: p_y^q (p - e_y). Limits: cross-entropy as q → 0, for a class half of `mae` at q = 1.
    The power is taken in the log domain, so the gradient lives for every p_y; no clamp cuts it off.
    """
    return expected(torch.log_softmax(logits, -1), target, lambda log_p: one_minus_exp(q * log_p)) / q


def reverse_cross_entropy(log_p: Tensor, target: Tensor) -> Tensor:
    """-Σ_k p_k ln max(y_k, 1e-4); for a class y it is -ln(1e-4) (1 - p_y), half of `mae` times 9.21."""
    if target.is_floating_point():
        log_y = target.clamp_min(FOR_ZERO).log()  # so that the slope in a target of zero is a number
        return -(log_p.exp() * log_y).sum(-1)
    return -LOG_OF_ZERO * one_minus_exp(expected(log_p, target))


@register(
    proper=False,
    symmetric=False,
    bounded=False,
    convex=False,
    smooth=True,
    source="Wang et al., arXiv 1908.06112; weights for CIFAR-10",
    ranges={"alpha": "[0, inf)", "beta": "[0, inf)"},
)
def sce(logits: Tensor, target: Tensor, *, alpha: float = 0.1, beta: float = 1.0) -> Tensor:
    """α cross_entropy + β reverse cross-entropy, where ln y := ln max(y, 1e-4)

    logits (*batch, C); target indices (*batch) or distributions (*batch, C). Returns (*batch), range [0, inf).
    Gradient in z for a class y: (α + β A p_y) (p - e_y) with A = -ln 1e-4 = 9.21. MNIST in the literature: α = 0.01.
    """
    log_p = torch.log_softmax(logits, -1)
    return -alpha * expected(log_p, target) + beta * reverse_cross_entropy(log_p, target)


@register(
    proper=False,
    symmetric=True,
    bounded=True,
    convex=False,
    smooth=True,
    source="Ma et al., arXiv 2006.13554; weights for CIFAR-10",
    ranges={"alpha": "[0, inf)", "beta": "[0, inf)"},
)
def nce_rce(logits: Tensor, target: Tensor, *, alpha: float = 1.0, beta: float = 1.0) -> Tensor:
    """α cross_entropy / Σ_k cross_entropy(z, k) + β reverse cross-entropy: active plus passive

    logits (*batch, C); target indices (*batch) or distributions (*batch, C). Returns (*batch), range [0, α + 9.21 β].
    Gradient in z for a class y, with S = Σ_k ln p_k: α (e_y - p - (1 - C p) ln p_y / S) / S + 9.21 β p_y (p - e_y).
    Symmetric: the sum over all labels is α + 9.21 β (C - 1). MNIST in the literature: β = 10.
    """
    log_p = torch.log_softmax(logits, -1)
    return alpha * expected(log_p, target) / log_p.sum(-1) + beta * reverse_cross_entropy(log_p, target)


@register(
    proper=False,
    symmetric=False,
    bounded=True,
    convex=False,
    smooth=True,
    source="Englesson & Azizpour, arXiv 2105.04522; pi for 20 to 40 % noise",
    ranges={"pi": "[1e-30, 1)"},
)
def js(logits: Tensor, target: Tensor, *, pi: float = 0.7) -> Tensor:
    """[π KL(y ‖ m) + (1 - π) KL(p ‖ m)] / -(1 - π) ln(1 - π), with m = π y + (1 - π) p

    logits (*batch, C); target indices (*batch) or distributions (*batch, C). Returns (*batch), range [0, H(π)/Z] with
    H the binary entropy and Z = -(1 - π) ln(1 - π). Limits: `kl_divergence` as π → 0, which for a class is
    cross-entropy; for a class y half of `mae` as π → 1. Of a class it depends on p_y alone, as elsewhere
    p_k / m_k = 1 / (1 - π).
    Gradient in z for a class y: p_y (p - e_y) ln((1 - π) p_y / m_y) / ln(1 - π).
    """
    log_p, scale = torch.log_softmax(logits, -1), (1 - pi) * math.log1p(-pi)
    if not target.is_floating_point():
        log_p = expected(log_p, target)
        over_p, over_y = _logs_of_mixture(-log_p, pi)
        return one_minus_exp(log_p) + (pi * over_y + (1 - pi) * log_p.exp() * over_p) / scale
    log_y = target.clamp_min(torch.finfo(target.dtype).tiny).log()
    over_p, over_y = _logs_of_mixture(log_y - log_p, pi)
    return (pi * target * over_y + (1 - pi) * log_p.exp() * over_p).sum(-1) / scale


def _logs_of_mixture(log_ratio: Tensor, pi: float) -> tuple[Tensor, Tensor]:
    """ln(m / p) and ln(m / y) from ln(y / p), with m = π y + (1 - π) p; for a π near 0 or 1 they keep their digits.

    The slope of ln(m / y) keeps its digits, too, where p is small: all of the gradient of a class is there. So does the
    one of ln(m / p) where y is small: the gradient in y is what the two slopes leave of each other, over y.
    The ratio is cut to e^-60 ... e^80, the first far below the least 1 - π, which is e^-36.
    """
    log_ratio = log_ratio.clamp(-60, 80)  # e^80 fits float32, and with ln 0 there would be no second derivative
    if pi > 0.5:
        over_y = torch.log1p((pi - 1) * one_minus_exp(-log_ratio))
        far = torch.log(1 - pi + pi * torch.exp(log_ratio))
        return torch.where(log_ratio < -1, far, over_y + log_ratio), over_y
    near = torch.log1p((1 - pi) * torch.expm1((-log_ratio).clamp_min(-1)))
    over_y = torch.where(log_ratio < 1, near, torch.log(pi + (1 - pi) * torch.exp(-log_ratio)))
    return torch.log1p(-pi * one_minus_exp(log_ratio)), over_y
