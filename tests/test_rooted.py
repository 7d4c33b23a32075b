"""The rooted losses: stable where the naive forms are not, true to their limits; their derivation against autograd."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lossbook import losses
from lossbook.losses.rooted import rooted

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


def test_calibration_factor_where_there_is_none():
    for spec in ("rooted_bounded(k=1)", "rooted_bounded(k=0.5)", "gce(q=1)", "mae", "focal", "label_smoothing"):
        assert losses.calibration_factor(spec) is None
    with pytest.raises(ValueError, match="rooted_logistic"):
        losses.calibration_factor("rooted_logistics")
