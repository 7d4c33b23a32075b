"""Weight decay, dropout and momentum: a prior, a penalty in the mean, and the second root of a step.

w is a weight, h the curvature of the loss in it, η the learning rate, λ the strength of weight decay, μ the
momentum. Dropout keeps a unit with the probability q, leaves it out with p = 1 - q, and divides by q what it keeps.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import sympy
from sympy import Expr, Matrix, Symbol

from lossbook.symbolic import likelihood_of_losses as likelihood
from lossbook.symbolic.ranking import scores as letters  # the real symbols letter_1 ... letter_count

w, v, g, z, target = sympy.symbols("w v g z w_*", real=True)
h, eta, decay, sigma, tau, q = sympy.symbols("h eta lambda sigma tau q", positive=True)
mu, a, rho, s = sympy.symbols("mu a rho s", positive=True)  # a stands for ηh
beta1, beta2, epsilon = sympy.symbols("beta_1 beta_2 epsilon", positive=True)
r = Symbol("r")
t = Symbol("t", integer=True, nonnegative=True)


def dot(left: Sequence[Expr], right: Sequence[Expr]) -> Expr:
    """Σ_j left_j right_j."""
    return sum(one * other for one, other in zip(left, right, strict=True))


# --- weight decay -------------------------------------------------------------------------------------------------


def negative_log_posterior(inputs: Sequence[Sequence[Expr]], targets: Sequence[Expr], weights: Sequence[Expr]) -> Expr:
    """Σ_i -log N(y_i; x_i·w, σ²) + Σ_j -log N(w_j; 0, τ²), up to the evidence, which has no w."""

    def gaussian(value: Expr, mean: Expr, variance: Expr) -> Expr:
        replaced = {likelihood.y: value, likelihood.mu: mean, likelihood.v: variance}
        return likelihood.gaussian_nll_of_variance().subs(replaced, simultaneous=True)

    fit = sum(gaussian(y, dot(x, weights), sigma**2) for x, y in zip(inputs, targets, strict=True))
    return fit + sum(gaussian(weight, sympy.S.Zero, tau**2) for weight in weights)


def penalised_squared_error(
    inputs: Sequence[Sequence[Expr]], targets: Sequence[Expr], weights: Sequence[Expr], strength: Expr = decay
) -> Expr:
    """½ Σ_i (y_i - x_i·w)² + λ/2 Σ_j w_j²."""
    fit = sum((y - dot(x, weights)) ** 2 for x, y in zip(inputs, targets, strict=True))
    return fit / 2 + strength * dot(weights, weights) / 2


def penalised_minimiser() -> tuple[Matrix, list[Symbol], list[Symbol]]:
    """Minimiser of ½ (w - w*)ᵀ H (w - w*) + λ/2 |w|² in two dimensions; coordinates along the eigenvectors of H.

    H = R diag(h_1, h_2) Rᵀ with a rotation R, and w* = R c. Also returned: the c and the h.
    """
    half = Symbol("T", real=True)  # tangent of half the angle: cosine and sine are rational in it
    curvatures, unpenalised = list(sympy.symbols("h_1:3", positive=True)), letters("c", 2)
    rotation = Matrix([[1 - half**2, -2 * half], [2 * half, 1 - half**2]]) / (1 + half**2)
    hessian = rotation * sympy.diag(*curvatures) * rotation.T
    weights = Matrix(letters("w", 2))
    away = weights - rotation * Matrix(unpenalised)
    loss = (away.T * hessian * away)[0] / 2 + decay * weights.dot(weights) / 2
    solution = sympy.solve([sympy.diff(loss, weight) for weight in weights], list(weights), dict=True)[0]
    return (rotation.T * weights.subs(solution)).applyfunc(sympy.factor), unpenalised, curvatures


def sgd_step(
    w: Expr, v: Expr, gradient: Expr, coupled: Expr = 0, decoupled: Expr = 0, momentum: Expr = 0
) -> tuple[Expr, Expr]:
    """v' = μv + g + λw with the coupled λ; w' = (1 - ηλ) w - ηv' with the decoupled one. Returns w', v'."""
    velocity = momentum * v + gradient + coupled * w
    return (1 - eta * decoupled) * w - eta * velocity, velocity


def adam_step(
    w: Expr, first: Expr, second: Expr, count: Expr, gradient: Expr, coupled: Expr = 0, decoupled: Expr = 0
) -> tuple[Expr, Expr, Expr]:
    """Step number `count` of Adam (coupled λ) or AdamW (decoupled λ). Returns w', m', s'.

    G = g + λw, m' = β₁m + (1 - β₁)G, s' = β₂s + (1 - β₂)G²,
    w' = (1 - ηλ) w - η [m'/(1 - β₁^t)] / (√[s'/(1 - β₂^t)] + ε).
    """
    total = gradient + coupled * w
    first, second = beta1 * first + (1 - beta1) * total, beta2 * second + (1 - beta2) * total**2
    root = sympy.sqrt(second / (1 - beta2**count)) + epsilon
    return (1 - eta * decoupled) * w - eta * first / (1 - beta1**count) / root, first, second


def first_adam_step(coupled: Expr = 0, decoupled: Expr = 0) -> Expr:
    """w' - w of the first step, from m = s = 0: -ηλw (decoupled) - ηG/(|G| + ε) with G = g + λw (coupled)."""
    after, _, _ = adam_step(w, 0, 0, 1, g, coupled, decoupled)
    return sympy.factor(sympy.simplify(after - w))


def resting_point(coupled: Expr = 0, decoupled: Expr = 0) -> Expr:
    """Where SGD with momentum rests on h/2 (w - w*)²: the fixed point of `sgd_step`, over w*."""
    after, velocity = sgd_step(w, v, h * (w - target), coupled, decoupled, mu)
    return sympy.simplify(sympy.solve([after - w, velocity - v], [w, v], dict=True)[0][w] / target)


def resting_point_under_root(coupled: Expr = 0, decoupled: Expr = 0) -> Expr:
    """The same where a root r, held fixed, divides the gradient: w' = (1 - ηλ) w - η (g + λw)/r, as in Adam's long run.

    h/(h + λ) coupled, whatever r is, and h/(h + λr) decoupled.
    """
    root = Symbol("r", positive=True)
    after = (1 - eta * decoupled) * w - eta * (h * (w - target) + coupled * w) / root
    return sympy.factor(sympy.solve(after - w, w)[0] / target)


# --- dropout ------------------------------------------------------------------------------------------------------


def expectation(function: Callable[[Sequence[Expr]], Expr], count: int) -> Expr:
    """E f(m_1/q, ..., m_n/q) over independent masks: Σ_m q^Σm (1 - q)^(n - Σm) f(m/q)."""
    return sum(
        q ** sum(mask) * (1 - q) ** (count - sum(mask)) * function([kept / q for kept in mask])
        for mask in itertools.product((0, 1), repeat=count)
    )


def adaptive_penalty(parts: Sequence[Expr], curvature: Expr = sympy.S.One) -> Expr:
    """f''(z) p/(2q) Σ_j a_j² with a_j = x_j w_j; of the squared error f'' = 1, of the logistic loss σ'(z)."""
    return curvature * (1 - q) / (2 * q) * dot(parts, parts)


def second_order(function: Callable[[Expr], Expr], parts: Sequence[Expr]) -> Expr:
    """½ d²/dε² at ε = 0 of E f(z + ε Σ_j (m_j/q - 1) a_j): what dropout adds to f(z), to second order in the noise."""

    def disturbed(mask: Sequence[Expr]) -> Expr:
        return function(z + epsilon * dot([kept - 1 for kept in mask], parts))

    return sympy.diff(expectation(disturbed, len(parts)), epsilon, 2).subs(epsilon, 0).doit() / 2


# --- momentum -----------------------------------------------------------------------------------------------------


def step_matrix() -> Matrix:
    """(w, v) -> (w', v') of `sgd_step` with momentum on h/2 w²: [[1 - ηh, -ημ], [h, μ]]."""
    return Matrix(sgd_step(w, v, h * w, momentum=mu)).jacobian([w, v])


def characteristic() -> Expr:
    """r² - (1 + μ - a) r + μ with a = ηh, whose roots are the factors of a step."""
    return step_matrix().charpoly(r).as_expr().subs(h, a / eta).expand()


def contraction_conditions(radius: Expr = sympy.S.One) -> list[Expr]:
    """Both roots are below ρ in modulus exactly if all three are positive.

    r = ρ(1 + x)/(1 - x) maps Re x < 0 to |r| < ρ. What `characteristic` becomes is a quadratic in x, and both roots of
    a quadratic have a negative real part exactly if its coefficients are of one sign.
    """
    x = Symbol("x")
    mapped = sympy.numer(sympy.together(characteristic().subs(r, radius * (1 + x) / (1 - x))))
    return [sympy.factor(coefficient) for coefficient in sympy.Poly(mapped, x).all_coeffs()]


def slow_root(order: int = 3) -> Expr:
    """The larger root up to a^(order - 1): 1 - a/(1 - μ) - μ a²/(1 - μ)³ - ..., for μ < 1."""
    rest = Symbol("c", positive=True)  # 1 - μ
    roots = sympy.solve(characteristic().subs(mu, 1 - rest), r)
    larger = max(roots, key=lambda root: root.subs({rest: 0.5, a: 0.01}))
    terms = (sympy.diff(larger, a, power).subs(a, 0) * a**power / sympy.factorial(power) for power in range(order))
    return sum(sympy.factor(sympy.simplify(term).subs(rest, 1 - mu)) for term in terms)


def allowed_curvatures(radius: Expr = rho) -> tuple[Expr, Expr]:
    """The smallest and the largest a = ηh at which both roots keep to ρ, for 0 <= μ <= ρ²:

    (1 - ρ)(ρ - μ)/ρ and (1 + ρ)(ρ + μ)/ρ.
    """
    highest, _, lowest = contraction_conditions(radius)
    free = Symbol("a")  # zero at ρ = 1, which a positive symbol could not be
    return tuple(sympy.factor(sympy.solve(side.subs(a, free), free)[0]) for side in (lowest, highest))


def best_contraction(momentum: Expr) -> Expr:
    """The ρ at which the largest allowed curvature is k times the smallest; μ is given as a function of ρ.

    (√k - 1)/(√k + 1) with μ = ρ², and (k - 1)/(k + 1) with μ = 0.
    """
    root = Symbol("c", positive=True)  # of k
    lowest, highest = (x.subs(mu, momentum) for x in allowed_curvatures())
    solutions = sympy.solve(sympy.numer(sympy.together(highest / lowest - root**2)), rho)
    (found,) = (x for x in solutions if 0 < x.subs(root, 2) < 1)
    return sympy.cancel(found).subs(root, sympy.sqrt(Symbol("k", positive=True)))


def under_constant_gradient() -> tuple[Expr, Expr]:
    """v_t and w_t of `sgd_step` with momentum and a constant gradient g, from v = w = 0.

    v_t = g (1 - μ^t)/(1 - μ) and w_t = -η g/(1 - μ) [t - μ (1 - μ^t)/(1 - μ)].
    """
    velocity, place = sympy.Function("v"), sympy.Function("w")
    speed = sympy.rsolve(velocity(t + 1) - sgd_step(0, velocity(t), g, momentum=mu)[1], velocity(t), {velocity(0): 0})
    path = sympy.rsolve(place(t + 1) - place(t) + eta * speed.subs(t, t + 1), place(t), {place(0): 0})
    return sympy.factor(speed), sympy.simplify(path)


def stationary_variance() -> Expr:
    """Variance of w at rest on h/2 w², each gradient with independent noise of variance s².

    Solves Σ = A Σ Aᵀ + s² b bᵀ with A of `step_matrix` and b = (-η, 1): η s² (1 + μ) / (h (1 - μ)(2(1 + μ) - ηh)).
    """
    entries = sympy.symbols("A B C")
    covariance = Matrix([[entries[0], entries[1]], [entries[1], entries[2]]])
    step, noise = step_matrix(), Matrix([-eta, 1])
    equations = step * covariance * step.T + s**2 * noise * noise.T - covariance
    return sympy.factor(sympy.solve(list(equations), entries, dict=True)[0][entries[0]])
