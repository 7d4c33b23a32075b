"""Every loss of the catalogue: finite, differentiable, true to its properties, its limits and its documented range."""

import functools
import inspect
import itertools
import math
import subprocess
import sys

import mpmath
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from lossbook import losses
from lossbook.losses.robust import reverse_cross_entropy

NAMES = losses.names()
EACH = pytest.mark.parametrize("name", NAMES)
LARGE = math.log(1e4)  # -ln 0 of the reverse cross-entropy
ORDERED = {"rps", "fourier"}  # the order of the classes matters to them


def of(name):
    return losses.lookup(name).function


def flagged(flag, value):
    return pytest.mark.parametrize("name", [n for n in NAMES if getattr(losses.lookup(n), flag) is value])


def sample(batch=8, classes=5, seed=0, scale=2.0):
    """Logits in float64, class indices, and soft targets with a zero in each."""
    rng = np.random.default_rng(seed)
    soft = rng.dirichlet(np.ones(classes), batch)
    soft[np.arange(batch), rng.integers(classes, size=batch)] = 0
    soft /= soft.sum(1, keepdims=True)
    logits = scale * rng.standard_normal((batch, classes))
    return torch.from_numpy(logits), torch.from_numpy(rng.integers(classes, size=batch)), torch.from_numpy(soft)


def one_hot(labels, classes):
    return F.one_hot(labels, classes).double()


def every_label(name, z, **hyper):
    """The loss of logits (B, C) for each of the C labels: (B, C)."""
    batch, classes = z.shape
    labels = torch.arange(classes).repeat(batch)
    return of(name)(z.repeat_interleave(classes, 0), labels, **hyper).view(batch, classes)


def gradient(function, z):
    z = z.clone().requires_grad_()
    return torch.autograd.grad(function(z).sum(), z)[0]


# --- finite, in float32 or wider -----------------------------------------------------------------------------

EXTREME = torch.tensor(list(itertools.product([-1e4, 0.0, 1e4], repeat=4)))
JS_MAXIMUM = (0.7 * math.log(0.7) + 0.3 * math.log(0.3)) / (0.3 * math.log(0.3))
# The documented range, unless it is [0, inf), and its upper end at the defaults with 4 classes.
BOUNDS = {
    "poisson": ("[1/C, inf)", math.inf),
    "huber": ("[0, 1/C]", 1 / 4),
    "log_cosh": ("[0, 2 ln cosh(1) / C]", math.log(math.cosh(1)) / 2),
    "hinge": ("[1 - 1/C, 1 + 1/C]", 5 / 4),
    "squared_hinge": ("[1 - 1/C, 1 + 3/C]", 7 / 4),
    "categorical_hinge": ("[0, 2]", 2),
    "brier": ("[0, 2]", 2),
    "mae": ("[0, 2]", 2),
    "rps": ("[0, C - 1]", 3),
    "gce": ("[0, 1/q]", 1 / 0.7),
    "js": ("[0, H(π)/Z]", JS_MAXIMUM),
    "nce_rce": ("[0, α + 9.21 β]", 1 + LARGE),
    "rooted_bounded": ("[0, m]", 3),
    "fourier": (
        "[0, max over two labels]",
        2,
    ),  # (1/4) (2² + 2²) for opposite classes, which differ in k = 1 and 3 only
}


@EACH
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_finite_at_large_logits(name, dtype):
    labels = torch.arange(4).repeat(len(EXTREME))
    logits = EXTREME.repeat_interleave(4, 0).to(dtype)
    soft = sample(len(labels), 4)[2]
    for target in (labels, one_hot(labels, 4), soft, soft.to(dtype)):
        z = logits.clone().requires_grad_()
        value = of(name)(z, target)
        assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert value.shape == labels.shape and value.isfinite().all()
        value.sum().backward()
        assert z.grad.dtype == dtype and z.grad.isfinite().all()


@EACH
def test_documented_range(name):
    """Never below 0 or above the bound, which is the best there is; without one, the value grows with the logits."""
    values = torch.cat([every_label(name, EXTREME.double()).flatten(), of(name)(*sample(2000, 4)[::2])])
    assert values.min() >= -1e-12
    documented = " ".join(of(name).__doc__.split())
    text, bound = BOUNDS.get(name, ("[0, inf)", math.inf))
    assert f"range {text}" in documented
    assert losses.lookup(name).bounded == (bound < math.inf)
    if bound < math.inf:
        assert values.max().item() == pytest.approx(bound, rel=1e-4)
        assert values.max() <= bound * (1 + 1e-12)
    else:
        assert values.max() > 1e3


@EACH
def test_autocast_changes_nothing(name):
    z, labels, soft = sample()
    z, soft = z.float(), soft.float()
    outside = of(name)(z, labels), of(name)(z, soft)
    half = of(name)(z.bfloat16().float(), labels)
    with torch.autocast("cpu", torch.bfloat16):
        inside = of(name)(z, labels), of(name)(z, soft)
        rounded = of(name)(z.bfloat16(), labels)
    assert torch.equal(outside[0], inside[0]) and torch.equal(outside[1], inside[1]) and torch.equal(half, rounded)


# --- derivatives, compilation, vmap --------------------------------------------------------------------------


@EACH
def test_derivatives_against_finite_differences(name):
    z, labels, soft = sample(3, 4)
    for target in (labels, soft):
        assert gradcheck(lambda z, t=target: of(name)(z, t), z.requires_grad_())
        assert gradgradcheck(lambda z, t=target: of(name)(z, t), z.requires_grad_())


@EACH
@pytest.mark.filterwarnings("ignore")  # torch's own, while it compiles
def test_compiled_and_vmapped_equal_eager(name):
    z, labels, soft = sample(4, 5)
    function = of(name)

    def both(z, labels, soft):
        return function(z, labels), function(z, soft)

    torch._dynamo.reset()
    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    eager = both(z, labels, soft)
    z1, z2 = z.clone().requires_grad_(), z.clone().requires_grad_()
    vmapped = torch.func.vmap(both)(z, labels, soft)
    for one, two, three in zip(eager, compiled(z1, labels, soft), vmapped, strict=True):
        torch.testing.assert_close(two, one, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(three, one, rtol=1e-12, atol=1e-12)
    sum(v.sum() for v in compiled(z1, labels, soft)).backward()
    sum(v.sum() for v in both(z2, labels, soft)).backward()
    torch.testing.assert_close(z1.grad, z2.grad, rtol=1e-10, atol=1e-12)


# --- the properties of the catalogue -------------------------------------------------------------------------


@flagged("proper", True)
@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([0.3, 1.0, 3.0]))
def test_proper(name, seed, scale):
    rng = np.random.default_rng(seed)
    q = torch.from_numpy(rng.dirichlet(np.ones(5)) * 0.99 + 0.002)
    z = torch.from_numpy(scale * rng.standard_normal((20, 5)))
    least = every_label(name, q.log()[None]) @ q
    others = every_label(name, z) @ q
    assert (others - least >= 1e-3 * (torch.softmax(z, -1) - q).square().sum(-1)).all()


@flagged("proper", False)
def test_not_proper(name):
    """At p = q the expected loss falls along minus its gradient."""
    q = torch.tensor([0.5, 0.3, 0.15, 0.05]).double()

    def risk(z):
        return every_label(name, z[None])[0] @ q

    slope = gradient(risk, q.log())
    assert risk(q.log() - 0.1 * slope) < risk(q.log()) - 1e-9


@EACH
def test_symmetric(name):
    totals = every_label(name, sample(500, 5)[0]).sum(1)
    spread = totals.max() - totals.min()
    assert spread < 1e-12 if losses.lookup(name).symmetric else spread > 0.1


def midpoint_excess(name, **hyper):
    """The largest f(mean of a, b) - mean of f(a), f(b) that a random search finds: above 0 the loss is not convex."""
    worst = -math.inf
    for step, scale in itertools.product((0.1, 1.0, 5.0), (1.0, 5.0)):
        a = sample(2000, 5, scale=scale)[0]
        b = a + sample(2000, 5, seed=1, scale=step)[0]
        middle, *ends = (every_label(name, z, **hyper) for z in ((a + b) / 2, a, b))
        excess = middle - sum(ends) / 2
        worst = max(worst, excess.max().item())
    return worst


@EACH
def test_convex_in_the_logits(name):
    assert midpoint_excess(name) < 1e-10 if losses.lookup(name).convex else midpoint_excess(name) > 1e-4


@flagged("convex", True)
def test_hessian_of_a_convex_loss(name):
    z, labels, soft = sample(30, 5, scale=4)
    for i, target in itertools.product(range(30), (labels, soft)):
        hessian = torch.autograd.functional.hessian(lambda z, y=target[i]: of(name)(z, y), z[i])
        assert torch.linalg.eigvalsh(hessian).min() > -1e-10


def test_convexity_of_soft_bootstrapping_depends_on_beta():
    """The entropy term bends downwards: with little weight, as at the default, cross-entropy outweighs it."""
    assert midpoint_excess("bootstrap_soft") < 1e-10 and midpoint_excess("bootstrap_soft", beta=0.5) > 1e-4


@EACH
def test_smooth(name):
    """At a tie of all classes, and elsewhere, the gradient has one slope from both sides, or it jumps."""
    z = torch.cat([torch.zeros(50, 5).double(), sample(50, 5)[0]])
    direction = F.normalize(sample(100, 5, seed=3)[0], dim=1)
    h, jump = 1e-5, 0.0
    for label in range(5):
        labels = torch.full((100,), label)
        before, here, after = (gradient(lambda z, y=labels: of(name)(z, y), z + k * h * direction) for k in (-1, 0, 1))
        jump = max(jump, ((after - here) - (here - before)).norm(dim=1).max().item() / h)
    assert jump < 1e-3 if losses.lookup(name).smooth else jump > 1e3


def test_the_kink_of_mae_needs_a_soft_target():
    """On distributions |p - y| has a corner where p = y in some class; on class indices it never gets there."""
    soft = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64)
    nudge = torch.tensor([1e-6, 0, 0])
    before, after = (gradient(lambda z: losses.mae(z, soft), soft.log() + sign * nudge) for sign in (-1, 1))
    assert (after - before).norm() > 0.1


# --- invariances ---------------------------------------------------------------------------------------------


@EACH
@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 2**32 - 1), shift=st.floats(-100, 100), classes=st.integers(2, 12))
def test_invariances(name, seed, shift, classes):
    z, labels, soft = sample(6, classes, seed)
    close = dict(rtol=1e-9, atol=1e-11)
    for target in (labels, soft):
        value = of(name)(z, target)
        torch.testing.assert_close(of(name)(z + shift, target), value, **close)
        alone = torch.stack([of(name)(z[i], target[i]) for i in range(6)])
        torch.testing.assert_close(alone, value, **close)
        torch.testing.assert_close(of(name)(z.view(2, 3, -1), target.view(2, 3, *target.shape[1:])).flatten(), value)
    torch.testing.assert_close(of(name)(z, one_hot(labels, classes)), of(name)(z, labels), **close)
    torch.testing.assert_close(of(name)(z, labels.to(torch.uint8)), of(name)(z, labels), rtol=0, atol=0)
    if name not in ORDERED:
        order = torch.from_numpy(np.random.default_rng(seed).permutation(classes))
        torch.testing.assert_close(of(name)(z[:, order], soft[:, order]), of(name)(z, soft), **close)


# --- special cases, limits, closed forms ---------------------------------------------------------------------

seeds = st.integers(0, 2**32 - 1)


@settings(deadline=None, max_examples=30)
@given(seed=seeds, classes=st.integers(2, 12), epsilon=st.floats(0, 1))
def test_special_cases(seed, classes, epsilon):
    z, labels, soft = sample(6, classes, seed)
    log_p = torch.log_softmax(z, -1)
    p_y = log_p.exp().gather(1, labels[:, None])[:, 0]

    def same(one, other, tolerance=1e-10):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)

    for target in (labels, soft):
        ce = losses.cross_entropy(z, target)
        same(ce, F.cross_entropy(z, target, reduction="none"))
        same(
            losses.label_smoothing(z, target, epsilon=epsilon),
            F.cross_entropy(z, target, reduction="none", label_smoothing=epsilon),
        )
        same(losses.focal(z, target, gamma=0.0), ce)
        same(losses.bootstrap_soft(z, target, beta=1.0), ce)
        same(losses.bootstrap_hard(z, target, beta=1.0), ce)
        same(losses.gce(z, target, q=1e-9), ce, 1e-6)
    ce = losses.cross_entropy(z, labels)
    same(losses.gce(z, labels, q=1.0), losses.mae(z, labels) / 2)
    same(losses.gce(z, labels, q=0.3), (1 - p_y**0.3) / 0.3)
    same(losses.focal(z, labels, gamma=2.0), -((1 - p_y) ** 2) * p_y.log(), 1e-9)
    same(losses.mae(z, labels), 2 * (1 - p_y))
    same(losses.mae(z, soft), (log_p.exp() - soft).abs().sum(1))
    same(losses.brier(z, soft), (log_p.exp() - soft).square().sum(1))
    same(losses.rps(z, soft), (log_p.exp() - soft).cumsum(1).square().sum(1))
    same(losses.bootstrap_hard(z, labels, beta=0.6), 0.6 * ce - 0.4 * log_p.max(1).values)
    # the divergence is the cross-entropy less the entropy of the label, which is 0 on class indices
    assert torch.equal(losses.kl_divergence(z, labels), ce)
    entropy = torch.special.entr(soft).sum(1)
    same(losses.kl_divergence(z, soft), losses.cross_entropy(z, soft) - entropy)
    same(gradient(lambda z: losses.kl_divergence(z, soft), z), log_p.exp() - soft)
    # Jensen-Shannon: logarithmically slow towards mae / 2, so its first correction is part of the closed form
    same(losses.js(z, labels, pi=1e-9), ce, 1e-4)
    slow = -math.log(1e-10)
    correction = ((1 - p_y) + torch.xlogy(p_y, p_y)) / slow
    same(losses.js(z, labels, pi=1 - 1e-10), losses.mae(z, labels) / 2 + correction, 1e-5)


@settings(deadline=None, max_examples=20)
@given(seed=seeds, classes=st.integers(2, 12), pi=st.floats(0.01, 0.99))
def test_jensen_shannon_from_its_definition(seed, classes, pi):
    z, labels, soft = sample(6, classes, seed)
    p = torch.softmax(z, -1)
    for target, y in ((labels, one_hot(labels, classes)), (soft, soft)):
        m = pi * y + (1 - pi) * p
        terms = pi * (torch.xlogy(y, y) - torch.xlogy(y, m)) + (1 - pi) * (torch.xlogy(p, p) - torch.xlogy(p, m))
        naive = terms.sum(1) / (-(1 - pi) * math.log1p(-pi))
        torch.testing.assert_close(losses.js(z, target, pi=pi), naive, rtol=1e-8, atol=1e-9)


@settings(deadline=None, max_examples=20)
@given(seed=seeds, classes=st.integers(2, 12), pi=st.floats(0.01, 0.99), alpha=st.floats(0, 10), beta=st.floats(0, 10))
def test_documented_gradients_of_js_and_nce_rce(seed, classes, pi, alpha, beta):
    z, labels, _ = sample(6, classes, seed)
    p, y = torch.softmax(z, -1), one_hot(labels, classes)
    p_y = (p * y).sum(1, keepdim=True)
    m_y, total = pi + (1 - pi) * p_y, p.log().sum(1, keepdim=True)
    stated = p_y * (p - y) * torch.log((1 - pi) * p_y / m_y) / math.log1p(-pi)
    torch.testing.assert_close(gradient(lambda z: losses.js(z, labels, pi=pi), z), stated, rtol=1e-8, atol=1e-10)
    stated = alpha * (y - p - (1 - classes * p) * p_y.log() / total) / total + LARGE * beta * p_y * (p - y)
    found = gradient(lambda z: losses.nce_rce(z, labels, alpha=alpha, beta=beta), z)
    torch.testing.assert_close(found, stated, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("pi", [0.1, 0.5, 0.7, 0.95])
def test_gradient_of_js_keeps_its_digits_at_small_probabilities(pi, dtype):
    """In proportion, far below where e^x - 1 is -1; in float32 down to e^-40, whose square is still a number."""
    count = 40 if dtype is torch.float32 else 80
    z = torch.stack([torch.zeros(count), torch.arange(count)], 1).to(dtype)
    labels = torch.zeros(count, dtype=torch.long)
    p_y = torch.softmax(z.double(), 1)[:, 0]
    stated = p_y * (p_y - 1) * torch.log((1 - pi) * p_y / (pi + (1 - pi) * p_y)) / math.log1p(-pi)
    found = gradient(lambda z: losses.js(z, labels, pi=pi), z)[:, 0].double()
    torch.testing.assert_close(found, stated, rtol=1e-4 if dtype is torch.float32 else 1e-10, atol=0)


@settings(deadline=None, max_examples=20)
@example(seed=0, classes=2, exponent=-14.0, near_one=True)
@given(seed=seeds, classes=st.integers(2, 12), exponent=st.floats(-14, 0), near_one=st.booleans())
def test_jensen_shannon_keeps_its_digits_for_every_weight(seed, classes, exponent, near_one):
    """In float32, against fifty digits: at π = 1e-6 the textbook form is off by a third, at 1e-8 it is infinite."""
    pi = 1 - 10**exponent / 2 if near_one else 10**exponent / 2
    z, labels, soft = [t.float() if t.is_floating_point() else t for t in sample(3, classes, seed)]
    for target, y in ((labels, one_hot(labels, classes)), (soft, soft)):
        values = losses.js(z, target, pi=pi)
        with mpmath.workdps(50):
            w, exact = mpmath.mpf(pi), []
            for logits, label in zip(z.tolist(), y.tolist(), strict=True):
                total, value = mpmath.fsum(map(mpmath.exp, logits)), mpmath.mpf(0)
                for logit, share in zip(logits, map(mpmath.mpf, label), strict=True):
                    p = mpmath.exp(logit) / total
                    m = w * share + (1 - w) * p
                    value += (w * share * mpmath.log(share / m) if share else 0) + (1 - w) * p * mpmath.log(p / m)
                exact.append(float(-value / ((1 - w) * mpmath.log(1 - w))))
        torch.testing.assert_close(values, torch.tensor(exact), rtol=1e-5, atol=1e-6)


@settings(deadline=None, max_examples=20)
@given(seed=seeds, classes=st.integers(2, 12), alpha=st.floats(0, 10), beta=st.floats(0, 10))
def test_sce_and_nce_rce_from_their_definitions(seed, classes, alpha, beta):
    z, labels, soft = sample(6, classes, seed)
    p = torch.softmax(z, -1)
    for target, y in ((labels, one_hot(labels, classes)), (soft, soft)):
        ce = -(y * p.log()).sum(1)
        rce = -(p * y.clamp_min(1e-4).log()).sum(1)
        torch.testing.assert_close(losses.sce(z, target, alpha=alpha, beta=beta), alpha * ce + beta * rce)
        expected = alpha * ce / -p.log().sum(1) + beta * rce
        torch.testing.assert_close(losses.nce_rce(z, target, alpha=alpha, beta=beta), expected)
    rce = reverse_cross_entropy(p.log(), labels)
    torch.testing.assert_close(rce, LARGE * (1 - p.gather(1, labels[:, None])[:, 0]))


def test_sums_over_the_labels():
    z = sample(50, 7)[0]
    for name, total in (("mae", 2 * 6), ("nce_rce", 1 + LARGE * 6)):
        torch.testing.assert_close(every_label(name, z).sum(1), torch.full((50,), total).double())


# --- implementations of one divergence -----------------------------------------------------------------------

DIVERGENCES = {
    "class_reduction='mean'": dict(class_reduction="mean"),
    "clip": dict(clip=1e-7),
    "reverse": dict(clip=1e-7, direction="reverse"),
    "probabilities": dict(domain="probabilities"),
    "logits": dict(domain="logits"),
    "all": dict(class_reduction="mean", clip=1e-3, direction="reverse"),
}
EACH_DIVERGENCE = pytest.mark.parametrize("hyper", DIVERGENCES.values(), ids=DIVERGENCES)


def keras_divergence(y, p, clip):
    """As Keras 2 has it, on probabilities."""
    y, p = y.clamp(clip, 1), p.clamp(clip, 1)
    return (y * (y / p).log()).sum(-1)


@settings(deadline=None, max_examples=20)
@given(seed=seeds, classes=st.integers(2, 12))
def test_divergences_against_their_definitions_and_torch(seed, classes):
    z, labels, soft = sample(6, classes, seed, scale=8.0)  # some p_k below the clip
    p = torch.softmax(z, -1)
    for target, y in ((labels, one_hot(labels, classes)), (soft, soft)):
        for domain, given_to_torch in (("log_probabilities", p.log()), ("probabilities", p), ("logits", z)):
            theirs = F.kl_div(given_to_torch, y, reduction="none")
            for reduction, value in (("sum", theirs.sum(1)), ("mean", theirs.mean(1))):
                ours = losses.kl_divergence(z, target, domain=domain, class_reduction=reduction)
                torch.testing.assert_close(ours, value, rtol=1e-10, atol=1e-10)
        forward = losses.kl_divergence(z, target, clip=1e-4)
        torch.testing.assert_close(forward, keras_divergence(y, p, 1e-4), rtol=1e-10, atol=1e-10)
        reverse = losses.kl_divergence(z, target, clip=1e-4, direction="reverse")
        torch.testing.assert_close(reverse, keras_divergence(p, y, 1e-4), rtol=1e-10, atol=1e-10)


@EACH_DIVERGENCE
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_divergences_are_finite_at_large_logits(hyper, dtype):
    for target in (torch.arange(4).repeat(81)[: len(EXTREME)], sample(len(EXTREME), 4)[2]):
        for options in (hyper, hyper | {"clip": 1e-300} if "clip" in hyper else hyper):
            z = EXTREME.to(dtype).clone().requires_grad_()
            value = losses.kl_divergence(z, target, **options)
            value.sum().backward()
            assert value.isfinite().all() and z.grad.isfinite().all()


@EACH_DIVERGENCE
@pytest.mark.filterwarnings("ignore")  # torch's own, while it compiles
def test_divergences_differentiate_compile_and_vmap(hyper):
    z, labels, soft = sample(4, 5)

    def both(z, labels, soft):
        return losses.kl_divergence(z, labels, **hyper) + losses.kl_divergence(z, soft, **hyper)

    assert gradgradcheck(lambda z: both(z, labels, soft), z.clone().requires_grad_())
    torch._dynamo.reset()
    value = both(z, labels, soft)
    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")(z, labels, soft)
    torch.testing.assert_close(compiled, value, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.func.vmap(both)(z, labels, soft), value, rtol=1e-12, atol=1e-12)


SEVERAL = {
    "fourier": [dict(s=1.5), dict(s=2.5), dict(pad=1), dict(pad=2), dict(symbol="sin"), dict(placement="permuted")],
    "gce": [dict(q=0.3), dict(q=0.5)],
    "focal": [dict(gamma=1.0), dict(gamma=3.0)],
    "js": [dict(pi=0.3), dict(pi=0.5)],
    "label_smoothing": [dict(epsilon=0.1), dict(epsilon=0.2)],
    "rooted_logistic": [dict(k=2.0), dict(k=3.5)],
}


@pytest.mark.parametrize("name", SEVERAL)
@pytest.mark.filterwarnings("ignore")  # torch's own, while it compiles
def test_one_compiled_loss_takes_other_hyper_parameters_and_class_counts(name):
    """torch.compile makes a symbol of a number that has changed: no check and no table may stumble over it."""
    torch._dynamo.reset()
    loss = of(name)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(recompile_limit=100):
        for classes in (7, 5, 20):
            z, *targets = sample(4, classes)
            for hyper, target in itertools.product(SEVERAL[name], targets):
                torch.testing.assert_close(compiled(z, target, **hyper), loss(z, target, **hyper))


@EACH
@pytest.mark.filterwarnings("ignore")  # torch's own, while it compiles
def test_compiled_under_autocast_the_gradient_is_float32_too(name):
    """The backward of what is compiled inside an autocast region is traced inside it, and products in bfloat16."""
    for classes, soft_target in itertools.product((5, 20), (False, True)):
        torch._dynamo.reset()
        z, labels, soft = (part.float() if part.is_floating_point() else part for part in sample(6, classes))
        target = soft if soft_target else labels
        exact = gradient(lambda z, target=target: of(name)(z, target), z)
        inside, at = torch.compile(of(name), fullgraph=True, backend="aot_eager"), z.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = inside(at, target).sum()
        (found,) = torch.autograd.grad(value, at)
        torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-5)


@EACH
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.filterwarnings("ignore")  # torch's own, where it looks a rule up
def test_forward_mode_of_the_gradient_is_its_derivative(name, reduction):
    for classes in (5, 20):
        z, labels, soft = sample(classes=classes)
        direction, a = torch.randn_like(z), z.clone().requires_grad_()
        for target in (labels, soft):
            loss = functools.partial(losses.create(name, classes, reduction=reduction), target=target)
            _, found = torch.func.jvp(torch.func.grad(loss), (z,), (direction,))
            (slope,) = torch.autograd.grad(loss(a), a, create_graph=True)
            expected = torch.autograd.grad(slope, a, direction)[0] if slope.requires_grad else torch.zeros_like(z)
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("classes", [10, 20])
@pytest.mark.filterwarnings("ignore")  # torch's own, while it compiles
def test_compiled_the_mean_of_nothing_is_no_number(classes):
    torch._dynamo.reset()
    loss = torch.compile(losses.create("fourier", classes), fullgraph=True, backend="aot_eager")
    assert loss(torch.randn(0, classes, requires_grad=True), torch.zeros(0, dtype=torch.long)).isnan()


@EACH
def test_on_the_meta_device(name):
    with torch.device("meta"):
        z = torch.randn(4, 20, requires_grad=True)
        losses.create(name, num_classes=20)(z, torch.zeros(4, dtype=torch.long)).backward()
    assert z.grad.shape == z.shape and z.grad.is_meta


def test_gradients_for_many_slopes_at_once():
    for name, classes in itertools.product(NAMES, (5, 20)):
        z, labels, soft = sample(3, classes)
        for target in (labels, soft):
            loss = lambda z, name=name, target=target: of(name)(z, target)  # noqa: E731
            rows = [torch.autograd.functional.jacobian(loss, z, vectorize=vectorize) for vectorize in (False, True)]
            torch.testing.assert_close(*rows)
            a = z.clone().requires_grad_()
            values = loss(a)
            back = lambda slope, a=a, values=values: torch.autograd.grad(values, a, slope, retain_graph=True)[0]  # noqa: E731
            torch.testing.assert_close(torch.func.vmap(back)(torch.eye(3, dtype=z.dtype)), rows[0])


def test_huber_takes_a_threshold_that_no_float32_holds_under_vmap_too():
    z, labels = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), torch.arange(3)
    mapped = torch.func.vmap(lambda z, y: losses.huber(z, y, delta=1e300))(z, labels)
    torch.testing.assert_close(mapped, losses.huber(z, labels))


def test_a_clip_is_deaf_to_outliers():
    """At p_y = 4e-8 cross-entropy pulls with full force, the clipped divergence not at all."""
    z, labels = torch.tensor([[0.0, 17, 0]], dtype=torch.float64), torch.tensor([0])
    assert gradient(lambda z: losses.cross_entropy(z, labels), z)[0, 0] == pytest.approx(-1, abs=1e-7)
    assert gradient(lambda z: losses.kl_divergence(z, labels, clip=1e-7), z)[0, 0].abs() < 2e-7
    weakened = gradient(lambda z: losses.poisson(z, labels, epsilon=1e-7), z)[0, 0]
    assert weakened.item() == pytest.approx(-(1 / 3) / (1 + 1e-7 * math.exp(17)), rel=1e-6)


# --- classes of equivalent losses ----------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(seed=seeds, classes=st.integers(2, 12), delta=st.floats(1, 100), small=st.floats(0.01, 0.99))
def test_losses_on_probabilities_from_their_definitions(seed, classes, delta, small):
    z, labels, soft = sample(6, classes, seed)
    p = torch.softmax(z, -1)

    def same(one, other):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)

    for target, y in ((labels, one_hot(labels, classes)), (soft, soft)):
        sign = 2 * y - 1
        same(losses.poisson(z, target, epsilon=1e-3), (p - y * (p + 1e-3).log()).mean(1))
        same(losses.hinge(z, target), (1 - sign * p).clamp_min(0).mean(1))
        same(losses.squared_hinge(z, target), (1 - sign * p).clamp_min(0).square().mean(1))
        other, own = ((1 - y) * p).amax(1), (y * p).sum(1)
        same(losses.categorical_hinge(z, target), (1 + other - own).clamp_min(0))
        same(losses.log_cosh(z, target), torch.cosh(p - y).log().mean(1))
        expected = F.huber_loss(p, y, reduction="none", delta=small).mean(1)
        same(losses.huber(z, target, delta=small), expected)
        # the classes: Poisson and cross-entropy, Huber and Brier, hinge and the absolute error
        same(losses.poisson(z, target), (1 + losses.cross_entropy(z, target)) / classes)
        same(losses.huber(z, target, delta=delta), losses.brier(z, target) / (2 * classes))
    same(losses.hinge(z, labels), losses.mae(z, labels) / classes + 1 - 1 / classes)


def test_the_minimiser_of_the_squared_hinge_exaggerates():
    """Under label probabilities q it is 2 q - 1/C, as long as that is positive."""
    q = torch.tensor([0.45, 0.35, 0.2], dtype=torch.float64)
    slope = gradient(lambda z: every_label("squared_hinge", z[None])[0] @ q, (2 * q - 1 / 3).log())
    assert slope.abs().max() < 1e-12


# --- defects of published code, each of which must not come back ---------------------------------------------


def test_normalised_terms_sum_to_one():
    """A slip of operator precedence made one published normalised loss 81 times too large at 10 classes."""
    z = sample(50, 10)[0]
    active = every_label("nce_rce", z, alpha=1.0, beta=0.0)
    torch.testing.assert_close(active.sum(1), torch.ones(50).double(), rtol=1e-12, atol=0)
    passive = every_label("nce_rce", z, alpha=0.0, beta=1.0)
    torch.testing.assert_close(passive.sum(1) / (9 * LARGE), torch.ones(50).double(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["sce", "nce_rce"])
def test_both_weights_are_honoured(name):
    z, labels, _ = sample()
    at = {ab: of(name)(z, labels, alpha=ab[0], beta=ab[1]) for ab in itertools.product((0.0, 1.0, 3.0), repeat=2)}
    assert (at[1.0, 0.0] > 1e-6).all() and (at[0.0, 1.0] > 1e-6).all() and not at[0.0, 0.0].any()
    for (alpha, beta), value in at.items():
        torch.testing.assert_close(value, alpha * at[1.0, 0.0] + beta * at[0.0, 1.0])


@pytest.mark.parametrize("log_p", [-17.0, -30.0, -60.0])
def test_nothing_kills_the_gradient_of_gce_at_small_probabilities(log_p):
    """Neither a clamp before the power nor, in float32, the rounding of 1 - p^q to 1."""
    for dtype in (torch.float32, torch.float64):
        z = torch.tensor([[log_p, 0.0, -50.0]], dtype=dtype)
        slope = gradient(lambda z: losses.gce(z, torch.tensor([0])), z)[0, 0].item()
        assert slope == pytest.approx(-math.exp(0.7 * log_p), rel=1e-3, abs=0)


def test_gradient_of_the_bootstrap_target():
    z, labels, soft = sample()
    p = torch.softmax(z, -1)
    entropy = torch.special.entr(p).sum(1, keepdim=True)
    for target, y in ((labels, one_hot(labels, 5)), (soft, soft)):
        constant = gradient(lambda z, t=target: losses.bootstrap_soft(z, t, beta=0.8, detach=True), z)
        torch.testing.assert_close(constant, 0.8 * (p - y))
        moving = gradient(lambda z, t=target: losses.bootstrap_soft(z, t, beta=0.8), z)
        torch.testing.assert_close(moving, 0.8 * (p - y) - 0.2 * p * (p.log() + entropy))
        hard = gradient(lambda z, t=target: losses.bootstrap_hard(z, t, beta=0.8), z)
        torch.testing.assert_close(hard, p - 0.8 * y - 0.2 * one_hot(p.argmax(1), 5))
    value = losses.bootstrap_soft(z, labels)
    assert torch.equal(value, losses.bootstrap_soft(z, labels, detach=True))


def test_label_smoothing_is_a_cross_entropy_and_not_a_divergence():
    """The value too: a divergence would be less by the entropy of the smoothed label."""
    z, labels, _ = sample()
    smoothed = 0.9 * one_hot(labels, 5) + 0.1 / 5
    torch.testing.assert_close(losses.label_smoothing(z, labels), losses.cross_entropy(z, smoothed))
    entropy = torch.special.entr(smoothed).sum(1)
    difference = losses.label_smoothing(z, labels) - losses.kl_divergence(z, smoothed)
    torch.testing.assert_close(difference, entropy)


@EACH
def test_no_state_between_calls(name):
    loss = losses.create(name, num_classes=5, reduction="none")
    assert not loss.state_dict()
    z, labels, soft = sample()
    first = loss(z, labels)
    loss(-z, soft)
    assert torch.equal(loss(z, labels), first)


def test_first_call_in_inference_mode_leaves_training_possible():
    z = torch.zeros(2, 6, requires_grad=True)
    with torch.inference_mode():
        losses.fourier(z, torch.tensor([0, 1]), s=1.234)
    losses.fourier(z, torch.tensor([0, 1]), s=1.234).sum().backward()
    torch.func.grad(lambda z: losses.fourier(z, torch.tensor([0, 1]), s=1.345).sum())(z.detach())
    losses.fourier(z, torch.tensor([0, 1]), s=1.345).sum().backward()
    assert z.grad.isfinite().all()


def test_no_device_is_fixed_at_import():
    """In a process of its own: torch.compile keeps constants of what was compiled here among a module's globals."""
    code = """import sys, torch, lossbook.losses
modules = [module for key, module in sys.modules.items() if key.startswith("lossbook.losses.")]
tensors = [value for module in modules for value in vars(module).values() if isinstance(value, torch.Tensor)]
print(len(modules) >= 5, len(tensors))"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["True", "0"]


@EACH
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("classes", [5, 100])
def test_gpu_equals_cpu(name, classes):
    """Value and gradient, in the precision of a training."""
    z, labels, soft = sample(300, classes)
    for target in (labels, soft.float()):
        here, there = z.float().requires_grad_(), z.float().cuda().requires_grad_()
        value = of(name)(there, target.cuda())
        assert value.is_cuda
        torch.testing.assert_close(value.cpu(), of(name)(here, target), rtol=1e-4, atol=1e-5)
        value.sum().backward()
        of(name)(here, target).sum().backward()
        torch.testing.assert_close(there.grad.cpu(), here.grad, rtol=1e-4, atol=1e-5)


# --- the scale of the gradient -------------------------------------------------------------------------------

# The gradient at the uniform prediction over that of cross-entropy, p - y, for C classes.
SCALES = {
    "cross_entropy": lambda C: 1,
    "kl_divergence": lambda C: 1,
    "label_smoothing(epsilon=0.3)": lambda C: 0.7,
    "bootstrap_soft(beta=0.8)": lambda C: 0.8,
    "focal(gamma=2)": lambda C: (1 - 1 / C) ** 2 + 2 / C * (1 - 1 / C) * math.log(C),
    "brier": lambda C: 2 / C,
    "mae": lambda C: 2 / C,
    "gce(q=0.5)": lambda C: C**-0.5,
    "sce(alpha=0.1, beta=2)": lambda C: 0.1 + 2 * LARGE / C,
    "fourier(s=0)": lambda C: 2 / C,
    "rooted_logistic(k=2)": lambda C: C**0.5,
    "rooted_bounded(k=2, m=6)": lambda C: 3 * C**-0.5,
    "kl_divergence(class_reduction='mean')": lambda C: 1 / C,
    "kl_divergence(clip=1e-7)": lambda C: 1 - 1e-7,
    "kl_divergence(clip=1e-7, direction='reverse')": lambda C: math.log(1e7) / C,
    "kl_divergence(domain='probabilities')": lambda C: 1 / C,
    "kl_divergence(domain='logits')": lambda C: (1 - 1 / C) ** -0.5,
    "poisson": lambda C: 1 / C,
    "poisson(epsilon=1e-7)": lambda C: 1 / C / (1 + C * 1e-7),
    "huber": lambda C: 1 / C**2,
    "huber(delta=0.01)": lambda C: 0.02 / C**2,
    "log_cosh": lambda C: (math.tanh(1 / C) + math.tanh(1 - 1 / C)) / C**2,
    "hinge": lambda C: 2 / C**2,
    "squared_hinge": lambda C: 4 / C**2,
    "categorical_hinge": lambda C: 1 / (C - 1),  # at the kink, the mean over the classes that tie
}


@pytest.mark.parametrize("classes", [2, 3, 10, 100])
@pytest.mark.parametrize("spec", SCALES)
def test_gradient_scale(spec, classes):
    expected = pytest.approx(SCALES[spec](classes), rel=1e-12)
    assert losses.gradient_scale(spec, classes) == expected
    with torch.inference_mode():
        assert losses.gradient_scale(spec, classes) == expected


def test_the_scale_of_an_ordered_loss_is_the_mean_over_its_labels():
    """Of the ranked probability score of three classes, whose middle label has a smaller gradient than the others."""
    p, slopes = np.full(3, 1 / 3), []
    for label in range(3):
        error = np.cumsum(p - np.eye(3)[label])
        g = 2 * np.cumsum(error[::-1])[::-1]
        slopes.append(np.linalg.norm(p * (g - p @ g)))
    assert max(slopes) > 1.2 * np.mean(slopes) or min(slopes) < 0.9 * np.mean(slopes)
    assert losses.gradient_scale("rps", 3) == pytest.approx(np.mean(slopes) / np.sqrt(2 / 3))


@EACH
def test_every_loss_has_a_gradient_scale(name):
    assert math.isfinite(losses.gradient_scale(name, 5)) and losses.gradient_scale(name, 5) > 0


ENDS = [
    (name, key, float(end))
    for name in NAMES
    for key, interval in losses.lookup(name).ranges.items()
    for end, closed in zip(interval[1:-1].split(","), (interval[0] == "[", interval[-1] == "]"), strict=True)
    if closed
]


@pytest.mark.parametrize(("name", "key", "end"), ENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_ends_of_a_range_that_belong_to_it_are_finite_in_every_precision(name, key, end, dtype):
    for size in (0.0, 10.0, 16.0, 30.0, 1e4):
        z = torch.tensor([[size, 0, 0, 0, 0], [-size, 0, 0, 0, 0]], dtype=dtype, requires_grad=True)
        value = of(name)(z, torch.zeros(2, dtype=torch.long), **{key: end})
        (slope,) = torch.autograd.grad(value.sum(), z)
        assert value.isfinite().all()
        assert slope.isfinite().all() or (dtype, end) == (torch.float16, 1e30)  # which that type does not hold


@pytest.mark.parametrize("pi", [0.3, 0.5, 0.7, 0.99])
@pytest.mark.parametrize("small", [1e-4, 1e-8, 1e-12, 1e-20])
def test_gradient_of_js_in_a_target_keeps_its_digits_at_small_entries(pi, small):
    """It is π ln(y / m) / Z, of which the mixture's own share cancels."""
    z = torch.tensor([[0.0, 0.3, -1.0]])
    target = torch.tensor([[0.5, small, 0.5]], requires_grad=True)
    (slope,) = torch.autograd.grad(losses.js(z, target, pi=pi).sum(), target)
    y, p = target.detach().double(), z.double().softmax(-1)
    exact = pi * torch.log(y / (pi * y + (1 - pi) * p)) / -((1 - pi) * math.log1p(-pi))
    torch.testing.assert_close(slope.double(), exact, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("spec", ["sce", "nce_rce", "kl_divergence(clip=1e-3)", "js", "cross_entropy", "brier"])
def test_gradient_in_a_target_with_zeros_is_a_number(spec):
    z, target = torch.randn(3, 4), torch.eye(4)[:3].requires_grad_()
    (slope,) = torch.autograd.grad(losses.create(spec, 4)(z, target), target)
    assert slope.isfinite().all()


def test_gradient_scale_refuses():
    with pytest.raises(ValueError, match="brier"):
        losses.gradient_scale("brir", 10)
    with pytest.raises(ValueError, match="at least 2"):
        losses.gradient_scale("brier", 1)
    with pytest.raises(ValueError, match="no gradient"):
        losses.gradient_scale("kl_divergence(clip=0.5)", 10)


# --- the catalogue, and what is refused ----------------------------------------------------------------------


def test_defaults_are_those_of_the_sources():
    stated = {
        "label_smoothing": dict(epsilon=0.1),
        "focal": dict(gamma=0.5),
        "bootstrap_soft": dict(beta=0.95, detach=False),
        "bootstrap_hard": dict(beta=0.8),
        "gce": dict(q=0.7),
        "sce": dict(alpha=0.1, beta=1.0),
        "nce_rce": dict(alpha=1.0, beta=1.0),
        "js": dict(pi=0.7),
        "rooted_logistic": dict(k=3.0),
        "rooted_bounded": dict(k=3.0, m=3.0),
        "huber": dict(delta=1.0),
        "poisson": dict(epsilon=0.0),
        "fourier": dict(s=1.0, symbol="wrap", placement="order", pad=0, permutation_seed=0),
    }
    assert {name: losses.lookup(name).defaults for name in stated} == stated
    assert (losses.create("brier").num_classes, losses.create("brier").reduction) == (10, "mean")


def test_catalogue():
    table = losses.catalogue()
    assert list(table.index) == NAMES and set(NAMES) <= set(dir(losses))
    for name, row in table.iterrows():
        assert of(name).__doc__.startswith(row["definition"]) and row["source"] and "Returns" in of(name).__doc__


@EACH
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_functions_and_modules_reduce(name, reduction):
    """To the last bit, but for the Fourier loss: it sums a batch in one go."""
    assert inspect.signature(of(name)).parameters["reduction"].default == "none"
    for classes in (5, 20):
        z, labels, soft = sample(classes=classes)
        module = losses.create(name, num_classes=classes, reduction=reduction)
        for target in (labels, soft):
            values = of(name)(z, target)
            expected = values if reduction == "none" else getattr(values, reduction)()
            for found in (module(z, target), of(name)(z, target, reduction=reduction)):
                if name == "fourier" and reduction != "none":
                    torch.testing.assert_close(found, expected)
                else:
                    assert torch.equal(found, expected)
        empty = of(name)(z[:0], labels[:0], reduction=reduction)
        torch.testing.assert_close(
            empty, values[:0] if reduction == "none" else getattr(values[:0], reduction)(), equal_nan=True
        )


@EACH
def test_hyper_parameters_out_of_range_are_refused(name):
    entry = losses.lookup(name)
    for key, interval in entry.ranges.items():
        low, high = (float(end) for end in interval[1:-1].split(","))
        bad = [
            low - 1e-3,
            math.nan,
            math.inf,
            -math.inf,
            "1",
            None,
            True,
            *([high + 1e-3 * max(1, high)] if high < math.inf else []),
        ]
        bad += [low] * (interval[0] == "(") + [high] * (interval[-1] == ")" and high < math.inf)
        for value in bad:
            with pytest.raises(ValueError) as error:
                losses.create(name, **{key: value})
            assert f"{key}={value!r}" in str(error.value) and interval in str(error.value)
            with pytest.raises(ValueError):
                entry.function(*sample()[:2], **{key: value})


@EACH
@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_a_number_of_numpy_is_a_number(name, kind):
    """Also of a type too narrow for the largest float."""
    z, labels, _ = sample()
    for key in losses.lookup(name).ranges:
        assert torch.equal(of(name)(z, labels, **{key: kind(0.5)}), of(name)(z, labels, **{key: 0.5}))


@pytest.mark.parametrize("classes", [5, 600])
def test_whole_numbers_of_numpy_fill_up_a_grid(classes):
    z, labels = torch.randn(3, classes, generator=torch.Generator().manual_seed(0)), torch.arange(3)
    one = losses.fourier(z, labels, placement="permuted", pad=np.uint8(250), permutation_seed=np.int64(3))
    assert torch.equal(one, losses.fourier(z, labels, placement="permuted", pad=250, permutation_seed=3))
    assert torch.equal(losses.fourier(z, labels, pad=np.uint8(250)), losses.fourier(z, labels, pad=250))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"name": "brir"}, "brier"),
        ({"name": "cross_entorpy"}, "cross_entropy"),
        ({"name": "furier(s=2)"}, "fourier"),
        ({"name": "fourier", "sybmol": "sin"}, "symbol"),
        ({"name": "brier", "s": 1}, "none"),
        ({"name": "fourier", "symbol": "sine"}, "sin"),
        ({"name": "fourier", "placement": "permute"}, "permuted"),
        ({"name": "fourier", "pad": -1}, "integer"),
        ({"name": "fourier", "pad": 1.5}, "integer"),
        ({"name": "fourier", "pad": -1, "num_classes": 600}, "integer"),
        ({"name": "fourier", "pad": True}, "integer"),
        ({"name": "fourier", "placement": "permuted", "permutation_seed": 2**53}, "below 2^53"),
        ({"name": "bootstrap_soft", "detach": 1}, "True, False"),
        ({"name": "fourier", "S": 2.0}, "Did you mean 's'"),
        ({"name": "fourier", "placement": [0, 1, 2]}, "10 points"),
        ({"name": "fourier", "placement": [0, *range(9)]}, "two classes on one point"),
        ({"name": "fourier", "placement": [float(i) for i in range(10)]}, "10 points"),
        ({"name": "fourier", "placement": 3}, "10 points"),
        ({"name": "fourier", "placement": "hypercube", "num_classes": 20}, "16"),
        ({"name": "kl_divergence", "direction": "backward"}, "forward"),
        ({"name": "kl_divergence", "direction": "reverse"}, "clip=1e-7"),
        ({"name": "kl_divergence", "domain": "logit"}, "'logits'"),
        ({"name": "kl_divergence", "domain": "logits", "clip": 1e-7}, "clip=0"),
        ({"name": "kl_divergence", "class_reduction": "batchmean"}, "sum"),
        ({"name": "fourier", "placement": [-1, *range(9)]}, "coordinates 0, 1, 2"),
        ({"name": "fourier", "symbol": ["sin"]}, "allowed: values like"),
        ({"name": "rooted_bounded(k=9e-7)"}, "[1e-6"),
        ({"name": "gce(q=9e-31)"}, "[1e-30"),
        ({"name": "poisson(epsilon=1)"}, "1)"),
        ({"name": "kl_divergence(clip=1)"}, "1)"),
        ({"name": "brier", "num_classes": 1}, "brier: num_classes=1 was given; allowed: an integer of at least 2"),
        ({"name": "brier", "num_classes": 2.0}, "integer"),
        ({"name": "brier", "reduction": "avg"}, "mean"),
        ({"name": "fourier(s=2"}, "fourier(s=2"),
        ({"name": ["fourier"]}, "fourier"),
        ({"name": "rooted_logistic(k=1e300)"}, "1e30"),
        ({"name": 5}, "5"),
        ({"name": None}, "None"),
    ],
)
def test_create_refuses(arguments, said):
    with pytest.raises(ValueError) as error:
        losses.create(**arguments)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("tukey", "lossbook.losses.tukey"),
        ("pinball", "lossbook.losses.pinball"),
        ("average_precision_hinge", "lossbook.losses.average_precision_hinge"),
        ("PerceptualLoss", "lossbook.losses.PerceptualLoss"),
        ("pod", "lossbook.losses.hypersphere.head('pod', num_classes, dim)"),
        ("pedcc(weight=2.0)", "lossbook.losses.hypersphere.head('pedcc', num_classes, dim)"),
    ],
)
def test_a_loss_outside_the_catalogue_is_pointed_to(name, place):
    with pytest.raises(ValueError, match="unknown loss") as error:
        losses.create(name)
    assert str(error.value).endswith(f"use {place}")


@EACH
def test_wrong_shapes_and_types_are_refused(name):
    z, labels, soft = sample()
    for logits, target in (
        (z, labels[:4]),
        (z, labels[:, None]),
        (z, soft[:, :4]),
        (z, labels.double()),
        (z, labels.bool()),
        (z, soft.to(torch.complex128)),
        (z, labels.to(torch.complex64)),
        (z.long(), labels),
        (z.to(torch.complex128), labels),
        (z[:, :1], labels),
        (z[:, :1], torch.zeros_like(labels)),  # the only class there is
        (z[0, 0], labels[0]),
    ):
        with pytest.raises(ValueError, match="allowed"):
            of(name)(logits, target)
    with pytest.raises(ValueError, match="num_classes=5"):
        losses.create(name)(z, labels)
    with pytest.raises(ValueError, match="target is"):  # which is wrong whatever the number of classes
        losses.create(name)(z, labels[:3])


@EACH
@pytest.mark.parametrize("wrong", [5, -1, -100])
def test_an_index_out_of_range_raises(name, wrong):
    z, labels, _ = sample()
    labels[3] = wrong
    with pytest.raises(ValueError, match=f"{name}: target holds the class index {wrong}; allowed: 0 to 4"):
        of(name)(z, labels)


def test_under_a_transform_an_index_out_of_range_is_refused_in_words_of_torch():
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):  # its value cannot be read there
        torch.func.vmap(losses.cross_entropy)(torch.zeros(2, 5), torch.tensor([0, 7]))


def test_parse():
    assert losses.parse("brier") == ("brier", {})
    assert losses.parse(" fourier( s = 2 , symbol='sin', placement=[0, 1]) ") == (
        "fourier",
        {"s": 2, "symbol": "sin", "placement": [0, 1]},
    )
    assert losses.create("fourier(s=2, pad=1)", s=3).hyper == {"s": 3, "pad": 1}  # what is named beats what is written
    assert torch.equal(losses.create("gce(q=0.5)")(torch.eye(10), torch.arange(10)), losses.create("gce", q=0.5)(
        torch.eye(10), torch.arange(10)))  # fmt: skip


@pytest.mark.parametrize(
    "spec",
    [
        "__import__('os').mkdir('parsed')",
        "fourier(s=__import__('os').mkdir('parsed'))",
        "fourier(s=(lambda: 1)())",
        "fourier(2)",
        "fourier(s=1, s=2)",
        "fourier(**{'s': 2})",
        "losses.fourier(s=2)",
        "fourier(s=s)",
        "[x for x in ()]",
        "",
        "fourier; brier",
        "fourier\0",
        5,
        None,
    ],
)
def test_parse_refuses_and_never_runs_code(spec, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="was given"):
        losses.parse(spec)
    assert not list(tmp_path.iterdir())


def test_import_is_light():
    """The losses alone load nothing of the rest: neither SymPy nor torchvision, Jupyter or pandas."""
    code = "import sys, lossbook.losses; print(*{'sympy', 'torchvision', 'IPython', 'pandas'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
