"""Rooted losses: a k-th root in place of the logarithm of cross-entropy. Two forms, which are not the same loss.

The *convex* form k (p_y^{-1/k} - 1), `rooted_logistic`, is what the theory of arXiv 2310.03890 analyses: it weighs hard
examples up. The *bounded* form m (1 - p_y^{1/k}), `rooted_bounded`, is what its released code trains networks with: it
weighs them down. With m = k both are the power family (1 - p_y^q) / q: q = -1/k and q = +1/k, with cross-entropy
between them at q = 0.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from lossbook.checks import check_name, check_range
from lossbook.losses._registry import check_tensors, create, expected, one_minus_exp, parse, register

CAP = 10.0  # of cross-entropy / k; e^10 = 22026 is a gradient that still fits into float16


def rooted(surprise: Tensor, k: float) -> Tensor:
    """k (e^{s/k} - 1) for a surprise s = -ln p >= 0, and beyond s = CAP k its tangent; exact for large k, too."""
    corner = CAP * k
    beyond = surprise > corner
    curved = torch.where(beyond, corner, surprise)
    # surprise - curved has the same value; but its gradient below the corner, e^10 - e^10, leaves a rounding error
    straight = torch.where(beyond, surprise - corner, 0.0)
    return k * torch.expm1(curved / k) + math.exp(CAP) * straight


@register(
    proper=False,
    symmetric=False,
    bounded=False,
    convex=True,
    smooth=True,
    source="rooted (arXiv 2310.03890), the loss of its theory, for C classes",
    ranges={"k": "[1e-30, 1e30]"},
)
def rooted_logistic(logits: Tensor, target: Tensor, *, k: float = 3.0) -> Tensor:
    """Σ_j y_j k (p_j^{-1/k} - 1): convex rooted logistic loss, k expm1(cross-entropy / k) for a class y

    logits (*batch, C); target indices (*batch) or distributions (*batch, C). Returns (*batch), range [0, inf).
    Gradient in z for a class y: p_y^{-1/k} (p - e_y), so hard examples weigh more than in cross-entropy. Convex in
    z; not proper: the risk is least at p_j ∝ η_j^{k/(k+1)}, if every -ln p_j there is below 10 k, see
    `calibration_factor`. Limits: 1/p_y - 1 at k = 1, cross-entropy as k → ∞. Where -ln p_y > 10 k it goes on along its
    tangent, whose slope in -ln p_y is e^10: still convex, once differentiable at the seam, and finite in every dtype.
    """
    return expected(torch.log_softmax(logits, -1), target, lambda log_p: rooted(-log_p, k))


@register(
    proper=False,
    symmetric=False,
    bounded=True,
    convex=False,
    smooth=True,
    source="rooted (arXiv 2310.03890), the loss of its released code",
    ranges={"k": "[1e-6, 1e30]", "m": "[1e-30, 1e30]"},  # the slope holds m/k times what rounding leaves of 1 - p_y
)
def rooted_bounded(logits: Tensor, target: Tensor, *, k: float = 3.0, m: float = 3.0) -> Tensor:
    """Σ_j y_j m (1 - p_j^{1/k}): bounded rooted loss; with m = k it is `gce` at q = 1/k

    logits (*batch, C); target indices (*batch) or distributions (*batch, C). Returns (*batch), range [0, m].
    Gradient in z for a class y: (m/k) p_y^{1/k} (p - e_y), so hard examples weigh less than in cross-entropy. Not
    convex in z; not proper: for k > 1 the risk is least at p_j ∝ η_j^{k/(k-1)}, see `calibration_factor`. m scales.
    """
    return m * expected(torch.log_softmax(logits, -1), target, lambda log_p: one_minus_exp(log_p / k))


def surprise_of_margin(name: str, margin: Tensor, **hyper: float) -> Tensor:
    """ln(1 + e^{-u}) in float32 or wider. Every step on margins is elementwise, so autocast leaves it alone."""
    check_tensors(name, margin)
    if not margin.is_floating_point():
        raise ValueError(f"{name}: margins are {margin.dtype}; allowed: floating point, of any shape")
    for key, value in hyper.items():
        check_range(f"{name}: {key}", value, "[1e-30, 1e30]")
    return -F.logsigmoid(margin if margin.dtype == torch.float64 else margin.float())


def rooted_logistic_binary(margin: Tensor, *, k: float = 3.0) -> Tensor:
    """k ((1 + e^{-u})^{1/k} - 1) at the margin u = ± logit: convex rooted logistic loss of two classes

    margin of any shape, positive where the prediction is right. Returns the same shape, range [0, inf).
    Derivative in u: -(1 + e^{-u})^{1/k} σ(-u). Strictly convex for every k > 0. Limits: e^{-u} at k = 1, the logistic
    loss as k → ∞. Where ln(1 + e^{-u}) > 10 k it goes on along the tangent, as `rooted_logistic` does. For the
    adversarial loss of arXiv 2310.03890, u is the critic's score of a real image, and of a made one minus its score.
    """
    return rooted(surprise_of_margin("rooted_logistic_binary", margin, k=k), k)


def rooted_bounded_binary(margin: Tensor, *, k: float = 3.0, m: float = 3.0) -> Tensor:
    """m (1 - σ(u)^{1/k}) at the margin u = ± logit: bounded rooted loss of two classes

    margin of any shape, positive where the prediction is right. Returns the same shape, range [0, m].
    Derivative in u: -(m/k) σ(u)^{1/k} σ(-u). Convex only where σ(u) >= 1/(k+1), that is u >= -ln k.
    """
    return m * one_minus_exp(-surprise_of_margin("rooted_bounded_binary", margin, k=k, m=m) / k)


BINARY = {
    "logistic": lambda margin: surprise_of_margin("logistic", margin),
    "rooted_logistic": rooted_logistic_binary,
    "rooted_bounded": rooted_bounded_binary,
}


def margin_loss(spec: str) -> Callable[[Tensor], Tensor]:
    """The loss at a margin u that a spec such as "rooted_logistic(k=2)" names; "logistic" is ln(1 + e^{-u})

    ValueError for a name that is not in `BINARY`, an unknown hyper-parameter, or a value out of range.
    """
    name, hyper = parse(spec)
    check_name("loss of a margin", name, BINARY)
    loss = functools.partial(BINARY[name], **hyper)
    try:
        loss(torch.zeros(1))
    except TypeError as error:
        raise ValueError(f"loss {spec!r} was given; {error}") from error
    return loss


def calibration_factor(spec: str, num_classes: int = 10) -> float | None:
    """What logits trained with a loss must be multiplied by to give the true probabilities; None where nothing does.

    spec         a name or a spec such as "rooted_logistic(k=2)", as for `create`
    num_classes  C >= 2, which the factor does not depend on; a spec may, such as one with a point for each class

    True at the optimum of the risk over all distributions; a network trained on a finite sample need not be there.
    1 for a loss that is proper at its defaults, which other hyper-parameters may undo. For the power family
    (1 - p^q) / q the optimum is p_j ∝ η_j^{1/(1-q)}, so the factor is 1 - q for q < 1: 1 + 1/k for
    `rooted_logistic`, as long as no -ln p_j comes to 10 k, where its tangent begins; 1 - 1/k for `rooted_bounded` with
    k > 1. From q = 1 on the optimum is a one-hot vector, from which no factor leads back. Of other losses none is
    known, which is None as well. ValueError as for `create`.
    """
    loss = create(spec, num_classes)
    hyper = loss.entry.defaults | loss.hyper
    match loss.entry.name:
        case "gce":
            q = hyper["q"]
        case "rooted_bounded":
            q = 1 / hyper["k"]
        case "rooted_logistic":
            q = -1 / hyper["k"]
        case _:
            return 1.0 if loss.entry.proper else None
    return 1 - q if q < 1 else None
