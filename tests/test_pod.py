"""Losses on the hypersphere: where the classes sit, the terms, the heads, and the derivation against autograd."""

import inspect
import math

import numpy
import pytest
import pytorch_metric_learning
import sympy
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning import losses as metric_losses
from torch.autograd import gradcheck, gradgradcheck

from lossbook import losses, models
from lossbook.losses import hypersphere
from lossbook.symbolic import pod as derived

EACH = pytest.mark.parametrize("name", list(hypersphere.HEADS))
FIXED = ["pod", "squared_cosine", "fixed_etf", "pedcc", "am_softmax", "arcface", "sphereface"]
seeds = st.integers(0, 2**32 - 1)


def sample(batch=12, classes=5, dim=8, seed=0, scale=1.0):
    """Features in float64, a class for each, and centroids."""
    random = torch.Generator().manual_seed(seed)
    z = scale * torch.randn(batch, dim, generator=random, dtype=torch.float64)
    return z, torch.randint(classes, (batch,), generator=random), hypersphere.simplex_centroids(classes, dim, seed)


def pairs(centroids):
    """Cosines of all pairs of different centroids."""
    return (centroids @ centroids.T)[~torch.eye(len(centroids), dtype=torch.bool)]


# --- centroids -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("classes", "dim"), [(2, 1), (3, 2), (10, 9), (10, 256), (100, 512), (200, 199)])
def test_simplex_centroids(classes, dim):
    a = hypersphere.simplex_centroids(classes, dim, seed=3)
    assert a.dtype == torch.float64 and a.shape == (classes, dim)
    torch.testing.assert_close(pairs(a), torch.full_like(pairs(a), -1 / (classes - 1)), rtol=0, atol=1e-14)
    torch.testing.assert_close(a.norm(dim=1), torch.ones(classes, dtype=torch.float64), rtol=0, atol=1e-14)
    assert a.sum(0).abs().max() < 1e-13
    tight = a.T @ a * (classes - 1) / classes  # the projector on the span
    torch.testing.assert_close(tight @ tight, tight, rtol=0, atol=1e-13)
    assert tight.trace().item() == pytest.approx(classes - 1)
    assert torch.equal(a, hypersphere.simplex_centroids(classes, dim, seed=3))
    assert not torch.allclose(a, hypersphere.simplex_centroids(classes, dim, seed=4))


@settings(deadline=None, max_examples=30)
@given(seed=seeds, classes=st.integers(2, 12), dim=st.integers(1, 12))
def test_no_points_are_further_apart_than_a_simplex(seed, classes, dim):
    """The largest cosine of C unit vectors is at least -1/(C - 1)."""
    u = F.normalize(torch.randn(classes, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
    assert pairs(u).max() >= -1 / (classes - 1) - 1e-12


def test_repulsion_finds_the_simplex_but_not_in_200_steps():
    for classes, dim in ((3, 2), (10, 9), (10, 64)):
        off = [
            (pairs(hypersphere.repulsion_centroids(classes, dim, steps=steps)) + 1 / (classes - 1)).abs().max()
            for steps in (0, 200, 1000)
        ]
        assert off[0] > 0.1 > off[1] > 1e-4 > 1e-5 > off[2]
    unasked = hypersphere.repulsion_centroids(4, 3)
    assert torch.equal(unasked, hypersphere.repulsion_centroids(4, 3, steps=1000))


def test_repulsion_where_no_simplex_is_possible():
    """Six points in space are an octahedron."""
    u = hypersphere.repulsion_centroids(6, 3, steps=3000)
    assert sorted(pairs(u).tolist()) == pytest.approx([-1.0] * 6 + [0.0] * 24, abs=1e-3)
    torch.testing.assert_close(u.norm(dim=1), torch.ones(6, dtype=torch.float64))


def test_numbers_of_numpy_are_numbers():
    """A head of them is the head of Python's, down to its attributes, which torch.compile takes for constants."""
    five, eight, three = (numpy.int64(n) for n in (5, 8, 3))
    given = hypersphere.head("pod", five, eight, three, delta=numpy.float64(0.5))
    meant = hypersphere.head("pod", 5, 8, 3, delta=0.5)
    assert type(hypersphere.head("arcface", 5, 8, scale=torch.tensor(5.0)).scale) is float
    assert type(given.delta) is float and type(given.num_classes) is type(given.dim) is int
    assert torch.equal(given.class_vectors(), meant.class_vectors())
    assert torch.equal(hypersphere.simplex_centroids(five, eight, three), hypersphere.simplex_centroids(5, 8, 3))
    assert torch.equal(hypersphere.repulsion_centroids(five, eight, three), hypersphere.repulsion_centroids(5, 8, 3))


def test_a_pod_head_is_loaded_by_assignment_and_stacked():
    z, y, _ = sample()
    heads = [hypersphere.head("pod", 5, 8, seed=seed).double().eval() for seed in range(3)]
    for delta, head in enumerate(heads, 1):
        head.delta = float(delta)
    empty = hypersphere.head("pod", 5, 8).to("meta")
    empty.load_state_dict(heads[1].state_dict(), assign=True)
    assert empty.to("cpu").delta == empty.delta_there == 2
    alone = torch.stack([head(z, y) for head in heads])
    torch.testing.assert_close(empty.eval()(z, y), alone[1])
    together = torch.func.stack_module_state(heads)
    stacked = torch.func.vmap(lambda p, b: torch.func.functional_call(heads[0], (p, b), (z, y)))
    torch.testing.assert_close(stacked(*together), alone)  # each with the delta of its own
    hypersphere.head("pod(delta=1e39)", 5, 8)  # no float32, and no reason to fail


def test_hyper_parameters_as_words_or_in_the_spec():
    heads = hypersphere.head("arcface(margin=0.2)", 10, 16), hypersphere.head("arcface", 10, 16, margin=0.2)
    z, y = torch.randn(5, 16, generator=torch.Generator().manual_seed(1)), torch.arange(5)
    assert heads[0](z, y) == heads[1](z, y) != hypersphere.head("arcface", 10, 16)(z, y)
    assert hypersphere.head("arcface(margin=0.2, scale=5.0)", 10, 16, margin=0.3).margin == 0.3


def test_defaults_are_those_of_the_sources():
    stated = {
        "center": dict(weight=0.003, rate=0.5),
        "pod": dict(delta="growing", alpha=0.01, decorrelation=1.0, centroids="simplex"),
        "fixed_etf": dict(scale=10.0, centroids="simplex"),
        "pedcc": dict(scale=7.5, margin=0.35, weight=1.0, power=1.0, centroids="simplex"),
    }
    for name, expected in stated.items():
        parameters = inspect.signature(hypersphere.HEADS[name]).parameters.values()
        assert {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY} == expected


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: hypersphere.simplex_centroids(10, 8), "repulsion_centroids"),
        (lambda: hypersphere.simplex_centroids(1, 8), "[2, inf)"),
        (lambda: hypersphere.simplex_centroids(3, 2.0), "whole number"),
        (lambda: hypersphere.simplex_centroids(4, 3, seed=0.7), "simplex_centroids: seed=0.7"),
        (lambda: hypersphere.repulsion_centroids(4, 3, seed="3"), "repulsion_centroids: seed='3'"),
        (lambda: hypersphere.repulsion_centroids(3, 2, steps=-1), "steps"),
        (lambda: hypersphere.head("pod", 10, 3), "centroids='repulsion'"),
        (lambda: hypersphere.head("arcfase", 10, 16), "arcface"),
        (lambda: hypersphere.head("pod(detla=0.1)", 10, 16), "delta"),
        (lambda: hypersphere.head("pod(delta='grow')", 10, 16), "growing"),
        (lambda: hypersphere.head("pod(delta=-1.0)", 10, 16), "delta"),
        (lambda: hypersphere.head("pod", 10, 16, delta=-1.0), "delta"),
        (lambda: hypersphere.head("arcface", 10, 16, margn=0.3), "margin"),
        (lambda: hypersphere.head("arcface", 10, 16).logits(torch.zeros(3, 15)), "(batch, 16)"),
        (lambda: hypersphere.head("arcface", 10, 16).predict([0.0] * 16), "torch tensors"),
        (lambda: hypersphere.head("pod(centroids='simplx')", 10, 16), "simplex"),
        (lambda: hypersphere.head("pod(decorrelation=-1)", 10, 16), "decorrelation"),
        (lambda: hypersphere.head("pedcc(power=0.5)", 10, 16), "power"),
        (lambda: hypersphere.head("pedcc(scale=0.0)", 10, 16), "pedcc: scale"),
        (lambda: hypersphere.head("pedcc(weight=-1.0)", 10, 16), "pedcc: weight"),
        (lambda: hypersphere.head("center(weight=-1.0)", 10, 16), "center: weight"),
        (lambda: hypersphere.head("center(rate=1.5)", 10, 16), "center: rate"),
        (lambda: hypersphere.head("pod(alpha=-1.0)", 10, 16), "pod: alpha"),
        (lambda: hypersphere.head("fixed_etf(scale=0.0)", 10, 16), "fixed_etf: scale"),
        (lambda: hypersphere.head("arcface(scale=0.0)", 10, 16), "arcface: scale"),
        (lambda: hypersphere.head("arcface(margin=4.0)", 10, 16), "arcface: margin"),
        (lambda: hypersphere.head("arcface", 10, 16, seed=-1), "seed=-1"),
        (
            lambda: hypersphere.norm_adaptive_cosine(torch.zeros(2, 4), torch.arange(2), torch.eye(4), delta=-1.0),
            "-1.0",
        ),
        (lambda: hypersphere.head("am_softmax(margin=3.0)", 10, 16), "am_softmax: margin"),
        (lambda: hypersphere.head("sphereface(margin=1.5)", 10, 16), "whole number"),
        (lambda: hypersphere.head("sphereface(annealing='no')", 10, 16), "annealing='no' was given; allowed: True, F"),
        (lambda: hypersphere.head("cross_entropy", 10, 0), "[1, inf)"),
        (lambda: hypersphere.head("cross_entropy", 10, 16, seed="one"), "seed='one'"),
        (lambda: hypersphere.scheduled_delta("gone", 1), "growing"),
    ],
)
def test_refused(call, said):
    with pytest.raises(ValueError) as error:
        call()
    assert said in str(error.value)


# --- terms ---------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(seed=seeds, delta=st.floats(0, 10), scale=st.floats(0.1, 30))
def test_norm_adaptive_cosine_from_its_definition(seed, delta, scale):
    z, y, a = sample(seed=seed, scale=scale)
    value = hypersphere.norm_adaptive_cosine(z, y, a, delta=delta)
    expected = (1 - (z * a[y]).sum(1) / (z.square().sum(1) + delta**2).sqrt()) ** 2
    torch.testing.assert_close(value, expected)
    assert value.min() >= 0 and value.max() <= 4
    if delta == 0:
        torch.testing.assert_close(value, (hypersphere.direction(z) - a[y]).norm(dim=1) ** 4 / 4)


@settings(deadline=None, max_examples=50)
@given(seed=seeds, batch=st.integers(2, 40), dim=st.integers(4, 40), pull=st.floats(-3, 3), delta=st.floats(0, 5))
def test_decorrelation_and_its_bound(seed, batch, dim, pull, delta):
    """Its definition; and at most 4/(D-1) (B/(B-1))² (1 - mean cosine)², itself at most that of the distance term."""
    z, y, a = sample(batch, 5, dim, seed)
    z = z + pull * a[y]
    value = hypersphere.decorrelation(z, y, a)
    e = F.normalize(z) - a[y]
    S = sum(x.outer(x) for x in e) / (batch - 1)
    torch.testing.assert_close(value, (S - S.diag().diag()).square().sum() / (dim - 1))
    constant = 4 / (dim - 1) * (batch / (batch - 1)) ** 2
    cosines = (F.normalize(z) * a[y]).sum(1)
    middle = constant * (1 - cosines.mean()) ** 2
    assert value <= middle * (1 + 1e-12) <= constant * hypersphere.norm_adaptive_cosine(z, y, a).mean() * (1 + 1e-9)
    # delta makes the distance term larger where the cosine is positive; where it is not, the term stays above 1
    factor = constant if cosines.min() >= 0 else 4 * constant
    assert middle <= factor * hypersphere.norm_adaptive_cosine(z, y, a, delta=delta).mean() * (1 + 1e-9)


def test_decorrelation_is_nearly_as_large_as_its_bound():
    """All errors equal, along (1, 1, ..., 1): S has rank one, and only its diagonal, a share 1/D, is missing."""
    dim, batch = 64, 1000
    a = torch.full((1, dim), dim**-0.5, dtype=torch.float64)
    value = hypersphere.decorrelation(-a.expand(batch, -1), torch.zeros(batch, dtype=torch.long), a)
    bound = 4 / (dim - 1) * (batch / (batch - 1)) ** 2 * 4
    assert value.item() == pytest.approx(bound * (1 - 1 / dim))


def gradient_of_the_decorrelation(seed, pull, ratio, lines):
    """Over that of the distance, D = 256, B = 200, at a weight of 1: features are pulled to their centroids, with noise
    in so many directions; delta is so much of their mean norm."""
    random = torch.Generator().manual_seed(seed)
    a, y = hypersphere.simplex_centroids(10, 256, seed), torch.randint(10, (200,), generator=random)
    shapes = ((200, lines), (lines, 256))
    noise = torch.matmul(*(torch.randn(*shape, generator=random, dtype=torch.float64) for shape in shapes))
    z = (pull * a[y] + F.normalize(noise)).requires_grad_()
    distance = hypersphere.norm_adaptive_cosine(z, y, a, delta=ratio * z.norm(dim=1).mean().item()).mean()
    of_distance, of_decorrelation = (
        torch.autograd.grad(value, z)[0].norm() for value in (distance, hypersphere.decorrelation(z, y, a))
    )
    return of_decorrelation / of_distance


@settings(deadline=None, max_examples=30)
@given(seed=seeds, pull=st.floats(0, 10), ratio=st.floats(0, 1))
def test_gradient_of_the_decorrelation_is_small(seed, pull, ratio):
    """At most a fiftieth if all noise is along one line, two thousandths if it is in all directions."""
    assert gradient_of_the_decorrelation(seed, pull, ratio, 1) < 1 / 50
    assert gradient_of_the_decorrelation(seed, pull, ratio, 256) < 2 / 1000


@settings(deadline=None, max_examples=5)
@given(seed=seeds)
def test_gradient_of_the_decorrelation_has_no_bound_at_the_opposite_of_a_centroid(seed):
    """Where that of the distance ends, at delta = 0."""
    ratios = [gradient_of_the_decorrelation(seed, pull, 0, 256) for pull in (-10, -100, -1000)]
    assert ratios[0] < ratios[1] / 2 < ratios[2] / 4 and ratios[2] > 1 / 20


def test_decorrelation_of_collapsed_features_is_zero():
    _, y, a = sample()
    assert hypersphere.decorrelation(3 * a[y], y, a) < 1e-30
    for z, target in ((a[:1], y[:1]), (a[0], y[0]), (a[:, :1], y[: len(a)])):
        with pytest.raises(ValueError, match="at least 2"):
            hypersphere.decorrelation(z, target, a[:, : z.shape[-1]])


def test_deltas():
    delta = hypersphere.scheduled_delta
    assert [delta(name, 0, 7.0) for name in ("zero", "norm", "growing", 0.3)] == [0, 0.05, 0.05, 0.3]
    assert [delta(name, 4, 7.0, 0.1) for name in ("zero", "norm", "growing", 0.3)] == [0, 7, pytest.approx(2.8), 0.3]


def test_pod_measures_its_delta_over_an_epoch():
    """The mean norm of the scores, over the examples of training and not of evaluation."""
    head = hypersphere.head("pod(delta='growing', alpha=0.25)", 5, 8)
    z, y, _ = sample(30)
    head(z[:20], y[:20])
    head(z[20:], y[20:])
    head.eval()(100 * z, y)
    a = hypersphere.simplex_centroids(5, 8)
    norm = math.sqrt(5 / 4) * (z @ torch.linalg.pinv(a, rtol=1e-9) @ a).norm(dim=1)
    for epoch in (1, 2):
        head.train().end_epoch()
        assert head.delta == pytest.approx(0.25 * epoch * norm.mean().item(), rel=1e-5)
        head(z, y)


@settings(deadline=None, max_examples=20)
@given(seed=seeds)
def test_decision_rule(seed):
    """Largest product, largest cosine and nearest centroid are one decision."""
    head = hypersphere.head("pod", 5, 8, seed=seed).double()
    z, a = sample(50, seed=seed)[0], head.class_vectors()
    chosen = head.predict(z)
    assert torch.equal(chosen, torch.cdist(z, a).argmin(1))
    assert torch.equal(chosen, F.cosine_similarity(z[:, None], a[None], dim=2).argmax(1))


def test_complement_entropy():
    """Of equal wrong probabilities it is ln(C - 1)/(C - 1); and what Chen et al. define."""
    with pytest.raises((RuntimeError, IndexError), match="out of bounds"):
        hypersphere.complement_entropy(torch.zeros(2, 5), torch.tensor([5, -100]))
    z, y, _ = sample(20, 5, 5)
    p = torch.softmax(z, 1)
    q = (p / (1 - p.gather(1, y[:, None]))).scatter(1, y[:, None], 0)
    torch.testing.assert_close(hypersphere.complement_entropy(z, y), torch.special.entr(q).sum(1) / 4)
    even = hypersphere.complement_entropy(F.one_hot(y, 5).double() * 3, y)
    torch.testing.assert_close(even, torch.full_like(even, math.log(4) / 4))


def test_neural_collapse_measures():
    """Zero for features at their centroids, whatever the common shift and scale; and the definition elsewhere."""
    z, y, a = sample(200)
    collapsed = hypersphere.neural_collapse(3 * a[y] + 1, y, 5)
    assert max(collapsed.values()) < 1e-12
    found = hypersphere.neural_collapse(z, y, 5)
    means = torch.stack([z[y == j].mean(0) for j in range(5)])
    within = sum((z[i] - means[y[i]]).outer(z[i] - means[y[i]]) for i in range(200)) / 200
    between = (means - means.mean(0)).T @ (means - means.mean(0)) / 5
    expected = (within @ torch.linalg.pinv(between, rtol=1e-10)).trace() / 5
    assert found["within_class"] == pytest.approx(expected.item())
    stretched = z * torch.linspace(1, 1e3, z.shape[1], dtype=z.dtype)
    between = (stretched, z)  # a map that can be undone takes both scatters along
    one, other = (hypersphere.neural_collapse(features[:, :4], y, 5)["within_class"] for features in between)
    assert one == pytest.approx(other, rel=1e-6)
    cosines = pairs(F.normalize(means - means.mean(0)))
    assert found["equiangular"] == pytest.approx(cosines.std(correction=0).item())
    assert found["simplex"] == pytest.approx((cosines + 1 / 4).abs().mean().item())
    with pytest.raises(ValueError, match="neural_collapse"):
        hypersphere.neural_collapse(z[y < 4], y[y < 4], 5)
    for beyond in (-1, 5):
        with pytest.raises(ValueError, match=rf"neural_collapse: .*{beyond}.* from 0 to 4"):
            hypersphere.neural_collapse(z, y.masked_fill(y == 2, beyond), 5)


# --- heads ---------------------------------------------------------------------------------------------------


@EACH
@pytest.mark.parametrize("network", ["mlp", "cnn_small"])
def test_head_trains_on_a_backbone(name, network):
    """A few steps on a network of the project lower the loss, and the decision follows the labels."""
    random = torch.Generator().manual_seed(0)
    images, labels = torch.rand(32, 1, 8, 8, generator=random), torch.arange(32) % 4
    images[torch.arange(32), 0, labels] += 1  # a bright row tells the class
    backbone, head = models.create(network, (1, 8, 8), num_classes=16), hypersphere.head(name, 4, 16)
    optimiser = torch.optim.Adam([*backbone.parameters(), *head.parameters()], lr=3e-3)
    history = []
    for _ in range(40):
        optimiser.zero_grad()
        value = head(backbone(images), labels)
        value.backward()
        optimiser.step()
        history.append(value.item())
    assert value.shape == () and history[-1] < 0.7 * history[0]
    assert (head.predict(backbone(images)) == labels).float().mean() > 0.9
    assert head.logits(backbone(images)).shape == (32, 4)


@EACH
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.filterwarnings("ignore:An output with one or more elements")
def test_finite_at_every_feature(name, dtype):
    """Large, small down to the least that the type holds, zero, at a centroid or against it: all is finite."""
    head = hypersphere.head(name, 4, 6)
    vectors = head.class_vectors().detach()
    random = torch.Generator().manual_seed(1)
    small = [float(scale) for scale in numpy.geomspace(torch.finfo(dtype).smallest_normal / 1000, 1e-2, 20)]
    for scale in (0.0, *small, 1.0, 1e4):
        for direction in (torch.randn(4, 6, generator=random), vectors, -vectors, torch.eye(6)[:4]):
            z = (scale * direction.double()).to(dtype).requires_grad_()
            value = head(z, torch.arange(4))
            value.backward()
            assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
            assert value.isfinite() and z.grad.isfinite().all() and z.grad.dtype == dtype
            assert all(p.grad is None or p.grad.isfinite().all() for p in head.parameters())


def test_only_gradients_too_large_for_float16_are_cut():
    """Features in float16 have the gradient that the same ones have in float32, as far as float16 holds it."""
    z, y, a = sample()
    largest = torch.finfo(torch.float16).max
    for scale in (1.0, 2.0**-10, 2.0**-22):
        half = (scale * z).half()
        exact, found = (
            torch.func.grad(lambda x: hypersphere.norm_adaptive_cosine(x, y, a).sum())(x).float()
            for x in (half.float(), half)
        )
        torch.testing.assert_close(found, exact.clamp(-largest, largest), rtol=1e-3, atol=1e-3)
    assert exact.abs().max() > largest


@EACH
def test_state_is_restored(name):
    """A head goes on from its state_dict as if it had not stopped: schedules, steps and centres included."""
    z, y, _ = sample(30)
    head, restored = (hypersphere.head(name, 5, 8, seed) for seed in (0, 1))
    for batch in (z[:10], z[10:20]):
        head(batch, y[:10])
        head.end_epoch()
    head(z[20:], y[20:])
    restored.load_state_dict(head.state_dict())
    for _ in range(2):
        assert torch.equal(head(z, y), restored(z, y))
        head.end_epoch()
        restored.end_epoch()


def test_a_batch_that_is_refused_does_not_count():
    """A batch of one has no decorrelation, and leaves the norms of the epoch alone."""
    head, other = hypersphere.head("pod", 5, 8), hypersphere.head("pod", 5, 8)
    z, y, _ = sample()
    for made in (head, other):
        made(z, y)
    with pytest.raises(ValueError, match="at least 2"):
        head(100 * z[:1], y[:1])
    assert torch.equal(head.norms, other.norms)


@EACH
def test_autocast_changes_nothing(name):
    z, y, _ = sample()
    outside, inside = hypersphere.head(name, 5, 8), hypersphere.head(name, 5, 8)
    expected, scores = outside(z.float(), y), outside.logits(z.float())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(inside(z.float(), y), expected) and torch.equal(inside.logits(z.float()), scores)


@EACH
@pytest.mark.filterwarnings("ignore")  # torch's own, while it compiles
def test_compiled_under_autocast_the_gradient_is_float32_too(name):
    """The backward of what is compiled inside an autocast region is traced inside it, and products in bfloat16."""
    torch._dynamo.reset()
    z, y, _ = sample()
    head, z = hypersphere.head(name, 5, 8).eval(), z.float().requires_grad_()
    (exact,) = torch.autograd.grad(head(z, y), z)
    compiled = torch.compile(head, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        value = compiled(z, y)
    assert value.dtype == torch.float32
    torch.testing.assert_close(torch.autograd.grad(value, z)[0], exact, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore")  # torch's own, while it compiles
def test_a_compiled_annealing_goes_by_the_step_it_takes():
    torch._dynamo.reset()
    z, y, _ = sample()
    head, other, z = hypersphere.head("sphereface", 5, 8), hypersphere.head("sphereface", 5, 8), z.requires_grad_()
    compiled = torch.compile(head, fullgraph=True, backend="aot_eager")
    for _ in range(3):
        gradients = [torch.autograd.grad(of(z, y), z)[0] for of in (compiled, other)]
        torch.testing.assert_close(*gradients, rtol=1e-6, atol=0)


@EACH
def test_compiled_once_for_all_steps_and_epochs(name):
    torch._dynamo.reset()
    z, y, _ = sample()
    head, other = hypersphere.head(name, 5, 8), hypersphere.head(name, 5, 8)
    compiled, z = torch.compile(head, fullgraph=True, backend="aot_eager"), z.requires_grad_()
    for _ in range(12):  # more than torch would compile anew
        found, expected = compiled(z, y), other(z, y)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(*(torch.autograd.grad(value, z)[0] for value in (found, expected)))
        head.end_epoch()
        other.end_epoch()


def test_the_delta_of_a_head_in_half_precision_is_that_of_float32():
    """Their sum would stop growing in bfloat16, and overflow in float16."""
    heads = [hypersphere.head("pod(delta='norm')", 5, 8).to(dtype) for dtype in (torch.float32, torch.half)]
    z, y, _ = sample(100)
    for head in heads:
        for _ in range(1000):
            head((30 * z).half(), y)
    for head in heads:
        head.end_epoch()
    assert heads[1].delta == pytest.approx(heads[0].delta, rel=1e-3) and heads[0].delta > 30
    heads[0].end_epoch()  # without a batch it stays
    assert heads[0].delta > 30


def test_making_a_head_leaves_all_generators_alone(monkeypatch):
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("a GPU was seeded"))
    before = torch.get_rng_state()
    hypersphere.head("arcface", 5, 8, seed=3)
    models.create("mlp", (1, 8, 8), 10, seed=3)
    assert torch.equal(torch.get_rng_state(), before)


@EACH
def test_gradients_against_finite_differences(name):
    z, y, _ = sample(6, scale=2.0)
    head = hypersphere.head(name, 5, 8).double().eval()
    assert gradcheck(lambda z: head(z, y), z.requires_grad_())
    assert gradgradcheck(lambda z: head(z, y), z.requires_grad_())


def test_complement_entropy_refuses_what_is_no_class():
    z, y, _ = sample()
    for target in (y[:2], y.double(), y.tolist()):
        with pytest.raises(ValueError, match="allowed"):
            hypersphere.complement_entropy(z, target)


@EACH
def test_wrong_input_is_refused(name):
    head = hypersphere.head(name, 5, 8)
    z, y, _ = sample()
    for features, target in (
        (z[:, :7], y), (z, y[:3]), (z, y.double()), (z.long(), y), (z[0], y[0]), (z[:0], y[:0]), (z, y[:, None]),
        (z.numpy(), y), (z, y.tolist()), (z, y > 0),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"^{name}: .* allowed"):
            head(features, target)
    with pytest.raises(ValueError, match="class index 5"):
        head(z, torch.full(y.shape, 5, dtype=torch.uint16))
    for wrong in (5, -1, -100):
        with pytest.raises(ValueError, match=f"class index {wrong}; allowed: 0 to 4"):
            head(z, torch.full_like(y, wrong))


@EACH
def test_seeds_and_learned_vectors(name):
    """The same seed gives the same head; global random numbers are left alone; fixed centroids do not learn."""
    before = torch.get_rng_state()
    one, same, other = (hypersphere.head(name, 5, 8, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.class_vectors(), same.class_vectors())
    assert not torch.allclose(one.class_vectors(), other.class_vectors())
    fixed = name in ("pod", "squared_cosine", "fixed_etf", "pedcc")
    assert fixed == (sum(p.numel() for p in one.parameters()) == 0)


@pytest.mark.parametrize("name", FIXED)
@pytest.mark.parametrize("centroids", hypersphere.CENTROIDS)
def test_class_vectors_are_fixed_or_learned(name, centroids):
    head = hypersphere.head(f"{name}(centroids={centroids!r})", 5, 8)
    assert (sum(p.numel() for p in head.parameters()) > 0) == (centroids == "learned")
    torch.testing.assert_close(head.class_vectors().norm(dim=1), torch.ones(5))
    if centroids == "simplex":
        torch.testing.assert_close(head.class_vectors(), hypersphere.simplex_centroids(5, 8).float())


def test_learned_centroids_collapse():
    """Nothing in the squared cosine keeps class vectors apart: learned ones meet, and the loss is zero."""
    z, y, _ = sample(200)
    head = hypersphere.head("squared_cosine(centroids='learned')", 5, 8)
    shift = torch.zeros(8, requires_grad=True)
    optimiser = torch.optim.Adam([shift, *head.parameters()], lr=0.1)
    for _ in range(300):
        optimiser.zero_grad()
        value = head(z.float() + shift, y)
        value.backward()
        optimiser.step()
    assert value < 2e-3 and pairs(head.class_vectors().detach()).min() > 0.99


# --- against pytorch-metric-learning, and other closed forms ----------------------------------------------------


def library(name, **arguments):
    return getattr(metric_losses, name)(num_classes=5, embedding_size=8, **arguments)


@pytest.mark.parametrize(
    ("spec", "name", "arguments"),
    [
        ("am_softmax", "CosFaceLoss", {"scale": 30, "margin": 0.35}),
        ("am_softmax(scale=64.0)", "CosFaceLoss", {}),
        ("arcface", "ArcFaceLoss", {}),
        ("arcface(margin=2.0, scale=5.0)", "ArcFaceLoss", {"margin": 2.0, "scale": 5}),
        ("sphereface(annealing=False)", "SphereFaceLoss", {}),
        ("sphereface(annealing=False, margin=3)", "SphereFaceLoss", {"margin": 3}),
    ],
)
@pytest.mark.filterwarnings("ignore:__array_wrap__")  # of the library, under NumPy 2
def test_margin_losses_equal_pytorch_metric_learning(spec, name, arguments):
    """Value and gradients. The library's margin of ArcFace is in degrees before version 3, in radians from there."""
    in_degrees = int(pytorch_metric_learning.__version__.split(".")[0]) < 3
    if name == "ArcFaceLoss":
        radians = arguments.get("margin", 0.5)
        theirs = library(name, **arguments | {"margin": math.degrees(radians) if in_degrees else radians})
        assert theirs.margin == pytest.approx(radians)
    else:
        theirs = library(name, **arguments)
    ours = hypersphere.head(spec, 5, 8).double()
    theirs = theirs.double()
    theirs.W.data = ours.class_vectors().detach().T.clone()
    z, y, _ = sample(40)
    values, gradients = [], []
    for loss in (ours, theirs):
        x = z.clone().requires_grad_()
        values.append(loss(x, y))
        gradients.append(torch.autograd.grad(values[-1], x)[0])
    torch.testing.assert_close(*values, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-10)


@pytest.mark.skipif(
    int(pytorch_metric_learning.__version__.split(".")[0]) > 2, reason="version 2 of the library took degrees"
)
def test_a_margin_in_degrees_is_not_one_in_radians():
    """The trap: margin=0.5 means half a degree to version 2 of the library, and next to no margin."""
    assert library("ArcFaceLoss", margin=0.5).margin == pytest.approx(math.radians(0.5))


def test_annealing_of_sphereface():
    """At first nearly plain, in the end a sixth of psi; only training counts."""
    z, y, _ = sample()
    head, plain = (hypersphere.head(f"sphereface(margin={m})", 5, 8) for m in (4, 1))
    first = head(z, y) - plain(z, y)
    head.eval()(z, y)
    assert head.steps == 1
    head.steps.fill_(10**6)
    last = head(z, y) - plain(z, y)
    assert 0 < first < 0.02 * last


def test_center_loss_moves_its_centres():
    head = hypersphere.head("center(weight=0.5, rate=0.5)", 5, 8)
    z, _, _ = sample(6)
    y = torch.tensor([0, 0, 0, 1, 1, 2])
    plain = losses.cross_entropy(head.logits(z), y).mean()
    centres = head.centres.clone()
    assert (head(z, y) - plain).item() == pytest.approx(0.25 * z.square().sum(1).mean().item(), rel=1e-5)
    for j, members in enumerate((z[:3], z[3:5], z[5:], z[:0], z[:0])):
        moved = centres[j] + 0.5 * (members - centres[j]).sum(0) / (1 + len(members))
        torch.testing.assert_close(head.centres[j], moved.float())
    moved = head.centres.clone()
    head.eval()(z, y)
    assert torch.equal(head.centres, moved)


def test_pedcc_pod_and_cot_are_what_they_add_up():
    z, y, _ = sample()
    pedcc, plain = (hypersphere.head(spec, 5, 8) for spec in ("pedcc(power=2.0, weight=3.0)", "pedcc(weight=0.0)"))
    a = pedcc.class_vectors().double()
    square = (F.normalize(z) - a[y]).square().sum(1).mean()
    torch.testing.assert_close(pedcc(z, y) - plain(z, y), 3 * square**2)
    cosines = F.normalize(z) @ a.T - 0.35 * F.one_hot(y, 5)
    torch.testing.assert_close(plain(z, y), F.cross_entropy(7.5 * cosines, y))
    pod = hypersphere.head("pod(delta=0.7, decorrelation=100.0)", 5, 8)
    parts = hypersphere.norm_adaptive_cosine(z, y, a, delta=0.7).mean(), hypersphere.decorrelation(z, y, a)
    torch.testing.assert_close(pod(z, y), parts[0] + 100 * parts[1])
    bare, squared = (hypersphere.head(s, 5, 8) for s in ("pod(delta='zero', decorrelation=0.0)", "squared_cosine"))
    assert torch.equal(bare(z, y), squared(z, y))
    cot, plain = (hypersphere.head(s, 5, 8) for s in ("cot", "cross_entropy"))
    torch.testing.assert_close(cot(z, y), plain(z, y) - hypersphere.complement_entropy(plain.logits(z), y).mean())


def test_scale_of_fixed_logits():
    """At perfect alignment p_y = 0.99 needs s = (C-1)/C ln(99 (C-1)), and s = 1 cannot get below 1.377."""
    for classes, scale, value in ((10, 0.9 * math.log(891), -math.log(0.99)), (10, 1.0, 1.377)):
        head = hypersphere.head(f"fixed_etf(scale={scale})", classes, 16)
        assert head(head.class_vectors(), torch.arange(classes)).item() == pytest.approx(value, rel=1e-3)


@pytest.mark.filterwarnings("ignore")  # torch's own, while it compiles
def test_terms_compiled_and_vmapped():
    z, y, a = sample()

    def both(z, y):
        return hypersphere.norm_adaptive_cosine(z, y, a, delta=0.3), hypersphere.centroid_distance(z, y, a)

    torch._dynamo.reset()
    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")(z, y)
    vmapped = torch.func.vmap(both)(z, y)
    for eager, one, other in zip(both(z, y), compiled, vmapped, strict=True):
        torch.testing.assert_close(one, eager)
        torch.testing.assert_close(other, eager)
    torch._dynamo.reset()
    compiled = torch.compile(hypersphere.decorrelation, fullgraph=True, backend="aot_eager")(z, y, a)
    torch.testing.assert_close(compiled, hypersphere.decorrelation(z, y, a))


# --- the derivation against autograd ---------------------------------------------------------------------------


@pytest.mark.parametrize("n", range(2, 9))
def test_symbolic_simplex_both_ways(n):
    """Closed form and recursion: exact cosines and a tight frame, equal to the numbers up to a rotation."""
    for points in (derived.simplex(n), derived.recursive_simplex(n)):
        gram = (points * points.T).applyfunc(sympy.simplify)
        assert gram == sympy.Matrix(n, n, lambda i, j: 1 if i == j else sympy.Rational(-1, n - 1))
        assert (points.T * points).applyfunc(sympy.simplify) == sympy.Rational(n, n - 1) * sympy.eye(n - 1)
        assert gram.rank() == n - 1
        ours = hypersphere.simplex_centroids(n, n + 2)
        exact = torch.tensor(gram.tolist(), dtype=torch.float64)
        torch.testing.assert_close(ours @ ours.T, exact, rtol=0, atol=1e-14)


def test_gram_matrix_for_any_number_of_classes():
    """G² = C/(C-1) G and tr G = C with C symbolic: a projector of rank C - 1, times C/(C-1)."""
    a, b = derived.gram()
    scaled = [sympy.factor(x * derived.C / (derived.C - 1)) for x in (a, b)]
    assert [sympy.simplify(x - y) for x, y in zip(derived.product((a, b), (a, b)), scaled, strict=True)] == [0, 0]
    trace = derived.C * (a + b)
    assert sympy.simplify(trace - derived.C) == 0
    assert sympy.simplify(trace / (derived.C / (derived.C - 1)) - (derived.C - 1)) == 0


@settings(deadline=None, max_examples=40)
@given(r=st.floats(0.01, 100), c=st.floats(-1, 1), delta=st.floats(0.01, 100))
def test_slopes_in_radius_and_angle_equal_autograd(r, c, delta):
    """`radial_slope` and `angular_slope` against the loss that trains, along the radius and along the sphere."""
    arguments = (derived.r, derived.c, derived.delta)
    stated = [float(sympy.lambdify(arguments, f())(r, c, delta)) for f in (derived.radial_slope, derived.angular_slope)]
    a = torch.tensor([[1.0, 0.0]], dtype=torch.float64)

    def loss(r, c):
        z = r * torch.stack([c, (1 - c * c).clamp_min(1e-300).sqrt()])
        return hypersphere.norm_adaptive_cosine(z, torch.tensor(0), a, delta=delta)

    found = torch.func.grad(loss, argnums=(0, 1))(*torch.tensor([r, c], dtype=torch.float64))
    tolerance = {"abs": 1e-10, "rel": 1e-10}
    assert found[0].item() == pytest.approx(stated[0], **tolerance)
    if abs(c) < 1 - 1e-6:
        assert found[1].item() == pytest.approx(stated[1], **tolerance)


def test_distance_of_vectors_is_that_of_length_and_cosine():
    z, a = [sympy.Integer(1), sympy.Integer(2)], [sympy.Rational(3, 5), sympy.Rational(4, 5)]
    length, cosine = sympy.sqrt(5), sympy.Rational(11, 5) / sympy.sqrt(5)
    assert sympy.simplify(derived.distance_of_vectors(z, a, 2) - derived.distance(length, cosine, 2)) == 0


@pytest.mark.parametrize("n", range(2, 13))
def test_symbolic_gradient_equals_autograd(n):
    z, a = (list(derived.vectors(letter, 1, n)) for letter in "za")
    function = sympy.lambdify([*z, *a, derived.delta], list(derived.gradient(z, a)), "numpy")
    for seed, delta in enumerate((0.0, 0.3, 2.0)):
        x, y, vectors = sample(1, 3, 12, seed)
        x, vectors = x[0, :n], F.normalize(vectors[:, :n])
        loss = torch.func.grad(lambda x, v=vectors, y=y, d=delta: hypersphere.norm_adaptive_cosine(x, y[0], v, delta=d))
        stated = torch.tensor(function(*x.tolist(), *vectors[y[0]].tolist(), delta), dtype=torch.float64)
        torch.testing.assert_close(loss(x), stated, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("batch", "dim"), [(2, 2), (2, 4), (4, 3), (5, 5)])
def test_symbolic_decorrelation_and_lagrange(batch, dim):
    """The term lambdified equals the one that trains; (tr S)² - ‖S‖² is the sum of squared minors."""
    errors = derived.vectors("e", batch, dim)
    S = derived.spread(errors)
    assert (
        sympy.expand((S.trace() ** 2 - sum(x**2 for x in S)) * (batch - 1) ** 2 - derived.squared_minors(errors)) == 0
    )
    function = sympy.lambdify(list(errors), derived.decorrelation(errors), "numpy")
    z, y, _ = sample(batch, 3, dim)
    a = F.normalize(sample(3, 3, dim, seed=9)[0])
    value = function(*(F.normalize(z) - a[y]).flatten().tolist())
    assert hypersphere.decorrelation(z, y, a).item() == pytest.approx(value, abs=1e-12)


def test_floor_no_stationary_point_and_radial_pull():
    """Aligned features have the floor for a loss; with delta > 0 the gradient is nowhere zero, also at the origin."""
    a = torch.tensor([[0.6, 0.8]], dtype=torch.float64)
    y = torch.zeros(500, dtype=torch.long)
    for delta, r, floor in ((1.0, 1.0, 1.5 - math.sqrt(2)), (0.5, 1.0, 0.0111)):
        value = hypersphere.norm_adaptive_cosine(r * a, y[:1], a, delta=delta)
        assert value.item() == pytest.approx(floor, abs=5e-5)
    z = torch.cat([sample(497, 3, 2, scale=2.0)[0], torch.zeros(1, 2), a, -a]).double().requires_grad_()
    gradient = torch.autograd.grad(hypersphere.norm_adaptive_cosine(z, y, a, delta=0.7).sum(), z)[0]
    assert gradient.norm(dim=1).min() > 1e-6
    slope, cosine = (gradient * z).sum(1), (z @ a.T)[:, 0]
    assert (slope * cosine <= 0).all()


def test_decorrelation_depends_on_the_axes():
    """Turning features and centroids together changes no distance and no decision, yet the term; it can vanish."""
    z, y, a = sample(40)
    e = F.normalize(z) - a[y]
    axes = torch.linalg.eigh(e.T @ e).eigenvectors
    turned = hypersphere.norm_adaptive_cosine(z @ axes, y, a @ axes, delta=0.5)
    torch.testing.assert_close(turned, hypersphere.norm_adaptive_cosine(z, y, a, delta=0.5))
    assert hypersphere.decorrelation(z @ axes, y, a @ axes) < 1e-25 < hypersphere.decorrelation(z, y, a)


def test_a_delta_that_follows_the_norm_leaves_no_length_at_rest():
    """At delta = q r the slope in r, times r, does not depend on r, and is negative for every positive cosine."""
    q = sympy.Symbol("q", positive=True)
    push = sympy.simplify((derived.r * derived.radial_slope()).subs(derived.delta, q * derived.r))
    assert push.free_symbols == {q, derived.c}
    assert all(push.subs({q: ratio, derived.c: cosine}) < 0 for ratio in (0.01, 0.5, 1, 3) for cosine in (0.1, 0.9, 1))
    assert push.subs({q: 1, derived.c: -1}) > 0


def test_sphereface_anneals_as_released():
    """λ = max(5, 1000 / (1 + 0.12 t)): the loss by its formula at the steps 0, 100 and in the end."""
    z = torch.randn(6, 8, generator=torch.Generator().manual_seed(7))  # of seed 0 are the class vectors themselves
    y = torch.arange(6) % 5
    head = hypersphere.head("sphereface", 5, 8)
    cosines = F.normalize(z) @ head.class_vectors().detach().T
    theta = cosines.gather(1, y[:, None]).acos()
    k = (4 * theta / math.pi).floor()
    psi = (1 - 2 * (k % 2)) * torch.cos(4 * theta) - 2 * k
    for step in (0, 100, 10**6):
        head.steps.fill_(step)
        share = max(5.0, 1000 / (1 + 0.12 * step))
        label = (share * cosines.gather(1, y[:, None]) + psi) / (1 + share)
        stated = F.cross_entropy(z.norm(dim=1, keepdim=True) * cosines.scatter(1, y[:, None], label), y)
        torch.testing.assert_close(head(z, y), stated, rtol=1e-4, atol=1e-5)


def test_repulsion_follows_its_formula():
    """Forty points on a circle, where neighbours are closer than a tenth: three steps written out."""
    u = F.normalize(torch.randn(40, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    velocity = torch.zeros_like(u)
    for _ in range(3):
        force = torch.zeros_like(u)
        for m in range(40):
            for n in range(40):
                if m != n:
                    force[m] += (u[m] - u[n]) / max(0.01, (u[m] - u[n]).norm().item()) ** 3
        force -= (force * u).sum(1, keepdim=True) * u
        u, velocity = F.normalize(u + velocity), velocity + 0.01 * force
    torch.testing.assert_close(hypersphere.repulsion_centroids(40, 2, seed=1, steps=3), u, rtol=1e-6, atol=1e-8)


def test_delta_is_the_norm_of_the_epoch_before_alone():
    head = hypersphere.head("pod(delta='norm')", 5, 8)
    z = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
    for scale in (1.0, 10.0):
        head(scale * z, torch.arange(20) % 5)
        head.end_epoch()
        assert head.delta == pytest.approx(head.logits(scale * z).norm(dim=1).mean().item(), rel=1e-5)


@pytest.mark.parametrize("name", ["arcface", "sphereface"])
def test_the_gradient_of_an_angle_is_finite_at_perfect_alignment(name):
    head = hypersphere.head(name, 5, 4)
    with torch.no_grad():
        head.centroids.copy_(torch.cat([torch.eye(4), -torch.eye(4)[:1]]))
    for sign in (1.0, -1.0):
        z = (sign * torch.eye(4)).requires_grad_()
        head(z, torch.arange(4)).backward()
        assert z.grad.isfinite().all() and head.centroids.grad.isfinite().all()
