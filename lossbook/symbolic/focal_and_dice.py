"""The focal loss, with a sigmoid and with a softmax, and the Dice loss of soft masks: definitions, gradients, limits.

p is a predicted probability and g the label, 0 or 1. Its p_t is p where g = 1 and 1 - p where g = 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import sympy
from sympy import Expr, Symbol, log

from lossbook.symbolic.likelihood_of_losses import sigmoid

p, q, f, alpha = sympy.symbols("p q f alpha", positive=True)
gamma = Symbol("gamma", nonnegative=True)
N = Symbol("N", positive=True)
TP, FP, FN = sympy.symbols("TP FP FN", positive=True)


def pixels(letter: str, count: int) -> list[Symbol]:
    """The positive symbols letter_1 ... letter_count."""
    return list(sympy.symbols(f"{letter}_1:{count + 1}", positive=True))


def slope_in_logit(expression: Expr) -> Expr:
    """∂/∂z of a function of p = sigmoid(z): p (1 - p) ∂/∂p."""
    return p * (1 - p) * sympy.diff(expression, p)


def binary_focal(p: Expr, g: int, gamma: Expr = gamma, alpha: Expr | None = None) -> Expr:
    """-α_t (1 - p_t)^γ ln p_t, with α_t = α for g = 1 and 1 - α for g = 0; without α, α_t = 1."""
    weight = 1 if alpha is None else alpha if g else 1 - alpha
    correct = p if g else 1 - p
    return -weight * (1 - correct) ** gamma * log(correct)


def softmax_focal(p: Sequence[Expr], label: int, gamma: Expr = gamma) -> Expr:
    """-(1 - p_y)^γ ln p_y for p = softmax(z) and the class y."""
    return -((1 - p[label]) ** gamma) * log(p[label])


def one_against_rest(z: Sequence[Expr], label: int, gamma: Expr = gamma) -> Expr:
    """Σ_k of the binary focal loss of sigmoid(z_k) for the label [k = y]."""
    return sum(binary_focal(sigmoid(x), int(k == label), gamma) for k, x in enumerate(z))


def relative_pull() -> Expr:
    """Gradient of the focal loss in the logit, for g = 1, over that of cross-entropy, which is p - 1."""
    return sympy.simplify(slope_in_logit(binary_focal(p, 1)) / (p - 1))


def calibration(alpha: Expr | None = None) -> Expr:
    """The share η of positives at which p is the stationary point of η FL(p, 1) + (1 - η) FL(p, 0)."""
    up, down = (slope_in_logit(binary_focal(p, g, alpha=alpha)) * (1 - 2 * g) for g in (1, 0))
    return sympy.simplify(down / (up + down))


def calibration_of_class() -> Expr:
    """The share η of one of N classes at which its p is the stationary point of the expected softmax form.

    The other classes have the rest in equal parts, of the share and of the prediction.
    """
    of_class = softmax_focal([p], 0)
    of_others = of_class.subs(p, (1 - p) / (N - 1))
    down, up = sympy.diff(of_others, p), -sympy.diff(of_class, p)
    return down / (up + down)


def dice(
    p: Sequence[Expr], g: Sequence[Expr], squared: bool = False, above: Expr = sympy.S.Zero, below: Expr = sympy.S.Zero
) -> Expr:
    """(2 Σpg + above) / (Σp + Σg + below), or with Σp² + Σg² as V-Net has it; the loss is 1 less this."""
    power = 2 if squared else 1
    overlap = sum(a * b for a, b in zip(p, g, strict=True))
    return (2 * overlap + above) / (sum(a**power for a in p) + sum(b**power for b in g) + below)


def vnet_gradient(p: Sequence[Expr], g: Sequence[Expr], j: int) -> Expr:
    """∂D/∂p_j = 2 [g_j (Σp² + Σg²) - 2 p_j Σpg] / (Σp² + Σg²)²."""
    overlap = sum(a * b for a, b in zip(p, g, strict=True))
    total = sum(a**2 for a in p) + sum(b**2 for b in g)
    return 2 * (g[j] * total - 2 * p[j] * overlap) / total**2


def balance(slope_foreground: Expr, slope_background: Expr) -> Expr:
    """How strongly all the foreground pulls its probabilities up, over how strongly all the background pulls down.

    The share f of the pixels is foreground. The slopes are those of the loss in one pixel's probability.
    """
    return sympy.simplify(f * -slope_foreground / ((1 - f) * slope_background))


def dice_slopes(squared: bool = False) -> tuple[Expr, Expr]:
    """Slopes of 1 - D in a foreground and in a background pixel, where every pixel of n has the probability q."""
    n, a, b = sympy.symbols("n a b", positive=True)
    power = 2 if squared else 1
    # One pixel of each kind is set apart: a in the foreground, b in the background. The others are at q.
    overlap = (n * f - 1) * q + a
    total = (n - 2) * q**power + a**power + b**power + n * f
    loss = 1 - 2 * overlap / total
    return tuple(sympy.simplify(sympy.diff(loss, x).subs({a: q, b: q})) for x in (a, b))


def slope_in_bias(count: int) -> tuple[Expr, Expr]:
    """∂/∂b of a loss L(z_1 + b, ..., z_n + b), whatever it is, and the sum of its slopes in the n logits."""
    z, b = pixels("z", count), Symbol("b")
    loss = sympy.Function("L")(*(logit + b for logit in z))
    return sympy.diff(loss, b), sum(sympy.diff(loss, logit) for logit in z)
