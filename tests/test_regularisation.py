"""Weight decay, dropout and momentum: the derivation against autograd and torch.optim."""

import ast
import functools
import itertools
import json
import math

import numpy
import pytest
import sympy
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lossbook import sweep
from lossbook.results import PROJECT
from lossbook.symbolic import regularisation as derived
from lossbook.symbolic.rooted_logistic import logistic as logistic_loss

seeds = st.integers(0, 2**32 - 1)
numbers = st.floats(-3, 3)
kept = st.floats(0.1, 1)
momenta = st.floats(0, 0.97)


def parameter(*values):
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


# --- weight decay -------------------------------------------------------------------------------------------------


@functools.cache
def regression(examples=3, weights=2):
    x = [derived.letters(f"x_{i}", weights) for i in range(examples)]
    return x, derived.letters("y", examples), derived.letters("w", weights)


def test_weight_decay_is_a_gaussian_prior():
    """σ² (-log posterior) and the penalised squared error with λ = σ²/τ² differ by what has no weight in it."""
    x, y, w = regression()
    penalised = derived.penalised_squared_error(x, y, w, derived.sigma**2 / derived.tau**2)
    rest = sympy.expand(derived.sigma**2 * derived.negative_log_posterior(x, y, w) - penalised)
    assert rest.free_symbols == {derived.sigma, derived.tau}


@settings(deadline=None, max_examples=25)
@given(seed=seeds, sigma=st.floats(0.2, 3), tau=st.floats(0.2, 3))
def test_slope_of_the_posterior_is_that_of_torch(seed, sigma, tau):
    random = numpy.random.default_rng(seed)
    inputs, targets, start = (random.standard_normal(shape) for shape in ((3, 2), 3, 2))
    weights = parameter(*start)
    zero, scales = torch.zeros(2, dtype=torch.float64), torch.tensor([sigma, tau], dtype=torch.float64)
    fit = torch.distributions.Normal(torch.from_numpy(inputs) @ weights, scales[0])
    prior = torch.distributions.Normal(zero, scales[1])
    value = -fit.log_prob(torch.from_numpy(targets)).sum() - prior.log_prob(weights).sum()
    (slope,) = torch.autograd.grad(value, weights)
    ours, slopes = posterior()(*inputs.ravel(), *targets, *start, sigma, tau)
    assert ours == pytest.approx(value.item(), abs=1e-10)
    assert slopes == pytest.approx(slope.tolist(), abs=1e-10)


@functools.cache
def posterior():
    x, y, w = regression()
    value = derived.negative_log_posterior(x, y, w)
    arguments = [*itertools.chain(*x), *y, *w, derived.sigma, derived.tau]
    return sympy.lambdify(arguments, [value, [sympy.diff(value, weight) for weight in w]], "math")


def test_minimiser_shrinks_along_each_eigenvector():
    coordinates, unpenalised, curvatures = derived.penalised_minimiser()
    for found, c, h in zip(coordinates, unpenalised, curvatures, strict=True):
        assert sympy.simplify(found - c * h / (h + derived.decay)) == 0


@settings(deadline=None, max_examples=25)
@given(seed=seeds, strength=st.floats(0.01, 10), size=st.integers(1, 8))
def test_shrinkage_of_a_ridge_regression(seed, strength, size):
    random = numpy.random.default_rng(seed)
    inputs, targets = random.standard_normal((size + 5, size)), random.standard_normal(size + 5)
    hessian = inputs.T @ inputs
    curvatures, vectors = numpy.linalg.eigh(hessian)
    free = numpy.linalg.solve(hessian, inputs.T @ targets)
    ridge = numpy.linalg.solve(hessian + strength * numpy.eye(size), inputs.T @ targets)
    expected = vectors.T @ free * curvatures / (curvatures + strength)
    numpy.testing.assert_allclose(vectors.T @ ridge, expected, atol=1e-9)


def test_coupled_is_decoupled_without_momentum_and_not_with_it():
    w, v, g, decay = derived.w, derived.v, derived.g, derived.decay
    coupled, decoupled = (derived.sgd_step(w, v, g, **{how: decay})[0] for how in ("coupled", "decoupled"))
    assert sympy.expand(coupled - decoupled) == 0
    assert sympy.expand(coupled - (1 - derived.eta * decay) * w + derived.eta * g) == 0
    h, mu = derived.h, derived.mu
    assert sympy.simplify(derived.resting_point(coupled=decay) - h / (h + decay)) == 0
    assert sympy.simplify(derived.resting_point(decoupled=decay) - h / (h + (1 - mu) * decay)) == 0


@functools.cache
def sgd():
    arguments = [derived.w, derived.v, derived.g, derived.eta, derived.decay, derived.mu]
    step = derived.sgd_step(derived.w, derived.v, derived.g, coupled=derived.decay, momentum=derived.mu)
    return sympy.lambdify(arguments, step, "math")


@settings(deadline=None, max_examples=25)
@given(w=numbers, gradients=st.lists(numbers, min_size=1, max_size=5), decay=st.floats(0, 0.5), mu=momenta)
def test_sgd_is_that_of_torch(w, gradients, decay, mu):
    theirs = parameter(w)
    optimiser = torch.optim.SGD([theirs], lr=0.1, momentum=mu, weight_decay=decay)
    v = 0.0
    for gradient in gradients:
        theirs.grad = torch.tensor([gradient], dtype=torch.float64)
        optimiser.step()
        w, v = sgd()(w, v, gradient, 0.1, decay, mu)
        assert theirs.item() == pytest.approx(w, abs=1e-10)


@functools.cache
def adam(how):
    state = [derived.w, *sympy.symbols("first second count", real=True), derived.g]
    constants = [derived.eta, derived.decay, derived.beta1, derived.beta2, derived.epsilon]
    return sympy.lambdify([*state, *constants], derived.adam_step(*state, **{how: derived.decay}), "math")


@settings(deadline=None, max_examples=25)
@given(w=numbers, gradients=st.lists(numbers, min_size=1, max_size=5), decay=st.floats(0, 0.5))
@pytest.mark.parametrize(("how", "kind"), [("coupled", torch.optim.Adam), ("decoupled", torch.optim.AdamW)])
def test_adam_is_that_of_torch(how, kind, w, gradients, decay):
    theirs = parameter(w)
    optimiser = kind([theirs], lr=0.1, betas=(0.9, 0.999), eps=1e-3, weight_decay=decay)
    first = second = 0.0
    for count, gradient in enumerate(gradients, 1):
        theirs.grad = torch.tensor([gradient], dtype=torch.float64)
        optimiser.step()
        w, first, second = adam(how)(w, first, second, count, gradient, 0.1, decay, 0.9, 0.999, 1e-3)
        assert theirs.item() == pytest.approx(w, abs=1e-10)


def test_first_step_of_adam_is_a_sign():
    """Coupled decay has no effect in proportion to λw on it as ε goes to zero; decoupled decay keeps -ηλw."""
    w, g, eta, decay, epsilon = derived.w, derived.g, derived.eta, derived.decay, derived.epsilon
    coupled, decoupled = derived.first_adam_step(coupled=decay), derived.first_adam_step(decoupled=decay)
    total = sympy.Symbol("G", positive=True)
    for sign in (1, -1):
        at = {g: sign * total - decay * w}
        assert sympy.limit(coupled.subs(at), epsilon, 0) == -sign * eta
        assert sympy.simplify(sympy.diff(coupled, decay).subs(at) + eta * w * epsilon / (total + epsilon) ** 2) == 0
        assert sympy.simplify(sympy.diff(decoupled, decay) + eta * w) == 0


def test_adam_decays_a_weight_the_less_the_larger_its_gradients():
    """Gradients ±r that cancel: AdamW shrinks every weight by 1 - ηλ a step, Adam by about 1 - ηλ/r."""
    sizes = torch.tensor([1.0, 10.0], dtype=torch.float64)
    left = {}
    for kind in (torch.optim.Adam, torch.optim.AdamW):
        weights = parameter(1.0, 1.0)
        optimiser = kind([weights], lr=1e-3, weight_decay=0.1)
        for step in range(1000):
            weights.grad = sizes * (-1) ** step
            optimiser.step()
        left[kind] = weights.tolist()
    # Gradients that alternate from a standing start leave an offset of about η.
    assert left[torch.optim.AdamW] == pytest.approx([math.exp(-0.1)] * 2, abs=2e-3)
    assert left[torch.optim.Adam] == pytest.approx([math.exp(-0.1), math.exp(-0.01)], abs=2e-3)


def test_adam_keeps_the_balance_and_adamw_the_pace():
    """Under noise ±r much larger than the gradient itself they rest at h/(h + λ) and h/(h + λr)."""
    coupled, decoupled = (derived.resting_point_under_root(**{how: derived.decay}) for how in ("coupled", "decoupled"))
    h, decay, root = derived.h, derived.decay, sympy.Symbol("r", positive=True)
    assert sympy.simplify(coupled - h / (h + decay)) == 0
    assert sympy.simplify(decoupled - h / (h + root * decay)) == 0
    for kind, formula in ((torch.optim.Adam, coupled), (torch.optim.AdamW, decoupled)):
        weight = parameter(1.0)
        optimiser = kind([weight], lr=0.02, weight_decay=0.1)
        for step in range(4000):
            weight.grad = weight.detach() - 1 + 10 * (-1) ** step
            optimiser.step()
        assert weight.item() == pytest.approx(float(formula.subs({h: 1, decay: 0.1, root: 10})), abs=0.01)


# --- dropout ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_dropout_is_exactly_a_penalty_for_the_squared_error(count):
    parts, y, q = derived.letters("a", count), sympy.Symbol("y", real=True), derived.q

    def loss(mask):
        return (y - derived.dot(mask, parts)) ** 2 / 2

    added = derived.expectation(loss, count) - loss([1] * count)
    assert sympy.simplify(added - derived.adaptive_penalty(parts)) == 0
    assert sympy.simplify(derived.adaptive_penalty(parts) - (1 - q) / q / 2 * sum(a**2 for a in parts)) == 0


def test_one_more_input_adds_its_own_term():
    """Whatever the other masks left as the error r: so the penalty holds for any number of inputs."""
    error, a = sympy.symbols("r a", real=True)
    mean = derived.expectation(lambda mask: (error - (mask[0] - 1) * a) ** 2 / 2, 1)
    assert sympy.simplify(mean - error**2 / 2 - derived.adaptive_penalty([a])) == 0


def mean_over_masks(loss, inputs, weights, keep):
    """The mean loss of a linear model under dropout: every mask of torch's, with its probability."""
    total = 0.0
    for mask in itertools.product((0.0, 1.0), repeat=inputs.shape[1]):
        chance = math.prod(keep if one else 1 - keep for one in mask)
        total = total + chance * loss((inputs * torch.tensor(mask, dtype=torch.float64) / keep) @ weights)
    return total


@settings(deadline=None, max_examples=25)
@given(seed=seeds, keep=kept, count=st.integers(1, 4))
def test_slope_under_dropout_is_that_of_the_penalty(seed, keep, count):
    random = numpy.random.default_rng(seed)
    inputs, targets = torch.from_numpy(random.standard_normal((5, count))), torch.from_numpy(random.standard_normal(5))
    weights = parameter(*random.standard_normal(count))
    mean = mean_over_masks(lambda z: ((targets - z) ** 2).sum() / 2, inputs, weights, keep)
    (slope,) = torch.autograd.grad(mean, weights)
    x, w, y = derived.letters("x", count), derived.letters("w", count), sympy.Symbol("y")
    value = derived.penalised_squared_error([x], [y], w, sympy.S.Zero)
    value += derived.adaptive_penalty([one * other for one, other in zip(x, w, strict=True)])
    of_one = sympy.lambdify([*x, y, *w, derived.q], [sympy.diff(value, weight) for weight in w], "math")
    rows = zip(inputs.tolist(), targets.tolist(), strict=True)
    ours = numpy.sum([of_one(*row, target, *weights.tolist(), keep) for row, target in rows], axis=0)
    numpy.testing.assert_allclose(slope.numpy(), ours, atol=1e-10 / min(1, keep))


def test_logistic_loss_under_dropout_to_second_order():
    z, q, parts = derived.z, derived.q, derived.letters("a", 2)
    slope = sympy.exp(-z) / (1 + sympy.exp(-z)) ** 2  # σ'
    stated = derived.adaptive_penalty(parts, slope)
    assert sympy.simplify(derived.second_order(logistic_loss, parts) - stated) == 0
    anything = sympy.Function("f")
    curvature = sympy.diff(anything(z), z, 2)
    general = derived.second_order(anything, parts) - derived.adaptive_penalty(parts, curvature)
    assert sympy.simplify(general) == 0
    assert sympy.simplify(stated - (1 - q) / (2 * q) * slope * sum(a**2 for a in parts)) == 0


@settings(deadline=None, max_examples=20)
@given(seed=seeds, keep=st.floats(0.3, 0.95))
def test_rest_of_the_second_order_is_of_the_third(seed, keep):
    """Ten times smaller inputs, the margin held by a bias: the error against torch falls a thousandfold or more."""
    random = numpy.random.default_rng(seed)
    inputs, weights = torch.from_numpy(random.standard_normal((1, 4))), torch.from_numpy(random.standard_normal(4))
    value = sympy.lambdify([derived.z, derived.q, *derived.letters("a", 4)], logistic_penalty(), "math")
    errors = []
    for scale in (0.1, 0.01):
        parts = scale * inputs[0] * weights
        centre = 0.7 - parts.sum()
        small = scale * inputs
        mean = mean_over_masks(lambda z, c=centre: torch.nn.functional.softplus(-z - c).sum(), small, weights, keep)
        added = mean.item() - math.log1p(math.exp(-0.7))
        errors.append(abs(added - value(0.7, keep, *parts.tolist())))
    spread = (inputs[0] * weights).abs().sum().item() / keep
    assert errors[0] <= 0.2 * (0.1 * spread) ** 3 and errors[1] <= 0.2 * (0.01 * spread) ** 3 + 1e-15


@functools.cache
def logistic_penalty():
    z = derived.z
    return derived.adaptive_penalty(derived.letters("a", 4), sympy.diff(logistic_loss(z), z, 2))


def test_second_order_fails_for_large_margins_and_for_much_dropout():
    a, odds = sympy.symbols("a o", positive=True)
    q = derived.q
    exact = derived.expectation(lambda mask: logistic_loss(mask[0] * a), 1) - logistic_loss(a)
    approximate = derived.adaptive_penalty([a], sympy.diff(logistic_loss(a), a, 2))
    share = {q: 1 / (1 + odds)}
    assert sympy.simplify(sympy.limit(exact.subs(share), a, sympy.oo) - odds / (1 + odds) * sympy.log(2)) == 0
    assert sympy.limit(approximate, a, sympy.oo) == 0
    slope = sympy.limit(approximate * q, q, 0, "+")
    assert all(slope.subs(a, at).evalf() > 0 for at in (0.1, 1, 10))  # so it grows without bound, like 1/q
    assert sympy.simplify(sympy.limit(exact, q, 0, "+") - (sympy.log(2) + a - sympy.log(1 + sympy.exp(a)))) == 0


@settings(deadline=None, max_examples=25)
@given(seed=seeds, keep=st.floats(0.5, 1))
def test_mean_prediction_of_a_sigmoid(seed, keep):
    """To second order it is nearer to one half by σ''(z)/2 Var, with a rest of the third order."""
    random = numpy.random.default_rng(seed)
    inputs, weights = torch.from_numpy(0.1 * random.standard_normal((1, 4))), torch.from_numpy(random.uniform(0, 1, 4))
    mean = mean_over_masks(lambda z: torch.sigmoid(z).sum(), inputs, weights, keep).item()
    parts = inputs[0] * weights
    centre = torch.sigmoid(parts.sum()).item()
    curvature = centre * (1 - centre) * (1 - 2 * centre)
    stated = centre + float(derived.adaptive_penalty(parts.tolist(), curvature).subs(derived.q, keep))
    assert mean == pytest.approx(stated, abs=0.05 * (parts.abs().sum().item() / keep) ** 3 + 1e-12)


@settings(deadline=None, max_examples=25)
@given(seed=seeds, keep=kept)
def test_prediction_without_dropout_is_the_geometric_mean(seed, keep):
    random = numpy.random.default_rng(seed)
    inputs, weights = torch.from_numpy(random.standard_normal((1, 4))), torch.from_numpy(random.standard_normal(4))
    yes, no = (
        mean_over_masks(lambda z, s=sign: torch.nn.functional.logsigmoid(s * z).sum(), inputs, weights, keep).exp()
        for sign in (1, -1)
    )
    assert (yes / (yes + no)).item() == pytest.approx(torch.sigmoid(inputs @ weights).item(), abs=1e-10)


# --- momentum -----------------------------------------------------------------------------------------------------


def largest_root(mu, a):
    return abs(numpy.roots([1, -(1 + mu - a), mu])).max()


def test_characteristic_polynomial():
    r, mu, a = derived.r, derived.mu, derived.a
    assert sympy.expand(derived.characteristic() - (r**2 - (1 + mu - a) * r + mu)) == 0


@functools.cache
def conditions():
    return sympy.lambdify([derived.mu, derived.a, derived.rho], derived.contraction_conditions(derived.rho))


@settings(deadline=None, max_examples=100)
@given(mu=st.floats(0, 1.5), a=st.floats(-1, 6), radius=st.floats(0.2, 1.2))
def test_conditions_are_those_of_the_roots(mu, a, radius):
    values = conditions()(mu, a, radius)
    assume(min(abs(value) for value in values) > 1e-6)
    assert (largest_root(mu, a) < radius) == (min(values) > 0)
    if abs(1 - mu) > 1e-6 and min(abs(a), abs(2 * (1 + mu) - a)) > 1e-6:
        assert (largest_root(mu, a) < 1) == (mu < 1 and 0 < a < 2 * (1 + mu))


@functools.cache
def slow_root():
    return sympy.lambdify([derived.mu, derived.a], derived.slow_root(4), "math")


@settings(deadline=None, max_examples=40)
@given(mu=st.floats(0, 0.95), share=st.floats(0.001, 0.05))
def test_slow_root(mu, share):
    """To third order in ηh, while that is small against (1 - μ)²; to first order it is SGD with the rate η/(1 - μ)."""
    a = share * (1 - mu) ** 2
    assert largest_root(mu, a) == pytest.approx(slow_root()(mu, a), abs=20 * (1 - mu) * share**4)
    first = sympy.simplify(derived.slow_root(2) - (1 - derived.a / (1 - derived.mu)))
    assert first == 0


@functools.cache
def constant_gradient():
    return sympy.lambdify([derived.g, derived.mu, derived.eta, derived.t], derived.under_constant_gradient(), "math")


@settings(deadline=None, max_examples=25)
@given(gradient=numbers, mu=momenta, steps=st.integers(1, 40))
def test_constant_gradient_against_torch(gradient, mu, steps):
    weight = parameter(0.0)
    optimiser = torch.optim.SGD([weight], lr=0.1, momentum=mu)
    for _ in range(steps):
        weight.grad = torch.tensor([gradient], dtype=torch.float64)
        optimiser.step()
    speed, path = constant_gradient()(gradient, mu, 0.1, steps)
    assert weight.item() == pytest.approx(path, rel=1e-10, abs=1e-10)
    if mu:
        assert optimiser.state[weight]["momentum_buffer"].item() == pytest.approx(speed, rel=1e-10, abs=1e-10)


def test_constant_gradient_is_ten_times_the_rate_nine_steps_late():
    _, path = derived.under_constant_gradient()
    t, factor = derived.t, 1 - derived.mu
    delayed = -derived.eta * derived.g / factor * (t - derived.mu * (1 - derived.mu**t) / factor)
    assert sympy.simplify(path - delayed) == 0


def test_best_contraction_is_of_the_root_of_the_condition():
    k = sympy.Symbol("k", positive=True)
    with_momentum, plain = derived.best_contraction(derived.rho**2), derived.best_contraction(sympy.S.Zero)
    assert sympy.simplify(with_momentum - (sympy.sqrt(k) - 1) / (sympy.sqrt(k) + 1)) == 0
    assert sympy.simplify(plain - (k - 1) / (k + 1)) == 0
    lowest, highest = derived.allowed_curvatures()
    growth = sympy.factor(sympy.diff(highest / lowest, derived.mu))
    rho, mu = derived.rho, derived.mu
    assert sympy.simplify(growth - 2 * rho * (1 + rho) / ((rho - mu) ** 2 * (1 - rho))) == 0  # larger μ, wider range


@settings(deadline=None, max_examples=100)
@given(condition=st.floats(1.1, 1000), mu=momenta, rate=st.floats(0.001, 3.9))
def test_no_momentum_and_rate_contract_faster_than_the_best(condition, mu, rate):
    """On curvatures from 1/k to 1; the best itself is reached by μ = ρ² and η = (1 + ρ)²."""
    best = (math.sqrt(condition) - 1) / (math.sqrt(condition) + 1)
    assert max(largest_root(mu, rate / condition), largest_root(mu, rate)) >= best - 1e-9
    ends = [largest_root(best**2, (1 + best) ** 2 * h) for h in (1 / condition, 1)]
    assert ends == pytest.approx([best, best], abs=1e-6)  # double roots: numpy finds them to half the digits


@functools.cache
def stationary_variance():
    return sympy.lambdify([derived.mu, derived.eta, derived.h, derived.s], derived.stationary_variance(), "math")


@settings(deadline=None, max_examples=25)
@given(mu=st.floats(0, 0.95), share=st.floats(0.05, 0.9), h=st.floats(0.2, 5))
def test_stationary_variance_against_torch(mu, share, h):
    """The sum of the squares of what one unit of noise does to w ever after, in torch's own steps."""
    eta = share * 2 * (1 + mu) / h
    weight = parameter(0.0)
    optimiser = torch.optim.SGD([weight], lr=eta, momentum=mu)
    total = 0.0
    for step in range(3000):
        weight.grad = h * weight.detach() + (step == 0)
        optimiser.step()
        total += weight.item() ** 2
        if step > 10 and abs(weight.item()) + abs(weight.grad.item()) < 1e-12:
            break
    assert total == pytest.approx(stationary_variance()(mu, eta, h, 1.0), rel=1e-9)


def test_momentum_leaves_the_noise_of_slow_directions_as_it_is():
    """At an equal rate α = η/(1 - μ) its variance over that of plain SGD is 1 - 2μαh / (2(1 + μ) - (1 - μ)αh)."""
    variance, rate = derived.stationary_variance(), sympy.Symbol("alpha", positive=True)
    mu, eta, h = derived.mu, derived.eta, derived.h
    plain = variance.subs(mu, 0).subs(eta, rate)
    ratio = sympy.simplify(variance.subs(eta, (1 - mu) * rate) / plain)
    assert sympy.simplify(1 - ratio - 2 * mu * rate * h / (2 * (1 + mu) - (1 - mu) * rate * h)) == 0
    assert sympy.simplify(sympy.limit(ratio, h, 0)) == 1
    same_rate = sympy.limit(variance / variance.subs(mu, 0), h, 0)
    assert sympy.simplify(same_rate - 1 / (1 - mu)) == 0


def test_experiment_chose_ten_times_the_rate_without_momentum():
    rows = sweep.published("regularised_likelihood")
    rates = rows.groupby(["variant", "dataset"])["learning_rate"].unique().str[0]
    ratio = rates["without momentum"] / rates["whole recipe"]
    assert ratio.to_dict() == pytest.approx({"mnist": 10, "fashion_mnist": 10, "cifar10": 10})


def printed(start):
    """The output of the notebook's cell that starts so."""
    notebook = PROJECT / "notebooks/derivations/16_regularisation.ipynb"
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    (cell,) = (cell for cell in cells if "".join(cell["source"]).startswith(start))
    (output,) = cell["outputs"]
    return "".join(output["text"] if "text" in output else output["data"]["text/plain"])


def descend(kind, start, gradient, steps, **options):
    """The places of a weight under an optimiser of torch; `gradient` is a function of the count and the place."""
    weight, places = parameter(start), []
    optimiser = getattr(torch.optim, kind)([weight], **options)
    for count in range(steps):
        weight.grad = torch.tensor([gradient(count, weight.item())], dtype=torch.float64)
        optimiser.step()
        places.append(weight.item())
    return places


def test_numbers_of_derivation_16_are_those_of_torch():
    rows = [row.split() for row in printed("formulas = {").splitlines()[1:]]
    assert [(kind, decay) for kind, decay, _ in rows] == list(
        itertools.product(("SGD", "Adam", "AdamW"), ("0.0", "0.1"))
    )
    for kind, decay, step in rows:
        (place,) = descend(kind, 2.0, lambda *_: 0.3, 1, lr=0.01, weight_decay=float(decay))
        assert f"{place - 2:.6f}" == step

    left = ast.literal_eval(printed("state = [w,"))
    assert list(left) == list(itertools.product(("Adam", "AdamW"), (1, 10)))
    for (kind, size), weight in left.items():
        places = descend(kind, 1.0, lambda count, _, r=size: r * (-1.0) ** count, 1000, lr=0.001, weight_decay=0.1)
        assert round(places[-1], 2) == weight

    rows = [row.split() for row in printed("step = sympy.lambdify([w, v, g").splitlines()[1:]]
    assert len(rows) == 5
    for mu, rate, found, stated in rows:
        options = {"lr": float(rate), "momentum": float(mu)}
        places = numpy.array(descend("SGD", 0.0, lambda count, place: place + (count == 0), 3000, **options))
        assert f"{(places**2).sum():.5f}" == found == stated
