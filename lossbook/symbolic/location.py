"""What regression losses estimate: the mean, the median, a quantile, and Huber's path from the median to the mean.

r = f - y is the error of the prediction f. F is the distribution function of y, a and b the ends of its support, so
that F(a) = 0 and F(b) = 1. The last functions are exact for the log-normal y = exp(x + σε) with ε standard normal.
"""

from __future__ import annotations

import sympy
from sympy import Abs, Expr, Function, Integral, Piecewise, Symbol, erf, exp, log, pi, sqrt

f, x, y, r, m, a, b, u = sympy.symbols("f x y r m a b u", real=True)
tau, delta, sigma, beta = sympy.symbols("tau delta sigma beta", positive=True)
variance, second_moment = sympy.symbols("V M2", positive=True)
F = Function("F", real=True)
density = F(y).diff(y)


def squared(r: Expr) -> Expr:
    """r²."""
    return r**2


def absolute(r: Expr) -> Expr:
    """|r|."""
    return Abs(r)


def pinball(r: Expr, tau: Expr = tau) -> Expr:
    """τ (y - f) where the prediction is too low, (1 - τ)(f - y) where it is too high; r = f - y."""
    return Piecewise(((1 - tau) * r, r >= 0), (-tau * r, True))


def huber(r: Expr, delta: Expr = delta) -> Expr:
    """r²/2 up to |r| = δ, and its tangent δ(|r| - δ/2) from there on."""
    return Piecewise((r**2 / 2, Abs(r) <= delta), (delta * (Abs(r) - delta / 2), True))


def smooth_l1(r: Expr, beta: Expr = beta) -> Expr:
    """r²/(2β) up to |r| = β, and |r| - β/2 from there on."""
    return Piecewise((r**2 / (2 * beta), Abs(r) < beta), (Abs(r) - beta / 2, True))


def squared_risk() -> Expr:
    """E(f - y)² for any y of mean m and second moment M2: the square is expanded, each power replaced by its mean."""
    polynomial = sympy.Poly(sympy.expand(squared(f - y)), y)
    moments = {0: 1, 1: m, 2: second_moment}
    return sum(coefficient * moments[power] for (power,), coefficient in polynomial.terms())


def pinball_risk() -> Expr:
    """E of the pinball loss for any distribution function F, as two integrals that meet at f."""
    return Integral((1 - tau) * (f - y) * density, (y, a, f)) + Integral(tau * (y - f) * density, (y, f, b))


def huber_risk() -> Expr:
    """E of the Huber loss for any distribution function F, as three integrals that meet at f - δ and f + δ."""
    return (
        Integral(delta * (f - y - delta / 2) * density, (y, a, f - delta))
        + Integral((f - y) ** 2 / 2 * density, (y, f - delta, f + delta))
        + Integral(delta * (y - f - delta / 2) * density, (y, f + delta, b))
    )


def normalised(expression: Expr) -> Expr:
    """The expression with F(a) = 0 and F(b) = 1: all of the mass lies between a and b."""
    return sympy.expand(expression.subs({F(a): 0, F(b): 1}))


def blurred_absolute(inside: bool) -> Expr:
    """δ E|r - U| - δ²/2 with U uniform on [-δ, δ], for |r| <= δ (inside) or r > δ: Huber's loss in either case."""
    if inside:
        mean = sympy.integrate((r - u) / (2 * delta), (u, -delta, r)) + sympy.integrate(
            (u - r) / (2 * delta), (u, r, delta)
        )
    else:
        mean = sympy.integrate((r - u) / (2 * delta), (u, -delta, delta))
    return sympy.expand(delta * mean - delta**2 / 2)


def normal_cdf(z: Expr) -> Expr:
    """Φ(z)."""
    return (1 + erf(z / sqrt(2))) / 2


def lognormal_cdf(t: Expr) -> Expr:
    """P(y <= t) for t > 0: Φ((log t - x)/σ)."""
    return normal_cdf((log(t) - x) / sigma)


def lognormal_mean() -> Expr:
    """E y = ∫ e^{x+σε} φ(ε) dε; ε = v + σ completes the square of the exponent."""
    v = Symbol("v", real=True)
    exponent = sympy.expand((x + sigma * u - u**2 / 2).subs(u, v + sigma))
    constant = exponent.subs(v, 0)
    return exp(constant) * sympy.integrate(exp(exponent - constant) / sqrt(2 * pi), (v, -sympy.oo, sympy.oo))


def lognormal_quantile(level: Expr = tau) -> Expr:
    """The solution of P(y <= t) = level, by way of w = (log t - x)/(σ √2)."""
    w = Symbol("w", real=True)
    cdf = lognormal_cdf(exp(x + sigma * sqrt(2) * w))
    (solution,) = sympy.solve(sympy.Eq(sympy.simplify(cdf), level), w)
    return exp(x + sigma * sqrt(2) * solution)


def lognormal_integrated_cdf(t: Expr) -> Expr:
    """∫_0^t P(y <= v) dv = t Φ((log t - x)/σ) - e^{x+σ²/2} Φ((log t - x)/σ - σ)."""
    return t * lognormal_cdf(t) - exp(x + sigma**2 / 2) * normal_cdf((log(t) - x) / sigma - sigma)


def lognormal_huber_slope(prediction: Expr) -> Expr:
    """The derivative of the Huber risk, ∫ F over [f - δ, f + δ] less δ. The distribution has no mass below 0."""
    low = prediction - delta
    below = Piecewise((lognormal_integrated_cdf(low), low > 0), (0, True))
    return lognormal_integrated_cdf(prediction + delta) - below - delta
