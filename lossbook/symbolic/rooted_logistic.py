"""The rooted logistic loss: a k-th root in place of the logarithm, in the margin and through the softmax.

u is the margin, positive where the prediction is right, and p = σ(u) the probability of the label; with several classes
p is that of the softmax. Two forms, which are not the same loss: the *convex* one, which the theory analyses, and the
*bounded* one, which the released code minimises.
"""

from __future__ import annotations

from collections.abc import Sequence

import sympy
from sympy import Expr, Matrix, Symbol, exp, log

from lossbook.symbolic.fourier_loss import softmax_jacobian

u = Symbol("u", real=True)
k = Symbol("k", positive=True)
m = Symbol("m", positive=True)
p = Symbol("p", positive=True)
q = Symbol("q", real=True, nonzero=True)
eta = Symbol("eta", positive=True)
ODDS = exp(-u)  # (1 - p) / p


def logistic(margin: Expr = u) -> Expr:
    """ln(1 + e^{-u}) = -ln p, the limit of both forms as k → ∞."""
    return log(1 + exp(-margin))


def convex(margin: Expr = u, root: Expr = k) -> Expr:
    """k ((1 + e^{-u})^{1/k} - 1)."""
    return root * ((1 + exp(-margin)) ** (1 / root) - 1)


def bounded(margin: Expr = u, root: Expr = k, scale: Expr = m) -> Expr:
    """m (1 - (1 + e^{-u})^{-1/k})."""
    return scale * (1 - (1 + exp(-margin)) ** (-1 / root))


def power(probability: Expr = p, exponent: Expr = q) -> Expr:
    """(1 - p^q) / q: the convex form at q = -1/k, the bounded one with m = k at q = 1/k."""
    return (1 - probability**exponent) / exponent


def convex_slope() -> Expr:
    """∂/∂u of the convex form: -(1 + e^{-u})^{1/k} σ(-u)."""
    return -((1 + ODDS) ** (1 / k)) * ODDS / (1 + ODDS)


def convex_curvature() -> Expr:
    """∂²/∂u² of the convex form: (1 + e^{-u})^{1/k} σ(-u) (1 - (1 - 1/k) σ(-u)), written without a difference."""
    return (1 + ODDS) ** (1 / k) * ODDS / (1 + ODDS) ** 2 * (1 + ODDS / k)


def bounded_slope() -> Expr:
    """∂/∂u of the bounded form: -(m/k) σ(u)^{1/k} σ(-u)."""
    return -m / k * (1 + ODDS) ** (-1 / k) * ODDS / (1 + ODDS)


def bounded_curvature() -> Expr:
    """∂²/∂u² of the bounded form: it has the sign of 1 - e^{-u}/k, hence of u + ln k."""
    return m / k * (1 + ODDS) ** (-1 / k) * ODDS / (1 + ODDS) ** 2 * (1 - ODDS / k)


def curvature_ratio() -> Expr:
    """Second derivative of the convex form over that of the logistic loss: (1 + e^{-u})^{1/k} (1 + e^{-u}/k) > 1."""
    return (1 + ODDS) ** (1 / k) * (1 + ODDS / k)


def alpha_loss(probability: Expr, alpha: Expr) -> Expr:
    """α/(α-1) (1 - p^{1-1/α})."""
    return alpha / (alpha - 1) * (1 - probability ** (1 - 1 / alpha))


def tilted(surprises: Sequence[Expr], tilt: Expr) -> Expr:
    """(1/t) ln of the mean of e^{t s}: tilted empirical risk of the losses s."""
    return log(sum(exp(tilt * s) for s in surprises) / len(surprises)) / tilt


def power_gradient(probabilities: Sequence[Expr], label: int) -> Matrix:
    """Of the power family in the logits, for the class `label`: p_y^q (p - e_y)."""
    return probabilities[label] ** q * error(probabilities, label)


def power_hessian(probabilities: Sequence[Expr], label: int) -> Matrix:
    """Of the power family in the logits: p_y^q (J - q v vᵀ), with J the softmax Jacobian and v = p - e_y."""
    v = error(probabilities, label)
    return probabilities[label] ** q * (softmax_jacobian(probabilities) - q * v * v.T)


def error(probabilities: Sequence[Expr], label: int) -> Matrix:
    """p - e_y."""
    return Matrix([x - int(i == label) for i, x in enumerate(probabilities)])


def definiteness(probability: Expr = p) -> Expr:
    """1 - q (1 - p_y)/p_y: det of `power_hessian` without the row and column of the label, over that for q = 0.

    The Hessian is positive semidefinite exactly where this is not negative: everywhere for q <= 0, and where
    p_y >= q/(1 + q) for q > 0, which for the bounded form is p_y >= 1/(k+1).
    """
    return 1 - q * (1 - probability) / probability


def risk_gradient(probabilities: Sequence[Expr], labels: Sequence[Expr]) -> Matrix:
    """Of the expected power loss in the logits, under the label distribution: Σ_j η_j p_j^q (p - e_j)."""
    terms = [labels[j] * power_gradient(probabilities, j) for j in range(len(probabilities))]
    return sum(terms[1:], terms[0])


def optimal_margin(root: Expr) -> Expr:
    """Margin of least risk when a fraction η of the labels is positive: ln(η/(1-η)) / (1 + 1/k).

    For the convex form root = k; for the bounded one root = -k, where it is a minimum only if k > 1.
    """
    return log(eta / (1 - eta)) / (1 + 1 / root)


def gram_hessian(data: Matrix, weights: Sequence[Expr]) -> Matrix:
    """Hessian in the weights of a linear model, XᵀDX, with D the second derivatives at the margins (sum, not mean)."""
    return data.T * sympy.diag(*weights) * data
