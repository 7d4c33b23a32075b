"""The likelihood behind the Fourier loss: SymPy against autograd, SciPy's degenerate Gaussian, and random draws."""

import functools
import math

import numpy as np
import pytest
import scipy
import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lossbook import losses
from lossbook.losses import spectral
from lossbook.symbolic import fourier_likelihood as likelihood
from lossbook.symbolic import fourier_loss

ORDERS = (0.0, 0.5, 1.0, 1.7)
CLASSES = range(2, 13)
quick = settings(deadline=None, max_examples=25)
sizes = pytest.mark.parametrize("n", CLASSES)
symbols = pytest.mark.parametrize("symbol", spectral.SYMBOLS)
s, sigma = fourier_loss.s, likelihood.sigma


def compiled(expression, *arguments):
    return sympy.lambdify(arguments, expression, "numpy", cse=True)


@functools.cache
def first_row(n, symbol):
    return compiled(list(likelihood.covariance(n, symbol)[0, :]), s, sigma)


@functools.cache
def log_normaliser(n, symbol="wrap"):
    return compiled(likelihood.log_normaliser(n, symbol), s, sigma)


def covariance(n, symbol="wrap", order=1.0, scale=1.0):
    return scipy.linalg.circulant(first_row(n, symbol)(order, scale))


def errors(n, count, seed=0):
    u = np.random.default_rng(seed).normal(size=(count, n))
    return u - u.mean(1, keepdims=True)


# --- the density -----------------------------------------------------------------------------------------------


@symbols
@sizes
def test_negative_log_density_against_the_loss_and_against_scipy(n, symbol):
    """Both to 1e-10: the loss that trains, and SciPy's own pseudo-determinant for the constant."""
    u = fourier_loss.vector("u", n)
    density = compiled(likelihood.negative_log_density(u, symbol), *u, s, sigma)
    constant = log_normaliser(n, symbol)
    error = errors(n, 4, seed=n)
    for order in ORDERS:
        for scale in (0.3, 2.0):
            found = density(*error.T, order, scale)
            form = spectral.quadratic_form(n, order, symbol)
            loss = np.einsum("bi,ij,bj->b", error, form, error)
            np.testing.assert_allclose(found, loss / (2 * scale**2) + constant(order, scale), rtol=1e-10, atol=1e-10)
            gaussian = scipy.stats.multivariate_normal(cov=covariance(n, symbol, order, scale), allow_singular=True)
            np.testing.assert_allclose(found, -gaussian.logpdf(error), rtol=1e-10, atol=1e-10)


@symbols
@sizes
def test_gradient_in_the_logits_is_that_of_the_log_likelihood(n, symbol):
    """PyTorch's proper Gaussian on the classes but the last: parallel gradients, and a constant short by log √N."""
    random = torch.Generator().manual_seed(n)
    logits = (2 * torch.randn(5, n, generator=random, dtype=torch.float64)).requires_grad_()
    label = torch.softmax(torch.randn(5, n, generator=random, dtype=torch.float64), 1)
    scale = 0.3
    for order in ORDERS:
        full = torch.from_numpy(covariance(n, symbol, order, scale))[:-1, :-1]
        predicted = torch.softmax(logits, 1)[:, :-1]
        theirs = torch.distributions.MultivariateNormal(predicted, full).log_prob(label[:, :-1])
        ours = losses.fourier(logits, label, s=order, symbol=symbol)
        constant = log_normaliser(n, symbol)(order, scale) - math.log(n) / 2
        torch.testing.assert_close(-theirs, ours / (2 * scale**2) + constant, rtol=1e-10, atol=1e-9)
        by_likelihood, by_loss = (torch.autograd.grad(value.sum(), logits)[0] for value in (-theirs, ours))
        torch.testing.assert_close(by_likelihood, by_loss / (2 * scale**2), rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize("n", range(2, 7))
def test_difference_to_the_loss_is_free_of_the_data(n):
    """Exactly, with s symbolic."""
    u = fourier_loss.vector("u", n)
    for symbol in spectral.SYMBOLS:
        difference = likelihood.negative_log_density(u, symbol) - fourier_loss.loss(u, symbol) / (2 * sigma**2)
        rest = sympy.expand(sympy.expand(difference) - likelihood.log_normaliser(n, symbol))
        assert sympy.expand(sympy.expand_log(rest, force=True)) == 0


@sizes
def test_coordinates_are_orthonormal_on_the_hyperplane(n):
    u = fourier_loss.vector("u", n)
    found = likelihood.coordinates(u)
    basis = np.array([[float(c.diff(x).evalf()) for x in u] for _, c in found])
    np.testing.assert_allclose(basis @ basis.T, np.eye(n - 1), atol=1e-13)
    np.testing.assert_allclose(basis.T @ basis, np.eye(n) - 1 / n, atol=1e-13)
    frequencies = [k for k, _ in found]
    assert [frequencies.count(k) for k in range(1, n // 2 + 1)] == [2 - (2 * k == n) for k in range(1, n // 2 + 1)]


@symbols
def test_density_of_three_classes_integrates_to_one(symbol):
    u0, u1 = sympy.symbols("u_0 u_1", real=True)
    formula = likelihood.negative_log_density([u0, u1, -u0 - u1], symbol, sympy.Rational(3, 2)).subs(sigma, 0.4)
    density = compiled(sympy.exp(-formula), u0, u1)
    mass, _ = scipy.integrate.dblquad(density, -8, 8, -8, 8, epsabs=1e-8)
    assert math.sqrt(3) * mass == pytest.approx(1, abs=1e-6)


@sizes
def test_normaliser_in_closed_form(n):
    """Π 2 sin(πk/N) = N, and Π min(k, N-k) by factorials."""
    products = {"sin": n, "wrap": math.factorial(n // 2) * math.factorial((n - 1) // 2)}
    for symbol, product in products.items():
        expected = (n - 1) / 2 * math.log(2 * math.pi) + (n - 1) * math.log(0.7) + 1.3 * math.log(product)
        assert log_normaliser(n, symbol)(1.3, 0.7) == pytest.approx(expected, rel=1e-12)
    roots = sympy.prod(1 - likelihood.z**k for k in range(1, n))
    assert likelihood.at_root_of_unity(roots, n) == n


@quick
@given(n=st.integers(2, 12), coefficients=st.lists(st.integers(-9, 9), min_size=1, max_size=12))
def test_value_at_a_root_of_unity(n, coefficients):
    """The remainder is zero exactly where the polynomial is, and equal to it everywhere on the roots."""
    z = likelihood.z
    reduced = likelihood.at_root_of_unity(sum(c * z**j for j, c in enumerate(coefficients)), n)
    root = np.exp(2j * np.pi / n)
    value = np.polyval(coefficients[::-1], root)
    assert complex(sympy.lambdify(z, reduced)(root)) == pytest.approx(value, abs=1e-10)
    assert (reduced == 0) == (abs(value) < 1e-9)


# --- the covariance --------------------------------------------------------------------------------------------


@symbols
@sizes
def test_covariance_is_the_pseudo_inverse_of_the_quadratic_form(n, symbol):
    for order in ORDERS:
        pseudo = np.linalg.pinv(covariance(n, symbol, order, 0.3), rcond=1e-9, hermitian=True)
        np.testing.assert_allclose(0.3**2 * pseudo, spectral.quadratic_form(n, order, symbol), atol=1e-10)


@sizes
def test_fluxes_between_neighbours_are_order_one_of_the_sine_symbol(n):
    flux = np.array(likelihood.flux_to_noise(n), dtype=float)
    np.testing.assert_allclose(flux @ flux.T, covariance(n, "sin"), atol=1e-12)
    if n > 2:
        assert flux[0, 0] == 1 and flux[0, 1] == -1 and not flux[0, 2:].any()


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_integer_orders_of_the_sine_symbol_are_binomial(order):
    for n in range(2 * order + 1, 13):
        row = covariance(n, "sin", order)[0]
        expected = [float(likelihood.flux_covariance(min(d, n - d), order)) for d in range(n)]
        np.testing.assert_allclose(row, expected, atol=1e-10)
        assert row[1] / row[0] == pytest.approx(-order / (order + 1))


def test_raw_has_the_harmonic_mean_as_its_variance():
    variance = compiled(likelihood.variances(5, "raw")[2], s, sigma)(1.5, 0.3)
    assert variance == pytest.approx(0.3**2 * scipy.stats.hmean([2**3.0, 3**3.0]))
    assert likelihood.variances(5, "raw")[0] == 0


# --- what must be fixed ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("symbol", ["wrap", "sin"])
@pytest.mark.parametrize("n", range(4, 13))
def test_expected_loss_is_least_at_the_wrong_order_and_expected_likelihood_at_the_right_one(n, symbol):
    """Against the trace, and against the normaliser: the slope at the truth is zero only with its price."""
    m, true = sympy.IndexedBase("m", positive=True), 1.2
    formula = likelihood.expected_loss(true, n, m).subs(sigma, 1).doit()
    expected = formula.subs({m[k]: fourier_loss.frequency(k, n, symbol).evalf() for k in range(1, n)})
    trace = np.trace(spectral.quadratic_form(n, 0.7, symbol) @ covariance(n, symbol, true))
    assert float(expected.subs(s, 0.7)) == pytest.approx(trace, rel=1e-10)
    slope = float(expected.diff(s).subs(s, true))
    price = log_normaliser(n, symbol)(1.0, 1.0) - log_normaliser(n, symbol)(0.0, 1.0)
    assert slope == pytest.approx(-2 * price, rel=1e-10) and slope < -1


@quick
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(4, 12), low=st.floats(0, 3), step=st.floats(0.1, 3))
def test_loss_of_any_data_falls_with_the_order(seed, n, low, step):
    """Under wrap, so that it cannot choose its own order."""
    u = errors(n, 1, seed)[0]
    assert u @ spectral.quadratic_form(n, low + step) @ u < u @ spectral.quadratic_form(n, low) @ u


@quick
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(2, 12))
def test_one_common_unknown_sigma_changes_no_order_of_predictions(seed, n):
    """With σ estimated the log-likelihood of 8 examples still ranks predictions as the loss does; likewise fixed."""
    u = errors(n, 24, seed).reshape(3, 8, n)
    loss = np.einsum("pbi,ij,pbj->p", u, spectral.quadratic_form(n), u)
    constant = log_normaliser(n)
    estimate = np.sqrt(loss / (8 * (n - 1)))
    profile = loss / (2 * estimate**2) + 8 * np.array([constant(1.0, scale) for scale in estimate])
    fixed = loss / (2 * 0.3**2) + 8 * constant(1.0, 0.3)
    assert np.array_equal(np.argsort(loss), np.argsort(profile))
    assert np.array_equal(np.argsort(loss), np.argsort(fixed))
    nearby = [loss / (2 * t**2) + 8 * np.array([constant(1.0, x) for x in t]) for t in (0.9 * estimate, 1.1 * estimate)]
    assert (np.array(nearby) > profile).all()


# --- draws -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [9, 10])
def test_draws_have_the_spectrum_and_nyquist_is_real(n):
    root = covariance(n, "wrap", 0.5)  # half the order: the symmetric square root
    np.testing.assert_allclose(root @ root, covariance(n, "wrap", 1.0), atol=1e-12)
    noise = np.random.default_rng(0).normal(scale=0.3, size=(40_000, n)) @ root
    spectrum = np.fft.fft(noise)[:, 1:] / math.sqrt(n)
    folded = np.minimum(np.arange(1, n), n - np.arange(1, n))
    np.testing.assert_allclose((abs(spectrum) ** 2).mean(0) / (0.09 * folded**2), 1, atol=0.04)  # > 5 standard errors
    circular = abs((spectrum**2).mean(0)) / (0.09 * folded**2)
    np.testing.assert_allclose(circular, 2 * folded == n, atol=0.04)


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_share_inside_the_simplex_at_a_vertex(n):
    """1/n! against SciPy's cumulative distribution of the n-1 classes that must not lose mass."""
    full = covariance(n, "sin")[1:, 1:]
    share = scipy.stats.multivariate_normal(cov=full).cdf(np.zeros(n - 1), rng=0)
    assert float(likelihood.inside_at_vertex(n)) == pytest.approx(share, rel=2e-3)
    assert likelihood.inside_at_vertex(n) == 1 / sympy.factorial(n)
