"""Robust regression: the losses of Huber and Tukey, their influence functions, efficiencies and constants.

u = r/s is the residual in units of its scale s. An M-estimator solves Σ ψ(u_i) = 0 with ψ = ρ'. Moments under the
standard normal truncated to [-k, k] come from a recursion, so that every constant is closed in erf and exp.
"""

from __future__ import annotations

import sympy
from sympy import Abs, Expr, Function, Piecewise, Rational, Symbol, erf, exp, pi, sign, sqrt

u, z, theta, outlier = sympy.symbols("u z theta y_0", real=True)
k, c, s, epsilon = sympy.symbols("k c s epsilon", positive=True)
mean_slope = Symbol("D", positive=True)  # E ψ'


def huber_psi(u: Expr, k: Expr = k) -> Expr:
    """u, clipped to [-k, k]."""
    return Piecewise((u, Abs(u) <= k), (k * sign(u), True))


def tukey_inside(u: Expr, c: Expr = c) -> Expr:
    """(c²/6)(1 - (1 - (u/c)²)³): ρ for |u| <= c."""
    return c**2 / 6 * (1 - (1 - (u / c) ** 2) ** 3)


def tukey_rho(u: Expr, c: Expr = c) -> Expr:
    """Tukey's biweight: `tukey_inside` up to |u| = c, the constant c²/6 from there on."""
    return Piecewise((tukey_inside(u, c), Abs(u) <= c), (c**2 / 6, True))


def tukey_psi(u: Expr, c: Expr = c) -> Expr:
    """u (1 - (u/c)²)² up to |u| = c, 0 from there on."""
    return Piecewise((u * (1 - (u / c) ** 2) ** 2, Abs(u) <= c), (0, True))


def scaled_tukey(r: Expr, s: Expr = s, c: Expr = c) -> Expr:
    """s² ρ(r/s), the loss of `lossbook.losses.tukey`."""
    return s**2 * tukey_rho(r / s, c)


def normal_density(z: Expr) -> Expr:
    """φ(z)."""
    return exp(-(z**2) / 2) / sqrt(2 * pi)


def truncated_moment(power: int, k: Expr = k) -> Expr:
    """∫ z^power φ(z) dz over [-k, k], by integration by parts: (power - 1) M_{power-2} - 2 k^{power-1} φ(k)."""
    if power % 2:
        return sympy.S.Zero
    if power == 0:
        return erf(k / sqrt(2))
    return (power - 1) * truncated_moment(power - 2, k) - 2 * k ** (power - 1) * normal_density(k)


def truncated_mean(polynomial: Expr, k: Expr = k) -> Expr:
    """∫ polynomial(u) φ(u) du over [-k, k]."""
    terms = sympy.Poly(sympy.expand(polynomial), u).terms()
    return sum(coefficient * truncated_moment(power, k) for (power,), coefficient in terms)


def huber_efficiency(k: Expr = k) -> Expr:
    """(E ψ')² / E ψ² under the standard normal: variance of the mean over that of the estimator."""
    slope = truncated_mean(sympy.S.One, k)
    return slope**2 / (truncated_mean(u**2, k) + k**2 * (1 - slope))


def tukey_efficiency(c: Expr = c) -> Expr:
    """(E ψ')² / E ψ² under the standard normal."""
    psi = sympy.expand(sympy.diff(tukey_inside(u, c), u))
    return truncated_mean(sympy.diff(psi, u), c) ** 2 / truncated_mean(psi**2, c)


def tuning_constant(efficiency: Expr, constant: Symbol, start: float, level: float = 0.95) -> Expr:
    """The constant at which the efficiency has that level, to 20 digits."""
    return sympy.nsolve(efficiency - Rational(str(level)), constant, start, prec=20)


def mad_consistency() -> Expr:
    """1/x with P(|z| <= x) = 1/2 for a standard normal z."""
    x = Symbol("x", positive=True)
    (median,) = sympy.solve(sympy.Eq(erf(x / sqrt(2)), Rational(1, 2)), x)
    return 1 / median


def influence() -> Expr:
    """dθ/dε at ε = 0 of the root θ of (1 - ε) Λ(θ) + ε ψ(y_0 - θ), with Λ(t) = E ψ(y - t): ψ(y_0 - θ)/D.

    A share ε of the data sits at y_0. By the implicit function theorem; D = -Λ'(θ) = E ψ', and Λ(θ) = 0.
    """
    clean, psi = Function("Lambda"), Function("psi")
    equation = (1 - epsilon) * clean(theta) + epsilon * psi(outlier - theta)
    slope = (-sympy.diff(equation, epsilon) / sympy.diff(equation, theta)).subs(epsilon, 0)
    return slope.subs(sympy.diff(clean(theta), theta), -mean_slope).subs(clean(theta), 0)


def huber_contaminated_slope(t: Expr, share: Expr, k: Expr = k) -> Expr:
    """(1 - share) E ψ_k(z - t) + share·k: zero where Huber's estimate stands that far outliers pull upwards by t."""
    high, low = t + k, t - k  # z between them is not clipped
    cdf = [(1 + erf(limit / sqrt(2))) / 2 for limit in (high, low)]
    middle = normal_density(low) - normal_density(high) - t * (cdf[0] - cdf[1])
    return (1 - share) * (middle + k * (1 - cdf[0]) - k * cdf[1]) + share * k
