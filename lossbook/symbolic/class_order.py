"""What the Fourier loss knows of its classes: the cost of one label for another, and what noise in the labels does.

A quadratic loss is (p - y)ᵀ Q (p - y) with a symmetric Q, and both distributions sum to one. K is the loss between two
labels, K_jk = Q_jj + Q_kk - 2 Q_jk. Noise is a matrix T with T[y, z] = P(noisy label z | true label y).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import sympy
from sympy import Expr, Matrix, Rational, Symbol, cos, pi

from lossbook.checks import check_name
from lossbook.symbolic.fourier_loss import frequency, s


def symmetric_matrix(letter: str, n: int) -> Matrix:
    """A symmetric matrix of n (n + 1)/2 free real symbols."""
    return Matrix(n, n, lambda j, k: Symbol(f"{letter}_{min(j, k)}_{max(j, k)}", real=True))


def circulant(letter: str, n: int) -> Matrix:
    """Any quadratic form of a ring without padding: symmetric, each row the last one shifted, rows summing to zero."""
    entry = [Symbol(f"{letter}_{min(m, n - m)}", real=True) for m in range(n)]
    entry[0] = -sum(entry[1:])
    return Matrix(n, n, lambda j, k: entry[(j - k) % n])


def vanishes(expression: Expr, p: Sequence[Symbol], total: int = 1) -> bool:
    """Whether a polynomial with rational coefficients is zero wherever p sums to total, its other symbols free."""
    ring = sympy.polys.rings.PolyRing(sorted(expression.free_symbols | set(p), key=str), sympy.QQ)
    return not ring.from_expr(expression.subs(p[-1], total - sum(p[:-1])))  # the same as expand, but far faster


def score(p: Sequence[Expr], label: int, form: Matrix) -> Expr:
    """The loss (p - e_label)ᵀ Q (p - e_label)."""
    error = Matrix([value - int(j == label) for j, value in enumerate(p)])
    return (error.T * form * error)[0]


def costs(form: Matrix) -> Matrix:
    """K, the loss between two labels: Q_jj + Q_kk - 2 Q_jk."""
    return Matrix(*form.shape, lambda j, k: form[j, j] + form[k, k] - 2 * form[j, k])


def spread(p: Sequence[Expr], cost: Matrix) -> Expr:
    """½ Σ_jk p_j p_k K_jk: half the mean cost between two labels drawn from p."""
    return (Matrix([p]) * cost * Matrix(p))[0] / 2


def risks(p: Sequence[Expr], cost: Matrix) -> Matrix:
    """(K p)_j: the mean cost of the answer j when the label is drawn from p."""
    return cost * Matrix(p)


def score_from_costs(p: Sequence[Expr], label: int, cost: Matrix) -> Expr:
    """The same loss from K alone: the risk of that label less the spread of p."""
    return risks(p, cost)[label] - spread(p, cost)


def brier_multiple(form: Matrix) -> Expr:
    """α, half the mean of K over all pairs of two classes: the Brier score costs 2 for each of them."""
    n = form.rows
    return sum(costs(form)) / (2 * n * (n - 1))


def centred(form: Matrix) -> Matrix:
    """P Q P with P = I - 11ᵀ/N: the same loss between distributions, with rows that sum to zero."""
    n = form.rows
    row = [sum(form.row(j)) / n for j in range(n)]
    return Matrix(n, n, lambda j, k: form[j, k] - row[j] - row[k] + sum(row) / n)


def order_part(form: Matrix) -> Matrix:
    """What is left of the centred form without its multiple of the Brier score: P Q P - α P."""
    n = form.rows
    return centred(form) - brier_multiple(form) * (sympy.eye(n) - sympy.ones(n, n) / n)


def permuted(matrix: Matrix, order: Sequence[int]) -> Matrix:
    """Class j in the place of class order[j]."""
    return matrix.extract(list(order), list(order))


def placed(points: Sequence[Sequence[int]], shape: Sequence[int], symbol: str = "wrap", order: Expr = s) -> Matrix:
    """Q for classes at the given points of a periodic grid of any dimension; grid points without a class stay empty.

    Q_ij = (1/M) Σ_{k≠0} cos(2π Σ_axis k (x_i - x_j)/N) / |m(k)|^{2s}, with |m(k)| the Euclidean norm over the axes.
    """
    grid = [k for k in itertools.product(*map(range, shape)) if any(k)]
    weights = [squared_frequency(k, shape, symbol) ** -order for k in grid]

    @functools.cache
    def green(*difference: int) -> Expr:
        turns = [sum(Rational(a * x, n) for a, x, n in zip(k, difference, shape, strict=True)) % 1 for k in grid]
        terms = (cos(2 * pi * turn) * weight for turn, weight in zip(turns, weights, strict=True))
        return sympy.Add(*terms) / (len(grid) + 1)

    def entry(i: int, j: int) -> Expr:
        return green(*((a - b) % n for a, b, n in zip(points[i], points[j], shape, strict=True)))

    return Matrix(len(points), len(points), entry)


def squared_frequency(k: Sequence[int], shape: Sequence[int], symbol: str = "wrap") -> Expr:
    """|m(k)|² on a grid: the squares of the one-dimensional symbols, added over the axes."""
    return sum(frequency(a, n, symbol) ** 2 for a, n in zip(k, shape, strict=True))


def condition_number(shape: Sequence[int], symbol: str = "wrap", order: Expr = s) -> Expr:
    """Largest eigenvalue over the smallest positive one, on a grid whose every point carries a class.

    symbol  "wrap" or "sin"; of "raw" an eigenvalue is the mean of two powers, and no power itself
    """
    check_name("symbol of a condition number", symbol, ("wrap", "sin"))
    squares = [squared_frequency(k, shape, symbol) for k in itertools.product(*map(range, shape)) if any(k)]
    return (max(squares) / min(squares)) ** order


def hypercube_multiple(n: int, order: Expr = s) -> Expr:
    """α on the hypercube: 2^{2-N} Σ_h C(N-2, h-1) h^{-s}, the mean of (1 + B)^{-s} for a binomial B of N-2 coins."""
    return sum(sympy.binomial(n - 2, h - 1) * sympy.Integer(h) ** -order for h in range(1, n)) / Rational(2) ** (n - 2)


def symmetric_noise(n: int, rate: Expr) -> Matrix:
    """T of flips to one of the other n - 1 classes, all alike."""
    return Matrix(n, n, lambda y, z: 1 - rate if y == z else rate / (n - 1))


def ring_noise(n: int, rate: Expr) -> Matrix:
    """T of flips to the class before or after on the ring, half each; n >= 3."""
    return Matrix(n, n, lambda y, z: {0: 1 - rate, 1: rate / 2, n - 1: rate / 2}.get((y - z) % n, sympy.S.Zero))


def first_step(label: int, form: Matrix) -> Matrix:
    """Minus the gradient in the logits at the uniform prediction; for rows that sum to zero it is (2/N) Q e_label."""
    n = form.rows
    error = sympy.ones(n, 1) / n - Matrix([int(j == label) for j in range(n)])
    gradient = 2 * form * error
    return -(gradient - sympy.ones(n, n) * gradient / n) / n
