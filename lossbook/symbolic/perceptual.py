"""Feature and Gram terms of perceptual losses: definition, gradient, what they cannot see, how they scale.

F is the C × M matrix of one layer's features of one image: C channels at M = H W positions.
"""

from __future__ import annotations

import sympy
from sympy import Expr, Matrix, Rational, Symbol


def features(letter: str, channels: int, positions: int) -> Matrix:
    """A matrix of real letters, a row a channel."""
    return Matrix(channels, positions, lambda c, m: Symbol(f"{letter}_{c + 1}{m + 1}", real=True))


def gram(F: Matrix) -> Matrix:
    """F Fᵀ / (C M)."""
    return F * F.T / sympy.Integer(F.rows * F.cols)


def squares(matrix: Matrix) -> Expr:
    """The sum of the squares of all entries."""
    return sum(x**2 for x in matrix)


def feature_term(F: Matrix, T: Matrix) -> Expr:
    """‖F - T‖² / (C M)."""
    return squares(F - T) / sympy.Integer(F.rows * F.cols)


def gram_term(F: Matrix, T: Matrix) -> Expr:
    """‖G(F) - G(T)‖²."""
    return squares(gram(F) - gram(T))


def gatys_term(F: Matrix, T: Matrix) -> Expr:
    """‖F Fᵀ - T Tᵀ‖² / (4 C² M²), the normalisation of the earlier paper on style."""
    return squares(F * F.T - T * T.T) * Rational(1, 4 * F.rows**2 * F.cols**2)


def derivative(expression: Expr, F: Matrix) -> Matrix:
    """Entry by entry, by SymPy."""
    return F.applyfunc(lambda entry: sympy.diff(expression, entry))


def feature_gradient(F: Matrix, T: Matrix) -> Matrix:
    """2 (F - T) / (C M)."""
    return 2 * (F - T) / sympy.Integer(F.rows * F.cols)


def gram_gradient(F: Matrix, T: Matrix) -> Matrix:
    """4 (G(F) - G(T)) F / (C M)."""
    return 4 * (gram(F) - gram(T)) * F / sympy.Integer(F.rows * F.cols)


def rotation(positions: int, first: int, second: int, angle: Expr) -> Matrix:
    """The orthogonal matrix that turns two positions into each other."""
    turn = sympy.eye(positions)
    turn[first, first] = turn[second, second] = sympy.cos(angle)
    turn[first, second], turn[second, first] = -sympy.sin(angle), sympy.sin(angle)
    return turn


def permutation(order: list[int]) -> Matrix:
    """Column m of F P is column order[m] of F."""
    return Matrix(len(order), len(order), lambda i, j: int(i == order[j]))
