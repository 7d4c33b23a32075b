"""Huber and Tukey (symbolic) against autograd, SciPy's quadrature and statsmodels; and the loss that trains."""

import math

import numpy
import pytest
import scipy.integrate
import scipy.optimize
import scipy.stats
import statsmodels.robust.norms as norms
import sympy
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from lossbook import results, sweep, tasks
from lossbook.losses import regression
from lossbook.losses.regression import mad, tukey
from lossbook.symbolic import robust_regression as derived
from lossbook.tasks import robust_regression as experiment

reals = st.floats(-30, 30)
positive = st.floats(0.1, 10)
seeds = st.integers(0, 2**32 - 1)
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def sample(batch=9, outputs=(), seed=0, dtype=torch.float64):
    random = torch.Generator().manual_seed(seed)
    return tuple(3 * torch.randn(batch, *outputs, generator=random, dtype=torch.float64).to(dtype) for _ in range(2))


# --- the formulas --------------------------------------------------------------------------------------------


FORMULAS = {
    name: sympy.lambdify([derived.u, derived.c], getattr(derived, name)(derived.u, derived.c), "numpy")
    for name in ("huber_psi", "tukey_rho", "tukey_psi")
}
SCALED = [
    sympy.lambdify([derived.u, derived.s, derived.c], part, "numpy")
    for value in [derived.scaled_tukey(derived.u)]
    for part in (value, sympy.diff(value, derived.u), sympy.diff(value, derived.s))
]


@settings(deadline=None, max_examples=100)
@given(r=reals, s=positive, c=st.floats(1, 8))
def test_tukey_equals_its_derivation(r, s, c):
    """s² ρ(r/s), its gradients in the residual and in the scale, against autograd to 1e-10."""
    error = torch.tensor([r], dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(s, dtype=torch.float64, requires_grad=True)
    value = tukey(error, torch.zeros(1, dtype=torch.float64), c=c, scale=scale)
    slopes = torch.autograd.grad(value.sum(), (error, scale))
    close = dict(rel=1e-10, abs=1e-10)
    stated = [float(function(r, s, c)) for function in SCALED]
    assert value.item() == pytest.approx(stated[0], **close)
    assert [slope.item() for slope in slopes] == pytest.approx(stated[1:], rel=1e-9, abs=1e-9)
    assert slopes[0].item() == pytest.approx(s * float(FORMULAS["tukey_psi"](r / s, c)), **close)


@settings(deadline=None, max_examples=50)
@given(u=reals, tuning=st.floats(0.5, 8))
def test_huber_and_tukey_against_statsmodels(u, tuning):
    for name, oracle in (
        ("huber_psi", norms.HuberT(t=tuning).psi),
        ("tukey_rho", norms.TukeyBiweight(c=tuning).rho),
        ("tukey_psi", norms.TukeyBiweight(c=tuning).psi),
    ):
        assert float(FORMULAS[name](u, tuning)) == pytest.approx(
            float(oracle(numpy.array([u]))[0]), rel=1e-10, abs=1e-10
        )
    at = torch.tensor([u], dtype=torch.float64)
    ours = tukey(at, 0 * at, c=tuning, scale=1.0)
    theirs = norms.TukeyBiweight(c=tuning).rho(numpy.array([u]))[0]
    assert ours.item() == pytest.approx(float(theirs), rel=1e-10, abs=1e-10)


@settings(deadline=None, max_examples=30)
@given(seed=seeds, batch=st.integers(2, 40))
def test_mad_against_scipy(seed, batch):
    r = sample(batch, (), seed)[0]
    oracle = scipy.stats.median_abs_deviation(r.numpy(), scale="normal")
    assert mad(r).item() == pytest.approx(float(oracle), rel=1e-9)
    two = torch.stack([r, 5 * r], 1)
    torch.testing.assert_close(mad(two), torch.stack([mad(r), 5 * mad(r)]))


def test_median_of_an_even_number_is_the_middle():
    r = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert torch.median(r).item() == 2.0
    assert mad(r).item() == pytest.approx(derived_consistency() * 1.0)  # about 2.5; about 2 it would be otherwise
    assert mad(torch.tensor([0.0, 0.0, 1.0, 1.0])).item() == pytest.approx(0.5 * derived_consistency())
    for nothing in (torch.zeros(0), torch.zeros(0, 3)):
        with pytest.raises(ValueError, match="mad: a batch of 0 was given; allowed: at least 1"):
            mad(nothing)


def derived_consistency():
    return float(derived.mad_consistency())


# --- the constants -------------------------------------------------------------------------------------------


def test_consistency_of_the_mad():
    assert float(derived.mad_consistency().evalf(20)) == pytest.approx(regression.MAD_CONSISTENCY, rel=1e-14)
    assert regression.MAD_CONSISTENCY == pytest.approx(1 / scipy.stats.norm.ppf(0.75), rel=1e-12)
    big = torch.randn(200_001, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert mad(7 * big).item() == pytest.approx(7, rel=0.01)


@pytest.mark.parametrize("power", range(0, 12))
def test_truncated_moments_against_quadrature(power):
    stated = sympy.lambdify(derived.k, derived.truncated_moment(power), ["scipy", "numpy"])
    for k in (0.5, 1.345, 4.6851):
        found = scipy.integrate.quad(lambda z: z**power * scipy.stats.norm.pdf(z), -k, k)[0]
        assert float(stated(k)) == pytest.approx(found, rel=1e-8, abs=1e-10)


@pytest.mark.parametrize(
    ("efficiency", "symbol", "psi", "known"),
    [
        (derived.huber_efficiency(), derived.k, derived.huber_psi(derived.u), 1.345),
        (derived.tukey_efficiency(), derived.c, derived.tukey_psi(derived.u), 4.6851),
    ],
)
def test_constants_of_95_per_cent_efficiency(efficiency, symbol, psi, known):
    """SymPy's closed form and SciPy's quadrature of ψ have the same root, which rounds to the constant in use."""
    exact = float(derived.tuning_constant(efficiency, symbol, known))
    function = sympy.lambdify([derived.u, symbol], psi, "numpy")

    def by_quadrature(constant):
        def mean(g):
            points = [-constant, constant]
            return scipy.integrate.quad(lambda u: g(u) * scipy.stats.norm.pdf(u), -9, 9, points=points, limit=200)[0]

        slope = mean(lambda u: u * float(function(u, constant)))  # E uψ = E ψ', by parts
        return slope**2 / mean(lambda u: float(function(u, constant)) ** 2) - 0.95

    assert scipy.optimize.brentq(by_quadrature, 0.8 * known, 1.2 * known) == pytest.approx(exact, abs=1e-6)
    assert exact == pytest.approx(known, abs=6e-5)


def test_efficiency_is_seen_in_samples():
    """The variance of the mean over that of Huber's and Tukey's estimate, at scale 1: 95 %, within the noise."""
    random = numpy.random.default_rng(0)
    z = torch.from_numpy(random.standard_normal((4000, 100)))
    for rule in ("huber", "tukey"):
        estimate = z.mean(1, keepdim=True)
        for _ in range(20):  # iteratively reweighted means
            u = z - estimate
            weight = (1.345 / u.abs()).clamp(max=1) if rule == "huber" else (1 - (u / 4.6851) ** 2).clamp(min=0) ** 2
            estimate = (weight * z).sum(1, keepdim=True) / weight.sum(1, keepdim=True)
        assert (z.mean(1).var() / estimate.var()).item() == pytest.approx(0.95, abs=0.015)


def test_influence_is_what_one_outlier_does():
    """ψ(y_0 - θ)/E ψ' against (n + 1) times the shift of the estimate that one point at y_0 causes."""
    n = 20_001
    z = scipy.stats.norm.ppf((numpy.arange(n) + 0.5) / n)
    mean_slope = float(derived.truncated_mean(sympy.diff(derived.tukey_inside(derived.u), derived.u, 2), 4.6851).subs(
        derived.c, 4.6851))  # fmt: skip
    psi = sympy.lambdify([derived.u, derived.c], derived.tukey_psi(derived.u), "numpy")
    for outlier in (1.0, 4.6851 / math.sqrt(5), 4.0, 10.0):
        data = numpy.append(z, outlier)
        equation = lambda t, data=data: psi(data - t, 4.6851).mean()  # noqa: E731
        shift = (n + 1) * scipy.optimize.brentq(equation, -0.5, 0.5, xtol=1e-14)
        assert shift == pytest.approx(float(psi(outlier, 4.6851)) / mean_slope, abs=2e-3)
    influence = derived.influence()
    assert influence.has(sympy.Function("psi")(derived.outlier - derived.theta))


def test_tukey_redescends():
    """ψ is greatest at c/√5, falls to 0 at c, and stays there: the curvature of ρ is negative in between."""
    psi = derived.tukey_psi(derived.u, sympy.Integer(1)).args[0][0]
    slope = sympy.factor(sympy.diff(psi, derived.u))
    roots = sorted(sympy.solve(slope, derived.u))
    assert roots == [-1, -1 / sympy.sqrt(5), 1 / sympy.sqrt(5), 1]
    assert sympy.simplify(psi.subs(derived.u, 1 / sympy.sqrt(5)) - 16 * sympy.sqrt(5) / 125) == 0
    r = torch.tensor([3.0, 4.68, 4.69, 100.0]).double()
    slopes = torch.func.grad(lambda r: tukey(r, 0 * r, scale=1.0).sum())(r)
    assert slopes[0] > slopes[1] > 0 and not slopes[2:].any()


def test_breakdown():
    """30 % of the data at 25 around a truth of 5: the mean is carried off, Tukey's estimate stays."""
    y = 5 + torch.randn(1001, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y[:300] = 25
    start, s = y.median(), mad(y)

    def minimiser(loss):
        t = start.clone().requires_grad_()
        optimiser = torch.optim.LBFGS([t], max_iter=100, line_search_fn="strong_wolfe", tolerance_grad=1e-12)

        def closure():
            optimiser.zero_grad()
            value = loss(t.expand_as(y), y).mean()
            value.backward()
            return value

        optimiser.step(closure)
        return t.item()

    at_tukey = minimiser(lambda f, y: tukey(f, y, scale=s))
    at_huber = minimiser(lambda f, y: F.huber_loss(f, y, delta=1.345 * s.item(), reduction="none"))
    assert abs(y.mean().item() - 5) > 5.9 and abs(at_tukey - 5) < 0.1 < 0.5 < at_huber - 5 < 2
    equation = sympy.lambdify(derived.u, derived.huber_contaminated_slope(derived.u, 300 / 1001, 1.345 * s.item()),
                              ["scipy", "numpy"])  # fmt: skip
    assert at_huber - 5 == pytest.approx(scipy.optimize.brentq(equation, 0, 10), abs=0.1)


@pytest.mark.parametrize(
    ("share", "place", "kept"),
    [(0.46, 25, True), (0.48, 25, False), (0.3, 15, True), (0.4, 15, False), (0.3, 10, False)],
)
def test_tukey_gives_way_where_wrong_targets_are_many_or_near(share, place, kept):
    """They inflate the MAD, and within 4.6851 of it they count. The estimate is a stationary point of the loss."""
    y = 5 + torch.randn(1001, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y[: round(share * 1001)] = place
    estimate, s = y.median(), mad(y)
    for _ in range(400):
        weight = (1 - ((y - estimate) / s / 4.6851) ** 2).clamp(min=0) ** 2
        estimate = (weight * y).sum() / weight.sum()
    at = estimate.requires_grad_()
    (slope,) = torch.autograd.grad(tukey(at.expand_as(y), y, scale=s).mean(), at)
    assert abs(slope) < 1e-6
    error = abs(estimate.item() - 5)
    assert error < 0.15 if kept else error > 0.5


# --- the loss that trains ------------------------------------------------------------------------------------


@pytest.mark.parametrize("outputs", [(), (3,)])
@pytest.mark.parametrize("scale", ["mad", 0.7, "tensor"])
def test_gradient_is_that_of_the_value(outputs, scale):
    prediction, target = sample(8, outputs)
    scale = torch.full(outputs, 1.3).double() if scale == "tensor" else scale
    prediction.requires_grad_()
    assert gradcheck(lambda f: tukey(f, target, scale=scale), prediction)
    assert gradgradcheck(lambda f: tukey(f, target, scale=scale), prediction)


@settings(deadline=None, max_examples=30)
@given(seed=seeds, factor=st.floats(0.01, 100))
def test_homogeneous_of_degree_two(seed, factor):
    """All residuals times λ: the loss times λ². So r·∇L = 2L, and shrinking all residuals always helps."""
    r = sample(21, (), seed)[0].requires_grad_()
    zero = torch.zeros_like(r)
    value = tukey(r, zero).mean()
    torch.testing.assert_close(tukey(factor * r, zero).mean(), factor**2 * value)
    (slope,) = torch.autograd.grad(value, r)
    assert (slope @ r.detach()).item() == pytest.approx(2 * value.item(), rel=1e-9)


@settings(deadline=None, max_examples=30)
@given(seed=seeds)
def test_without_the_square_of_the_scale_nothing_pulls_inwards(seed):
    """ρ(r/MAD) with the true gradient: r·∇L = 0. What the released code returns is ψ(u), of another function."""
    r = sample(21, (), seed)[0].requires_grad_()
    s = mad(r)
    value = (tukey(r, torch.zeros_like(r)) / s.square()).mean()
    (slope,) = torch.autograd.grad(value, r)
    assert (slope @ r.detach()).item() == pytest.approx(0, abs=1e-12)
    u = (r / s).detach()
    released = u * (1 - (u / 4.6851) ** 2).clamp(min=0) ** 2 / len(u)
    held = tukey(r, torch.zeros_like(r), scale=s.detach()).mean()
    (at_constant_scale,) = torch.autograd.grad(held, r)
    torch.testing.assert_close(released * s.detach(), at_constant_scale)
    assert (released - slope).norm() > 0.1 * slope.norm()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", ["mad", 1.0])
def test_finite_at_extreme_values(dtype, scale):
    prediction = torch.tensor([-1e4, -1e4, 0.0, 1e-4, 1e4, 1e4, 3.0, 3.0], dtype=dtype)
    for target in (prediction.flip(0), torch.zeros(8, dtype=dtype), prediction.clone()):
        f = prediction.clone().requires_grad_()
        value = tukey(f, target, scale=scale)
        assert value.shape == (8,) and value.isfinite().all() and (value >= 0).all()
        assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        value.sum().backward()
        assert f.grad.dtype == dtype and f.grad.isfinite().all()


@pytest.mark.parametrize("distance", [0.0, 1.0, 1e-30, 1e30])
def test_a_mad_of_zero(distance):
    """More than half of the residuals equal: value and gradient are 0, which the loss tends to as the MAD does."""
    f = torch.tensor([0.0, 0.0, 0.0, 5.0, -2.0], requires_grad=True)
    shifted = torch.full((5,), -distance)
    value = tukey(f, shifted)
    value.sum().backward()
    assert not value.any() and not f.grad.any()
    near = tukey(torch.tensor([0.0, 1e-9, -1e-9, 5.0, -2.0]).double(), torch.zeros(5).double())
    assert 0 <= near.max() < 1e-15


@settings(deadline=None, max_examples=30)
@given(seed=seeds, scale=positive)
def test_range_and_behaviour_near_zero(seed, scale):
    f, y = sample(50, (2,), seed)
    value = tukey(10 * f, y, scale=scale)
    assert (value >= 0).all() and (value <= 2 * 4.6851**2 * scale**2 / 6 * (1 + 1e-12)).all()
    torch.testing.assert_close(tukey(y, 10 * f, scale=scale), value)
    small = 1e-6 * scale * f
    torch.testing.assert_close(tukey(small, 0 * f, scale=scale), small.square().sum(1) / 2, rtol=1e-8, atol=0)
    torch.testing.assert_close(tukey(f, y, scale=1e6), (f - y).square().sum(1) / 2, rtol=1e-8, atol=1e-12)


def test_autocast_changes_nothing():
    f, y = sample(20, (2,), dtype=torch.float32)
    outside = tukey(f, y), tukey(f.bfloat16(), y), regression.pinball(f, y, tau=0.3)
    with torch.autocast("cpu", torch.bfloat16):
        inside = tukey(f, y), tukey(f.bfloat16(), y), regression.pinball(f, y, tau=0.3)
    assert all(torch.equal(one, other) for one, other in zip(outside, inside, strict=True))


def test_what_is_no_number_is_no_outlier():
    f, y = torch.tensor([math.nan, 1.0, 1e9]).requires_grad_(), torch.zeros(3)
    value = tukey(f, y, scale=1.0)
    value.sum().backward()
    assert value.isnan().tolist() == [True, False, False] == f.grad.isnan().tolist() and f.grad[2] == 0


@pytest.mark.filterwarnings("ignore")  # torch's own, while it compiles
@pytest.mark.parametrize("scale", ["mad", 1.5])
def test_compiled_and_vmapped_equal_eager(scale):
    def both(f, y):
        return tukey(f, y, scale=scale), regression.pinball(f, y, tau=0.2)

    groups = [sample(7, (2,), seed) for seed in range(3)]
    f, y = (torch.stack(part) for part in zip(*groups, strict=True))
    eager = [both(*group) for group in groups]
    torch._dynamo.reset()
    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")(*groups[0])
    vmapped = torch.func.vmap(both)(f, y)
    for i in range(2):
        torch.testing.assert_close(compiled[i], eager[0][i], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(vmapped[i], torch.stack([e[i] for e in eager]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (dict(c=0.0), "(0, inf)"),
        (dict(c=math.nan), "(0, inf)"),
        (dict(scale=0.0), "(0, inf)"),
        (dict(scale=-1.0), "(0, inf)"),
        (dict(scale=None), "(0, inf)"),
        (dict(scale="std"), "'mad'"),
        (dict(scale=torch.ones(4)), "shape"),
        (dict(target=torch.zeros(4, 1)), "squeeze"),
        (dict(target=torch.zeros(3)), "allowed"),
        (dict(prediction=torch.zeros(4).long()), "allowed"),
        (dict(target=torch.zeros(4).bool()), "allowed"),
        (dict(prediction=torch.zeros(4, 2, 2), target=torch.zeros(4, 2, 2)), "(batch, outputs)"),
        (dict(prediction=torch.zeros(1), target=torch.zeros(1)), "at least 2"),
    ],
)
def test_refusals(arguments, said):
    arguments = dict(prediction=torch.zeros(4), target=torch.ones(4)) | arguments
    with pytest.raises(ValueError) as error:
        tukey(arguments.pop("prediction"), arguments.pop("target"), **arguments)
    assert said in str(error.value)


def test_a_scale_in_a_tensor_is_taken_in_the_type_of_the_residuals():
    f, y = torch.randn(2, 5, 2, generator=torch.Generator().manual_seed(0))
    half = torch.full((2,), 0.3).half()
    assert torch.equal(tukey(f, y, scale=half), tukey(f, y, scale=half.float()))
    assert tukey(f, y, scale=half.double()).dtype == torch.float32


def test_a_scale_must_be_positive_in_a_tensor_too():
    """A tensor is not read, so that nothing waits for a GPU; where it is 0 the value and the gradient are 0."""
    f, y = sample(4)
    f.requires_grad_()
    value = tukey(f, y, scale=torch.tensor(0.0))
    value.sum().backward()
    assert not value.any() and not f.grad.any()


# --- the experiment ------------------------------------------------------------------------------------------


def test_motion_moves_the_content_by_the_targets():
    """The centre of mass of a spot goes where a turn about the centre and then the shift take it."""
    size = 48
    axis = torch.linspace(-1, 1, size + 1)[:-1] + 1 / size
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    at = torch.tensor([0.4, -0.1])  # right, down
    spot = torch.exp(-((x - at[0]) ** 2 + (y - at[1]) ** 2) / 0.005)
    images, targets = experiment.moved(spot.expand(20, 1, size, size), torch.Generator().manual_seed(0))
    weight = images[:, 0] / images.sum((1, 2, 3))[:, None, None]
    centre = torch.stack([(weight * x).sum((1, 2)), (weight * y).sum((1, 2))], 1)
    angle = math.radians(experiment.GREATEST_ANGLE) * targets[:, 0]
    turned = torch.stack(
        [at[0] * angle.cos() + at[1] * angle.sin(), at[1] * angle.cos() - at[0] * angle.sin()], 1
    )  # anticlockwise to the eye, y downwards
    assert targets.abs().max() <= 1
    torch.testing.assert_close(centre, turned + 2 * experiment.GREATEST_SHIFT * targets[:, 1:], atol=0.01, rtol=0)


def test_corruption_is_a_share_one_sided_and_nested():
    targets = torch.zeros(1000, 3)
    masks = []
    for share in (0.0, 0.1, 0.4):
        given, wrong = experiment.corrupt(targets, share, torch.Generator().manual_seed(0))
        assert wrong.sum() == round(1000 * share) and not given[~wrong].any()
        assert not share or (2 <= given[wrong].min() < 2.05 and 5.9 < given[wrong].max() <= 6)
        assert ((given[wrong] >= 2) & (given[wrong] <= 6)).all()
        masks.append(wrong)
    assert (masks[2] | ~masks[1]).all()


def test_huber_of_the_experiment_is_torchs():
    f, y = sample(30, (3,))
    deltas = (1.345 * mad(f - y)).tolist()
    stated = sum(F.huber_loss(f[:, k], y[:, k], delta=d, reduction="none") for k, d in enumerate(deltas))
    torch.testing.assert_close(experiment.huber(f, y), stated)


def test_a_run_is_reproducible_and_tells_the_losses_apart():
    common = dict(dataset="digits", model="mlp", learning_rate=3e-3, corrupted=0.3, epochs=8, views=1)
    rows = {
        loss: experiment.RobustRegression(loss=loss, **common).run(torch.device("cpu"))
        for loss in ("squared", "tukey_held")
    }
    again = experiment.RobustRegression(loss="squared", **common).run(torch.device("cpu"))
    forgetful = experiment.RobustRegression(loss="absolute", **common | dict(model="mlp_dropout", epochs=1))
    assert len({tasks.row(forgetful)["angle_error"] for _ in range(2)}) == 1
    assert again == rows["squared"] and rows["squared"]["wrong_targets"] == round(0.3 * rows["squared"]["copies"])
    assert rows["tukey_held"]["angle_error"] < 0.5 * rows["squared"]["angle_error"]
    assert rows["squared"]["bias"] > 0.5 > 0.1 > abs(rows["tukey_held"]["bias"])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("loss", "tuky"),
        ("dataset", "wine"),
        ("model", "mpl"),
        ("corrupted", 0.5),
        ("views", 0),
        ("batch_size", 1),
        ("epochs", 1.5),
        ("model", "airbench"),
    ],
)
def test_the_task_refuses(field, value):
    with pytest.raises(ValueError, match=str(value)):
        experiment.RobustRegression(
            **(dict(dataset="digits", model="mlp", loss="tukey", learning_rate=1e-3) | {field: value})
        )


@pytest.fixture(scope="module")
def published():
    """The rows that the verdict is about: MNIST, read by the multi-layer perceptron."""
    rows = sweep.published("robust_regression")
    return rows[(rows["dataset"] == "mnist") & (rows["model"] == "mlp")]


def means(published, value):
    """Mean error of the angle in degrees or of the position in pixels: a line a loss, a column a share."""
    return published.pivot_table(index="loss", columns="corrupted", values=value)


def angles(published):
    return means(published, "angle_error")


def of_true_gradient(published, value):
    """Tukey's true gradient less the same loss with its scale held, by share."""
    both = published[published["loss"].isin(["tukey", "tukey_held"])]
    return (
        results.paired_differences(both, "tukey_held", ["corrupted"], value=value).set_index("corrupted").sort_index()
    )


def test_published_runs_are_whole(published):
    counts = published.groupby(["loss", "corrupted"])[["seed", "learning_rate"]].nunique()
    assert len(counts) == 25 and (counts["seed"] >= 3).all() and (counts["learning_rate"] == 1).all()
    assert (published["status"] == "done").all()


def test_verdict_robust_losses_cost_nothing_without_wrong_targets(published):
    clean, places = angles(published)[0.0], means(published, "shift_error")[0.0]
    robust = ["absolute", "huber", "tukey_held"]
    assert (clean[robust] - clean["squared"]).max() < 0.1 and (places[robust] - places["squared"]).max() < 0.005
    assert clean["tukey"] - clean["squared"] > 1.5


def test_verdict_the_squared_error_follows_wrong_targets_and_tukey_ignores_three_tenths(published):
    found = angles(published)
    assert found.loc["squared", 0.1] > 2.5 * found.loc["squared", 0.0] and found.loc["squared", 0.4] > 60
    held = found.loc["tukey_held"]
    assert held[0.3] - held[0.0] < 1 and held[0.4] > 3 * held[0.3]
    places = means(published, "shift_error")  # at four tenths the position still stands
    assert places.loc["tukey_held", 0.4] < 1.3 * places.loc["tukey_held", 0.0] < 0.1 * places.loc["squared", 0.4]
    table = results.paired_differences(published, "squared", ["corrupted"], value="angle_error")
    ours = table[(table["loss"] == "tukey_held") & table["corrupted"].between(0.1, 0.3)]
    assert len(ours) == 3 and (ours["difference"] + ours["half_width"] < -10).all() and (ours["p_holm"] < 0.05).all()


def test_verdict_bounded_influence_is_robust_to_few_wrong_targets(published):
    found = angles(published)
    for loss in ("huber", "absolute"):
        assert found.loc[loss, 0.2] < 1.5 * found.loc[loss, 0.0]
    assert found.loc["huber", 0.3] > 2 * found.loc["huber", 0.0]
    assert found.loc["huber", 0.3] > 1.5 * found.loc["absolute", 0.3]


def test_verdict_the_true_gradient_is_better_at_four_tenths_alone(published):
    """Worse in angle and position up to three tenths of wrong targets; at four tenths better in both."""
    angle, place = (of_true_gradient(published, value) for value in ("angle_error", "shift_error"))
    for table, least in ((angle, 1), (place, 0.01)):
        few = table.loc[[0.0, 0.1, 0.2, 0.3]]
        assert (few["difference"] - few["half_width"] > least).all()
        assert table.loc[0.4, "difference"] + table.loc[0.4, "half_width"] < 0 and 10 * table.loc[0.4, "p"] < 0.05
