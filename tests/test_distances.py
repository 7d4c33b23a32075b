"""Wasserstein on a line, sliced, with entropy, between Gaussians: derivation, autograd, POT, geomloss, scipy, FID."""

import math
import warnings

import geomloss
import numpy
import pytest
import scipy
import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.image.fid import FrechetInceptionDistance

from lossbook import losses
from lossbook.symbolic import distances as derived

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Python reports backslashes in the docstrings of POT when it first compiles them
    import ot

seeds = st.integers(0, 2**32 - 1)


def points(seed, n=6):
    return numpy.random.default_rng(seed).standard_normal((2, n))


# --- on a line ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_sorting_equals_the_distribution_functions(n):
    """All orders in which n and n points can lie, with the gaps free."""
    for x, y, gaps in derived.interleavings(n):
        by_functions = derived.by_distribution_functions(x, y, gaps)
        assert sympy.expand(derived.by_sorting(x, y) - by_functions) == 0


@pytest.mark.filterwarnings("ignore")
@settings(deadline=None, max_examples=20)
@given(seed=seeds, power=st.sampled_from([1, 2, 3]))
def test_sorted_points_equal_pot_and_scipy(seed, power):
    x, y = points(seed)
    ours = float(derived.by_sorting(numpy.sort(x).tolist(), numpy.sort(y).tolist(), power))
    cost = numpy.abs(x[:, None] - y[None, :]) ** power
    assert ours == pytest.approx(ot.emd2([], [], cost), abs=1e-10)
    assert ours == pytest.approx(ot.wasserstein_1d(x, y, p=power), abs=1e-10)
    if power == 1:
        assert ours == pytest.approx(scipy.stats.wasserstein_distance(x, y), abs=1e-10)


@settings(deadline=None, max_examples=20)
@given(seed=seeds)
def test_gradient_of_the_samples_equals_autograd(seed):
    """sign(x_(i) - y_(i)) / n, by lambdifying the derivative of the sorted sum and by autograd through torch.sort."""
    x, y = (torch.from_numpy(values) for values in points(seed))
    letters = sympy.symbols("x_1:7", real=True), sympy.symbols("y_1:7", real=True)
    value = sum(abs(a - b) for a, b in zip(*letters, strict=True)) / 6
    stated = sympy.lambdify([*letters[0], *letters[1]], [sympy.diff(value, a) for a in letters[0]], "math")
    order = x.argsort()
    x.requires_grad_()
    (found,) = torch.autograd.grad((x.sort().values - y.sort().values).abs().mean(), x)
    expected = stated(*x.detach()[order].tolist(), *y.sort().values.tolist())
    numpy.testing.assert_allclose(found[order], expected, atol=1e-10)


@pytest.mark.filterwarnings("ignore")
@settings(deadline=None, max_examples=20)
@given(seed=seeds, classes=st.integers(2, 9))
def test_histograms_on_a_line_equal_pot_and_rps(seed, classes):
    p, y = numpy.random.default_rng(seed).dirichlet(numpy.ones(classes), 2)
    u = (p - y).tolist()
    place = numpy.arange(classes, dtype=float)
    cost = numpy.abs(place[:, None] - place[None, :])
    assert float(derived.on_a_line(u)) == pytest.approx(ot.emd2(p, y, cost), abs=1e-10)
    rps = losses.rps(torch.from_numpy(p).log(), torch.from_numpy(y)).item()
    assert float(derived.on_a_line(u, 2)) == pytest.approx(rps, abs=1e-10)


@settings(deadline=None, max_examples=20)
@given(seed=seeds)
def test_dual_of_w1_is_reached_by_slopes_of_one(seed):
    """Kantorovich and Rubinstein on a line: with slope sign(G - F) the means differ by W_1; no other slopes do more."""
    x, y = points(seed)
    z = numpy.sort(numpy.concatenate([x, y]))
    F, G = (numpy.searchsorted(numpy.sort(cloud), z[:-1], side="right") / len(cloud) for cloud in (x, y))

    def difference_of_means(slopes):
        values = numpy.concatenate([[0], numpy.cumsum(slopes * numpy.diff(z))])
        return numpy.interp(x, z, values).mean() - numpy.interp(y, z, values).mean()

    exact = scipy.stats.wasserstein_distance(x, y)
    assert difference_of_means(numpy.sign(G - F)) == pytest.approx(exact)
    slopes = numpy.random.default_rng(seed).uniform(-1, 1, (20, len(z) - 1))
    assert max(map(difference_of_means, slopes)) <= exact + 1e-12


# --- between Gaussians --------------------------------------------------------------------------------------------


def covariances(seed, size=2):
    random = numpy.random.default_rng(seed)
    A, B = random.standard_normal((2, size, size + 2))
    return A @ A.T, B @ B.T


@settings(deadline=None, max_examples=20)
@given(seed=seeds)
def test_bures_in_two_dimensions_equals_pot_and_its_gradient_autograd(seed):
    A, B = covariances(seed)
    letters = [derived.symmetric(letter, 2) for letter in "AB"]
    free = [letters[k][i, j] for k in (0, 1) for i, j in ((0, 0), (0, 1), (1, 1))]
    value = derived.bures(*letters)
    function = sympy.lambdify(free, [value, *(sympy.diff(value, letter) for letter in free[:3])], "math")
    numbers = [matrix[i, j] for matrix in (A, B) for i, j in ((0, 0), (0, 1), (1, 1))]
    ours, *gradient = function(*numbers)
    zero = numpy.zeros(2)
    assert ours == pytest.approx(ot.gaussian.bures_wasserstein_distance(zero, zero, A, B) ** 2, abs=1e-8)

    def by_eigenvalues(a, b, c):
        first, second = torch.stack([torch.stack([a, b]), torch.stack([b, c])]), torch.from_numpy(B)
        values, vectors = torch.linalg.eigh(first)
        root = (vectors * values.sqrt()) @ vectors.mT
        return first.trace() + second.trace() - 2 * torch.linalg.eigvalsh(root @ second @ root).sqrt().sum()

    at = [torch.tensor(number, dtype=torch.float64, requires_grad=True) for number in numbers[:3]]
    slopes = torch.autograd.grad(by_eigenvalues(*at), at)
    numpy.testing.assert_allclose(gradient, [slope.item() for slope in slopes], atol=1e-10, rtol=1e-9)


@settings(deadline=None, max_examples=20)
@given(m=st.floats(-3, 3), s=st.floats(0.1, 3), shift=st.floats(-3, 3), t=st.floats(0.1, 3))
def test_gaussians_on_a_line_equal_pot(m, s, shift, t):
    ours = float(derived.gaussians_on_a_line(m, s, shift, t))
    one, other = (numpy.array([m]), numpy.array([[s * s]])), (numpy.array([shift]), numpy.array([[t * t]]))
    theirs = ot.gaussian.bures_wasserstein_distance(one[0], other[0], one[1], other[1]) ** 2
    assert ours == pytest.approx(theirs, abs=1e-7)


def by_torchmetrics(x, y):
    """Vectors as their own features."""
    metric = FrechetInceptionDistance(feature=torch.nn.Flatten(), input_img_size=(x.shape[1], 1, 1), normalize=True)
    for cloud, real in ((x, True), (y, False)):
        metric.update(torch.from_numpy(cloud)[:, :, None, None], real=real)
    return metric.compute().item()


def fid_by_roots(x, y):
    A, B = numpy.cov(x.T), numpy.cov(y.T)
    values, vectors = numpy.linalg.eigh(A)
    root = (vectors * numpy.sqrt(values.clip(0))) @ vectors.T
    trace = numpy.sqrt(numpy.linalg.eigvalsh(root @ B @ root).clip(0)).sum()
    return ((x.mean(0) - y.mean(0)) ** 2).sum() + numpy.trace(A) + numpy.trace(B) - 2 * trace


def fid_by_singular_values(x, y):
    a, b = ((z - z.mean(0)) / math.sqrt(len(z) - 1) for z in (x, y))
    trace = numpy.linalg.svd(a @ b.T, compute_uv=False).sum()
    return ((x.mean(0) - y.mean(0)) ** 2).sum() + (a**2).sum() + (b**2).sum() - 2 * trace


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(3))
def test_four_formulas_of_fid_agree(seed):
    """torchmetrics, scipy's square root of the product, the symmetric root, singular values of the data."""
    random = numpy.random.default_rng(seed)
    mixing = random.standard_normal((5, 5))
    x, y = random.standard_normal((80, 5)) @ mixing, 0.5 + random.standard_normal((60, 5))
    A, B = numpy.cov(x.T), numpy.cov(y.T)
    root = scipy.linalg.sqrtm(A @ B).real
    by_product = ((x.mean(0) - y.mean(0)) ** 2).sum() + numpy.trace(A + B - 2 * root)
    answers = [by_torchmetrics(x, y), by_product, fid_by_roots(x, y), fid_by_singular_values(x, y)]
    numpy.testing.assert_allclose(answers, answers[-1], rtol=1e-6)


def test_a_covariance_in_one_pass_needs_float64():
    """Mean of squares less square of the mean, at a mean of 1000: torchmetrics adds up in float64 for that reason."""
    z = 1000 + numpy.random.default_rng(0).standard_normal((2000, 20))
    one_pass = [((w * w).sum(0) - len(w) * w.mean(0) ** 2) / (len(w) - 1) for w in (z, z.astype("float32"))]
    errors = [abs(variances - z.var(0, ddof=1)).max() for variances in one_pass]
    assert errors[0] < 1e-6 and errors[1] > 0.1
    assert abs(z.astype("float32").var(0, ddof=1) - z.var(0, ddof=1)).max() < 1e-3  # centred first


def test_eigenvalues_of_the_product_as_if_it_were_symmetric():
    """`eigvalsh` of AB sees one triangle: negative values where the true ones are those of a positive matrix."""
    A, B = covariances(0, 5)
    assert numpy.linalg.eigvals(A @ B).real.min() > 0 > numpy.linalg.eigvalsh(A @ B).min()


def test_fewer_images_than_features():
    """The covariances have rank N - 1; roots of rounded zeros are nan; the three forms that clip still agree."""
    x, y = numpy.random.default_rng(0).standard_normal((2, 20, 60))
    A, B = numpy.cov(x.T), numpy.cov(y.T)
    assert numpy.linalg.matrix_rank(A) == 19
    with numpy.errstate(invalid="ignore"):
        assert numpy.isnan(numpy.sqrt(numpy.linalg.eigvals(A @ B).real)).any()
    answers = [by_torchmetrics(x, y), fid_by_roots(x, y), fid_by_singular_values(x, y)]
    numpy.testing.assert_allclose(answers, answers[-1], rtol=1e-5)
    assert answers[0] > 10, "and none of them is near the zero that two samples of one distribution should have"


def test_one_polynomial_for_the_product_its_symmetric_form_and_the_data():
    R, B, t = derived.symmetric("R", 2), derived.symmetric("B", 2), sympy.Symbol("t")
    one, other = (sympy.expand(product.charpoly(t).as_expr()) for product in (R * R * B, R * B * R))
    assert sympy.expand(one - other) == 0


def test_bias_of_fid_at_finite_size():
    """Two samples of one distribution, N(0, I_8), 600 times: the mean is (d(d+1)/2 + 2d)/N within its error."""
    stated = float(derived.fid_bias().subs({derived.d: 8, derived.N: 800}))
    assert stated == pytest.approx((8 * 9 / 2 + 16) / 800)
    random = numpy.random.default_rng(0)
    seen = [fid_by_roots(*random.standard_normal((2, 800, 8))) for _ in range(600)]
    error = numpy.std(seen) / math.sqrt(len(seen))
    assert abs(numpy.mean(seen) - stated) < 3 * error + 0.02 * stated  # the next order in d/N is about one per cent
    assert error < 0.02 * stated


def test_fid_prefers_a_generator_that_varies_less_at_equal_size():
    """100 times 400 draws in 64 dimensions: scaled by 0.97, so wrong by 0.058, they come out nearer than unscaled."""
    random = numpy.random.default_rng(0)
    gain = []
    for _ in range(100):
        real, drawn = random.standard_normal((2, 400, 64))
        gain.append(fid_by_roots(real, drawn) - fid_by_roots(real, 0.97 * drawn))
    assert numpy.mean(gain) > 3 * numpy.std(gain) / math.sqrt(len(gain)) > 0


def test_bures_near_the_identity_is_a_quarter_of_the_squared_difference():
    zero, first, second = derived.bures_near_identity()
    E, F = derived.symmetric("E", 2), derived.symmetric("F", 2)
    assert zero == 0 and first == 0
    assert sympy.expand(second - ((E - F) * (E - F)).trace() / 4) == 0


# --- sliced, with entropy, and the libraries' conventions ---------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@settings(deadline=None, max_examples=10)
@given(seed=seeds, size=st.sampled_from([2, 3]))
def test_sliced_distance_of_a_shift(seed, size):
    """SW_2² is the mean of ⟨θ, v⟩²: POT with its own directions, and |v|²/d in the mean over all of them."""
    random = numpy.random.default_rng(seed)
    x, v = random.standard_normal((20, size)), random.standard_normal(size)
    directions = ot.sliced.get_random_projections(size, 4000, seed=0)
    found = ot.sliced_wasserstein_distance(x, x + v, projections=directions)
    assert found**2 == pytest.approx(numpy.square(v @ directions).mean(), rel=1e-6)
    assert float(derived.mean_square_projection(v.tolist())) == pytest.approx(v @ v / size)
    assert found**2 == pytest.approx(v @ v / size, rel=0.15)


def test_slices_order_a_shift_and_a_turn_the_other_way_round():
    """Two points on one axis against two on the other: transport 2 and slices 1 - 2/π, a shift by one 1 and 1/2."""
    x, y, shift = numpy.array([[1.0, 0], [-1, 0]]), numpy.array([[0, 1.0], [0, -1]]), numpy.array([1, 0])
    angles = numpy.linspace(0, 2 * numpy.pi, 4001)[:-1]
    directions = numpy.stack([numpy.cos(angles), numpy.sin(angles)])
    turned, shifted = (ot.sliced_wasserstein_distance(x, z, projections=directions) ** 2 for z in (y, x + shift))
    assert turned == pytest.approx(float(derived.sliced_quarter_turn()), abs=1e-5)
    assert shifted == pytest.approx(0.5, abs=1e-5)
    assert [ot.emd2([], [], ot.dist(x, z)) for z in (y, x + shift)] == pytest.approx([2, 1])
    assert turned < shifted


@pytest.mark.filterwarnings("ignore")
@settings(deadline=None, max_examples=15)
@given(cost=st.floats(0.1, 3), reg=st.floats(0.05, 3))
def test_entropic_cost_of_identical_inputs(cost, reg):
    """c / (1 + e^{c/ε}), against POT; the debiased divergence of geomloss is 0."""
    half = numpy.full(2, 0.5)
    table = numpy.array([[0, cost], [cost, 0]])
    stated = float(derived.entropic_cost().subs({derived.cost: cost, derived.epsilon: reg}))
    plan = ot.sinkhorn(half, half, table, reg, method="sinkhorn_log", stopThr=1e-13)
    assert (plan * table).sum() == pytest.approx(stated, abs=1e-10)
    x = torch.tensor([[0.0], [math.sqrt(2 * cost)]], dtype=torch.float64)  # geomloss halves the squared distance
    divergence = geomloss.SamplesLoss("sinkhorn", p=2, blur=math.sqrt(reg), backend="tensorized")
    assert divergence(x, x).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.filterwarnings("ignore")
def test_plain_sinkhorn_underflows_where_the_logarithmic_one_does_not():
    """The cheapest move of some points costs 1 or more: at ε = 1e-3 their rows of exp(-c/ε) are 0 in float64."""
    random = numpy.random.default_rng(0)
    x, y = numpy.sort(random.uniform(0, 1, 20)), 1 + numpy.sort(random.uniform(0, 1, 20))
    cost = (x[:, None] - y[None, :]) ** 2
    exact = ot.emd2([], [], cost)
    plain, logarithmic = (
        ot.sinkhorn([], [], cost, 1e-3, method=method, numItermax=1500) for method in ("sinkhorn", "sinkhorn_log")
    )
    assert (cost.min(1) / 1e-3 > 745).any() and plain.sum() < 1e-3, "nearly no mass is left in the plan"
    assert logarithmic.sum() == pytest.approx(1) and (logarithmic * cost).sum() == pytest.approx(exact, rel=0.01)


@pytest.mark.filterwarnings("ignore")
def test_conventions_of_the_libraries():
    """Who returns W_2, who W_2², who half of it: a shift by v, for which W_2 = |v| and nothing else moves."""
    x, v = points(1, 30)[0][:, None], 1.5
    y = x + v
    a, b = (torch.from_numpy(z) for z in (x, y))
    assert ot.wasserstein_1d(x[:, 0], y[:, 0], p=2) == pytest.approx(v**2)
    assert ot.emd2([], [], ot.dist(x, y)) == pytest.approx(v**2)
    assert ot.sliced_wasserstein_distance(x, y, seed=0) == pytest.approx(v)
    half = geomloss.SamplesLoss("sinkhorn", p=2, blur=1e-3, scaling=0.9, backend="tensorized")(a, b)
    assert half.item() == pytest.approx(v**2 / 2, rel=1e-3)
    assert scipy.stats.wasserstein_distance(x[:, 0], y[:, 0]) == pytest.approx(v)
    energy = math.sqrt(2 * ((scipy_cdf_difference(x[:, 0], y[:, 0])) ** 2).sum())
    assert scipy.stats.energy_distance(x[:, 0], y[:, 0]) == pytest.approx(energy)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("power", [1, 2])
def test_geomloss_halves_the_square_and_takes_the_blur_to_the_power(power):
    """Cost |x - y|^p / p, ε = blur^p: without debiasing, the objective of POT's plan at that ε and no other."""
    x, y = points(0, 30)
    y = 1.5 + 2 * y
    clouds = [torch.from_numpy(z)[:, None] for z in (x, y)]
    cost = numpy.abs(x[:, None] - y) ** power / power

    def divergence(blur, scaling, debias=True):
        options = {"p": power, "blur": blur, "scaling": scaling, "debias": debias, "backend": "tensorized"}
        return geomloss.SamplesLoss("sinkhorn", **options)(*clouds).item()

    def objective(reg):
        plan = ot.sinkhorn([], [], cost, reg, method="sinkhorn_log", stopThr=1e-10)
        return (plan * cost).sum() + reg * scipy.special.rel_entr(plan, 1 / cost.size).sum()

    raw = divergence(0.2, 0.99, debias=False)
    assert raw == pytest.approx(objective(0.2**power), rel=1e-3)
    assert abs(raw - objective(0.2 ** (3 - power))) > 0.01 * raw
    exact = ot.emd2([], [], cost)
    near, early = divergence(0.01, 0.99), divergence(0.01, 0.5)
    assert near == pytest.approx(exact, rel=0.05) and abs(early - exact) > abs(near - exact)


def scipy_cdf_difference(x, y):
    """F - G times the root of the gap, on the gaps between neighbours of all points."""
    place = numpy.sort(numpy.concatenate([x, y]))
    F, G = (numpy.searchsorted(numpy.sort(z), place[:-1], side="right") / len(z) for z in (x, y))
    return (F - G) * numpy.sqrt(numpy.diff(place))


def test_fourier_metric_at_order_one_is_a_distance_of_distribution_functions():
    """The sine symbol at s = 1: squared, Σ (C_j - mean C)², where W_1 counts the steps of a shift."""
    n = 64
    u = torch.zeros(n, dtype=torch.float64)
    place = torch.arange(n, dtype=torch.float64)
    blob = torch.exp(-((place - 16) ** 2) / 8)
    blob = blob / blob.sum()
    for shift in (1, 5, 12, 24):
        u = blob.roll(shift) - blob
        C = u.cumsum(0)
        found = losses.fourier_distance(blob.roll(shift), blob, s=1, symbol="sin").item() ** 2
        assert found == pytest.approx((C - C.mean()).square().sum().item(), abs=1e-10)
        assert float(derived.on_a_line(u.tolist())) == pytest.approx(shift, abs=1e-4)  # W_1 counts the steps


def test_fourier_loss_keeps_growing_with_the_shift_where_squared_error_is_flat():
    """From a shift of 8 to one of 16 on a ring of 64 W_1 doubles; the loss at s = 1 nearly so, squared error not."""
    place = torch.arange(64, dtype=torch.float64)
    blob = torch.exp(-(torch.minimum(place, 64 - place) ** 2) / 4)
    blob = blob / blob.sum()
    shifted = torch.stack([blob.roll(8), blob.roll(16)])
    near, far = losses.fourier_distance(shifted, blob.expand_as(shifted), s=1).square()
    assert 1.7 < far / near < 2
    near, far = (shifted - blob).square().sum(1)
    assert far / near == pytest.approx(1, abs=1e-3)
