"""The rooted losses: stable where the naive forms are not, true to their limits; their derivation against autograd."""

import itertools
import math

import numpy as np
import pytest
import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lossbook import losses
from lossbook.losses.rooted import margin_loss, rooted
from lossbook.symbolic import fourier_loss
from lossbook.symbolic import rooted_logistic as derived

ks = st.floats(0.6, 30)
seeds = st.integers(0, 2**32 - 1)
CONVEX, BOUNDED = losses.rooted_logistic_binary, losses.rooted_bounded_binary


def margins(low=-12.0, high=12.0, count=49, dtype=torch.float64):
    return torch.linspace(low, high, count, dtype=dtype)


def slope(function, at):
    at = at.clone().requires_grad_()
    return torch.autograd.grad(function(at).sum(), at)[0]


def example(classes, seed, batch=6):
    """Logits, none of which is beyond the cap of `rooted_logistic`, class indices and soft targets."""
    rng = np.random.default_rng(seed)
    logits, soft = rng.uniform(-1.5, 1.5, (batch, classes)), rng.dirichlet(np.ones(classes), batch)
    return torch.from_numpy(logits), torch.from_numpy(rng.integers(classes, size=batch)), torch.from_numpy(soft)


# --- stable where the obvious formula is not -----------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "bad"), [(torch.float32, -89.0), (torch.float16, -12.0)])
def test_naive_convex_form_overflows_and_one_bad_margin_spoils_the_batch(dtype, bad):
    """e^{-u} overflows: the value is inf and the gradient 0 · inf = NaN, of the weights that all examples share."""
    weight = torch.ones((), dtype=dtype, requires_grad=True)
    features = torch.tensor([1.0, 2.0, bad], dtype=dtype)
    naive = 3 * (1 + torch.exp(-weight * features)) ** (1 / 3)
    assert naive[2].isinf() and torch.autograd.grad(naive.sum(), weight)[0].isnan()
    stable = CONVEX(weight * features)
    assert stable.isfinite().all() and torch.autograd.grad(stable.sum(), weight)[0].isfinite()


@pytest.mark.parametrize(("dtype", "gap"), [(torch.float32, 104.0), (torch.float16, 18.0)])
def test_naive_bounded_form_has_no_gradient_once_the_probability_underflows(dtype, gap):
    logits = torch.tensor([[0.0, gap, -1.0]], dtype=dtype, requires_grad=True)
    naive = 3 * (1 - torch.softmax(logits, -1)[:, 0] ** (1 / 3))
    assert torch.autograd.grad(naive.sum(), logits)[0].isnan().any()
    exact = 3 * -torch.expm1(torch.tensor(-gap / 3).double())
    stable = losses.rooted_bounded(logits, torch.tensor([0]))
    assert stable.item() == pytest.approx(exact.item(), rel=1e-6)
    assert torch.autograd.grad(stable.sum(), logits)[0].isfinite().all()


def test_margin_losses_from_their_definitions_and_at_their_defaults():
    u = torch.linspace(-3, 3, 7, dtype=torch.float64)
    torch.testing.assert_close(CONVEX(u), 3 * ((1 + torch.exp(-u)) ** (1 / 3) - 1))
    torch.testing.assert_close(BOUNDED(u), 3 * (1 - torch.sigmoid(u) ** (1 / 3)))


@pytest.mark.parametrize("k", [1e4, 1e7])
def test_large_k_loses_no_digits(k):
    """float32 against float64. The naive form subtracts two numbers near k and is left with none of its digits."""
    u = torch.tensor([-3.0, 0.0, 2.0])
    s = torch.nn.functional.softplus(-u.double())
    exact = k * torch.expm1(s / k)
    naive = k * ((1 + torch.exp(-u)) ** (1 / k) - 1)
    assert ((CONVEX(u, k=k) - exact) / exact).abs().max() < 3e-7
    assert ((naive - exact) / exact).abs().max() > 1e-3
    assert ((BOUNDED(u, k=k, m=k) + k * torch.expm1(-s / k)) / s).abs().max() < 3e-7


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("k", [0.1, 1.0, 2.0, 50.0])
@pytest.mark.parametrize("function", [CONVEX, BOUNDED])
def test_margins_are_finite_in_every_dtype(function, k, dtype):
    u = torch.tensor([-1e4, -100.0, -1.0, 0.0, 1.0, 100.0, 1e4], dtype=dtype, requires_grad=True)
    value = function(u, k=k)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32) and value.isfinite().all()
    value.sum().backward()
    assert u.grad.isfinite().all() and (u.grad <= 0).all()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(function(u, k=k), value)


@pytest.mark.parametrize("k", [0.5, 1.0, 3.0])
def test_beyond_the_cap_the_loss_is_its_tangent(k):
    """Continuous, with a continuous slope; beyond, the slope in -ln p is e^10."""
    corner = -torch.tensor(10 * k).double().expm1().log()  # where ln(1 + e^{-u}) = 10 k
    at = corner + torch.tensor([-1e-7, 1e-7]).double()
    value, first = CONVEX(at, k=k), slope(lambda u: CONVEX(u, k=k), at)
    assert value[0].item() == pytest.approx(value[1].item(), rel=1e-5)
    assert first[0].item() == pytest.approx(first[1].item(), rel=1e-5)
    far = slope(lambda u: CONVEX(u, k=k), torch.tensor([-500.0]).double())
    assert far.item() == pytest.approx(-math.exp(10), rel=1e-9)
    surprise = torch.tensor(10 * k).double()
    assert slope(lambda s: rooted(s, k), surprise).item() == pytest.approx(math.exp(10), rel=1e-12)


@pytest.mark.parametrize("k", [1.0, 3.0, 20.0])
def test_gradients_in_float32_have_the_digits_of_float32(k):
    """The tangent beyond the cap adds nothing below it, not even a rounding of e^10."""
    u = margins(-9, 20)
    for function in (CONVEX, BOUNDED):
        exact = slope(lambda u, f=function: f(u, k=k), u)
        rounded = slope(lambda u, f=function: f(u, k=k), u.float())
        torch.testing.assert_close(rounded.double(), exact, rtol=2e-6, atol=0)


# --- closed forms, identities, limits ------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(seed=seeds, classes=st.integers(2, 12), k=ks, m=st.floats(0.5, 5))
def test_values_and_gradients_in_the_logits(seed, classes, k, m):
    """The gradient is that of cross-entropy, weighed by p_y^{-1/k} in one form and by (m/k) p_y^{1/k} in the other."""
    z, labels, soft = example(classes, seed)
    p = torch.softmax(z, -1)
    p_y = p.gather(1, labels[:, None])
    error = p - torch.nn.functional.one_hot(labels, classes)
    close = dict(rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(losses.rooted_logistic(z, labels, k=k), k * (p_y[:, 0] ** (-1 / k) - 1), **close)
    torch.testing.assert_close(losses.rooted_logistic(z, soft, k=k), (soft * k * (p ** (-1 / k) - 1)).sum(1), **close)
    torch.testing.assert_close(
        losses.rooted_bounded(z, soft, k=k, m=m), (soft * m * (1 - p ** (1 / k))).sum(1), **close
    )
    convex = slope(lambda z: losses.rooted_logistic(z, labels, k=k), z)
    bounded = slope(lambda z: losses.rooted_bounded(z, labels, k=k, m=m), z)
    torch.testing.assert_close(convex, p_y ** (-1 / k) * error, **close)
    torch.testing.assert_close(bounded, m / k * p_y ** (1 / k) * error, **close)


@settings(deadline=None, max_examples=30)
@given(seed=seeds, classes=st.integers(2, 12), k=st.floats(1, 30))
def test_identities(seed, classes, k):
    z, labels, soft = example(classes, seed)
    for target in (labels, soft):
        bounded = losses.rooted_bounded(z, target, k=k, m=k)
        torch.testing.assert_close(bounded, losses.gce(z, target, q=1 / k), rtol=1e-10, atol=1e-12)
        ce = losses.cross_entropy(z, target)
        assert (bounded <= ce + 1e-12).all() and (losses.rooted_logistic(z, target, k=k) >= ce - 1e-12).all()
        for large in (losses.rooted_logistic(z, target, k=1e9), losses.rooted_bounded(z, target, k=1e9, m=1e9)):
            torch.testing.assert_close(large, ce, rtol=1e-6, atol=1e-6)
    p_y = torch.softmax(z, -1).gather(1, labels[:, None])[:, 0]
    torch.testing.assert_close(losses.rooted_logistic(z, labels, k=1.0), 1 / p_y - 1)
    torch.testing.assert_close(losses.rooted_bounded(z, labels, k=1.0, m=2.0), losses.mae(z, labels))


@settings(deadline=None, max_examples=30)
@given(k=ks, m=st.floats(0.5, 5), seed=seeds)
def test_binary_is_two_classes(k, m, seed):
    """Only the difference of two logits counts, so a margin is worth the logits (u, 0) with the label first."""
    u = torch.from_numpy(np.random.default_rng(seed).uniform(-30, 30, 20))
    z, first = torch.stack([u, torch.zeros_like(u)], 1), torch.zeros(20, dtype=torch.long)
    torch.testing.assert_close(CONVEX(u, k=k), losses.rooted_logistic(z, first, k=k), rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(BOUNDED(u, k=k, m=m), losses.rooted_bounded(z, first, k=k, m=m), rtol=1e-11, atol=1e-12)


def test_binary_limits():
    u = margins(-8)
    torch.testing.assert_close(CONVEX(u, k=1.0), torch.exp(-u), rtol=1e-12, atol=0)
    torch.testing.assert_close(CONVEX(u, k=1e9), torch.nn.functional.softplus(-u), rtol=1e-7, atol=1e-12)
    torch.testing.assert_close(BOUNDED(u, k=1.0, m=1.0), torch.sigmoid(-u), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("function", [CONVEX, BOUNDED])
def test_derivatives_of_margins(function):
    u = margins(-6, 6, 13).requires_grad_()
    assert torch.autograd.gradcheck(function, u) and torch.autograd.gradgradcheck(function, u)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")(u)
    torch.testing.assert_close(compiled, function(u), rtol=1e-12, atol=0)
    torch.testing.assert_close(torch.func.vmap(function)(u), function(u), rtol=1e-12, atol=0)


@pytest.mark.parametrize("function", [CONVEX, BOUNDED])
def test_margins_are_refused(function):
    with pytest.raises(ValueError, match="int64"):
        function(torch.ones(3, dtype=torch.long))
    for k in (0, -1.0, math.nan, math.inf, "2"):
        with pytest.raises(ValueError, match=f"{function.__name__}: k="):
            function(torch.zeros(3), k=k)


def test_a_loss_of_the_margin_is_named_by_a_spec():
    u = torch.linspace(-3, 3, 7, dtype=torch.float64)
    torch.testing.assert_close(margin_loss("logistic")(u), torch.nn.functional.softplus(-u))
    torch.testing.assert_close(margin_loss("rooted_logistic(k=2)")(u), losses.rooted_logistic_binary(u, k=2))
    for spec in ("logistic(k=2)", "rooted_logistic(q=2)", "rooted_logistic(k=0)", "brier"):
        with pytest.raises(ValueError, match=r"given|unknown"):
            margin_loss(spec)


# --- calibration ---------------------------------------------------------------------------------------------


def population_optimum(spec, truth):
    """Logits that minimise the expected loss of a known label distribution, by Newton's or gradient steps."""
    loss = losses.create(spec, num_classes=len(truth), reduction="none")
    logits = truth.log().clone().requires_grad_()
    labels = torch.arange(len(truth))
    optimiser = torch.optim.LBFGS(
        [logits], max_iter=500, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def risk():
        optimiser.zero_grad()
        value = (truth * loss(logits.expand(len(truth), -1), labels)).sum()
        value.backward()
        return value

    optimiser.step(risk)
    return logits.detach()


@pytest.mark.parametrize(
    ("spec", "factor"),
    [
        ("cross_entropy", 1),
        ("brier", 1),
        ("fourier(s=2)", 1),
        ("rooted_logistic(k=1)", 2),
        ("rooted_logistic(k=3)", 4 / 3),
        ("rooted_logistic", 4 / 3),
        ("rooted_bounded(k=3, m=7)", 2 / 3),
        ("rooted_bounded(k=1.5)", 1 / 3),
        ("gce(q=0.5)", 0.5),
    ],
)
def test_calibration_factor_restores_the_true_probabilities(spec, factor):
    assert losses.calibration_factor(spec) == pytest.approx(factor, rel=1e-12)
    truth = torch.tensor([0.5, 0.3, 0.15, 0.05]).double()
    optimum = population_optimum(spec, truth)
    torch.testing.assert_close(torch.softmax(factor * optimum, -1), truth, rtol=0, atol=1e-5)
    if factor != 1:
        assert (torch.softmax(optimum, -1) - truth).abs().max() > 0.03


def test_calibration_factor_where_there_is_none_and_of_as_many_classes_as_are_named():
    for spec in ("rooted_bounded(k=1)", "rooted_bounded(k=0.5)", "gce(q=1)", "mae", "focal", "label_smoothing"):
        assert losses.calibration_factor(spec) is None
    with pytest.raises(ValueError, match="rooted_logistic"):
        losses.calibration_factor("rooted_logistics")
    assert losses.calibration_factor("fourier(placement=[0, 2, 5])", num_classes=3) == 1
    with pytest.raises(ValueError, match="one for each class"):
        losses.calibration_factor("fourier(placement=[0, 2, 5])", num_classes=4)


# --- the derivation against autograd -------------------------------------------------------------------------


def second(function, at):
    """Diagonal of the second derivatives of a function that acts on each entry."""
    at = at.clone().requires_grad_()
    (first,) = torch.autograd.grad(function(at).sum(), at, create_graph=True)
    return torch.autograd.grad(first.sum(), at)[0]


@settings(deadline=None, max_examples=40)
@given(k=st.floats(0.6, 20), m=st.floats(0.5, 5), seed=seeds)
def test_derived_slopes_and_curvatures_of_the_margin_equal_autograd(k, m, seed):
    u = torch.from_numpy(np.random.default_rng(seed).uniform(-4, 8, 20))
    arguments = (derived.u, derived.k, derived.m)
    for function, formulas in (
        (lambda u: CONVEX(u, k=k), (derived.convex(), derived.convex_slope(), derived.convex_curvature())),
        (lambda u: BOUNDED(u, k=k, m=m), (derived.bounded(), derived.bounded_slope(), derived.bounded_curvature())),
    ):
        expected = (sympy.lambdify(arguments, formula, "numpy")(u.numpy(), k, m) for formula in formulas)
        for found, stated in zip((function(u), slope(function, u), second(function, u)), expected, strict=True):
            np.testing.assert_allclose(found.numpy(), stated, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("classes", range(2, 7))
@pytest.mark.parametrize("k", [0.7, 1.0, 2.5, 10.0])
def test_derived_gradient_and_hessian_in_the_logits_equal_autograd(classes, k):
    p = fourier_loss.vector("p", classes, positive=True)
    gradient = sympy.lambdify([*p, derived.q], derived.power_gradient(p, 0), "numpy")
    hessian = sympy.lambdify([*p, derived.q], derived.power_hessian(p, 0), "numpy")
    for seed in range(5):
        z = example(classes, seed)[0][0]
        values = torch.softmax(z, 0).tolist()
        for exponent, function in (
            (-1 / k, lambda z: losses.rooted_logistic(z, torch.tensor(0), k=k)),
            (1 / k, lambda z: losses.rooted_bounded(z, torch.tensor(0), k=k, m=k)),
        ):
            np.testing.assert_allclose(slope(function, z), gradient(*values, exponent)[:, 0], atol=1e-10)
            found = torch.autograd.functional.hessian(function, z)
            np.testing.assert_allclose(found, hessian(*values, exponent), rtol=1e-10, atol=1e-10)


# --- the claims ----------------------------------------------------------------------------------------------


def linear(form, data):
    """Mean loss of a linear model as a function of its weights; the signs of the labels are in the rows of data."""
    return lambda w: form(data @ w).mean()


def hessian(form, data, w):
    return torch.autograd.functional.hessian(linear(form, data), w)


def rooted_at(k):
    return lambda u: CONVEX(u, k=k)


def logistic(u):
    return -torch.nn.functional.logsigmoid(u)


def not_separable(seed=0, examples=300, features=6, axis=None, turned=0.15):
    """Rows x_i y_i with unequal scales of the features; labels from a direction or an axis, some turned."""
    rng = np.random.default_rng(seed)
    direction = rng.standard_normal(features) if axis is None else np.eye(features)[axis]
    x = rng.standard_normal((examples, features)) * np.geomspace(1, 0.3, features)
    y = np.sign(x @ direction) * np.where(rng.random(examples) < turned, -1, 1)
    return torch.from_numpy(x * y[:, None])


def newton(form, data):
    w = torch.zeros(data.shape[1], dtype=torch.float64)
    for _ in range(40):
        gradient = slope(linear(form, data), w)
        step = torch.linalg.solve(hessian(form, data, w), gradient)
        while slope(linear(form, data), w - step).norm() > gradient.norm() > 1e-12:
            step = step / 2
        w = w - step
    assert slope(linear(form, data), w).norm() < 1e-10
    return w


@settings(deadline=None, max_examples=40)
@given(k=st.floats(0.3, 50), u=st.floats(-2.5, 15))
def test_strictly_convex_and_at_least_as_strict_as_logistic(k, u):
    u = torch.tensor([u]).double()
    curvature, plain = second(rooted_at(k), u), second(logistic, u)
    ratio = sympy.lambdify((derived.u, derived.k), derived.curvature_ratio(), "numpy")(u.item(), k)
    assert curvature > 0 and curvature > plain
    assert (curvature / plain).item() == pytest.approx(ratio, rel=1e-8)


@pytest.mark.parametrize("k", [0.5, 1.0, 3.0, 20.0])
def test_strictly_convex_in_the_weights_if_and_only_if_the_rank_is_full(k):
    data = not_separable(examples=20)
    twice = torch.cat([data, data[:, :1] - data[:, 1:2]], 1)
    w = torch.from_numpy(np.random.default_rng(1).standard_normal(7)) / 3
    assert torch.linalg.eigvalsh(hessian(rooted_at(k), data, w[:6]))[0] > 1e-4
    assert torch.linalg.eigvalsh(hessian(rooted_at(k), twice, w))[0].abs() < 1e-12


@pytest.mark.parametrize("form", [logistic, rooted_at(1.0), rooted_at(3.0)])
def test_rate_hangs_on_the_data_matrix_and_on_separability(form):
    """The bound on the condition number; a factor a step where a minimiser exists, 1/t where the data is separable."""
    for seed in range(5):
        data = not_separable(seed)
        w = newton(form, data)
        curvature = second(form, data @ w)
        bound = torch.linalg.cond(data) ** 2 * curvature.max() / curvature.min()
        assert torch.linalg.cond(hessian(form, data, w)) <= bound
    values = torch.linalg.eigvalsh(hessian(form, data, w))
    kappa, step = values[-1] / values[0], 2 / (values[0] + values[-1])
    best, at, errors = w, w + 1e-5 * torch.ones_like(w), []
    for _ in range(60):
        errors.append((at - best).norm())
        at = at - step * slope(linear(form, data), at)
    assert errors[-1] / errors[-11] == pytest.approx(((kappa - 1) / (kappa + 1)).item() ** 10, rel=1e-2)

    apart = torch.tensor([[1.0, 0.2], [0.3, 1.0]]).double()
    w, falls = torch.zeros(2).double(), {}
    for t in range(1, 4097):
        w = w - 0.1 * slope(linear(form, apart), w)
        if t in (1024, 4096):
            falls[t] = linear(form, apart)(w).item()
    assert 3.5 < falls[1024] / falls[4096] < 4.5


@pytest.mark.parametrize("form", [logistic, rooted_at(3.0), lambda u: BOUNDED(u, k=3.0, m=3.0)])
def test_two_weights_one_after_the_other_make_a_saddle(form):
    """The Hessian of a loss of the margin a b, where both are zero."""
    at = torch.autograd.functional.hessian(lambda w: form(w[:1] * w[1:]).sum(), torch.zeros(2).double())
    size = slope(form, torch.zeros(1).double()).abs()
    torch.testing.assert_close(torch.linalg.eigvalsh(at), torch.cat([-size, size]))


@pytest.mark.parametrize("k", [0.5, 1.0, 3.0, 20.0, 200.0])
def test_hessian_exceeds_the_logistic_one_at_every_point(k):
    data = not_separable(examples=40)
    for seed in range(20):
        w = torch.from_numpy(np.random.default_rng(seed).standard_normal(6)) / 3
        difference = hessian(rooted_at(k), data, w) - hessian(logistic, data, w)
        assert torch.linalg.eigvalsh(difference)[0] > 0


def test_at_its_own_optimum_the_convex_form_may_be_flatter():
    """Six points where the smallest eigenvalue, which sets the rate of descent, falls as k does."""
    data = [[0.72, -7.41], [0.26, -0.147], [-0.56, 0.38], [-1.14, -13.66], [-1.30, 0.202], [-0.95, 0.502]]
    data = torch.tensor(data).double()
    at = [
        torch.linalg.eigvalsh(hessian(f, data, newton(f, data)))[0] for f in (logistic, rooted_at(3.0), rooted_at(1.0))
    ]
    assert at[0] > 1.3 * at[1] > 1.3 * 1.3 * at[2] > 0


def test_without_the_factor_k_only_for_small_k():
    """(1/k) of the curvature exceeds the logistic one up to a threshold, 2.07 at the margin 0."""
    zero = torch.zeros(1).double()
    for k, exceeds in ((2.0, True), (2.06, True), (2.08, False), (10.0, False)):
        assert bool(second(rooted_at(k), zero) / k > second(logistic, zero)) is exceeds


def test_condition_number_is_the_same_at_the_start_and_goes_either_way_later():
    """At the optimum smaller if the labels depend on the flattest feature, larger if on the steepest.

    Far on the wrong side of the logistic optimum the exponential loss is far worse conditioned than the logistic one.
    """
    zero, form = torch.zeros(6).double(), rooted_at(1.0)
    for seed, (axis, worse) in enumerate([(0, True), (-1, False)] * 3):
        data = not_separable(seed, axis=axis)
        at_start = [torch.linalg.cond(hessian(f, data, zero)).item() for f in (logistic, form)]
        assert at_start[0] == pytest.approx(at_start[1], rel=1e-10)
        quotient = [torch.linalg.cond(hessian(f, data, newton(f, data))) for f in (form, logistic)]
        assert bool(quotient[0] > quotient[1]) is worse
        w = -5 * newton(logistic, data)  # with the curvature e^{-u} of k = 1, as ours goes on along its tangent here
        far_off = torch.linalg.cond(data.T @ (data * torch.exp(-data @ w)[:, None])).item()
        assert far_off > torch.linalg.cond(hessian(logistic, data, w)).item() > at_start[0]
    axes = torch.diag(torch.tensor([3.0, 1.0])).double()  # two examples, the first along the steep axis
    for margins, worse in (([-3.0, 1.0], True), ([0.3, -1.0], False)):
        w = torch.linalg.solve(axes, torch.tensor(margins).double())
        pair = [torch.linalg.eigvalsh(hessian(f, axes, w)) for f in (form, logistic)]
        ratio = [(second(form, u) / second(logistic, u)).item() for u in torch.tensor(margins).double().split(1)]
        assert (ratio[0] > ratio[1]) is worse
        assert pair[0].prod() / pair[1].prod() == pytest.approx(ratio[0] * ratio[1])


def test_condition_number_depends_on_how_many_labels_are_turned():
    """Labels from the steepest feature, k = 3: better conditioned if few are turned, worse if a seventh of them are."""
    for turned, better in ((0.02, True), (0.15, False)):
        quotients = []
        for seed in range(8):
            data = not_separable(seed, examples=400, features=10, axis=0, turned=turned)
            pair = [torch.linalg.cond(hessian(f, data, newton(f, data))) for f in (rooted_at(3.0), logistic)]
            quotients.append(pair[0] / pair[1])
        assert bool(torch.stack(quotients).log().mean() < 0) is better


@pytest.mark.parametrize(("axis", "gain"), [(0, False), (-1, True)])
def test_faster_at_a_shared_step_but_at_the_best_step_only_if_better_conditioned(axis, gain):
    data = not_separable(axis=axis).numpy()
    forms = {"logistic": sympy.diff(derived.logistic(), derived.u)}
    forms |= {k: derived.convex_slope().subs(derived.k, k) for k in (1, 3)}
    forms = {name: sympy.lambdify(derived.u, formula, "numpy") for name, formula in forms.items()}

    def iterations(form, step, most=1500):
        w, enough = np.zeros(6), None
        for count in range(most):
            gradient = data.T @ form(data @ w) / len(data)
            enough = enough or 1e-6 * np.linalg.norm(gradient)
            if np.linalg.norm(gradient) <= enough:
                return count
            w = w - step * gradient
            if np.abs(data @ w).max() > 200:
                break
        return most

    shared = {name: iterations(form, 1.0) for name, form in forms.items()}
    best = dict.fromkeys(forms, 1500)
    for name, step in itertools.product(forms, 2.0 ** np.arange(5, -1.1, -0.25)):
        best[name] = min(best[name], iterations(forms[name], step, best[name]))
    assert shared[1] < shared[3] < 0.7 * shared["logistic"]
    assert all((best[k] < best["logistic"]) is gain for k in (1, 3))
    assert best[1] / best["logistic"] > 2 * shared[1] / shared["logistic"]


@pytest.mark.parametrize("k", [3.0, 5.0])
def test_slope_is_unbounded_so_that_no_step_is_safe_everywhere(k):
    """Both derivatives grow like (1 + e^{-u})^{1/k}; those of the logistic loss stay below 1 and 1/4."""
    u = torch.tensor([-2.0, -8.0, -28.0]).double()
    assert (slope(logistic, u).abs() <= 1).all() and (second(logistic, u) <= 0.25).all()
    growth = (1 + torch.exp(-u)) ** (1 / k)
    assert (slope(rooted_at(k), u) / growth)[-1].item() == pytest.approx(-1)
    assert (second(rooted_at(k), u) / growth)[-1].item() == pytest.approx(1 / k)
    assert second(rooted_at(k), u)[-1] > 50


@pytest.mark.parametrize("form", [logistic, rooted_at(1.0), rooted_at(3.0), lambda u: BOUNDED(u, k=3.0, m=3.0)])
def test_on_separable_data_the_direction_is_that_of_the_minimum_norm_solution(form):
    """An exponential tail, and descent whose step grows as the loss falls: it turns to the largest margin."""
    far = torch.tensor([25.0]).double()
    assert (-slope(form, far) * far.exp()).item() == pytest.approx(1, rel=1e-9)
    data = torch.tensor([[1.0, 0.2], [0.3, 1.0], [3.0, 1.0]]).double()
    least = torch.linalg.solve(data[:2], torch.ones(2).double())  # both constraints u_i >= 1 are tight there
    assert (data @ least >= 1 - 1e-12).all() and (torch.linalg.solve(data[:2].T, least) > 0).all()
    w = torch.tensor([3.0, -1.0]).double()
    start = torch.cosine_similarity(w, least, 0)
    for _ in range(1500):
        w = w - 0.1 * slope(linear(form, data), w) / linear(form, data)(w)
    assert start < 0.6 and torch.cosine_similarity(w, least, 0) > 0.9995


def test_on_data_that_is_not_separable_the_minimisers_differ():
    data = not_separable()
    plain, w = newton(logistic, data), newton(rooted_at(1.0), data)
    assert torch.cosine_similarity(plain, w, 0) < 0.9999 and w.norm() < 0.6 * plain.norm()


@settings(deadline=None, max_examples=40)
@given(seed=seeds, classes=st.integers(2, 8), k=st.floats(0.7, 10))
def test_bounded_form_is_convex_exactly_where_the_label_has_probability_one_in_k_plus_one(seed, classes, k):
    """And the convex form everywhere: not the loss of the theory, then, whatever the factor."""
    rng = np.random.default_rng(seed)
    z = torch.from_numpy(rng.uniform(-1.5, 1.5, classes))
    z[0] = z[1:].logsumexp(0) - math.log(k) + rng.uniform(0.05, 1) * rng.choice([-1, 1])  # near the border
    p = torch.softmax(z, 0)[0]
    first = torch.tensor(0)
    bounded = torch.autograd.functional.hessian(lambda z: losses.rooted_bounded(z, first, k=k), z)
    convex = torch.autograd.functional.hessian(lambda z: losses.rooted_logistic(z, first, k=k), z)
    assert torch.linalg.eigvalsh(convex)[0] > -1e-9
    assert bool(torch.linalg.eigvalsh(bounded)[0] > -1e-9) is bool(p >= 1 / (k + 1))
    share = derived.definiteness().subs({derived.q: 1 / k, derived.p: p.item()})
    assert bool(share >= 0) is bool(p >= 1 / (k + 1))


@settings(deadline=None, max_examples=20)
@given(k=st.floats(1.2, 20), truth=st.floats(0.02, 0.98))
def test_optimal_margin_of_a_known_share_of_labels(k, truth):
    for root, form in ((k, rooted_at(k)), (-k, lambda u: BOUNDED(u, k=k))):
        u = torch.tensor([float(derived.optimal_margin(root).subs(derived.eta, truth))], dtype=torch.float64)

        def risk(u, form=form):
            return truth * form(u) + (1 - truth) * form(-u)

        assert slope(risk, u).abs() < 1e-10 * (1 + u.abs().exp())
        assert (risk(u) <= risk(u + 0.1)) and (risk(u) <= risk(u - 0.1))


@pytest.mark.parametrize("k", [1.0, 2.0, 8.0])
def test_gradient_is_that_of_tilted_risk_times_a_positive_number(k):
    data = not_separable()
    for form, tilt in ((rooted_at(k), 1 / k), (lambda u: BOUNDED(u, k=k, m=k), -1 / k)):
        w = torch.from_numpy(np.random.default_rng(3).standard_normal(6)) / 3

        def tilted(w, tilt=tilt):
            return (torch.logsumexp(tilt * logistic(data @ w), 0) - math.log(len(data))) / tilt

        torch.testing.assert_close(slope(linear(form, data), w), torch.exp(tilt * tilted(w)) * slope(tilted, w))


def test_excess_over_cross_entropy_is_half_of_the_mean_square_over_k():
    z, labels, _ = example(5, 0, batch=50)
    ce = losses.cross_entropy(z, labels)
    penalty = (ce.mean() ** 2 + ce.var(unbiased=False)).item() / 2
    for k, tolerance in ((1e2, 0.01), (1e4, 1e-4)):
        assert (k * (losses.rooted_logistic(z, labels, k=k) - ce).mean()).item() == pytest.approx(
            penalty, rel=tolerance
        )
