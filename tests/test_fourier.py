"""The Fourier loss against a transform written out as a sum, its special cases, its derivatives, and the metric."""

import functools
import itertools
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from lossbook import losses
from lossbook.losses import _kernel_cpu, fourier, fourier_distance, spectral

SYMBOLS = spectral.SYMBOLS
quick = settings(deadline=None, max_examples=25)
seeds = st.integers(0, 2**32 - 1)
orders = st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.0, 3.0])
symbols = st.sampled_from(SYMBOLS)


def naive(u, s, symbol):
    """(1/M) Σ_{k≠0} |U_k|² / m(k)^{2s} of u on a grid of any dimension, every sum written out."""
    total = 0.0
    for k in itertools.product(*map(range, u.shape)):
        if not any(k):
            continue
        transformed = 0j
        for x in itertools.product(*map(range, u.shape)):
            transformed += u[x] * np.exp(-2j * np.pi * sum(a * b / n for a, b, n in zip(k, x, u.shape, strict=True)))
        along = {
            "wrap": [min(a, n - a) for a, n in zip(k, u.shape, strict=True)],
            "sin": [2 * math.sin(math.pi * a / n) for a, n in zip(k, u.shape, strict=True)],
            "raw": list(k),
        }[symbol]
        total += abs(transformed) ** 2 / math.hypot(*along) ** (2 * s)
    return total / u.size


def probabilities(seed, classes, batch=1):
    return np.random.default_rng(seed).dirichlet(np.ones(classes), batch)


def loss(p, q, **hyper):
    """The loss between two distributions, given as NumPy arrays (C,) or (B, C)."""
    value = fourier(torch.from_numpy(p).log(), torch.from_numpy(q), **hyper).numpy()
    return value.item() if value.ndim == 0 else value


def between_labels(distance, classes=10, **hyper):
    form = spectral.quadratic_form(classes, **hyper)
    return form[0, 0] + form[distance, distance] - 2 * form[0, distance]


# --- the definition ------------------------------------------------------------------------------------------


@quick
@given(seed=seeds, classes=st.integers(2, 12), s=orders, symbol=symbols, pad=st.integers(0, 9))
def test_ring_against_the_sum(seed, classes, s, symbol, pad):
    p, q = probabilities(seed, classes, 2)
    expected = naive(np.pad(p - q, (0, pad)), s, symbol)
    assert loss(p, q, s=s, symbol=symbol, pad=pad) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    u = p - q
    form = spectral.quadratic_form(classes, s, symbol, "order", pad)
    assert u @ form @ u == pytest.approx(expected, rel=1e-9, abs=1e-12)


@quick
@given(seed=seeds, classes=st.integers(2, 9), s=orders, symbol=symbols, pad=st.integers(0, 2))
def test_placements_against_the_sum(seed, classes, s, symbol, pad):
    """Classes on distinct points of a plane grid of 4 x 5, of a ring of 12, and in permuted order."""
    p, q = probabilities(seed, classes, 2)
    rng = np.random.default_rng(seed)
    plane = [divmod(int(i), 5) for i in rng.choice(20, classes, replace=False)]
    ring = [int(i) for i in rng.choice(12, classes, replace=False)]
    for placement, points in ((plane, plane), (ring, [(i,) for i in ring])):
        u = np.zeros(np.max(points, 0) + 1 + pad)
        for point, value in zip(points, p - q, strict=True):
            u[point] = value
        value = loss(p, q, s=s, symbol=symbol, pad=pad, placement=placement)
        assert value == pytest.approx(naive(u, s, symbol), rel=1e-9, abs=1e-12)
    order = np.random.default_rng(7).permutation(classes)
    u = np.zeros(classes)
    u[order] = p - q
    value = loss(p, q, s=s, symbol=symbol, placement="permuted", permutation_seed=7)
    assert value == pytest.approx(naive(u, s, symbol), rel=1e-9, abs=1e-12)


def test_placement_in_three_dimensions_and_as_an_array():
    points = list(itertools.product(range(2), range(3), range(2)))[:10]
    p, q = probabilities(0, 10, 2)
    u = np.zeros((2, 3, 2))
    for point, value in zip(points, p - q, strict=True):
        u[point] = value
    assert loss(p, q, placement=points, s=1.5) == pytest.approx(naive(u, 1.5, "wrap"))
    assert loss(p, q, placement=np.array(points), s=1.5) == pytest.approx(naive(u, 1.5, "wrap"))
    assert loss(p, q, placement=np.arange(10)) == pytest.approx(loss(p, q))
    made = losses.create("fourier", 10, placement=np.array(points), pad=np.int64(2))
    assert made.hyper == dict(placement=[list(point) for point in points], pad=2)


@pytest.mark.parametrize("classes", [10, 600])
def test_a_grid_too_large_is_refused(classes):
    with pytest.raises(ValueError, match="more than 2\\^24 points"):
        losses.create("fourier", classes, pad=10**10)


def test_the_largest_grid_is_allowed_and_no_larger_one():
    losses.create("fourier", 513, pad=2**24 - 513)
    with pytest.raises(ValueError, match="more than 2\\^24 points"):
        losses.create("fourier", 513, pad=2**24 - 512)


def test_a_pad_that_is_no_number_is_not_taken_for_the_one_that_equals_it():
    z, y = torch.zeros(2, 11), torch.arange(2)
    assert losses.fourier(z, y, pad=1).shape == (2,)  # whose tables are kept from now on
    with pytest.raises(ValueError, match="pad=True"):
        losses.fourier(z, y, pad=True)


@pytest.mark.parametrize("pad", [True, 1.5])
def test_compiled_a_pad_is_judged_too(pad):
    torch._dynamo.reset()
    with pytest.raises(Exception, match="allowed: an integer"):  # the compiler's own wraps it
        torch.compile(losses.fourier, backend="eager")(torch.zeros(2, 5), torch.arange(2), pad=pad)


# --- special cases -------------------------------------------------------------------------------------------


@quick
@given(seed=seeds, classes=st.integers(2, 12), symbol=symbols, s=orders)
def test_brier_as_a_special_case(seed, classes, symbol, s):
    p, q = probabilities(seed, classes, 2)
    brier = ((p - q) ** 2).sum()
    assert loss(p, q, s=0.0, symbol=symbol) == pytest.approx(brier, rel=1e-10, abs=1e-14)
    assert loss(p, q, s=0, symbol=symbol, pad=3) == pytest.approx(brier, rel=1e-10, abs=1e-14)
    # two or three classes on a ring are all neighbours
    if classes in (2, 3):
        assert loss(p, q, s=s) == pytest.approx(brier, rel=1e-10, abs=1e-14)
    if classes == 3:
        assert loss(p, q, s=s, symbol="raw") == pytest.approx((1 + 4**-s) / 2 * brier, rel=1e-10, abs=1e-14)


def test_raw_symbol_of_three_classes():
    assert between_labels(1, 3, s=1.0, symbol="raw") == pytest.approx(0.625 * 2)


@quick
@given(seed=seeds, s=st.floats(0, 4))
def test_four_classes_in_closed_form(seed, s):
    p, q = probabilities(seed, 4, 2)
    u = p - q
    closed = 2 * ((u[0] - u[2]) ** 2 + (u[1] - u[3]) ** 2) + 4**-s * (u[0] - u[1] + u[2] - u[3]) ** 2
    assert loss(p, q, s=s) == pytest.approx(closed / 4, rel=1e-9, abs=1e-13)


TABLE = {
    ("wrap", 0.5): (0.6500, 0.9485, 1.0600, 1.1348, 1.1467),
    ("wrap", 1.0): (0.2649, 0.5550, 0.7463, 0.8686, 0.9049),
    ("wrap", 1.5): (0.1448, 0.3980, 0.6244, 0.7797, 0.8328),
    ("wrap", 2.0): (0.1036, 0.3316, 0.5715, 0.7471, 0.8105),
    ("raw", 1.0): (0.1585, 0.2961, 0.3946, 0.4538, 0.4735),
    ("raw", 2.0): (0.0525, 0.1662, 0.2863, 0.3740, 0.4058),
    ("sin", 0.5): (1.2628, 1.6553, 1.8553, 1.9572, 1.9889),
    ("sin", 1.0): (0.9, 1.6, 2.1, 2.4, 2.5),
    ("sin", 2.0): (33 / 40, 12 / 5, 161 / 40, 26 / 5, 45 / 8),
}


@pytest.mark.parametrize(("symbol", "s"), TABLE)
def test_loss_between_two_labels_by_their_distance(symbol, s):
    """Worked out for ten classes apart from this code, to four decimals."""
    for distance, value in enumerate(TABLE[symbol, s], start=1):
        assert between_labels(distance, s=s, symbol=symbol) == pytest.approx(value, abs=5.1e-5)
        assert between_labels(10 - distance, s=s, symbol=symbol) == pytest.approx(value, abs=5.1e-5)
        logits = torch.full((10,), -1e4).index_fill(0, torch.tensor([0]), 0.0)
        assert fourier(logits, torch.tensor(distance), s=s, symbol=symbol).item() == pytest.approx(value, abs=6e-5)


@quick
@given(seed=seeds, classes=st.integers(2, 12), pad=st.integers(0, 40))
def test_sine_symbol_is_the_periodic_cramer_distance(seed, classes, pad):
    """Σ C² - (difference of the means)² / M: padding leads to the ranked probability score."""
    p, q = probabilities(seed, classes, 2)
    rps = losses.rps(torch.from_numpy(p).log(), torch.from_numpy(q)).item()
    means = np.arange(classes) @ (p - q)
    value = loss(p, q, s=1.0, symbol="sin", pad=pad)
    assert value == pytest.approx(rps - means**2 / (classes + pad), rel=1e-9, abs=1e-12)
    wide = loss(p, q, s=1.0, symbol="sin", pad=20000)
    assert wide == pytest.approx(rps, rel=1e-3, abs=classes**2 / 20000)


@pytest.mark.parametrize("classes", [2, 4, 6])
def test_hypercube_is_a_multiple_of_brier(classes):
    p, q = probabilities(1, classes, 12).reshape(2, 6, classes)
    ratio = loss(p, q, placement="hypercube", s=1.3) / ((p - q) ** 2).sum(1)
    assert np.ptp(ratio) < 1e-12 * ratio.mean()


@quick
@given(seed=seeds, classes=st.integers(2, 12), s=orders, symbol=symbols)
def test_renaming_the_classes_with_their_points_changes_nothing(seed, classes, s, symbol):
    p, q = probabilities(seed, classes, 2)
    order = np.random.default_rng(seed).permutation(classes)
    there = loss(p[order], q[order], s=s, symbol=symbol, placement=[int(i) for i in order])
    assert there == pytest.approx(loss(p, q, s=s, symbol=symbol), rel=1e-9, abs=1e-12)
    shift = int(seed % classes)  # and a ring has no first class, nor a direction
    assert loss(np.roll(p, shift)[::-1].copy(), np.roll(q, shift)[::-1].copy(), s=s, symbol=symbol) == pytest.approx(
        loss(p, q, s=s, symbol=symbol), rel=1e-9, abs=1e-12
    )


@pytest.mark.parametrize("s", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("symbol", SYMBOLS)
def test_bound_is_reached_between_two_labels(symbol, s):
    form = spectral.quadratic_form(10, s, symbol)
    bound = max(between_labels(d, s=s, symbol=symbol) for d in range(1, 10))
    u = np.diff(probabilities(0, 10, 4000).reshape(2, 2000, 10), axis=0)[0]
    assert np.einsum("bi,ij,bj->b", u, form, u).max() <= bound
    if symbol == "wrap":
        assert 10 * bound == pytest.approx({0.5: 11.467, 1.0: 9.05, 2.0: 8.11}[s], rel=2e-3)


# --- derivatives ---------------------------------------------------------------------------------------------


@quick
@given(seed=seeds, classes=st.integers(2, 12), s=orders, symbol=symbols, pad=st.integers(0, 3))
def test_gradient_and_hessian(seed, classes, s, symbol, pad):
    form = torch.from_numpy(spectral.quadratic_form(classes, s, symbol, "order", pad))
    z = torch.from_numpy(2 * np.random.default_rng(seed).standard_normal(classes))
    y = torch.from_numpy(probabilities(seed, classes)[0])

    def function(z):
        return fourier(z, y, s=s, symbol=symbol, pad=pad)

    p = torch.softmax(z, 0)
    g = 2 * form @ (p - y)
    r = p * (g - p @ g)
    torch.testing.assert_close(torch.autograd.functional.jacobian(function, z), r, rtol=1e-8, atol=1e-10)
    jacobian = torch.diag(p) - torch.outer(p, p)
    hessian = 2 * jacobian @ form @ jacobian + torch.diag(r) - torch.outer(r, p) - torch.outer(p, r)
    torch.testing.assert_close(torch.autograd.functional.hessian(function, z), hessian, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("s", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("classes", range(2, 13))
def test_eigenvalues(classes, s):
    """The form divided by N has the weights themselves as eigenvalues, and 0 for a constant."""
    values = np.sort(np.linalg.eigvalsh(spectral.quadratic_form(classes, s)))
    expected = np.sort([0.0, *(min(k, classes - k) ** (-2 * s) for k in range(1, classes))])
    np.testing.assert_allclose(values, expected, atol=1e-12)


# --- the two ways to compute it ------------------------------------------------------------------------------


@pytest.mark.parametrize("pad", [0, 1, 37])
@pytest.mark.parametrize("symbol", SYMBOLS)
def test_fft_equals_the_quadratic_form(symbol, pad):
    classes = spectral.LARGEST_QUADRATIC_FORM + 1  # the first that goes by FFT; padded odd, even, even
    p, q = probabilities(3, classes, 4).reshape(2, 2, classes)
    u = p - q
    form = spectral.quadratic_form(classes, 1.0, symbol, "order", pad)
    expected = np.einsum("bi,ij,bj->b", u, form, u)
    np.testing.assert_allclose(loss(p, q, symbol=symbol, pad=pad), expected, rtol=1e-9)


@pytest.mark.parametrize("points", [9, 10])
@pytest.mark.parametrize("symbol", SYMBOLS)
def test_half_spectrum_counts_conjugates_once_and_nyquist_alone(points, symbol, monkeypatch):
    """For 10 points, doubling Nyquist too gives a number some 4 % too large, doubling none one of about half."""
    p, q = probabilities(5, points, 2)
    whole = loss(p, q, symbol=symbol)
    monkeypatch.setattr(spectral, "LARGEST_QUADRATIC_FORM", 1)
    assert loss(p, q, symbol=symbol) == pytest.approx(whole, rel=1e-10)
    assert whole == pytest.approx(naive(p - q, 1.0, symbol), rel=1e-10)


# Few classes have a softmax of their own, more have value and gradient from one product, and most of all go by FFT.
PATHS = pytest.mark.parametrize(("classes", "largest"), [(7, 512), (20, 512), (7, 6), (20, 6)])


def twice_forward(function):
    return torch.func.jacfwd(torch.func.jacfwd(function))


def thrice(function):
    return torch.func.grad(lambda z, y: torch.func.jacrev(torch.func.grad(function))(z, y).pow(3).sum())


@PATHS
@pytest.mark.filterwarnings("ignore:.torch.jit.script:FutureWarning")  # torch's own, in its forward mode
def test_every_path_is_smooth_and_maps(classes, largest, monkeypatch):
    monkeypatch.setattr(spectral, "LARGEST_QUADRATIC_FORM", largest)
    random = torch.Generator().manual_seed(0)
    z = torch.randn(3, classes, generator=random, dtype=torch.float64, requires_grad=True)  # a third is not exact
    soft = torch.from_numpy(probabilities(0, classes, 3))
    form = torch.from_numpy(spectral.quadratic_form(classes))
    one_hot = torch.eye(classes, dtype=torch.float64)

    def reference(z, y):
        u = torch.softmax(z, -1) - y
        return ((u @ form) * u).sum(-1)

    for target, y in ((torch.tensor([1, 5, 0]), one_hot[[1, 5, 0]]), (soft, soft)):
        assert gradcheck(lambda z, t=target: fourier(z, t), z, check_forward_ad=True)
        assert gradgradcheck(lambda z, t=target: fourier(z, t), z, check_fwd_over_rev=True)
        torch.testing.assert_close(fourier(z, target), reference(z, y))
        for reduction in ("mean", "sum"):
            reduced = functools.partial(fourier, target=target, reduction=reduction)
            assert gradcheck(reduced, z, check_forward_ad=True) and gradgradcheck(reduced, z)
            torch.testing.assert_close(reduced(z), getattr(reference(z, y), reduction)())
        for derivative in (torch.func.grad, torch.func.jacrev, torch.func.hessian, twice_forward, thrice):
            ours, theirs = derivative(fourier)(z[0].detach(), target[0]), derivative(reference)(z[0].detach(), y[0])
            torch.testing.assert_close(ours, theirs)
        mapped = torch.func.vmap(torch.func.grad(fourier))(z.detach(), target)
        torch.testing.assert_close(mapped, torch.func.vmap(torch.func.grad(reference))(z.detach(), y))
        torch.testing.assert_close(fourier(z.view(3, 1, -1), target.unsqueeze(1)), reference(z, y)[:, None])


@PATHS
@pytest.mark.filterwarnings("ignore")  # torch's own, while it compiles
def test_every_path_compiles_whole(classes, largest, monkeypatch):
    monkeypatch.setattr(spectral, "LARGEST_QUADRATIC_FORM", largest)
    torch._dynamo.reset()
    compiled = torch.compile(fourier, fullgraph=True, backend="aot_eager")
    z, target = torch.randn(4, classes, generator=torch.Generator().manual_seed(0)), torch.arange(4)
    for reduction in ("none", "sum", "mean"):
        ours, theirs = z.clone().requires_grad_(), z.clone().requires_grad_()
        compiled(ours, target, reduction=reduction).sum().backward()
        fourier(theirs, target, reduction=reduction).sum().backward()
        torch.testing.assert_close(ours.grad, theirs.grad)


@PATHS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_path_is_finite_at_large_logits_and_refuses_other_labels(classes, largest, dtype, monkeypatch):
    monkeypatch.setattr(spectral, "LARGEST_QUADRATIC_FORM", largest)
    z = torch.tensor([-1e4, 0.0, 1e4]).repeat(classes)[: 3 * classes].view(3, classes).to(dtype).requires_grad_()
    for target in (torch.tensor([0, 1, classes - 1]), torch.from_numpy(probabilities(0, classes, 3)).to(dtype)):
        value = fourier(z, target)
        (gradient,) = torch.autograd.grad(value.sum(), z)
        assert value.isfinite().all() and (value >= 0).all() and gradient.isfinite().all()
        assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    right = torch.full((classes,), -1e4).index_fill(0, torch.tensor([2]), 1e4).to(dtype)
    assert fourier(right, torch.tensor(2)) < 1e-12
    for wrong in (-1, classes, -100):
        with pytest.raises(ValueError, match=f"class index {wrong}; allowed: 0 to {classes - 1}"):
            fourier(z, torch.tensor([0, wrong, 0]))


@pytest.mark.parametrize("classes", [10, 20, 100])
def test_gradient_of_a_label_is_that_of_its_one_hot_distribution_in_float32(classes):
    """Of a loss near zero and of one that is large, to the rounding of its largest term."""
    random = torch.Generator().manual_seed(2)
    labels = torch.randint(classes, (40,), generator=random)
    for scale in (0.1, 1.0, 10.0):
        z = scale * torch.randn(40, classes, generator=random) + 2 * scale * F.one_hot(labels, classes)
        z, exact = z.requires_grad_(), z.detach().double().requires_grad_()
        value, expected = fourier(z, labels), fourier(exact, F.one_hot(labels, classes).double())
        assert (value >= 0).all()
        torch.testing.assert_close(value.double(), expected, rtol=1e-4, atol=2e-7)
        pair = (torch.autograd.grad(v.sum(), at)[0].double() for v, at in ((value, z), (expected, exact)))
        torch.testing.assert_close(*pair, rtol=1e-4, atol=2e-7)


@pytest.mark.parametrize("classes", [10, 20])
def test_logits_may_lie_in_memory_as_they_like(classes):
    z = torch.randn(classes, 2 * 40, generator=torch.Generator().manual_seed(3))[:, ::2].T.requires_grad_()
    labels = torch.arange(40) % classes
    for reduction in ("none", "sum", "mean"):
        pair = [fourier(logits, labels, reduction=reduction) for logits in (z, z.contiguous())]
        torch.testing.assert_close(*pair)
        torch.testing.assert_close(*(torch.autograd.grad(value.sum(), z)[0] for value in pair))
    for apart in (labels.repeat_interleave(2)[::2], torch.tensor(3).expand(40)):  # and so may the labels
        assert not apart.is_contiguous()
        torch.testing.assert_close(fourier(z, apart), fourier(z, apart.contiguous()))


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("classes", [10, 20])
def test_gradient_can_be_asked_for_again(classes, reduction):
    """What is kept of the forward pass is handed on and scaled; asked again, it is worked out anew."""
    z = torch.randn(40, classes, generator=torch.Generator().manual_seed(3)).requires_grad_()
    value = fourier(z, torch.arange(40) % classes, reduction=reduction)
    first, second = (torch.autograd.grad(value.sum(), z, retain_graph=True)[0] for _ in range(2))
    (scaled,) = torch.autograd.grad(3 * value.sum(), z, retain_graph=True)
    torch.testing.assert_close(first, second)
    torch.testing.assert_close(scaled, 3 * first)
    (at_once,) = torch.autograd.grad(2 * fourier(z, torch.arange(40) % classes, reduction=reduction).sum(), z)
    torch.testing.assert_close(at_once, 2 * first)
    (slope,) = torch.autograd.grad(value.sum(), z, create_graph=True)
    torch.testing.assert_close(slope, first)
    assert torch.autograd.grad(slope.square().sum(), z)[0].norm() > 0


class Largest(TorchDispatchMode):
    """Records how many elements the largest tensor has that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        returned = function(*args, **(kwargs or {}))
        tensors = [t for t in (returned if isinstance(returned, tuple | list) else [returned]) if torch.is_tensor(t)]
        self.elements = max([self.elements, *(t.numel() for t in tensors)])
        return returned


@pytest.mark.parametrize(("batch", "classes"), [(256, 10), (32, 64), (16, 200)])
def test_no_tensor_of_batch_times_classes_squared_is_made(batch, classes):
    z = torch.randn(batch, classes, generator=torch.Generator().manual_seed(0), requires_grad=True)
    labels = torch.arange(batch) % classes
    for target in (labels, torch.softmax(torch.randn(batch, classes), -1)):
        with Largest() as seen:
            fourier(z, target).mean().backward()
        assert batch * classes <= seen.elements <= max(classes * classes, 2 * batch * (classes + 2))
        assert z.grad.abs().sum() > 0
    with Largest() as seen:  # and it would be seen
        form = torch.from_numpy(spectral.quadratic_form(classes)).float()
        (torch.softmax(z, -1)[:, :, None] * form).sum(1)
    assert seen.elements == batch * classes**2


# --- the metric ----------------------------------------------------------------------------------------------


@quick
@given(seed=seeds, shape=st.sampled_from([(7,), (10,), (3, 4), (4, 4), (2, 3, 2)]), s=orders, symbol=symbols)
def test_distance_is_a_metric_and_equals_the_sum(seed, shape, s, symbol):
    x, y, z = torch.from_numpy(probabilities(seed, math.prod(shape), 3)).view(3, *shape)

    def distance(a, b):
        return fourier_distance(a, b, s=s, symbol=symbol, dims=len(shape)).item()

    assert distance(x, y) == pytest.approx(math.sqrt(naive((x - y).numpy(), s, symbol)), rel=1e-9)
    assert distance(x, y) == pytest.approx(distance(y, x), rel=1e-12) and distance(x, y) > 0
    assert distance(x, x) == 0
    assert distance(x, z) <= distance(x, y) + distance(y, z) + 1e-12
    batch = fourier_distance(torch.stack([x, y]), torch.stack([z, z]), s=s, symbol=symbol, dims=len(shape))
    torch.testing.assert_close(batch, torch.tensor([distance(x, z), distance(y, z)]).double())


def test_distance_is_the_root_of_the_loss_and_refuses_other_shapes():
    p, q = probabilities(0, 10, 2)
    assert fourier_distance(torch.from_numpy(p), torch.from_numpy(q)).item() ** 2 == pytest.approx(loss(p, q))
    three = torch.ones(3)
    for x, y, dims in (
        (three, torch.ones(4), 1), (three, three, 2), (three, three, 0), (three, three, 1.0), (three, three.numpy(), 1),
        (three, 1j * three, 1)
    ):  # fmt: skip
        with pytest.raises(ValueError, match="allowed"):
            fourier_distance(x, y, dims=dims)
    with pytest.raises(ValueError, match="wrap"):
        fourier_distance(torch.ones(4), torch.ones(4), symbol="warp")


@quick
@given(seed=seeds, s=orders, symbol=symbols)
def test_distance_does_not_see_the_place_on_the_torus(seed, s, symbol):
    x, y = torch.from_numpy(probabilities(seed, 20, 2)).view(2, 4, 5)
    moved = fourier_distance(x.roll((1, 2), (0, 1)), y.roll((1, 2), (0, 1)), s=s, symbol=symbol, dims=2)
    torch.testing.assert_close(moved, fourier_distance(x, y, s=s, symbol=symbol, dims=2))


def test_distance_takes_counts_and_changes_nothing_under_autocast():
    x, y = torch.tensor([[3, 1, 0, 2], [0, 2, 3, 1]])
    exact = fourier_distance(x.double(), y.double())
    assert fourier_distance(x, y).item() == pytest.approx(exact.item(), rel=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        assert fourier_distance(x.double(), y.double()) == exact
    assert fourier_distance(x.to(torch.uint8), y.to(torch.uint8)) == fourier_distance(x, y)  # below zero, too
    x, y = torch.rand(2, 3, 64, generator=torch.Generator().manual_seed(0)).half()
    assert torch.equal(fourier_distance(x, y), fourier_distance(x.float(), y.float()))


def test_distance_of_equal_distributions_has_gradient_zero():
    x = torch.tensor([[1.0, 1, 1, 1], [2, 0, 1, 1]], requires_grad=True)
    distance = fourier_distance(x, torch.ones(2, 4))
    for value in (distance, distance.square()):
        (gradient,) = torch.autograd.grad(value.sum(), x, retain_graph=True)
        assert (gradient[0] == 0).all() and gradient[1].isfinite().all() and gradient[1].any()
    assert fourier_distance(torch.tensor([math.nan, 1]), torch.ones(2)).isnan()


def test_distance_compiled_for_several_grids_and_orders():
    torch._dynamo.reset()
    compiled = torch.compile(fourier_distance, fullgraph=True, backend="eager")
    for points, s in itertools.product((8, 10, 12), (1.0, 1.5)):
        x, y = torch.from_numpy(probabilities(points, points, 2)).view(2, points)
        torch.testing.assert_close(compiled(x, y, s=s), fourier_distance(x, y, s=s))


@pytest.mark.filterwarnings("ignore")  # torch's own, while it exports
@pytest.mark.parametrize("classes", [7, 23])
@pytest.mark.parametrize("soft", [False, True])
def test_exported(classes, soft):
    loss = losses.create("fourier(s=1.25)", classes)
    y = torch.eye(classes)[:6] if soft else torch.arange(6)
    z = torch.linspace(-1, 1, 6 * classes).view(6, classes)
    exported = torch.export.export(loss, (z, y)).module()
    torch.testing.assert_close(exported(z, y), loss(z, y))
    z.requires_grad_()
    torch.testing.assert_close(*(torch.autograd.grad(value(z, y), z)[0] for value in (exported, loss)))


def test_weights_are_refused_where_the_loss_would_be_infinite():
    with pytest.raises(ValueError, match="too large"):
        losses.create("fourier(s=100, symbol='sin')", 12)
    refused = {"labels": [], "distributions": []}
    for s in range(20, 80):  # of both alike, though the way of distributions takes the root of the weights
        for kind, target in (("labels", torch.arange(2)), ("distributions", torch.full((2, 12), 1 / 12))):
            try:
                losses.fourier(torch.zeros(2, 12), target, s=float(s), symbol="sin")
            except ValueError:
                refused[kind].append(s)
    assert refused["labels"] == refused["distributions"] != []


def check_kernel(both):
    """Value and gradient of a kernel are those of the formula, with and without a share."""
    random = torch.Generator().manual_seed(0)
    for classes in (2, 3, 10, 16, 17, 32, 33, 100, 128):
        hessian = torch.from_numpy(2 * spectral.quadratic_form(classes)).float()
        for batch in (0, 1, 7, 300):
            logits = 5 * torch.randn(batch, classes, generator=random)
            labels = torch.randint(classes, (batch,), generator=random)
            if batch:
                logits[0, 0] = 1e4
            found = both(logits, labels, hessian)
            z = logits.double().requires_grad_()
            value = spectral._OfLabels.apply(z, labels, hessian.double(), "none", None)
            expected = value.detach(), torch.autograd.grad(value.sum(), z)[0]
            for one, other in zip(found, expected, strict=True):
                torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=2e-6)
            assert (found[0] >= 0).all()
            for one, whole in zip(both(logits, labels, hessian, 0.25), found, strict=True):
                torch.testing.assert_close(one, whole / 4)


ON_A_GPU = """
import torch
from lossbook.losses import _kernel_gpu
from test_fourier import check_kernel

check_kernel(_kernel_gpu.both)
value, gradient = _kernel_gpu.both(torch.randn(3, 128), torch.tensor([-1, 5, 128]), torch.eye(128))
assert value.isnan().tolist() == [True, False, True] == gradient.isnan().any(1).tolist()
"""


def test_the_kernel_of_a_gpu_is_the_formula():
    """In Triton's interpreter, which needs no GPU; labels that are no class come out as NaN."""
    pytest.importorskip("triton", reason="no Triton on this platform")
    there = dict(os.environ, TRITON_INTERPRET="1")
    command = [sys.executable, "-c", ON_A_GPU]
    done = subprocess.run(command, env=there, cwd=Path(__file__).parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


needs_compiler = pytest.mark.skipif(not _kernel_cpu.compiler(), reason="no C++ compiler found")
WIDEST, VECTORS = torch.backends.cpu.get_cpu_capability(), list(_kernel_cpu.VECTORS)  # from narrow to wide


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A folder without a compiled kernel in it, and none in this process."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(_kernel_cpu, "_compiled", functools.cache(_kernel_cpu._compiled.__wrapped__))
    return tmp_path


@needs_compiler
@pytest.mark.parametrize("vectors", ["none", *VECTORS[: VECTORS.index(WIDEST) + 1 if WIDEST in VECTORS else 0]])
def test_the_kernel_of_a_cpu_is_the_formula(vectors, cache, monkeypatch):
    """With the vectors of this processor, and with the narrower ones that it has too."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: vectors)
    check_kernel(_kernel_cpu.both)
    assert [path.suffix for path in (cache / "lossbook").iterdir()] == [".so"]
    for label in (-1, 10):
        with pytest.raises(IndexError):
            _kernel_cpu.both(torch.zeros(20, 10), torch.full((20,), label), torch.eye(10))


@needs_compiler
def test_the_kernel_of_a_cpu_takes_any_logits(cache):
    """Of a class that cannot be, p is 0; where p does not exist, nor do value and gradient, of that example alone."""
    hessian, labels = torch.from_numpy(2 * spectral.quadratic_form(7)).float(), torch.tensor([0, 1, 2])
    for entry, place in itertools.product([math.nan, math.inf, -math.inf, -200.0, -1e30], [0, 1, 6]):
        logits = torch.linspace(-1, 1, 21).view(3, 7).contiguous()
        logits[1, place] = entry
        z = logits.double().requires_grad_()
        expected = spectral._OfLabels.apply(z, labels, hessian.double(), "none", None)
        slope = torch.autograd.grad(expected.sum(), z)[0]
        for one, other in zip(_kernel_cpu.both(logits, labels, hessian), (expected, slope), strict=True):
            torch.testing.assert_close(one.double(), other.detach(), rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("without", ["compiler", "cache", "home"])
def test_without_its_kernel_the_loss_is_the_same(without, cache, monkeypatch):
    logits, labels = torch.linspace(-2, 2, 60).view(6, 10).requires_grad_(), torch.arange(6)

    def both():
        value = losses.fourier(logits, labels, reduction="mean")
        return value.detach(), torch.autograd.grad(value, logits)[0]

    there = both()
    if without == "compiler":
        monkeypatch.setenv("CXX", "no-such-compiler")
    elif without == "home":
        monkeypatch.setenv("XDG_CACHE_HOME", "~no-such-user/cache")
    else:
        (cache / "file").touch()
        monkeypatch.setenv("XDG_CACHE_HOME", str(cache / "file"))
    _kernel_cpu._compiled.cache_clear()
    assert spectral._kernel_for(logits, labels) is None
    torch.testing.assert_close(both(), there)


@needs_compiler
@pytest.mark.filterwarnings("ignore")  # torch.jit.trace warns
def test_the_kernel_of_a_cpu_is_for_plain_tensors_alone(cache):
    logits, labels = torch.zeros(4, 10), torch.arange(4)
    assert spectral._kernel_for(logits, labels) is _kernel_cpu
    assert spectral._kernel_for(torch.nn.Parameter(logits), labels) is _kernel_cpu
    assert spectral._kernel_for(logits.double(), labels) is None
    assert spectral._kernel_for(torch.zeros(4, 129), labels) is None
    assert spectral._kernel_for(logits, labels.to("meta")) is None
    assert spectral._kernel_for(logits, labels.as_subclass(type("Marked", (torch.Tensor,), {}))) is None
    with FakeTensorMode(allow_non_fake_inputs=True):  # which has no memory to read
        made = torch.zeros(4, 10), torch.arange(4)
        assert losses.fourier(*made).shape == (4,)
    assert spectral._kernel_for(*made) is None
    traced = torch.jit.trace(losses.fourier, (logits, labels))
    other = torch.linspace(-1, 1, 40).view(4, 10)
    torch.testing.assert_close(traced(other, labels), losses.fourier(other, labels))


def test_a_loss_of_many_classes_is_never_below_zero():
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(20000, 100, generator=random)
    labels = torch.randint(100, (20000,), generator=random)
    logits.scatter_(1, labels[:, None], 25.0)
    for s in (0.0, 1.0, 3.0):
        assert losses.fourier(logits, labels, s=s).min() >= 0
