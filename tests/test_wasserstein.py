"""The Fourier metric against optimal transport: W₁ and its tight constants, W₂, the Cramér distance, ring and line."""

import functools
import math
import warnings

import numpy as np
import pytest
import scipy.stats
import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from lossbook import losses
from lossbook.losses import spectral
from lossbook.symbolic import fourier_loss, wasserstein

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Python reports backslashes in the docstrings of POT when it first compiles them
    import ot

SYMBOLS = fourier_loss.SYMBOLS
ORDERS = (0.0, 0.5, 1.0, 1.7, 3.0)
quick = settings(deadline=None, max_examples=20)
seeds = st.integers(0, 2**32 - 1)
sizes = st.integers(2, 12)


def distributions(seed, n, count=2):
    """Dense and sparse ones: the extreme ratios are met by few masses, far apart or all over the place."""
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.full(n, rng.choice([0.05, 0.3, 1.0])), count)


def ring_cost(n):
    offset = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    return np.minimum(offset, n - offset).astype(float)


def metric(x, y, symbol="wrap", s=1.0, **grid):
    return losses.fourier_distance(torch.tensor(x), torch.tensor(y), s=s, symbol=symbol, **grid).item()


@functools.cache
def numeric(n, symbol):
    """lo² and the G_m as functions of s, lambdified."""
    kernel = [wasserstein.dual_green(m, n, symbol) for m in range(n)]
    return sympy.lambdify(fourier_loss.s, (wasserstein.lower_square(n, symbol), kernel))


@functools.cache
def correlations(n, increments):
    return np.array(wasserstein.autocorrelations(increments(n)))


def constants(n, symbol, s, increments=wasserstein.ring_increments):
    """lo and hi from the symbolic side."""
    lower, kernel = numeric(n, symbol)(s)
    return math.sqrt(lower), math.sqrt((correlations(n, increments) @ kernel).max())


# --- W₁ on the ring ------------------------------------------------------------------------------------------


@quick
@given(seed=seeds, n=sizes)
def test_median_formula_is_optimal_transport(seed, n):
    """Four ways to W₁: the formula, the corners of the potentials, POT on plans, a linear programme on flows."""
    x, y = distributions(seed, n)
    transport = ot.emd2(x, y, ring_cost(n))
    balance = np.eye(n) - np.roll(np.eye(n), -1, axis=1).T
    flow = linprog(np.ones(2 * n), A_eq=np.hstack([balance, -balance]), b_eq=x - y).fun
    corner = max(np.array(list(wasserstein.ring_increments(n))) @ np.cumsum(x - y))
    assert [wasserstein.wasserstein_1(x - y), corner] == pytest.approx(2 * [transport], abs=1e-10)
    assert flow == pytest.approx(transport, abs=1e-6)  # the balance holds to 1e-7, the tolerance of the solver


@pytest.mark.parametrize("n", range(2, 13))
def test_corners_are_all_there(n):
    """Any direction is maximised over {|σ_j| <= 1, Σσ = 0} at one of them, and they are as many as they should be."""
    corners = np.array(list(wasserstein.ring_increments(n)))
    assert len(corners) == (math.comb(n, n // 2) if n % 2 == 0 else n * math.comb(n - 1, n // 2))
    assert len(np.unique(corners, axis=0)) == len(corners) and not corners.sum(1).any()
    for direction in np.random.default_rng(n).standard_normal((3, n)):
        best = -linprog(-direction, A_eq=np.ones((1, n)), b_eq=[0], bounds=(-1, 1)).fun
        assert (corners @ direction).max() == pytest.approx(best, abs=1e-9)


def test_ring_is_not_the_line():
    """The first and the last class: one apart on the ring, N - 1 on the line, as scipy measures."""
    u = np.eye(10)[0] - np.eye(10)[9]
    assert wasserstein.wasserstein_1(u) == 1
    assert scipy.stats.wasserstein_distance(range(10), range(10), np.eye(10)[0], np.eye(10)[9]) == pytest.approx(9)


# --- the constants -------------------------------------------------------------------------------------------

# Ten classes: lo, hi and hi for W₁ on a line, worked out apart from this code.
TABLE = {
    ("wrap", 0.0): (0.7071, 4.7434, 9.083),
    ("wrap", 0.5): (1.2403, 4.8820, 11.783),
    ("wrap", 1.0): (1.9430, 7.9057, 18.165),
    ("wrap", 1.5): (2.6276, 17.678, 32.260),
    ("wrap", 2.0): (3.1069, 39.529, 62.292),
    ("raw", 1.0): (2.5120, 7.9057, 22.662),
    ("raw", 2.0): (4.3624, 39.529, 75.426),
    ("sin", 0.5): (0.8899, 3.8093, 8.789),
    ("sin", 1.0): (1.0541, 3.1623, 9.487),
    ("sin", 2.0): (1.1010, 6.3246, 14.142),
}
AT_ORDER_ONE = {
    ("sin", 4): (1.1547, 2),
    ("sin", 5): (1.1180, 2),
    ("sin", 8): (1.0690, 2.8284),
    ("sin", 9): (1.0607, 2.8284),
    ("sin", 12): (1.0445, 3.4641),
    ("wrap", 4): (0.8944, 2),
    ("wrap", 5): (1.0457, 2.0837),
    ("wrap", 8): (1.5860, 5.6569),
    ("wrap", 9): (1.7575, 5.6498),
    ("wrap", 12): (2.3017, 10.3923),
}


@pytest.mark.parametrize(("symbol", "s"), TABLE)
def test_constants_of_ten_classes(symbol, s):
    lo, hi, line = TABLE[symbol, s]
    assert constants(10, symbol, s) == pytest.approx((lo, hi), rel=5e-5)
    assert constants(10, symbol, s, wasserstein.line_increments)[1] == pytest.approx(line, rel=5e-5)


@pytest.mark.parametrize(("symbol", "n"), AT_ORDER_ONE)
def test_constants_at_order_one(symbol, n):
    assert constants(n, symbol, 1.0) == pytest.approx(AT_ORDER_ONE[symbol, n], rel=5e-5)


@pytest.mark.parametrize("symbol", SYMBOLS)
@pytest.mark.parametrize("n", range(2, 13))
def test_constants_bound_transport_and_are_reached(n, symbol):
    """Random pairs stay between them under POT; neighbours, and Q⁺φ at the best corner, touch them."""
    pairs = np.concatenate([distributions(seed, n, 4) for seed in range(3)]).reshape(-1, 2, n)
    transport = [ot.emd2(x, y, ring_cost(n)) for x, y in pairs]
    phi = -np.cumsum(list(wasserstein.ring_increments(n)), axis=1)
    line = -np.cumsum(list(wasserstein.line_increments(n)), axis=1) if n <= 8 else None
    for s in ORDERS:
        lo, hi = constants(n, symbol, s)
        for w, (x, y) in zip(transport, pairs, strict=True):
            assert lo * metric(x, y, symbol, s) <= w + 1e-10
            assert w <= hi * metric(x, y, symbol, s) + 1e-10
        inverse = np.linalg.pinv(spectral.quadratic_form(n, s, symbol), hermitian=True, rcond=1e-12)
        values = np.einsum("ci,ij,cj->c", phi, inverse, phi)
        assert values.max() == pytest.approx(hi**2, rel=1e-10)
        if line is not None:
            longest = np.einsum("ci,ij,cj->c", line, inverse, line).max()
            assert longest == pytest.approx(constants(n, symbol, s, wasserstein.line_increments)[1] ** 2, rel=1e-10)
        u = inverse @ phi[values.argmax()]
        u /= 2 * n * np.abs(u).max()
        for constant, x, y in ((hi, 1 / n + u, 1 / n - u), (lo, np.eye(n)[0], np.eye(n)[1])):
            assert ot.emd2(x, y, ring_cost(n)) == pytest.approx(constant * metric(x, y, symbol, s), rel=1e-7)


@pytest.mark.parametrize("symbol", SYMBOLS)
@pytest.mark.parametrize("n", range(2, 13))
def test_lower_constant_is_that_of_neighbours(n, symbol):
    for s in ORDERS:
        green = spectral.quadratic_form(n, s, symbol)[0]
        assert constants(n, symbol, s)[0] ** 2 == pytest.approx(1 / (2 * green[0] - 2 * green[1]), rel=1e-10)
        for d in range(1, n // 2 + 1):
            assert 2 * (green[0] - green[d]) <= d**2 * 2 * (green[0] - green[1]) * (1 + 1e-12)


@pytest.mark.parametrize("n", range(2, 13))
def test_sine_symbol_at_order_one_has_the_best_ratio_of_all_weights(n):
    best = math.sqrt(wasserstein.best_ratio_square(n))
    lo, hi = constants(n, "sin", 1.0)
    assert (lo**2, hi**2) == pytest.approx((n / (n - 1), n - n % 2), rel=1e-10)
    assert hi / lo == pytest.approx(best, rel=1e-10)
    # random weights, apart from the symbolic side: λ_k = λ_{N-k} > 0
    corners = np.array(list(wasserstein.ring_increments(n)), dtype=float)
    power = np.abs(np.fft.fft(corners, axis=1)[:, 1:]) ** 2
    laplacian = 4 * np.sin(np.pi * np.arange(1, n) / n) ** 2
    for weight in np.exp(np.random.default_rng(n).standard_normal((50, n - 1))):
        a = laplacian * (weight + weight[::-1])
        assert math.sqrt((power / a).sum(1).max() / n * a.sum() / n) >= best * (1 - 1e-12)


@pytest.mark.parametrize("symbol", SYMBOLS)
def test_upper_squares_are_the_exact_list_of_candidates(symbol):
    """For four classes 2 and 4^s under "wrap", as the notebook shows; in general the largest is hi²."""
    if symbol == "wrap":
        four = {sympy.simplify(value) for value in wasserstein.upper_squares(4)}
        assert four == {sympy.Integer(2), 4**fourier_loss.s}
    for n in (3, 5, 6):
        exact = max(float(value) for value in wasserstein.upper_squares(n, symbol, sympy.Rational(3, 2)))
        assert exact == pytest.approx(constants(n, symbol, 1.5)[1] ** 2, rel=1e-10)


def test_squared_error_falls_behind_with_the_number_of_classes():
    for n in (2, 4, 6, 8, 10, 12):
        lo, hi = constants(n, "wrap", 0.0)
        assert (hi / lo) ** 2 == pytest.approx(n * (n**2 + 8) / 24, rel=1e-10)


# --- the Cramér distance, padding, the line ------------------------------------------------------------------


@pytest.mark.parametrize("n", range(2, 13))
def test_sine_symbol_is_the_periodic_cramer_distance(n):
    """The symbolic form, in value and in its gradient through the softmax, against the loss under autograd."""
    u, points = fourier_loss.vector("u", n), sympy.Symbol("M")
    form = wasserstein.periodic_cramer(u, points)
    derived = sympy.lambdify([u, points], (form, [sympy.diff(form, x) for x in u]))
    rng = np.random.default_rng(n)
    for pad in (0, 1, 9, 300):
        z = torch.tensor(2 * rng.standard_normal(n), requires_grad=True)
        y = torch.tensor(rng.dirichlet(np.ones(n)))
        loss = losses.fourier(z, y, s=1, symbol="sin", pad=pad)
        (gradient,) = torch.autograd.grad(loss, z)
        p = torch.softmax(z.detach(), 0)
        value, slope = derived((p - y).tolist(), n + pad)
        g = torch.tensor(slope, dtype=torch.float64)
        assert loss.item() == pytest.approx(value, abs=1e-10)
        torch.testing.assert_close(gradient, p * (g - p @ g), rtol=0, atol=1e-10)
        kernel = [d * (n + pad - d) / (n + pad) for d in range(n)]
        assert loss.item() == pytest.approx(float(wasserstein.energy((p - y).tolist(), kernel.__getitem__)), abs=1e-10)


@quick
@given(seed=seeds, n=sizes)
def test_ring_and_line_agree_if_and_only_if_the_means_do(seed, n):
    x, y = distributions(seed, n)
    logits, target, place = torch.tensor(x).clamp_min(1e-300).log(), torch.tensor(y), np.arange(n)
    ring = losses.fourier(logits, target, s=1, symbol="sin").item()
    line = losses.rps(logits, target).item()
    assert line - ring == pytest.approx((place @ (x - y)) ** 2 / n, abs=1e-10)
    even = torch.tensor((x + x[::-1]) / 2).clamp_min(1e-300).log()  # symmetric about the middle: one mean for all
    target = torch.tensor((y + y[::-1]) / 2)
    for pad in (0, 5):
        agreeing = losses.fourier(even, target, s=1, symbol="sin", pad=pad).item()
        assert agreeing == pytest.approx(losses.rps(even, target).item(), abs=1e-10)


@quick
@given(seed=seeds, n=sizes)
def test_ranked_probability_score_and_w1_on_the_line(seed, n):
    x, y = distributions(seed, n)
    root = math.sqrt(sum(c**2 for c in wasserstein.cumulative(x - y)))
    line = scipy.stats.wasserstein_distance(range(n), range(n), x, y)
    assert root <= line + 1e-9 and line <= math.sqrt(n - 1) * root + 1e-9


@pytest.mark.parametrize("n", range(2, 13))
def test_geodesic_kernel_is_blind_at_even_frequencies_of_an_even_ring(n):
    transformed = np.fft.fft(ring_cost(n)[0]).real
    symbolic = [float(wasserstein.geodesic_transform(k, n)) for k in range(n)]
    assert symbolic == pytest.approx(transformed, abs=1e-10)
    if n % 2:
        assert (transformed[1:] <= -0.25).all()
    else:
        assert np.abs(transformed[2::2]).max(initial=0) < 1e-12
        assert transformed[1::2] == pytest.approx(-1 / np.sin(np.pi * np.arange(1, n, 2) / n) ** 2)


# --- W₂, and images ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("symbol", SYMBOLS)
@pytest.mark.parametrize("s", [0.0, 1.0, 2.0])
def test_w2_has_no_bound_by_the_metric(symbol, s):
    """Moving a hundredth of the mass makes W₂ ten times smaller and the metric a hundred times."""
    start, end = np.eye(10)[0], np.eye(10)[5]
    for amount in (1.0, 1e-2, 1e-4):
        moved = (1 - amount) * start + amount * end
        assert ot.emd2(moved, start, ring_cost(10) ** 2) == pytest.approx(25 * amount, rel=1e-9)
        assert metric(moved, start, symbol, s) == pytest.approx(amount * metric(end, start, symbol, s), rel=1e-7)


@quick
@given(seed=seeds, n=sizes, symbol=st.sampled_from(SYMBOLS), s=st.sampled_from(ORDERS))
def test_square_of_w2_lies_between_multiples_of_the_metric(seed, n, symbol, s):
    x, y = distributions(seed, n)
    lo, hi = constants(n, symbol, s)
    square, f = ot.emd2(x, y, ring_cost(n) ** 2), metric(x, y, symbol, s)
    assert lo * f <= square + 1e-10
    assert square <= n // 2 * hi * f + 1e-10


@pytest.mark.parametrize("n", [2, 4, 6, 8, 10, 12])
def test_upper_constant_of_w2_squared_is_reached_by_opposite_labels(n):
    """For the sine symbol at order one and an even ring: N sqrt(N) / 2."""
    x, y = np.eye(n)[0], np.eye(n)[n // 2]
    ratio = ot.emd2(x, y, ring_cost(n) ** 2) / metric(x, y, "sin")
    assert ratio == pytest.approx(n * math.sqrt(n) / 2) == pytest.approx(n // 2 * constants(n, "sin", 1.0)[1])


@pytest.mark.parametrize("n", [3, 4, 5])
def test_images_least_squares_flow_is_the_metric(n):
    incidence = np.array(wasserstein.torus_incidence(n), dtype=float)
    pixels = np.stack(np.divmod(np.arange(n * n), n))
    cost = ring_cost(n)[pixels[:, :, None], pixels[:, None, :]].sum(0)
    for seed in range(5):
        x, y = distributions(seed, n * n)
        f = metric(x.reshape(n, n), y.reshape(n, n), "sin", dims=2)
        flow = np.linalg.lstsq(incidence, x - y, rcond=None)[0]
        assert np.linalg.norm(flow) == pytest.approx(f, rel=1e-9)
        assert f - 1e-12 <= ot.emd2(x, y, cost) <= math.sqrt(2) * n * f + 1e-12
