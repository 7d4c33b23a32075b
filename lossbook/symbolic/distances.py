"""Distances between distributions in closed form: Wasserstein on a line, sliced, with entropy, between Gaussians.

W_p is always the distance itself, W_p^p the optimal cost; on a line the cost of moving a unit of mass by d is |d|^p.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import sympy
from sympy import Expr, Matrix, Rational, Symbol, exp, oo, pi, sqrt

cost, epsilon = sympy.symbols("c epsilon", positive=True)
N, d = sympy.symbols("N d", positive=True, integer=True)


def interleavings(n: int) -> Iterator[tuple[list[Expr], list[Expr], list[Expr]]]:
    """Every order in which n points x and n points y can lie on a line: both sorted, and the gaps between neighbours.

    Points are sums of positive gaps, so that every absolute value of a difference resolves.
    """
    gaps = list(sympy.symbols(f"h_1:{2 * n}", positive=True))
    place = [sympy.Integer(0), *itertools.accumulate(gaps)]
    for chosen in itertools.combinations(range(2 * n), n):
        rest = [k for k in range(2 * n) if k not in chosen]
        yield [place[k] for k in chosen], [place[k] for k in rest], gaps


def by_sorting(x: Sequence[Expr], y: Sequence[Expr], power: int = 1) -> Expr:
    """W_p^p of n and n points, each sorted: (1/n) Σ |x_(i) - y_(i)|^p."""
    return sum(sympy.Abs(sympy.expand(a - b)) ** power for a, b in zip(x, y, strict=True)) / len(x)


def by_distribution_functions(x: Sequence[Expr], y: Sequence[Expr], gaps: Sequence[Expr]) -> Expr:
    """∫ |F - G| dt: between two neighbours among all points, F and G are counts over n."""
    place = [sympy.Integer(0), *itertools.accumulate(gaps)]
    ahead = itertools.accumulate((point in x) - (point in y) for point in place)
    return sum(gap * abs(count) for gap, count in zip(gaps, ahead, strict=False)) / len(x)


def exchange() -> Expr:
    """Squared cost of the crossed matching of two pairs, less that of the sorted one, factored."""
    x, y, u, v = sympy.symbols("x_1 y_1 u v", real=True)
    crossed, straight = (x - (y + v)) ** 2 + (x + u - y) ** 2, (x - y) ** 2 + (x + u - (y + v)) ** 2
    return sympy.factor(sympy.expand(crossed - straight))


def on_a_line(u: Sequence[Expr], power: int = 1) -> Expr:
    """Σ_j |C_j|^p with C the cumulative sums of u = p - y: W_1 on a line, or Cramér's distance squared (p = 2)."""
    return sum(sympy.Abs(c) ** power for c in list(itertools.accumulate(u))[:-1])


def moment(power: int) -> Expr:
    """E z^power for standard normal z, by integration."""
    z = Symbol("z", real=True)
    return sympy.integrate(z**power * exp(-(z**2) / 2) / sqrt(2 * pi), (z, -oo, oo))


def gaussians_on_a_line(m1: Expr, s1: Expr, m2: Expr, s2: Expr) -> Expr:
    """W_2² of N(m1, s1²) and N(m2, s2²): the mean over z of the squared difference of the quantiles m + s z."""
    z = Symbol("z", real=True)
    square = sympy.Poly((m1 + s1 * z - m2 - s2 * z) ** 2, z)
    return sum(coefficient * moment(power) for (power,), coefficient in square.terms())


def mean_square_projection(v: Sequence[Expr]) -> Expr:
    """The mean of ⟨θ, v⟩² over the unit circle or sphere, v with 2 or 3 coordinates: SW_2² of a shift by v."""
    a, b = sympy.symbols("a b", real=True)
    circle = (sympy.cos(a), sympy.sin(a))
    theta = circle if len(v) == 2 else (sympy.sin(b) * circle[0], sympy.sin(b) * circle[1], sympy.cos(b))
    square = sympy.expand(sum(t * x for t, x in zip(theta, v, strict=True)) ** 2)
    around = sympy.integrate(square, (a, 0, 2 * pi)) / (2 * pi)
    if len(v) == 3:
        around = sympy.integrate(sympy.expand(around * sympy.sin(b)), (b, 0, pi)) / 2
    return sympy.expand(around)


def sliced_quarter_turn() -> Expr:
    """SW_2² of two points at (±1, 0) and two at (0, ±1), of which W_2² is 2.

    Along the direction a they are at ±|cos a| and ±|sin a|; the first quarter of the circle stands for all four.
    """
    a = Symbol("a", real=True)
    square = sympy.expand((sympy.cos(a) - sympy.sin(a)) ** 2)
    return sympy.expand(sympy.integrate(square, (a, 0, pi / 2)) / (pi / 2))


def entropic_plan() -> Expr:
    """Two points a cost c apart, half the mass on each, against themselves: the mass that stays on one point.

    It minimises c (1 - 2a) + ε Σ P ln P over the plans [[a, 1/2 - a], [1/2 - a, a]].
    """
    a = Symbol("a", positive=True)
    moved = Rational(1, 2) - a
    objective = 2 * cost * moved + epsilon * (2 * a * sympy.log(a) + 2 * moved * sympy.log(moved))
    # With the odds a/(1/2 - a) as the unknown, the condition is log(odds) = c/ε.
    odds = Symbol("o", positive=True)
    condition = sympy.expand_log(sympy.diff(objective, a).subs(a, odds / (2 * (1 + odds))).simplify(), force=True)
    (solution,) = sympy.solve(condition, odds)
    return sympy.simplify(solution / (2 * (1 + solution)))


def entropic_cost() -> Expr:
    """The transport cost of that plan, which ought to be 0."""
    return sympy.simplify(2 * cost * (Rational(1, 2) - entropic_plan()))


def symmetric(letter: str, size: int) -> Matrix:
    """A symmetric matrix of real letters."""
    return Matrix(size, size, lambda i, j: Symbol(f"{letter}_{min(i, j) + 1}{max(i, j) + 1}", real=True))


def root_trace(product: Matrix) -> Expr:
    """Tr of the square root of a 2 × 2 matrix with eigenvalues >= 0: sqrt(tr + 2 sqrt(det))."""
    return sqrt(product.trace() + 2 * sqrt(product.det()))


def bures(A: Matrix, B: Matrix) -> Expr:
    """tr(A + B - 2 (AB)^{1/2}) for 2 × 2 covariances: W_2² of two Gaussians of one mean."""
    return A.trace() + B.trace() - 2 * root_trace(A * B)


def bures_near_identity() -> list[Expr]:
    """Coefficients of 1, t, t² of `bures` for I + t E and I + t F, for any symmetric E and F."""
    t = Symbol("t")
    value = bures(*(sympy.eye(2) + t * symmetric(letter, 2) for letter in "EF"))
    return [sympy.factor(sympy.diff(value, t, order).subs(t, 0)) / sympy.factorial(order) for order in range(3)]


def fid_bias() -> Expr:
    """E FID of two samples of N from N(0, I_d), to first order in 1/N: the means' part and the covariances' part."""
    diagonal, off_diagonal = (
        (moment(4) - moment(2) ** 2) / N,
        moment(2) ** 2 / N,
    )  # variance of an entry of a covariance
    square = d * diagonal + d * (d - 1) * off_diagonal  # E tr(E²) for one sample
    return sympy.factor(2 * d * moment(2) / N + Rational(1, 4) * 2 * square)
