"""The study of losses: SymPy against autograd, the classes of equal losses, and every way in which code departs."""

import functools
import math
import warnings

import numpy as np
import pytest
import scipy
import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests
from sympy import Integer, Rational, Symbol, log

from lossbook import losses, results
from lossbook.symbolic import loss_study as study

epsilon = study.epsilon
sizes = pytest.mark.parametrize("n", range(2, 13))
seeds = st.integers(0, 2**32 - 1)

# Each loss of the derivation with the one that trains; the sums over classes there are means here.
PAIRS = {
    "cross_entropy": study.cross_entropy,
    "kl_divergence": study.divergence,
    "kl_divergence(class_reduction='mean')": lambda p, y: study.divergence(p, y) / len(p),
    "kl_divergence(clip=0.05)": lambda p, y: study.divergence(study.clipped(p, 0.05), study.clipped(y, 0.05)),
    "kl_divergence(clip=0.05, direction='reverse')": (
        lambda p, y: study.divergence(study.clipped(y, 0.05), study.clipped(p, 0.05))
    ),
    "kl_divergence(domain='probabilities')": study.wrong_domain,
    "poisson": study.poisson,
    "poisson(epsilon=0.01)": lambda p, y: study.poisson(p, y, 0.01),
    "brier": lambda p, y: len(p) * study.squared_error(p, y),
    "mae": lambda p, y: len(p) * study.absolute_error(p, y),
    "huber": lambda p, y: study.huber(p, y, 1),
    "huber(delta=0.3)": lambda p, y: study.huber(p, y, 0.3),
    "log_cosh": study.log_cosh,
    "hinge": study.hinge,
    "squared_hinge": lambda p, y: study.hinge(p, y, power=2),
    "categorical_hinge": study.categorical_hinge,
}


@functools.cache
def compiled(spec, n):
    """Value and gradient in the logits, as functions of p and y."""
    p, y = study.weights("p", n), study.weights("y", n)
    value = PAIRS[spec](p, y)
    slope = [sympy.diff(value, x) for x in p]
    mean = sum(x * g for x, g in zip(p, slope, strict=True))
    gradient = [x * (g - mean) for x, g in zip(p, slope, strict=True)]
    return sympy.lambdify(
        [p, y], [value, *gradient], ["math", {"Heaviside": lambda x, *at_zero: float(x > 0)}], cse=True
    )


def autograd(spec, z, target):
    z = z.clone().requires_grad_()
    value = losses.create(spec, num_classes=z.shape[-1], reduction="none")(z, target)
    return value, torch.autograd.grad(value.sum(), z)[0]


def example(n, seed, batch=4):
    """Logits, class labels and soft labels in float64."""
    random = np.random.default_rng(seed)
    soft = random.dirichlet(np.ones(n), batch) * 0.99 + 0.01 / n
    labels = torch.from_numpy(random.integers(n, size=batch))
    return torch.from_numpy(2 * random.standard_normal((batch, n))), labels, torch.from_numpy(soft)


# --- the derivation against what trains ------------------------------------------------------------------------


@sizes
@pytest.mark.parametrize("spec", PAIRS)
def test_value_and_gradient_equal_autograd(spec, n):
    """To 1e-10, with the softmax's chain rule carried out by SymPy."""
    z, _, soft = example(n, n)
    value, gradient = autograd(spec, z, soft)
    derived = [compiled(spec, n)(p, y) for p, y in zip(torch.softmax(z, 1).tolist(), soft.tolist(), strict=True)]
    np.testing.assert_allclose(value.tolist(), [row[0] for row in derived], rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(gradient, [row[1:] for row in derived], rtol=1e-10, atol=1e-10)


@settings(deadline=None, max_examples=12)
@given(seed=seeds, spec=st.sampled_from(sorted(PAIRS)), n=st.integers(2, 3), scale=st.floats(0.1, 4))
def test_class_labels_equal_autograd(seed, spec, n, scale):
    """The derivation with 0 ln 0 = 0, in the exponentials of the logits; also where an entry lies below a clip."""
    z, labels, _ = example(n, seed, batch=1)
    z = scale * z
    w = study.weights("w", n)
    formula = PAIRS[spec](study.simplex(w), study.label(n, labels.item()))
    derived = sympy.Matrix([formula, *study.logit_gradient(formula, w)])
    derived = derived.subs(dict(zip(w, z[0].exp().tolist(), strict=True))).evalf(20)
    value, gradient = autograd(spec, z, labels)
    np.testing.assert_allclose(
        [value.item(), *gradient[0].tolist()], [float(x) for x in derived], rtol=1e-10, atol=1e-10
    )


# --- divergence and cross-entropy ------------------------------------------------------------------------------


@sizes
def test_cross_entropy_less_divergence_is_the_entropy_of_the_label(n):
    """Exactly, and so without any gradient in the logits."""
    w, y = study.weights("w", n), study.simplex(study.weights("v", n))
    p = study.simplex(w)
    gap = study.one_fraction(study.cross_entropy(p, y) - study.divergence(p, y))
    assert study.one_fraction(gap - study.entropy(y)) == 0
    assert study.cross_entropy(p, study.label(n)) - study.divergence(p, study.label(n)) == 0
    assert all(g == 0 for g in study.logit_gradient(gap, w))


@settings(deadline=None, max_examples=50)
@given(seed=seeds, n=st.integers(2, 100), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_divergence_trains_as_cross_entropy_to_the_last_bit(seed, n, dtype):
    z, labels, soft = example(n, seed)
    for target in (labels, soft.to(dtype)):
        one, two = (autograd(spec, z.to(dtype), target)[1] for spec in ("cross_entropy", "kl_divergence"))
        assert torch.equal(one, two)
    one, two = (autograd(spec, z.to(dtype), labels)[0] for spec in ("cross_entropy", "kl_divergence"))
    assert torch.equal(one, two)


def test_entropy_matters_when_the_target_is_learned():
    """Then the losses differ by the gradient of the entropy, and only the divergence rests at y = p."""
    z, _, soft = example(5, 0)
    v = soft.log().requires_grad_()
    y = torch.softmax(v, 1)
    one, two = (
        torch.autograd.grad(loss(z, y).sum(), v, retain_graph=True)[0]
        for loss in (losses.cross_entropy, losses.kl_divergence)
    )
    y = y.detach()
    entropy = torch.special.entr(y).sum(1, keepdim=True)
    torch.testing.assert_close(one - two, -y * (y.log() + entropy), rtol=1e-10, atol=1e-10)
    v = z.clone().requires_grad_()
    at_prediction = {
        loss: torch.autograd.grad(loss(z, torch.softmax(v, 1)).sum(), v)[0].abs().max().item()
        for loss in (losses.cross_entropy, losses.kl_divergence)
    }
    assert at_prediction[losses.kl_divergence] < 1e-12 and at_prediction[losses.cross_entropy] > 0.1


# --- classes of equal losses -----------------------------------------------------------------------------------


@sizes
def test_three_classes_of_losses(n):
    """Exactly, for class labels; likelihood and Poisson for any label."""
    p, e, y = study.simplex(study.weights("w", n)), study.label(n), study.simplex(study.weights("v", n))
    delta = 1 + Symbol("d", nonnegative=True)
    for target in (y, e):
        assert study.one_fraction(study.cross_entropy(p, target) - study.likelihood(p, target)) == 0
    assert study.one_fraction(study.poisson(p, y) - (1 + study.cross_entropy(p, y)) / n) == 0
    assert study.one_fraction(study.huber(p, e, delta) - study.squared_error(p, e) / 2) == 0
    assert study.one_fraction(study.hinge(p, e) - study.absolute_error(p, e) - 1 + Rational(1, n)) == 0
    # and no such identity where there should be none: the difference hangs on the prediction
    points = [study.simplex([Integer(k) for k in at]) for at in ([1] * n, range(1, n + 1))]
    for other in (lambda p: study.hinge(p, e, power=2), lambda p: 2 * study.huber(p, e, Rational(1, 10))):
        assert len({other(p) - study.squared_error(p, e) for p in points}) == 2


def test_classes_show_as_equal_directions_of_the_gradient():
    """Cosine 1 inside a class, clearly less between classes."""
    classes = (
        ("cross_entropy", "kl_divergence", "poisson", "kl_divergence(class_reduction='mean')"),
        ("brier", "huber", "huber(delta=3)"),
        ("mae", "hinge", "kl_divergence(domain='probabilities')"),
        ("log_cosh",),
        ("squared_hinge",),
        ("categorical_hinge",),
    )
    specs = [(number, spec) for number, group in enumerate(classes) for spec in group]
    z, labels, _ = example(10, 0, batch=2000)
    directions = torch.stack([autograd(spec, z, labels)[1].flatten() for _, spec in specs])
    directions = torch.nn.functional.normalize(directions)
    for (one, first), u in zip(specs, directions, strict=True):
        for (other, second), v in zip(specs, directions, strict=True):
            assert (u @ v > 1 - 1e-12) == (one == other), (first, second)


def test_two_classes_bring_the_categorical_hinge_to_the_absolute_error():
    two, three = (study.simplex(study.weights("w", n)) for n in (2, 3))

    def ratio(p):
        e = study.label(len(p))
        return sympy.cancel(study.categorical_hinge(p, e) / study.absolute_error(p, e))

    assert ratio(two) == 2 and ratio(three).free_symbols


# --- ways in which code departs --------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 10, 100])
def test_mean_over_classes_is_the_default_of_torch(n):
    z, labels, _ = example(n, n)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the default will change
        y = torch.nn.functional.one_hot(labels, n).double()
        theirs = torch.nn.KLDivLoss()(torch.log_softmax(z, 1), y)
    ours, gradient = autograd("kl_divergence(class_reduction='mean')", z, labels)
    torch.testing.assert_close(ours.mean(), theirs, rtol=1e-12, atol=0)
    torch.testing.assert_close(n * gradient, autograd("cross_entropy", z, labels)[1], rtol=1e-12, atol=1e-15)


def test_adam_undoes_a_scale_but_for_its_epsilon():
    """The identity, and torch's own Adam on the mean over classes with ε against cross-entropy with C ε."""
    m, s, tiny, c = sympy.symbols("m s tiny c", positive=True)
    assert sympy.simplify(study.adam_update(m, s, tiny, scale=c) - study.adam_update(m, s, tiny / c)) == 0
    z, labels, _ = example(10, 0, batch=32)
    ends = []
    for spec, eps in (
        ("kl_divergence(class_reduction='mean')", 1e-3),
        ("cross_entropy", 1e-2),
        ("cross_entropy", 1e-3),
    ):
        x = z.clone().requires_grad_()
        optimiser = torch.optim.Adam([x], lr=0.1, eps=eps)
        for _ in range(20):
            optimiser.zero_grad()
            losses.create(spec)(x, labels).backward()
            optimiser.step()
        ends.append(x.detach())
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-10, atol=1e-10)
    assert (ends[0] - ends[2]).abs().max() > 0.1


def test_a_clip_bounds_the_loss_and_silences_outliers():
    """The branch below the clip has no gradient; an offset has the factor p/(p + ε)."""
    p = Symbol("p", positive=True)
    assert sympy.diff(-log(sympy.Max(p, epsilon)), p).subs({epsilon: Rational(1, 10), p: Rational(1, 20)}) == 0
    assert sympy.simplify(sympy.diff(log(p + epsilon), p) / sympy.diff(log(p), p) - p / (p + epsilon)) == 0
    for lead, clipped in ((15.0, 1.0), (17.0, 0.0)):
        z = torch.zeros(1, 10, dtype=torch.float64)
        z[0, 1] = lead
        p_y = torch.softmax(z, 1)[0, 0].item()
        pull = {
            spec: -autograd(spec, z, torch.tensor([0]))[1][0, 0].item() / scale
            for spec, scale in (("cross_entropy", 1), ("kl_divergence(clip=1e-7)", 1), ("poisson(epsilon=1e-7)", 0.1))
        }
        assert pull["cross_entropy"] == pytest.approx(1, abs=1e-6)
        assert pull["kl_divergence(clip=1e-7)"] == pytest.approx(clipped, abs=1e-5)
        assert pull["poisson(epsilon=1e-7)"] == pytest.approx(p_y / (p_y + 1e-7), abs=1e-6)
    z = torch.tensor([[0.0, 1e4]], dtype=torch.float64)
    largest = losses.kl_divergence(z, torch.tensor([0]), clip=1e-7)
    assert largest.item() == pytest.approx(math.log(1e7), rel=1e-6)


@sizes
def test_probabilities_for_logs_make_it_the_absolute_error(n):
    p, e = study.simplex(study.weights("w", n)), study.label(n)
    rest = study.wrong_domain(p, e) - Rational(n, 2) * study.absolute_error(p, e)
    assert study.one_fraction(rest + 1) == 0
    z, labels, _ = example(n, n)
    wrong, mae = (autograd(spec, z, labels)[1] for spec in ("kl_divergence(domain='probabilities')", "mae"))
    torch.testing.assert_close(wrong, mae / 2, rtol=1e-10, atol=1e-12)
    z_symbols = sympy.symbols(f"z_:{n}", real=True)
    assert study.wrong_domain(z_symbols, e) == -z_symbols[0]
    falling = losses.kl_divergence(1e4 * torch.nn.functional.one_hot(labels, n).double(), labels, domain="logits")
    assert (falling == -1e4).all()


@sizes
def test_reversed_divergence_is_absolute_error_less_entropy(n):
    """With the label clipped to ε; and its risk is stationary at p ∝ ε^{-q}, which exaggerates the mode."""
    w = study.weights("w", n)
    p, e = study.simplex(w), study.label(n)
    reverse = study.divergence([1] + [epsilon] * (n - 1), p)
    rest = reverse + study.entropy(p) - log(1 / epsilon) * n * study.absolute_error(p, e) / 2
    assert study.one_fraction(rest) == 0
    q = np.random.default_rng(n).dirichlet(5 * np.ones(n))
    z = torch.from_numpy(q * math.log(1e4))[None].expand(n, n).clone().requires_grad_()
    risk = losses.kl_divergence(z, torch.arange(n), clip=1e-4, direction="reverse") @ torch.from_numpy(q)
    assert torch.autograd.grad(risk, z)[0].sum(0).abs().max() < 1e-10


# --- chance ----------------------------------------------------------------------------------------------------


def test_chance_finds_a_winner_in_a_tenth_of_studies_and_holm_mends_it():
    """Eight losses and a baseline, all the same in law, five seeds each, as a study would test them; and 22 losses."""
    eight, many = results.false_winners(8, 5), results.false_winners(22, 5)
    assert 0.09 < eight["Welch"] < 0.13 and 0.12 < eight["paired"] < 0.17
    assert 0.18 < many["Welch"] < many["paired"] < 1 - 0.975**22
    for shares in (eight, many):
        assert max(shares["Welch, Holm"], shares["paired, Holm"]) < 0.03


def test_holm_equals_statsmodels():
    p = np.random.default_rng(7).random((20, 9)) ** 3
    for row, adjusted in zip(p, results.holm(p).clip(max=1), strict=True):
        np.testing.assert_allclose(adjusted, multipletests(row, 0.05, "holm")[1], rtol=1e-12)


@pytest.mark.parametrize(("n", "closed"), [(2, 1 / math.sqrt(math.pi)), (3, 1.5 / math.sqrt(math.pi)), (10, 1.538753)])
def test_best_of_several_runs(n, closed):
    """The integral against closed forms and the tabulated value for ten."""
    integrand, (x, low, high) = study.expected_maximum(n).args
    value = scipy.integrate.quad(sympy.lambdify(x, integrand, "scipy"), float(low), float(high))[0]
    assert value == pytest.approx(closed, rel=1e-6)
