"""Negative log-likelihoods (symbolic, from the densities of sympy.stats) against torch's losses and SciPy's laws."""

import math

import numpy
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
import sympy
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from lossbook import losses
from lossbook.symbolic import likelihood_of_losses as derived

reals = st.floats(-20, 20)
positive = st.floats(0.05, 20)
seeds = st.integers(0, 2**32 - 1)
close = dict(rel=1e-10, abs=1e-10)


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


@settings(deadline=None, max_examples=50)
@given(y=reals, mu=reals, v=positive)
def test_gaussian(y, mu, v):
    """Value and both gradients against GaussianNLLLoss(full=True), SciPy's density, and the squared error."""
    symbols = [derived.y, derived.mu, derived.v]
    nll = derived.gaussian_nll_of_variance()
    value, slope_mu, slope_v = (
        float(sympy.lambdify(symbols, part, "math")(y, mu, v))
        for part in (nll, sympy.diff(nll, derived.mu), sympy.diff(nll, derived.v))
    )
    at_mu, at_v = tensor(mu).requires_grad_(), tensor(v).requires_grad_()
    trained = F.gaussian_nll_loss(at_mu, tensor(y), at_v, full=True)
    trained.backward()
    large = dict(rel=1e-10, abs=1e-9)  # the expanded square cancels
    assert trained.item() == pytest.approx(value, **large)
    assert value == pytest.approx(-scipy.stats.norm.logpdf(y, mu, math.sqrt(v)), **large)
    assert value == pytest.approx((y - mu) ** 2 / (2 * v) + math.log(2 * math.pi * v) / 2, **large)
    assert at_mu.grad.item() == pytest.approx(slope_mu, **large)
    assert at_v.grad.item() == pytest.approx(slope_v, rel=1e-9, abs=1e-8)


@settings(deadline=None, max_examples=50)
@given(y=reals, mu=reals, b=positive)
def test_laplace(y, mu, b):
    value = sympy.lambdify([derived.y, derived.mu, derived.b], derived.laplace_nll(), "math")(y, mu, b)
    by_torch = torch.distributions.Laplace(tensor(mu), tensor(b)).log_prob(tensor(y))
    assert value == pytest.approx(-by_torch.item(), **close)
    assert value == pytest.approx(abs(y - mu) / b + math.log(2 * b), **close)


@settings(deadline=None, max_examples=50)
@given(z=st.floats(-30, 30), outcome=st.integers(0, 1))
def test_bernoulli(z, outcome):
    """The density, the one formula, BCEWithLogits, and cross-entropy on the logits (0, z); gradient p - y."""
    p = derived.sigmoid(derived.z)
    nll = derived.bernoulli_nll(outcome, p)
    logit = tensor(z).requires_grad_()
    value = F.binary_cross_entropy_with_logits(logit, tensor(float(outcome)))
    value.backward()
    assert float(nll.evalf(30, subs={derived.z: sympy.Float(z, 30)})) == pytest.approx(value.item(), **close)
    formula = derived.binary_cross_entropy(p, outcome)
    assert sympy.expand(formula - nll) == 0 or sympy.simplify(formula - nll) == 0
    assert float(sympy.diff(nll, derived.z).evalf(30, subs={derived.z: z})) == pytest.approx(logit.grad.item(), **close)
    assert logit.grad.item() == pytest.approx(scipy.special.expit(z) - outcome, **close)
    pair = losses.cross_entropy(tensor(0.0, z), torch.tensor(outcome))
    assert pair.item() == pytest.approx(value.item(), **close)


@pytest.mark.parametrize("n", range(2, 6))
@pytest.mark.parametrize("which", ["categorical_nll", "squared_error"])
def test_categorical(n, which):
    """Value, gradient and Hessian in the logits, SymPy's own derivatives lambdified, against autograd."""
    symbols = derived.logits(n)
    for label in range(n):
        expression = getattr(derived, which)(symbols, label)
        first = [sympy.diff(expression, z) for z in symbols]
        second = [[sympy.diff(slope, z) for z in symbols] for slope in first[:1]]
        stated = sympy.lambdify(symbols, [expression, first, second[0]], "numpy")
        logits = 2 * torch.randn(n, generator=torch.Generator().manual_seed(label), dtype=torch.float64)
        loss = losses.cross_entropy if which == "categorical_nll" else losses.brier

        def trained(z, loss=loss, label=label):
            return loss(z, torch.tensor(label))

        value, gradient, row = stated(*logits.tolist())
        assert trained(logits).item() == pytest.approx(value, **close)
        numpy.testing.assert_allclose(torch.func.grad(trained)(logits), gradient, atol=1e-10)
        hessian = torch.func.jacrev(torch.func.grad(trained))(logits)
        numpy.testing.assert_allclose(hessian[0], row, atol=1e-10)
        if which == "categorical_nll":
            p = torch.softmax(logits, 0)
            torch.testing.assert_close(torch.func.grad(trained)(logits), p - F.one_hot(torch.tensor(label), n))
            torch.testing.assert_close(hessian, p.diag() - p.outer(p))
            assert torch.linalg.eigvalsh(hessian).min() > -1e-12


@settings(deadline=None, max_examples=30)
@given(seed=seeds, classes=st.integers(2, 12))
def test_nll_of_log_softmax_is_cross_entropy(seed, classes):
    random = torch.Generator().manual_seed(seed)
    z = 3 * torch.randn(7, classes, generator=random, dtype=torch.float64)
    y = torch.randint(classes, (7,), generator=random)
    torch.testing.assert_close(F.nll_loss(F.log_softmax(z, -1), y), F.cross_entropy(z, y))
    torch.testing.assert_close(losses.cross_entropy(z, y).mean(), F.cross_entropy(z, y))
    likelihood = torch.distributions.Categorical(logits=z).log_prob(y)
    torch.testing.assert_close(-likelihood, losses.cross_entropy(z, y))


def test_best_scales_and_probabilities():
    """Of the Gaussian the mean square, of the Laplace law the mean absolute residual, of counts the frequencies."""
    r = sympy.Symbol("r", positive=True)
    residuals = sympy.symbols("r_1:5", positive=True)
    gaussian = derived.gaussian_nll_of_variance().subs(derived.y, derived.mu + r)
    assert sympy.expand(derived.best_scale(gaussian, derived.v, residuals, r) - sum(x**2 for x in residuals) / 4) == 0
    laplace = derived.laplace_nll().subs(derived.y, derived.mu + r)
    assert sympy.expand(derived.best_scale(laplace, derived.b, residuals, r) - sum(residuals) / 4) == 0
    counts = sympy.symbols("n_:4", positive=True)
    found = derived.best_probabilities(counts)
    assert all(sympy.simplify(p - n / sum(counts)) == 0 for p, n in zip(found, counts, strict=True))


def test_scipy_fits_by_likelihood_what_the_losses_fit():
    sample = scipy.stats.lognorm(0.75).rvs(501, random_state=0)
    assert scipy.stats.norm.fit(sample) == pytest.approx((sample.mean(), sample.std()))
    median = numpy.median(sample)
    assert scipy.stats.laplace.fit(sample) == pytest.approx((median, numpy.abs(sample - median).mean()))


# --- saturation ----------------------------------------------------------------------------------------------


def test_saturation():
    """The slope of the squared error dies like 2e^z, that of the likelihood tends to -1; torch agrees."""
    p, z = derived.sigmoid(derived.z), derived.z
    squared = sympy.diff((1 - p) ** 2, z)
    likelihood = sympy.diff(derived.bernoulli_nll(1, p), z)
    assert sympy.limit(squared * sympy.exp(-z), z, -sympy.oo) == -2
    assert sympy.limit(likelihood, z, -sympy.oo) == -1
    at = tensor(-20.0).requires_grad_()
    (slope,) = torch.autograd.grad((1 - torch.sigmoid(at)).square().sum(), at)
    assert slope.item() == pytest.approx(-2 * math.exp(-20), rel=1e-6)
    (slope,) = torch.autograd.grad(F.binary_cross_entropy_with_logits(at, torch.ones_like(at)), at)
    assert slope.item() == pytest.approx(-1, rel=1e-6)


def test_squared_error_of_a_sigmoid_is_not_convex():
    """The curvature changes sign at p = 1/3, that is at z = -ln 2."""
    bend = torch.func.grad(torch.func.grad(lambda z: (1 - torch.sigmoid(z)).square()))
    here = torch.tensor(-math.log(2), dtype=torch.float64)
    assert bend(here - 0.1) < 0 < bend(here + 0.1) and abs(bend(here)) < 1e-12


def test_the_logarithm_is_the_only_cure():
    """The loss whose gradient in the logit is the error itself is -log p up to a constant."""
    found = derived.unsaturated_loss()
    assert sympy.simplify(sympy.diff(found, derived.p) + 1 / derived.p) == 0


@pytest.mark.parametrize("start", [0.5, 2.0, 6.0])
def test_escape_times_against_quadrature(start):
    p, z = derived.sigmoid(derived.z), derived.z
    for loss in ((1 - p) ** 2, derived.bernoulli_nll(1, p)):
        slope = sympy.diff(loss, z)
        exact = float(derived.escape_time(slope, sympy.Rational(-start), sympy.S.Zero))
        rate = sympy.lambdify(z, -1 / slope, "numpy")
        assert exact == pytest.approx(scipy.integrate.quad(rate, -start, 0)[0], rel=1e-8)


# --- numerical traps of torch --------------------------------------------------------------------------------


def test_bce_clamps_and_kills_the_gradient():
    """Beyond the reach of the sigmoid BCELoss reads 100 and has no gradient; with logits it reads 200 and slope -1."""
    z = torch.tensor([-200.0], requires_grad=True)
    one = torch.ones(1)
    clamped = F.binary_cross_entropy(torch.sigmoid(z), one)
    (slope,) = torch.autograd.grad(clamped, z)
    assert clamped.item() == 100.0 and slope.item() == 0.0
    whole = F.binary_cross_entropy_with_logits(z, one)
    (slope,) = torch.autograd.grad(whole, z)
    assert whole.item() == 200.0 and slope.item() == -1.0


def test_bce_jumps_where_the_sigmoid_rounds_to_one():
    """A logit of 20 on the wrong side costs 20; in float32 its sigmoid is 1, and BCELoss reads 100."""
    z, zero = torch.tensor([20.0]), torch.zeros(1)
    assert torch.sigmoid(z).item() == 1.0
    assert F.binary_cross_entropy(torch.sigmoid(z), zero).item() == 100.0
    assert F.binary_cross_entropy_with_logits(z, zero).item() == pytest.approx(20.0)


def test_gaussian_nll_defaults():
    """The constant is left out; the variance is clamped at 1e-6 in the value, and its gradient is that at the clamp."""
    zero, one = tensor(0.0), tensor(1.0)
    short, full = (F.gaussian_nll_loss(zero, one, one, full=flag).item() for flag in (False, True))
    assert short == 0.5 and full - short == pytest.approx(math.log(2 * math.pi) / 2)
    assert F.gaussian_nll_loss(zero, one, zero).item() == pytest.approx(0.5 * (math.log(1e-6) + 1e6))
    assert F.gaussian_nll_loss(zero, zero, zero).item() == pytest.approx(0.5 * math.log(1e-6))
    small = tensor(1e-9).requires_grad_()
    (slope,) = torch.autograd.grad(F.gaussian_nll_loss(zero, one, small), small)
    assert slope.item() == pytest.approx(0.5 * (1e6 - 1e12), rel=1e-9)


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_softmax_twice_has_a_floor(classes):
    """CrossEntropyLoss takes logits: fed with probabilities it cannot go below log(1 + (C-1)/e)."""
    perfect = F.one_hot(torch.tensor([0]), classes).double()
    floor = F.cross_entropy(perfect, torch.tensor([0])).item()
    assert floor == pytest.approx(math.log(1 + (classes - 1) / math.e))
