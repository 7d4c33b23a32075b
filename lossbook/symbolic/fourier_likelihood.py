"""The likelihood behind the Fourier loss: Gaussian noise on the labels, independent from frequency to frequency.

y = p + ε with ε real and of zero sum. Its unitary transform U_k/√N has variance σ² m(k)^{2s}, so that the negative
log-density is loss/(2σ²) plus a constant. `fourier_loss` defines U_k, m(k) and the loss; everything is exact and
symbolic in the order s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import sympy
from sympy import Expr, IndexedBase, Matrix, Rational, Sum, Symbol, binomial, cos, expand, expand_log, log, pi, sqrt

from lossbook.symbolic import fourier_loss
from lossbook.symbolic.fourier_loss import s

sigma = Symbol("sigma", positive=True)
z = Symbol("z")  # stands for e^{2πi/n} in `at_root_of_unity`


def at_root_of_unity(polynomial: Expr, n: int) -> Expr:
    """A polynomial in z at z = e^{2πi/n}, exactly: its remainder modulo the n-th cyclotomic polynomial.

    The remainder is zero if and only if the value is, because that polynomial is irreducible over the rationals.
    """
    return sympy.rem(expand(polynomial), sympy.cyclotomic_poly(n, z), z)


def coordinates(u: Sequence[Expr]) -> list[tuple[int, Expr]]:
    """The n-1 orthonormal real coordinates of a vector of zero sum, each with its frequency: [(k, coordinate), ...].

    √(2/n) Re U_k and √(2/n) Im U_k for a pair {k, n-k}; U_{n/2}/√n alone for the Nyquist frequency of an even n.
    """
    n = len(u)
    found = []
    for k in range(1, n // 2 + 1):
        real, imaginary = fourier_loss.transform(u, k).as_real_imag()
        if 2 * k == n:
            found.append((k, real / sqrt(n)))
        else:
            found += [(k, sqrt(Rational(2, n)) * real), (k, sqrt(Rational(2, n)) * imaginary)]
    return found


def variances(n: int, symbol: str = "wrap", order: Expr = s) -> list[Expr]:
    """Variance of each frequency k = 0 ... n-1 of the noise: 0 for k = 0, else σ² over the weight in the loss.

    That is σ² m(k)^{2s}; for "raw" σ² times the harmonic mean of m(k)^{2s} and m(n-k)^{2s}.
    """
    weights = fourier_loss.eigenvalues(n, symbol, order)
    return [sympy.S.Zero] + [sigma**2 / weight for weight in weights[1:]]


def negative_log_density(u: Sequence[Expr], symbol: str = "wrap", order: Expr = s) -> Expr:
    """-log of the density of the noise at u = y - p, with respect to area on the hyperplane of zero sum."""
    variance = variances(len(u), symbol, order)
    return sum(c**2 / (2 * variance[k]) + log(2 * pi * variance[k]) / 2 for k, c in coordinates(u))


def log_normaliser(n: int, symbol: str = "wrap", order: Expr = s) -> Expr:
    """The part of `negative_log_density` without u: (n-1)/2 log 2π + Σ_{k≠0} log of the `variances` / 2.

    With m(k) = m(n-k), so not for "raw", that is (n-1)/2 log 2π + (n-1) log σ + s Σ_{k≠0} log m(k).
    """
    logs = sum(log(variance) for variance in variances(n, symbol, order)[1:])
    return expand_log(Rational(n - 1, 2) * log(2 * pi) + logs / 2, force=True)


def inverse_transform(spectrum: Sequence[Expr], distance: int, wave: Callable[[int], Expr]) -> Expr:
    """Entry at that distance of the circulant matrix with these eigenvalues: (1/n) Σ_k spectrum_k wave(k·distance)."""
    n = len(spectrum)
    return sum(spectrum[k] * wave(k * distance % n) for k in range(n)) / n


def covariance(n: int, symbol: str = "wrap", order: Expr = s) -> Matrix:
    """Σ of the noise over the classes: circulant, rows of zero sum, eigenvalues `variances`; Σ⁺ = Q/σ²."""
    spectrum = variances(n, symbol, order)
    entries = [inverse_transform(spectrum, d, lambda j: cos(2 * pi * Rational(j, n))) for d in range(n)]
    return Matrix(n, n, lambda j, i: entries[(j - i) % n])


def flux_to_noise(n: int) -> Matrix:
    """D with ε = D η: class j receives the flux η_j over its border with class j-1 and passes on η_{j+1}."""
    return Matrix(n, n, lambda j, i: int(j == i) - int((j + 1) % n == i))


def flux_covariance(distance: Expr, order: Expr) -> Expr:
    """Σ/σ² at that distance for the sine symbol and an integer order, 1 <= order < n/2: (-1)^d C(2s, s+d)."""
    return (-1) ** distance * binomial(2 * order, order + distance)


def expected_loss(true_order: Expr, n: Expr, m: IndexedBase, order: Expr = s) -> Expr:
    """Mean of the loss of that order when the noise has the true order: trace(Q Σ) = σ² Σ_{k≠0} m_k^{2(true_order-s)}.

    For any n and any m_k = m_{n-k}, so not for "raw".
    """
    k = Symbol("k", integer=True)
    return sigma**2 * Sum(m[k] ** (2 * (true_order - order)), (k, 1, n - 1))


def inside_at_vertex(n: int) -> Expr:
    """Probability that a label stays in the simplex when p is a vertex: 1/n!, for the sine symbol, s = 1, small σ.

    p + ε has no negative entry only if n independent fluxes come in one given order. With t_j the distribution function
    at flux j, uniform on [0, 1], that is the volume of t_1 < ... < t_n < 1. For any σ it is an upper bound.
    """
    t, volume = Symbol("t", positive=True), sympy.S.One
    for _ in range(n):
        volume = sympy.integrate(volume, (t, 0, t))
    return volume.subs(t, 1)
