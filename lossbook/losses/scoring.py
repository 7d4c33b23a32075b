"""Losses that compare prediction and label as vectors: Brier, absolute error, ranked probability."""

from __future__ import annotations

import torch
from torch import Tensor

from lossbook.losses._registry import distribution, one_minus_exp, register


@register(proper=True, symmetric=False, bounded=True, convex=False, smooth=True, source="Brier 1950")
def brier(logits: Tensor, target: Tensor) -> Tensor:
    """Σ_k (p_k - y_k)²

    logits (*batch, C); target indices (*batch) or distributions (*batch, C). Returns (*batch), range [0, 2].
    Gradient in z: p * (g - p·g) with g = 2 (p - y). Strictly proper; not convex in z. The nearest relative of the
    Fourier loss: the same with s = 0.
    """
    return (torch.softmax(logits, -1) - distribution(target, logits)).square().sum(-1)


@register(
    proper=False,
    symmetric=True,
    bounded=True,
    convex=False,
    smooth=True,
    source="Ghosh et al., arXiv 1712.09482",
)
def mae(logits: Tensor, target: Tensor) -> Tensor:
    """Σ_k |p_k - y_k|, which is 2 (1 - p_y) for a class y

    logits (*batch, C); target indices (*batch) or distributions (*batch, C). Returns (*batch), range [0, 2].
    Gradient in z for a class y: 2 p_y (p - e_y). Symmetric: the sum over all labels is 2 (C - 1). Some papers halve it.
    Smooth for a class; for a distribution y it has kinks, where a p_k is y_k.
    """
    if target.is_floating_point():
        return (torch.softmax(logits, -1) - target).abs().sum(-1)
    log_p = torch.log_softmax(logits, -1).gather(-1, target.unsqueeze(-1)).squeeze(-1)
    return 2 * one_minus_exp(log_p)


@register(
    proper=True,
    symmetric=False,
    bounded=True,
    convex=False,
    smooth=True,
    source="Epstein 1969; arXiv 1611.05916",
)
def rps(logits: Tensor, target: Tensor) -> Tensor:
    """Σ_j (P_j - Y_j)², with P, Y the cumulative sums of p, y: ranked probability score

    logits (*batch, C); target indices (*batch) or distributions (*batch, C). Returns (*batch), range [0, C - 1].
    Gradient in z: p * (g - p·g) with g_k = 2 Σ_{j>=k} (P_j - Y_j). Strictly proper; takes the classes as ordered.
    arXiv 1611.05916 calls it the squared earth mover's distance; it is not the square of that, Σ_j |P_j - Y_j|.
    """
    error = torch.softmax(logits, -1) - distribution(target, logits)
    # On a GPU a triangular product: cumsum has no deterministic CUDA kernel in every supported torch. What is compiled
    # has kernels of its own, and in an autocast region would take the backward of a product in bfloat16.
    if torch.compiler.is_compiling() or not error.is_cuda:
        return error.cumsum(-1)[..., :-1].square().sum(-1)
    cumulate = torch.ones(error.shape[-1], error.shape[-1] - 1, dtype=error.dtype, device=error.device).triu()
    return (error @ cumulate).square().sum(-1)
