"""The Fourier metric beside the Wasserstein distance W₁ on N points of a ring, neighbours one apart.

u = p - y sums to zero, C_j = u_0 + ... + u_j, and f = sqrt(loss) with the loss of `fourier_loss`. The constants in

    lo · f <= W₁ <= hi · f

are tight, and come as exact squares: lo² from two neighbouring Diracs, hi² as a maximum over finitely many integer
vectors.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import sympy
from sympy import Expr, Matrix, Rational, cos, pi

from lossbook.symbolic.fourier_loss import eigenvalues, frequency, green, s


def cumulative(u: Sequence[Expr]) -> list[Expr]:
    """C_j = u_0 + ... + u_j."""
    return list(itertools.accumulate(u))


def half_spread(values: Sequence[Expr]) -> Expr:
    """min_c Σ|v_j - c| of values in ascending order: the upper half less the lower half."""
    half = len(values) // 2
    return sum(values[len(values) - half :]) - sum(values[:half])


def wasserstein_1(u: Sequence[Expr]) -> Expr:
    """W₁ on the ring: min_c Σ|C_j - c|, for numbers u that sum to zero."""
    return half_spread(sorted(cumulative(u)))


def ring_increments(n: int) -> Iterator[tuple[int, ...]]:
    """The corners of {σ in [-1, 1]^N, Σσ = 0}: half +1, half -1, and for odd N one 0.

    σ_j = φ_j - φ_{j+1} for a potential φ that changes by at most 1 between neighbours of the ring.
    """
    for plus in itertools.combinations(range(n), n // 2):
        rest = [j for j in range(n) if j not in plus]
        for zero in rest if n % 2 else [n]:
            yield tuple(1 if j in plus else 0 if j == zero else -1 for j in range(n))


def line_increments(n: int) -> Iterator[tuple[int, ...]]:
    """The same for a line: ±1 on N - 1 edges. The last entry closes the ring, where nothing binds it."""
    for steps in itertools.product((1, -1), repeat=n - 1):
        yield (*steps, -sum(steps))


def autocorrelations(increments: Iterator[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """r_m = Σ_j σ_j σ_{j+m}, all that a metric which knows no place on the ring can see of σ; each one once."""

    def correlate(sigma):
        n = len(sigma)
        return tuple(sum(sigma[j] * sigma[j - m] for j in range(n)) for m in range(n))

    return sorted({correlate(sigma) for sigma in increments})


def dual_green(m: int, n: int, symbol: str = "wrap", order: Expr = s) -> Expr:
    """G_m with φᵀ Q⁺ φ = Σ_m r_m G_m, r the autocorrelation of the increments of φ.

    G_m = (1/N) Σ_{k≠0} cos(2πkm/N) / (λ_k · 4 sin²(πk/N)), λ_k the eigenvalues of Q.
    """
    weight = eigenvalues(n, symbol, order)
    return (
        sum(cos(2 * pi * Rational(k * m % n, n)) / (weight[k] * frequency(k, n, "sin") ** 2) for k in range(1, n)) / n
    )


def upper_squares(n: int, symbol: str = "wrap", order: Expr = s, increments: Callable = ring_increments) -> list[Expr]:
    """φᵀ Q⁺ φ at every corner φ of the potentials; hi² is the largest of them."""
    kernel = [dual_green(m, n, symbol, order) for m in range(n)]
    return [sum(r[m] * kernel[m] for m in range(n)) for r in autocorrelations(increments(n))]


def lower_square(n: int, symbol: str = "wrap", order: Expr = s) -> Expr:
    """lo² = 1 / L(e_0, e_1)."""
    return 1 / (2 * (green(0, n, symbol, order) - green(1, n, symbol, order)))


def best_ratio_square(n: int) -> Expr:
    """The smallest (hi/lo)² that any weights on N points can reach: N - 1 for even N, (N - 1)²/N for odd N."""
    return Rational((n - 1) ** 2, n) if n % 2 else sympy.Integer(n - 1)


def periodic_cramer(u: Sequence[Expr], points: Expr) -> Expr:
    """Σ C_j² - (Σ j u_j)² / M: the sine symbol at s = 1, the N classes on a ring of M >= N points."""
    mean_difference = sum(j * x for j, x in enumerate(u))
    return sum(c**2 for c in cumulative(u)) - mean_difference**2 / points


def energy(u: Sequence[Expr], kernel: Callable[[int], Expr]) -> Expr:
    """-½ Σ_{i,j} u_i u_j K(|i - j|): the energy distance with kernel K."""
    n = len(u)
    return -sum(u[i] * u[j] * kernel(abs(i - j)) for i in range(n) for j in range(n)) * Rational(1, 2)


def geodesic_transform(k: int, n: int) -> Expr:
    """Σ_d min(d, N - d) cos(2πkd/N): the discrete Fourier transform of the distance along the ring."""
    return sum(min(d, n - d) * cos(2 * pi * Rational(k * d % n, n)) for d in range(n))


def torus_incidence(n: int) -> Matrix:
    """B (N², 2N²) with (B F)_x = what flux F adds at point x of the torus of N x N points; N >= 3."""
    matrix = sympy.zeros(n * n, 2 * n * n)
    for edge, (axis, i, j) in enumerate(itertools.product(range(2), range(n), range(n))):
        matrix[n * i + j, edge] += 1
        matrix[n * ((i + (axis == 0)) % n) + (j + (axis == 1)) % n, edge] -= 1
    return matrix
