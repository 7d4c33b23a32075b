"""Losses as negative log-likelihoods: Gaussian, Laplace, Bernoulli, categorical; and why the logarithm does not stall.

Every negative log-likelihood starts from the density in sympy.stats, so nothing is assumed that is to be shown.
"""

from __future__ import annotations

from collections.abc import Sequence

import sympy
from sympy import Expr, Function, Symbol, exp, expand_log, log, stats

from lossbook.symbolic.fourier_loss import softmax

y, mu, z = sympy.symbols("y mu z", real=True)
sigma, v, b = sympy.symbols("sigma v b", positive=True)
p = Symbol("p", positive=True)


def negative_log(density: Expr) -> Expr:
    """-log of a density, the logarithm of the product taken apart."""
    return sympy.expand(-expand_log(log(density), force=True))


def gaussian_nll_of_variance() -> Expr:
    """-log N(y; μ, v), a function of the variance."""
    return negative_log(stats.density(stats.Normal("y", mu, sympy.sqrt(v)))(y))


def laplace_nll() -> Expr:
    """-log of the Laplace density of location μ and scale b."""
    return negative_log(stats.density(stats.Laplace("y", mu, b))(y))


def sigmoid(z: Expr) -> Expr:
    """1/(1 + e^{-z})."""
    return 1 / (1 + exp(-z))


def bernoulli_nll(outcome: int, probability: Expr = p) -> Expr:
    """-log P(outcome), outcome 0 or 1."""
    return negative_log(stats.density(stats.Bernoulli("y", probability))[outcome])


def binary_cross_entropy(probability: Expr = p, target: Expr = y) -> Expr:
    """-y log p - (1 - y) log(1 - p): one formula for both outcomes."""
    return -target * log(probability) - (1 - target) * log(1 - probability)


def logits(n: int) -> list[Symbol]:
    """z_0 ... z_{n-1}."""
    return list(sympy.symbols(f"z_:{n}", real=True))


def categorical_nll(z: Sequence[Expr], label: int) -> Expr:
    """-log P(label) under softmax(z)."""
    return negative_log(stats.density(stats.FiniteRV("y", dict(enumerate(softmax(z)))))[label])


def squared_error(z: Sequence[Expr], label: int) -> Expr:
    """Σ_k (softmax(z)_k - y_k)² with y = e_label."""
    return sum((q - int(k == label)) ** 2 for k, q in enumerate(softmax(z)))


def best_scale(nll: Expr, scale: Symbol, residuals: Sequence[Symbol], residual: Expr) -> Expr:
    """The scale that minimises the summed negative log-likelihood of residuals r_1 ... r_n; residual stands in nll."""
    total = sum(nll.subs(residual, r) for r in residuals)
    (solution,) = sympy.solve(sympy.diff(total, scale), scale)
    return solution


def best_probabilities(counts: Sequence[Symbol]) -> list[Expr]:
    """The distribution that minimises -Σ_k n_k log p_k, by a Lagrange multiplier: the frequencies n_k/n."""
    unknown = sympy.symbols(f"p_:{len(counts)}", positive=True)
    multiplier = Symbol("lambda", positive=True)
    lagrangian = -sum(n * log(q) for n, q in zip(counts, unknown, strict=True)) + multiplier * (sum(unknown) - 1)
    equations = [sympy.diff(lagrangian, q) for q in (*unknown, multiplier)]
    (solution,) = sympy.solve(equations, (*unknown, multiplier), dict=True)
    return [sympy.simplify(solution[q]) for q in unknown]


def unsaturated_loss() -> Expr:
    """The loss L(p) of outcome 1 whose gradient in the logit is the error p - 1: solution of L'(p) p(1-p) = p - 1."""
    loss = Function("L")
    slope = sympy.diff(sigmoid(z), z).subs(z, log(p / (1 - p)))  # dp/dz in p
    return sympy.dsolve(sympy.Eq(loss(p).diff(p) * sympy.simplify(slope), p - 1)).rhs


def escape_time(slope: Expr, start: Expr, end: Expr) -> Expr:
    """Time of gradient flow dz/dt = -slope(z) from start to end: ∫ dz / (-slope)."""
    return sympy.integrate(sympy.expand(sympy.simplify(-1 / slope)), (z, start, end))
