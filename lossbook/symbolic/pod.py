"""POD Loss: the simplex of the centroids, the norm-adaptive cosine term, and the bound on the decorrelation term.

C classes have unit vectors a_1 ... a_C in D dimensions. A feature z has length r and the cosine c with the vector of
its class; delta is what the loss adds to its length. e_i = z_i/‖z_i‖ - a_{y_i} is the error of example i of B.
"""

from __future__ import annotations

from collections.abc import Sequence

import sympy
from sympy import Expr, Matrix, Rational, Symbol, eye, ones, sqrt

C = Symbol("C", integer=True, positive=True)
D = Symbol("D", integer=True, positive=True)
B = Symbol("B", integer=True, positive=True)
r = Symbol("r", positive=True)
c = Symbol("c", real=True)
delta = Symbol("delta", positive=True)
theta = Symbol("theta", real=True)

# --- the simplex ---------------------------------------------------------------------------------------------


def helmert(n: int) -> Matrix:
    """n × (n-1), orthonormal columns that sum to zero: column k is (1, ..., 1, -k, 0, ..., 0)/√(k (k+1))."""

    def entry(row: int, column: int) -> Expr:
        k = column + 1
        return sympy.Integer(1 if row < k else -k if row == k else 0) / sqrt(k * (k + 1))

    return Matrix(n, n - 1, entry)


def simplex(n: int) -> Matrix:
    """The centroids as rows, n × (n-1): √(n/(n-1)) times `helmert`. A rotation into more dimensions comes after."""
    return sqrt(Rational(n, n - 1)) * helmert(n)


def recursive_simplex(n: int) -> Matrix:
    """The same by the recursion of the released code: shrink the old points, lower them, and add one at the pole."""
    points = Matrix([[-1], [1]])
    for s in range(3, n + 1):
        lowered = (points * sqrt(s * (s - 2)) / (s - 1)).row_join(-ones(s - 1, 1) / (s - 1))
        pole = sympy.zeros(1, s - 1)
        pole[s - 2] = 1
        points = lowered.col_join(pole)
    return points


def product(one: tuple[Expr, Expr], other: tuple[Expr, Expr]) -> tuple[Expr, Expr]:
    """(a I + b J)(a' I + b' J) for matrices of any size C, J all ones with J² = C J: again a pair."""
    (a, b), (x, y) = one, other
    return sympy.factor(a * x), sympy.factor(a * y + b * x + C * b * y)


def gram() -> tuple[Expr, Expr]:
    """The Gram matrix of the simplex for any C, as the pair (a, b) of a I + b J: 1 on the diagonal, -1/(C-1) off it."""
    return C / (C - 1), -1 / (C - 1)


def vectors(letter: str, count: int, dim: int) -> Matrix:
    """count × dim free real symbols."""
    return Matrix(count, dim, lambda i, k: Symbol(f"{letter}_{i}{k}", real=True))


# --- the norm-adaptive cosine ----------------------------------------------------------------------------------


def distance(radius: Expr = r, cosine: Expr = c, floor: Expr = delta) -> Expr:
    """L = (1 - c r/√(r² + δ²))²."""
    return (1 - cosine * radius / sqrt(radius**2 + floor**2)) ** 2


def radial_slope() -> Expr:
    """∂L/∂r = -2 c δ² (√(r² + δ²) - c r)/(r² + δ²)²."""
    return -2 * c * delta**2 * (sqrt(r**2 + delta**2) - c * r) / (r**2 + delta**2) ** 2


def angular_slope() -> Expr:
    """∂L/∂c = -2 r (√(r² + δ²) - c r)/(r² + δ²)."""
    return -2 * r * (sqrt(r**2 + delta**2) - c * r) / (r**2 + delta**2)


def distance_of_vectors(z: Sequence[Expr], a: Sequence[Expr], floor: Expr = delta) -> Expr:
    """The same of a feature and a unit vector."""
    inner, square = (sum(x * y for x, y in zip(z, other, strict=True)) for other in (a, z))
    return (1 - inner / sqrt(square + floor**2)) ** 2


def gradient(z: Sequence[Expr], a: Sequence[Expr], floor: Expr = delta) -> Matrix:
    """In the feature, with ρ = √(‖z‖² + δ²): -2 (1 - z·a/ρ) (a/ρ - (z·a) z/ρ³)."""
    inner, square = (sum(x * y for x, y in zip(z, other, strict=True)) for other in (a, z))
    rho = sqrt(square + floor**2)
    return -2 * (1 - inner / rho) * (Matrix(a) / rho - inner * Matrix(z) / rho**3)


# --- the decorrelation term ------------------------------------------------------------------------------------


def spread(errors: Matrix) -> Matrix:
    """S = Σ_i e_i e_iᵀ / (B - 1) of errors in rows, B × D."""
    return errors.T * errors / (errors.rows - 1)


def decorrelation(errors: Matrix) -> Expr:
    """Σ_{k≠l} S_kl² / (D - 1)."""
    S, dim = spread(errors), errors.cols
    return sum(S[k, m] ** 2 for k in range(dim) for m in range(dim) if k != m) / (dim - 1)


def squared_minors(errors: Matrix) -> Expr:
    """Σ_{i,j} Σ_{k<l} (e_ik e_jl - e_il e_jk)², by Lagrange's identity ((tr S)² - ‖S‖²) (B-1)²: never negative."""
    rows, dim = errors.shape
    return sum(
        (errors[i, k] * errors[j, m] - errors[i, m] * errors[j, k]) ** 2
        for i in range(rows)
        for j in range(rows)
        for m in range(dim)
        for k in range(m)
    )


def bound(mean_cosine: Expr) -> Expr:
    """4/(D-1) (B/(B-1))² (1 - mean cosine)²: the decorrelation term is never above it."""
    return 4 / (D - 1) * (B / (B - 1)) ** 2 * (1 - mean_cosine) ** 2


def centred(n: int) -> Matrix:
    """I - J/n, which takes the mean off."""
    return eye(n) - ones(n, n) / n
