"""Losses built on the log-likelihood: cross-entropy, Kullback-Leibler divergence, label smoothing, focal loss."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lossbook.checks import check_name
from lossbook.losses._registry import distribution, expected, register


@register(
    proper=True,
    symmetric=False,
    bounded=False,
    convex=True,
    smooth=True,
    source="maximum likelihood, categorical",
)
def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """-Σ_k y_k ln p_k, with p = softmax(z)

    logits (*batch, C); target indices (*batch) or distributions (*batch, C). Returns (*batch), range [0, inf).
    Gradient in z: p - y for any y that sums to one. Strictly proper, convex in z, unbounded.
    """
    return -expected(torch.log_softmax(logits, -1), target)


# What the first argument of the divergence is taken for. Only the first is right; the others are common slips.
DOMAINS = {"log_probabilities": torch.log_softmax, "probabilities": torch.softmax, "logits": lambda z, dim: z}


@register(
    proper=True,
    symmetric=False,
    bounded=False,
    convex=True,
    smooth=True,
    source="study (arXiv 2210.16003), by name; options as in PyTorch and Keras",
    ranges={"clip": "[0, 1)"},
)
def kl_divergence(
    logits: Tensor,
    target: Tensor,
    *,
    class_reduction: str = "sum",
    clip: float = 0.0,
    direction: str = "forward",
    domain: str = "log_probabilities",
) -> Tensor:
    """Σ_k y_k (ln y_k - ln p_k), with 0 ln 0 = 0

    logits (*batch, C); target indices (*batch) or distributions (*batch, C). Returns (*batch), range [0, inf)
    without a clip. Cross-entropy less the entropy of y: the gradient in z is the same p - y, and on indices it *is*
    cross-entropy.

    The options are the ways in which implementations differ. At the defaults none of them acts.

    class_reduction  "mean" divides by C, as PyTorch's default reduction does: gradient (p - y) / C
    clip             both p and y are raised to at least this, in Keras 1e-7: bounded by -ln(clip), not convex, and
                     for a class y with p_y < clip no gradient is left but that of the other classes, below clip
    direction        "reverse" is Σ_k p_k (ln p_k - ln y_k), infinite on a class label and so refused without a clip
    domain           what is put for ln p: "probabilities" puts p, which makes -p_y of a class label, half of `mae`
                     less 1; "logits" puts z, which makes -z_y: linear, without a lower bound, no softmax in it
    """
    check_name("class_reduction", class_reduction, ("sum", "mean"))
    check_name("direction", direction, ("forward", "reverse"))
    check_name("domain", domain, DOMAINS)
    if direction == "reverse" and not clip:
        raise ValueError(
            f"kl_divergence: direction='reverse' with clip={clip!r} was given; it is infinite wherever the label has a "
            "zero; allowed: a clip above 0, such as clip=1e-7"
        )
    if clip and domain != "log_probabilities":
        raise ValueError(
            f"kl_divergence: clip={clip!r} with domain={domain!r} was given; only probabilities can be clipped; "
            "allowed: clip=0 or domain='log_probabilities'"
        )
    if clip:
        log_p = torch.log_softmax(logits, -1).clamp_min(math.log(clip))
        # clipped twice: before, so that the slope in a target of zero is a number; after, for a clip beyond float32
        log_y = distribution(target, logits).clamp_min(clip).log().clamp_min(math.log(clip))
        weight = log_y.exp() if direction == "forward" else -log_p.exp()
        divergence = (weight * (log_y - log_p)).sum(-1)
    else:
        divergence = -expected(DOMAINS[domain](logits, -1), target)
        if target.is_floating_point():
            divergence = divergence + torch.xlogy(target, target).sum(-1)
    return divergence if class_reduction == "sum" else divergence / logits.shape[-1]


@register(
    proper=False,
    symmetric=False,
    bounded=False,
    convex=True,
    smooth=True,
    source="Szegedy et al. 2016; epsilon as in the SCE repository",
    ranges={"epsilon": "[0, 1]"},
)
def label_smoothing(logits: Tensor, target: Tensor, *, epsilon: float = 0.1) -> Tensor:
    """cross_entropy(z, (1 - ε) y + ε/C)

    logits (*batch, C); target indices (*batch) or distributions (*batch, C). Returns (*batch), range [0, inf).
    Gradient in z: p - (1 - ε) y - ε/C. Convex in z; the minimiser is the smoothed label, not the label, and the least
    value its entropy.
    """
    log_p = torch.log_softmax(logits, -1)
    return -(1 - epsilon) * expected(log_p, target) - epsilon * log_p.mean(-1)


@register(
    proper=False,
    symmetric=False,
    bounded=False,
    convex=False,
    smooth=True,
    source="Lin et al., arXiv 1708.02002; gamma as in the noisy-label literature",
    ranges={"gamma": "[0, inf)"},
)
def focal(logits: Tensor, target: Tensor, *, gamma: float = 0.5) -> Tensor:
    """-Σ_k y_k (1 - p_k)^γ ln p_k

    logits (*batch, C); target indices (*batch) or distributions (*batch, C). Returns (*batch), range [0, inf).
    Gradient in z for a class y: ((1-p_y)^γ - γ p_y (1-p_y)^(γ-1) ln p_y) (p - e_y); γ = 0 is cross-entropy.
    The multi-class softmax form; the detection paper's one-against-rest sigmoid form is a different number.
    """

    def weighted(log_p: Tensor) -> Tensor:
        # For γ < 1 the power has an infinite slope at 0: below the smallest normal number it is held constant.
        return (-torch.expm1(log_p)).clamp_min(torch.finfo(log_p.dtype).tiny) ** gamma * log_p

    return -expected(torch.log_softmax(logits, -1), target, weighted)


@register(
    proper=False,
    symmetric=False,
    bounded=False,
    convex=True,
    smooth=True,
    source="Reed et al., arXiv 1412.6596; beta as in the SCE repository",
    ranges={"beta": "[0, 1]"},
)
def bootstrap_soft(logits: Tensor, target: Tensor, *, beta: float = 0.95, detach: bool = False) -> Tensor:
    """cross_entropy(z, β y + (1 - β) p)

    logits (*batch, C); target indices (*batch) or distributions (*batch, C). Returns (*batch), range [0, inf).
    With detach=False this is β cross-entropy plus (1 - β) times the entropy of p: gradient
    β (p - y) - (1 - β) p (ln p + H(p)). With detach=True the mixed target is a constant, and the gradient is exactly
    β (p - y): a rescaled cross-entropy, which is why the entropy term is kept by default.
    """
    log_p = torch.log_softmax(logits, -1)
    p = log_p.exp()
    return -beta * expected(log_p, target) - (1 - beta) * ((p.detach() if detach else p) * log_p).sum(-1)


@register(
    proper=False,
    symmetric=False,
    bounded=False,
    convex=False,
    smooth=False,
    source="Reed et al., arXiv 1412.6596; beta as in the SCE repository",
    ranges={"beta": "[0, 1]"},
)
def bootstrap_hard(logits: Tensor, target: Tensor, *, beta: float = 0.8) -> Tensor:
    """cross_entropy(z, β y + (1 - β) e_m), with m = argmax p

    logits (*batch, C); target indices (*batch) or distributions (*batch, C). Returns (*batch), range [0, inf).
    Gradient in z: p - β y - (1 - β) e_m. Continuous, with a kink where two classes tie for the maximum.
    """
    log_p = torch.log_softmax(logits, -1)
    return -beta * expected(log_p, target) - (1 - beta) * log_p.amax(-1)
