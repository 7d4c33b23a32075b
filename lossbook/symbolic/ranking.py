"""Average precision and NDCG of a ranking, their structured hinge, and how it splits over the negatives.

p positives with scores s_1 >= ... >= s_p and n negatives with scores t_1 >= ... >= t_n. A ranking that keeps both in
that order is a tuple `ahead`: h_i is the number of negatives ahead of the i-th
positive, 0 <= h_1 <= ... <= h_p <= n.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import sympy
from sympy import Expr, Rational, Symbol

i, j, h, p, n = sympy.symbols("i j h p n", integer=True, positive=True)
MEASURES = ("average_precision", "ndcg")


def scores(letter: str, count: int) -> list[Symbol]:
    """The real symbols letter_1 ... letter_count."""
    return list(sympy.symbols(f"{letter}_1:{count + 1}", real=True))


def interleavings(p: int, n: int) -> Iterator[tuple[int, ...]]:
    """Every ranking of p positives and n negatives that keeps each kind in order, as `ahead`."""
    return itertools.combinations_with_replacement(range(n + 1), p)


def discount(rank: Expr) -> Expr:
    """1 / log2(1 + rank)."""
    return sympy.log(2) / sympy.log(1 + rank)


def average_precision(ranking: Sequence[bool]) -> Expr:
    """The definition: the mean over the relevant examples of the precision among all down to their rank."""
    at = [rank for rank, relevant in enumerate(ranking, 1) if relevant]
    return sum(Rational(sum(ranking[:rank]), rank) for rank in at) / len(at)


def ndcg(ranking: Sequence[bool]) -> Expr:
    """The definition: the sum of the discounts at the ranks of the relevant examples, over the largest there can be."""
    at = [rank for rank, relevant in enumerate(ranking, 1) if relevant]
    return sum(map(discount, at)) / sum(discount(rank) for rank in range(1, len(at) + 1))


def as_list(ahead: Sequence[int], n: int) -> list[bool]:
    """The ranking with h_i negatives ahead of the i-th positive, from the top: True for relevant."""
    ranks = {number + h for number, h in enumerate(ahead, 1)}
    return [rank in ranks for rank in range(1, len(ahead) + n + 1)]


def loss(ahead: Sequence[Expr], measure: str = "average_precision") -> Expr:
    """Δ = 1 - (1/p) Σ_i i/(i + h_i), or 1 - Σ_i D(i + h_i) / Σ_i D(i)."""
    count = len(ahead)
    if measure == "average_precision":
        return 1 - sum(number / (number + h) for number, h in enumerate(map(sympy.sympify, ahead), 1)) / count
    kept = sum(discount(number + h) for number, h in enumerate(map(sympy.sympify, ahead), 1))
    return 1 - kept / sum(discount(number) for number in range(1, count + 1))


def agreement(ahead: Sequence[int], s: Sequence[Expr], t: Sequence[Expr]) -> Expr:
    """F(R) = (1/pn) Σ_ij R_ij (s_i - t_j), with R_ij = -1 for the first h_i negatives and +1 for the others."""
    pairs = itertools.product(range(len(s)), range(len(t)))
    return sum((-1 if b < ahead[a] else 1) * (s[a] - t[b]) for a, b in pairs) / (len(s) * len(t))


def margin(ahead: Sequence[int], s: Sequence[Expr], t: Sequence[Expr], measure: str = "average_precision") -> Expr:
    """Δ(R) + F(R) - F(R*): the hinge is its maximum over the rankings R. R* has no negative ahead of a positive."""
    best = agreement([0] * len(s), s, t)
    return loss(ahead, measure) + agreement(ahead, s, t) - best


def gain(i: Expr, j: Expr, p: Expr, measure: str = "average_precision") -> Expr:
    """What Δ grows by as the j-th negative overtakes the i-th of p positives, as the difference that it is."""
    if measure == "average_precision":
        return (i / (i + j - 1) - i / (i + j)) / p
    return (discount(i + j - 1) - discount(i + j)) / sum(map(discount, range(1, p + 1)))


def contribution(i: int, j: int, s: Sequence[Expr], t: Sequence[Expr], measure: str = "average_precision") -> Expr:
    """g(i, j) = gain - 2 (s_i - t_j)/(pn): what one overtaking adds to Δ(R) + F(R) - F(R*)."""
    pairs = len(s) * len(t)
    return gain(sympy.Integer(i), sympy.Integer(j), len(s), measure) - 2 * (s[i - 1] - t[j - 1]) / pairs


def over_negatives(ahead: Sequence[int], s: Sequence[Expr], t: Sequence[Expr], measure: str) -> Expr:
    """Σ_j Σ_{i >= k_j} g(i, j): a term a negative, with k_j the first positive that negative j is ahead of."""
    return sum(
        contribution(a, b, s, t, measure)
        for b in range(1, len(t) + 1)
        for a in range(1, len(s) + 1)
        if ahead[a - 1] >= b
    )


def telescoped() -> Expr:
    """Σ_{j=1..h} [i/(i+j-1) - i/(i+j)], summed by SymPy for general i and h: what positive i loses behind h."""
    return sympy.simplify(sympy.summation(sympy.apart(sympy.together(i / (i + j - 1) - i / (i + j)), j), (j, 1, h)))


def slope_of_gain() -> Expr:
    """gain(i, j + 1) - gain(i, j) for average precision, factored: negative for all i, j >= 1."""
    return sympy.factor(sympy.simplify(gain(i, j + 1, p) - gain(i, j, p)))


def curvature_of_discount() -> Expr:
    """D''(x) = (d/dx)² ln 2 / ln(1 + x), factored: positive for x > 0, so that the NDCG gain falls with j."""
    x = Symbol("x", positive=True)
    return sympy.factor(sympy.diff(discount(x), x, 2))


def exchange() -> Expr:
    """F of two positives in the order of their scores, less F with the two exchanged: (2/pn) (s_a - s_b)(h_b - h_a)."""
    better, worse, first, last = sympy.symbols("s_a s_b h_a h_b", real=True)

    def part(score: Expr, behind: Expr) -> Expr:
        """What F has of one positive behind so many negatives; the sum of the t_j is the same for both orders."""
        return (n - 2 * behind) * score / (p * n)

    kept = part(better, first) + part(worse, last)
    return sympy.factor(sympy.expand(kept - part(better, last) - part(worse, first)))


def hinge(s: Sequence[Expr], t: Sequence[Expr], measure: str = "average_precision") -> Expr:
    """The hinge as one expression: the maximum over all interleavings, for scores that fall along s and along t."""
    return sympy.Max(*(margin(ahead, s, t, measure) for ahead in interleavings(len(s), len(t))))


def answers(p: Expr, n: Expr) -> Expr:
    """p! (p + 1)^n: the orders of the positives, and for each negative its place among p + 1."""
    return sympy.factorial(p) * (p + 1) ** n


def slope_of_quotient() -> tuple[Expr, Expr]:
    """Numerator of d/dx [x / ln(1 + x)], which is ln(1 + x) - x/(1 + x): its value at 0, and its slope, positive."""
    x = Symbol("x", positive=True)
    numerator = sympy.simplify(sympy.diff(x / sympy.log(1 + x), x) * sympy.log(1 + x) ** 2)
    return sympy.limit(numerator, x, 0), sympy.factor(sympy.diff(numerator, x))
