"""The Fourier loss on N points of a ring: definition, quadratic form, derivatives, special cases.

u = p - y is the error, a real vector; U_k = Σ_j u_j e^{-2πi jk/N} its discrete Fourier transform. Everything is exact
and symbolic in the order s.
"""

from __future__ import annotations

from collections.abc import Sequence

import sympy
from sympy import Expr, Matrix, Rational, Symbol, cos, exp, pi, sin

s = Symbol("s", nonnegative=True)
SYMBOLS = ("wrap", "sin", "raw")


def vector(letter: str, n: int, **assumptions) -> list[Symbol]:
    """The real symbols letter_0 ... letter_{n-1}."""
    return list(sympy.symbols(f"{letter}_:{n}", real=True, **assumptions))


def frequency(k: int, n: int, symbol: str = "wrap") -> Expr:
    """m(k) > 0 for k = 1 ... n-1, exactly, under each of the three symbols."""
    folded = min(k % n, n - k % n)
    values = {"wrap": sympy.Integer(folded), "sin": 2 * sin(pi * Rational(folded, n)), "raw": sympy.Integer(k % n)}
    return values[symbol]


def transform(u: Sequence[Expr], k: int) -> Expr:
    """U_k, the discrete Fourier transform of u at frequency k, in real and imaginary part."""
    n = len(u)
    angle = [2 * pi * Rational(j * k % n, n) for j in range(n)]
    return sum(u[j] * cos(angle[j]) for j in range(n)) - sympy.I * sum(u[j] * sin(angle[j]) for j in range(n))


def loss(u: Sequence[Expr], symbol: str = "wrap", order: Expr = s) -> Expr:
    """The definition: (1/N) Σ_{k≠0} |U_k|² / m(k)^{2s}."""
    n = len(u)
    total = sympy.S.Zero
    for k in range(1, n):
        real, imaginary = transform(u, k).as_real_imag()
        total += (real**2 + imaginary**2) * frequency(k, n, symbol) ** (-2 * order)
    return total / n


def green(difference: int, n: int, symbol: str = "wrap", order: Expr = s) -> Expr:
    """The entry of Q for two classes at that distance d: (1/N) Σ_{k≠0} cos(2πk d/N) / m(k)^{2s}."""
    return (
        sum(
            cos(2 * pi * Rational(k * difference % n, n)) * frequency(k, n, symbol) ** (-2 * order) for k in range(1, n)
        )
        / n
    )


def quadratic_form(n: int, symbol: str = "wrap", order: Expr = s) -> Matrix:
    """Q with loss = uᵀ Q u: circulant, symmetric, the constant vector in its kernel."""
    entries = [green(m, n, symbol, order) for m in range(n)]
    return Matrix(n, n, lambda row, column: entries[(row - column) % n])


def eigenvalues(n: int, symbol: str = "wrap", order: Expr = s) -> list[Expr]:
    """Eigenvalues of Q: 0 for the constant vector, then one for each frequency k = 1 ... n-1.

    A frequency and its conjugate share theirs, which for "raw" is the mean of the two weights.
    """
    weight = [frequency(k, n, symbol) ** (-2 * order) if k else sympy.S.Zero for k in range(n)]
    return [(weight[k] + weight[-k % n]) / 2 for k in range(n)]


def circulant(n: int) -> Matrix:
    """A symmetric circulant matrix of letters a_0, a_1, ...: what it obeys, Q obeys at every order and symbol."""
    letters = sympy.symbols(f"a_:{n // 2 + 1}", real=True)
    return Matrix(n, n, lambda row, column: letters[min((row - column) % n, (column - row) % n)])


def gradient(p: Sequence[Expr], y: Sequence[Expr], form: Matrix) -> Matrix:
    """In the probabilities: g = 2 Q (p - y), for form Q. The Hessian in the probabilities is 2 Q."""
    return 2 * form * (Matrix(p) - Matrix(y))


def softmax(z: Sequence[Expr]) -> list[Expr]:
    """p_i = e^{z_i} / Σ_j e^{z_j}."""
    total = sum(exp(x) for x in z)
    return [exp(x) / total for x in z]


def softmax_jacobian(p: Sequence[Expr]) -> Matrix:
    """J = diag(p) - p pᵀ."""
    return sympy.diag(*p) - Matrix(p) * Matrix(p).T


def derivative_in_logit(expression: Expr, p: Sequence[Symbol], j: int) -> Expr:
    """∂/∂z_j of a function of p = softmax(z), by the chain rule: Σ_i ∂f/∂p_i · p_i (δ_ij - p_j).

    A polynomial in p stays one, so that expand() decides every identity.
    """
    return sum(sympy.diff(expression, p[i]) * p[i] * ((1 if i == j else 0) - p[j]) for i in range(len(p)))


def logit_gradient(p: Sequence[Expr], y: Sequence[Expr], form: Matrix) -> Matrix:
    """In the logits: r = J g, that is p_i (g_i - p·g)."""
    g = gradient(p, y, form)
    mean = sum(p[i] * g[i] for i in range(len(p)))
    return Matrix([p[i] * (g[i] - mean) for i in range(len(p))])


def logit_hessian(p: Sequence[Expr], y: Sequence[Expr], form: Matrix) -> Matrix:
    """In the logits: 2 J Q J + diag(r) - r pᵀ - p rᵀ, with r the gradient in the logits."""
    jacobian, r, column = softmax_jacobian(p), logit_gradient(p, y, form), Matrix(p)
    return 2 * jacobian * form * jacobian + sympy.diag(*r) - r * column.T - column * r.T


def brier(u: Sequence[Expr]) -> Expr:
    """Σ_j u_j²."""
    return sum(x**2 for x in u)


def cramer_green(difference: Expr, n: Expr) -> Expr:
    """Closed form of `green` for the sine symbol and s = 1, for any N: (N² - 1)/(12 N) - d (N - d)/(2 N)."""
    return (n**2 - 1) / (12 * n) - difference * (n - difference) / (2 * n)


def hypercube_green(weight: int, n: int, order: Expr = s) -> Expr:
    """The entry of the quadratic form on {0, 1}^n between two points that differ in `weight` coordinates.

    There m(k)² is the number h of ones in k, so frequencies group by it:
    (1/2^n) Σ_h h^{-s} Σ_i (-1)^i C(w, i) C(n - w, h - i).
    """
    choose = sympy.binomial
    return (
        sum(
            sum((-1) ** i * choose(weight, i) * choose(n - weight, h - i) for i in range(h + 1))
            * sympy.Integer(h) ** -order
            for h in range(1, n + 1)
        )
        / sympy.Integer(2) ** n
    )
