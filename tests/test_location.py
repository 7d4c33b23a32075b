"""Mean, median, quantile and Huber's path (symbolic) against torch's losses, SciPy's distributions, and samples."""

import math

import numpy
import pytest
import scipy.integrate
import scipy.optimize
import scipy.stats
import sympy
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lossbook.losses.regression import pinball, tukey
from lossbook.symbolic import location as derived

reals = st.floats(-50, 50)
positive = st.floats(0.05, 20)
seeds = st.integers(0, 2**32 - 1)
LOSSES = {
    "squared": (derived.squared(derived.r), (), lambda r: r.square()),
    "mse": (derived.squared(derived.r), (), lambda r: F.mse_loss(r, 0 * r, reduction="sum")),
    "absolute": (derived.absolute(derived.r), (), lambda r: F.l1_loss(r, 0 * r, reduction="sum")),
    "huber": (
        derived.huber(derived.r),
        (derived.delta,),
        lambda r, d: F.huber_loss(r, 0 * r, delta=d, reduction="sum"),
    ),
    "smooth_l1": (
        derived.smooth_l1(derived.r),
        (derived.beta,),
        lambda r, b: F.smooth_l1_loss(r, 0 * r, beta=b, reduction="sum"),
    ),
}


@pytest.mark.parametrize("name", LOSSES)
@settings(deadline=None, max_examples=50)
@given(r=reals, parameter=positive)
def test_losses_equal_torch_in_value_and_gradient(name, r, parameter):
    """The formula and its SymPy derivative, lambdified, against torch's value and autograd, to 1e-10."""
    expression, symbols, loss = LOSSES[name]
    arguments = [derived.r, *symbols]
    numbers = [r, parameter][: len(arguments)]
    error = torch.tensor(r, dtype=torch.float64, requires_grad=True)
    value = loss(error, *numbers[1:])
    (slope,) = torch.autograd.grad(value, error)
    stated, derivative = (
        sympy.lambdify(arguments, part, "numpy")(*numbers) for part in (expression, sympy.diff(expression, derived.r))
    )
    assert value.item() == pytest.approx(float(stated), rel=1e-10, abs=1e-10)
    if name == "absolute" and r == 0:
        return  # a kink: torch's convention is tested below
    assert slope.item() == pytest.approx(float(derivative), rel=1e-10, abs=1e-10)


@settings(deadline=None, max_examples=50)
@given(f=reals, y=reals, tau=st.floats(0.01, 0.99))
def test_pinball_equals_its_definition(f, y, tau):
    stated = sympy.lambdify([derived.r, derived.tau], derived.pinball(derived.r), "math")
    prediction = torch.tensor([f], dtype=torch.float64, requires_grad=True)
    value = pinball(prediction, torch.tensor([y], dtype=torch.float64), tau=tau)
    assert value.item() == pytest.approx(stated(f - y, tau), rel=1e-10, abs=1e-10)
    assert value.item() == pytest.approx(max((1 - tau) * (f - y), tau * (y - f)), rel=1e-10, abs=1e-10)
    (slope,) = torch.autograd.grad(value.sum(), prediction)
    if abs(f - y) > 1e-9:
        assert slope.item() == pytest.approx(1 - tau if f > y else -tau, rel=1e-12)


@settings(deadline=None, max_examples=30)
@given(seed=seeds, delta=positive)
def test_huber_is_a_multiple_of_smooth_l1(seed, delta):
    r = 5 * torch.randn(50, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    smooth = F.smooth_l1_loss(r, 0 * r, beta=delta, reduction="none")
    torch.testing.assert_close(F.huber_loss(r, 0 * r, delta=delta, reduction="none"), delta * smooth)


def test_conventions_of_torch():
    """The defaults, the missing ½, and the gradient in the kink."""
    zero = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    assert torch.nn.HuberLoss().delta == 1.0 and torch.nn.SmoothL1Loss().beta == 1.0
    assert torch.autograd.grad(F.l1_loss(zero, torch.zeros_like(zero)), zero)[0].item() == 0.0
    two = torch.tensor([2.0])
    assert F.mse_loss(two, 0 * two).item() == 4.0 and F.huber_loss(two, 0 * two, delta=10.0).item() == 2.0
    with pytest.raises((ValueError, RuntimeError)):
        F.huber_loss(two, 0 * two, delta=0.0)
    assert F.smooth_l1_loss(two, 0 * two, beta=0.0).item() == 2.0


@settings(deadline=None, max_examples=20)
@given(seed=seeds, tau=st.floats(0.05, 0.95))
def test_minimisers_of_a_sample(seed, tau):
    """Nothing on a fine grid beats the mean, the median, or the quantile."""
    y = numpy.random.default_rng(seed).lognormal(0, 0.75, 101)
    grid = numpy.linspace(y.min(), y.max(), 2001)
    for loss, best in (
        (lambda r: r**2, y.mean()),
        (numpy.abs, numpy.median(y)),
        (lambda r: numpy.maximum((1 - tau) * r, -tau * r), numpy.quantile(y, tau, method="inverted_cdf")),
    ):
        risk = loss(grid[:, None] - y).mean(1)
        assert loss(best - y).mean() <= risk.min() + 1e-12


def test_risks_for_any_distribution():
    """The slopes that SymPy finds: 2(f - m), F(f) - τ, and F(f + δ) - F(f - δ) for the curvature of Huber's risk."""
    f = derived.f
    assert sympy.expand(sympy.diff(derived.squared_risk(), f) - 2 * (f - derived.m)) == 0
    slope = derived.normalised(sympy.diff(derived.pinball_risk(), f).doit())
    assert sympy.simplify(slope - (derived.F(f) - derived.tau)) == 0
    curvature = sympy.diff(derived.huber_risk(), f, 2).doit()
    assert sympy.simplify(curvature - derived.F(f + derived.delta) + derived.F(f - derived.delta)) == 0


def test_huber_is_the_absolute_error_blurred():
    """δ E|r - U| - δ²/2 is Huber's loss, in SymPy and by quadrature of the absolute error."""
    r, delta = derived.r, derived.delta
    assert sympy.expand(derived.blurred_absolute(inside=True) - r**2 / 2) == 0
    assert sympy.expand(derived.blurred_absolute(inside=False) - delta * (r - delta / 2)) == 0
    nodes = numpy.linspace(-1, 1, 200_001)
    for error, width in ((0.3, 1.0), (-2.0, 1.5), (0.0, 0.4)):
        blurred = width * numpy.abs(error - width * nodes).mean() - width**2 / 2
        one = torch.tensor(error, dtype=torch.float64)
        assert blurred == pytest.approx(F.huber_loss(one, 0 * one, delta=width).item(), abs=1e-5)


@settings(deadline=None, max_examples=20)
@given(seed=seeds, delta=positive)
def test_huber_minimiser_is_the_median_of_blurred_data(seed, delta):
    """Where the mean over the sample of clip(f - y, -δ, δ) is 0, half of y + U lies below f."""
    y = numpy.random.default_rng(seed).lognormal(0, 0.75, 21)

    def slope(f):
        return numpy.clip(f - y, -delta, delta).mean()

    best = scipy.optimize.brentq(slope, y.min(), y.max(), xtol=1e-13)
    share = numpy.clip((best - y + delta) / (2 * delta), 0, 1).mean()  # P(y + U <= f)
    assert share == pytest.approx(0.5, abs=1e-9)


def test_hubers_path_may_leave_the_interval_between_median_and_mean():
    """Mean and median are 0; the fitted prediction is not, at any threshold between."""
    y = numpy.repeat([-4.5, -0.5, 0.0, 1.0], [5, 35, 20, 40])
    assert y.mean() == 0 == numpy.median(y)
    for delta, stated in ((1, 0.175 / 0.95), (2, 0.125 / 0.95), (3, 0.075 / 0.95)):
        best = scipy.optimize.brentq(lambda f: numpy.clip(f - y, -delta, delta).mean(), -4, 1)  # noqa: B023
        assert best == pytest.approx(stated)


MEAN, QUANTILE = derived.lognormal_mean(), derived.lognormal_quantile()
HUBER_SLOPE = sympy.lambdify(
    [derived.f, derived.delta, derived.x, derived.sigma], derived.lognormal_huber_slope(derived.f), ["scipy", "numpy"]
)


@settings(deadline=None, max_examples=25)
@example(x=0.0, sigma=0.9906435351046758, tau=0.5, f=1.0546875, delta=17.97265625)
@given(x=st.floats(-1, 1), sigma=st.floats(0.2, 1.2), tau=st.floats(0.05, 0.95), f=st.floats(0.1, 5), delta=positive)
def test_lognormal_against_scipy(x, sigma, tau, f, delta):
    law = scipy.stats.lognorm(sigma, scale=math.exp(x))
    at = {derived.x: x, derived.sigma: sigma, derived.tau: tau}
    assert float(MEAN.subs(at)) == pytest.approx(law.mean(), rel=1e-9)
    assert float(QUANTILE.subs(at)) == pytest.approx(law.ppf(tau), rel=1e-9)
    # at quad's own tolerance its estimate of the error may be off by a factor of three hundred
    ends, tolerance = (max(f - delta, 0), f + delta), dict(epsabs=1e-10, epsrel=1e-10, limit=200)
    by_quadrature = scipy.integrate.quad(law.cdf, *ends, **tolerance)[0] - delta
    with numpy.errstate(all="ignore"):  # both branches of the Piecewise are computed
        slope = float(HUBER_SLOPE(f, delta, x, sigma))
    assert slope == pytest.approx(by_quadrature, abs=1e-6)


def test_lognormal_quantile_at_one_half_is_the_median():
    assert sympy.simplify(derived.lognormal_quantile(sympy.Rational(1, 2)) - sympy.exp(derived.x)) == 0


def test_squared_error_splits_and_absolute_error_does_not():
    """E(f-y)² = E(f-m)² + E V exactly; no such sum for the absolute error: the restricted fits need not be nearest."""
    random = numpy.random.default_rng(0)
    y = random.lognormal(0, 0.75, 1001)
    for f in (0.2, 1.0, 3.0):
        assert ((f - y) ** 2).mean() == pytest.approx((f - y.mean()) ** 2 + y.var(), rel=1e-12)
    gaps = [numpy.abs(f - y).mean() - numpy.abs(numpy.median(y) - y).mean() for f in (0.2, 1.8)]
    assert abs(gaps[0] - gaps[1]) > 0.05  # both are 0.8 from the median, and do not cost the same


# --- the pinball loss as a loss ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_pinball_is_finite_and_wide(dtype):
    f = torch.tensor([-1e4, 0.0, 1e4, 3.0], dtype=dtype, requires_grad=True)
    value = pinball(f, torch.tensor([1e4, 0.0, -1e4, 3.0], dtype=dtype), tau=0.9)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32) and value.isfinite().all()
    value.sum().backward()
    assert f.grad.dtype == dtype and f.grad.isfinite().all()


@pytest.mark.parametrize("tau", [1e-8, 1 - 1e-8])
def test_pinball_keeps_the_digits_of_an_extreme_level(tau):
    f = torch.tensor([1.0, -1.0, 0.0], requires_grad=True)
    value = pinball(f, torch.zeros(3), tau=tau)
    (slope,) = torch.autograd.grad(value.sum(), f)
    assert value.tolist() == pytest.approx([1 - tau, tau, 0.0], rel=1e-6)
    assert slope.tolist() == pytest.approx([1 - tau, -tau, (1 - 2 * tau) / 2], rel=1e-6)


@pytest.mark.parametrize("tau", [0.0, 1.0, -0.1, math.nan, "0.5", None])
def test_pinball_refuses_a_level(tau):
    with pytest.raises(ValueError, match=r"\(0, 1\)"):
        pinball(torch.zeros(2), torch.zeros(2), tau=tau)


@pytest.mark.parametrize("shape", [(3, 1), (1,), ()])
def test_pinball_refuses_to_broadcast(shape):
    with pytest.raises(ValueError, match="allowed"):
        pinball(torch.zeros(3), torch.zeros(shape))


@pytest.mark.parametrize("loss", [pinball, tukey])
def test_losses_of_numbers_keep_the_wider_type_and_refuse_what_is_no_batch_of_real_numbers(loss):
    f, y = torch.randn(2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for one, other in ((f.float(), y), (f, y.float())):
        assert torch.equal(loss(one, other), loss(one.double(), other.double()))
    for one, other in ((f, y.to(torch.complex128)), (f[0], y[0])):
        with pytest.raises(ValueError, match="allowed: real numbers of one shape"):
            loss(one, other)


def test_pinball_is_half_of_the_absolute_error_unless_asked_otherwise():
    f, y = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(pinball(f, y), (f - y).abs() / 2)
