"""Losses on softmax outputs as a study of losses meets them, and what becomes of one divergence in code.

Probabilities are written p_k = w_k / Σ_j w_j with weights w_k = e^{z_k} > 0. So SymPy knows their sum and their signs:
maxima and absolute values of probabilities resolve by themselves, and a derivative in z_k is w_k ∂/∂w_k. Means over
the classes are taken where Keras takes them. Everything is exact.
"""

from __future__ import annotations

from collections.abc import Sequence

import sympy
from sympy import Abs, Expr, Integer, Integral, Max, Symbol, cosh, erf, exp, expand_log, log, oo, pi, sqrt

epsilon = Symbol("epsilon", positive=True)  # a clip or an offset, 1e-7 in Keras


def weights(letter: str, n: int) -> list[Symbol]:
    """The positive symbols letter_0 ... letter_{n-1}: exponentials of the logits."""
    return list(sympy.symbols(f"{letter}_:{n}", positive=True))


def simplex(w: Sequence[Expr]) -> list[Expr]:
    """w_k / Σ_j w_j: the softmax of ln w."""
    return [x / sum(w) for x in w]


def label(n: int, y: int = 0) -> list[Expr]:
    """The distribution of a class label: one at y, zero elsewhere."""
    return [Integer(k == y) for k in range(n)]


def logit_gradient(expression: Expr, w: Sequence[Symbol]) -> list[Expr]:
    """The gradient in z of a function of w = e^z: w_k ∂/∂w_k."""
    return [x * sympy.diff(expression, x) for x in w]


def one_fraction(expression: Expr) -> Expr:
    """Over one denominator, the numerator expanded: where all its terms have one sign, SymPy sees that sign."""
    numerator, denominator = sympy.fraction(sympy.together(expand_log(expression)))
    return sympy.expand(numerator) / denominator


def mean(terms: Sequence[Expr]) -> Expr:
    """The mean over the classes."""
    return sum(terms) / len(terms)


# --- the losses, of two distributions p and y ------------------------------------------------------------------


def entropy(y: Sequence[Expr]) -> Expr:
    """H(y) = -Σ y ln y, with 0 ln 0 = 0."""
    return -sum(b * log(b) for b in y if b != 0)


def cross_entropy(p: Sequence[Expr], y: Sequence[Expr]) -> Expr:
    """-Σ y ln p."""
    return -sum(b * log(a) for a, b in zip(p, y, strict=True) if b != 0)


def likelihood(p: Sequence[Expr], y: Sequence[Expr]) -> Expr:
    """-ln Π p^y: the negative logarithm of the likelihood of an observation with the frequencies y."""
    return -log(sympy.prod(a**b for a, b in zip(p, y, strict=True)))


def divergence(p: Sequence[Expr], y: Sequence[Expr]) -> Expr:
    """KL(y ‖ p) = Σ y (ln y - ln p), with 0 ln 0 = 0; swap the arguments for the reverse direction."""
    return sum(b * (log(b) - log(a)) for a, b in zip(p, y, strict=True) if b != 0)


def clipped(p: Sequence[Expr], floor: Expr = epsilon) -> list[Expr]:
    """Every entry raised to at least the floor, as Keras does with both arguments of the divergence."""
    return [Max(a, floor) for a in p]


def wrong_domain(x: Sequence[Expr], y: Sequence[Expr]) -> Expr:
    """Σ y (ln y - x): the divergence in code that takes x for ln p, and is given something else."""
    return -entropy(y) - sum(b * a for a, b in zip(x, y, strict=True))


def poisson(p: Sequence[Expr], y: Sequence[Expr], offset: Expr | int = 0) -> Expr:
    """Mean of p - y ln(p + offset)."""
    return mean([a - (b * log(a + offset) if b != 0 else 0) for a, b in zip(p, y, strict=True)])


def squared_error(p: Sequence[Expr], y: Sequence[Expr]) -> Expr:
    """Mean of (p - y)²: the Brier score over C."""
    return mean([(a - b) ** 2 for a, b in zip(p, y, strict=True)])


def absolute_error(p: Sequence[Expr], y: Sequence[Expr]) -> Expr:
    """Mean of |p - y|."""
    return mean([Abs(one_fraction(a - b)) for a, b in zip(p, y, strict=True)])


def huber(p: Sequence[Expr], y: Sequence[Expr], delta: Expr) -> Expr:
    """Mean of u²/2 less (|u| - δ)²/2 where |u| > δ, with u = p - y: there the parabola becomes δ (|u| - δ/2)."""
    errors = [one_fraction(a - b) for a, b in zip(p, y, strict=True)]
    return mean([(u**2 - Max(0, one_fraction(Abs(u) - delta)) ** 2) / 2 for u in errors])


def log_cosh(p: Sequence[Expr], y: Sequence[Expr]) -> Expr:
    """Mean of ln cosh(p - y)."""
    return mean([log(cosh(a - b)) for a, b in zip(p, y, strict=True)])


def hinge(p: Sequence[Expr], y: Sequence[Expr], power: int = 1) -> Expr:
    """Mean of max(0, 1 - t p)^power with t = 2 y - 1."""
    return mean([Max(0, one_fraction(1 - (2 * b - 1) * a)) ** power for a, b in zip(p, y, strict=True)])


def categorical_hinge(p: Sequence[Expr], y: Sequence[Expr]) -> Expr:
    """max(0, 1 + max (1 - y) p - Σ y p)."""
    other = Max(*((1 - b) * a for a, b in zip(p, y, strict=True)))
    return Max(0, one_fraction(1 + other - sum(b * a for a, b in zip(p, y, strict=True))))


# --- scale and optimisers --------------------------------------------------------------------------------------


def adam_update(first: Expr, second: Expr, tiny: Expr, scale: Expr | int = 1) -> Expr:
    """Adam's step over the learning rate when every gradient so far is multiplied by `scale`.

    first, second  the averages of the gradient and of its square without the scale; tiny: Adam's ε
    """
    return scale * first / (sqrt(scale**2 * second) + tiny)


# --- chance ----------------------------------------------------------------------------------------------------


def expected_maximum(n: int) -> Expr:
    """Mean of the largest of n independent standard normal numbers: ∫ x n φ(x) Φ(x)^{n-1} dx."""
    x = Symbol("x", real=True)
    density, distribution = exp(-(x**2) / 2) / sqrt(2 * pi), (1 + erf(x / sqrt(2))) / 2
    return Integral(n * x * density * distribution ** (n - 1), (x, -oo, oo))
