"""Label noise against its transition matrix, image noise against its distribution."""

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix

from lossbook import data, noise

rates = st.floats(0, 1)
MAPPED = {"digits": 10, "mnist": 10, "fashion_mnist": 10, "cifar10": 10, "cifar100": 100}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@st.composite
def label_noise(draw):
    """A kind with a number of classes and a data set that suit it."""
    kind = draw(st.sampled_from(noise.LABEL_KINDS))
    if kind == "asymmetric":
        dataset = draw(st.sampled_from(sorted(MAPPED)))
        return kind, MAPPED[dataset], dataset
    return kind, draw(st.integers(2, 20)), None


# --- transition matrices ----------------------------------------------------------------------------------


@settings(deadline=None)
@given(what=label_noise(), rate=rates)
def test_rows_are_distributions(what, rate):
    kind, num_classes, dataset = what
    matrix = noise.transition_matrix(kind, rate, num_classes, dataset)
    assert matrix.shape == (num_classes, num_classes) and matrix.dtype == torch.float64
    assert matrix.min() >= 0
    torch.testing.assert_close(matrix.sum(1), torch.ones(num_classes).double(), atol=1e-14, rtol=0)


@settings(deadline=None)
@given(what=label_noise())
def test_rate_zero_is_the_identity(what):
    kind, num_classes, dataset = what
    matrix = noise.transition_matrix(kind, 0.0, num_classes, dataset)
    assert torch.equal(matrix, torch.eye(num_classes).double())


@settings(deadline=None)
@given(num_classes=st.integers(2, 20), rate=rates)
def test_effective_rates(num_classes, rate):
    """The share that changes on balanced labels is 1 - tr(T) / K."""

    def changed(kind):
        return 1 - noise.transition_matrix(kind, rate, num_classes).trace().item() / num_classes

    assert changed("none") == 0
    assert changed("uniform") == pytest.approx(rate * (1 - 1 / num_classes), abs=1e-12)
    for kind in ("symmetric", "pair", "ring"):
        assert changed(kind) == pytest.approx(rate, abs=1e-12)


@pytest.mark.parametrize("dataset, share", [(name, 1.0 if name == "cifar100" else 0.5) for name in MAPPED])
def test_asymmetric_noise_touches_only_the_classes_in_its_map(dataset, share):
    matrix = noise.transition_matrix("asymmetric", 0.4, MAPPED[dataset], dataset)
    assert 1 - matrix.trace().item() / MAPPED[dataset] == pytest.approx(0.4 * share, abs=1e-12)


@settings(deadline=None)
@given(num_classes=st.integers(2, 20), rate=rates)
def test_uniform_noise_is_symmetric_noise_at_the_effective_rate(num_classes, rate):
    uniform = noise.transition_matrix("uniform", rate, num_classes)
    symmetric = noise.transition_matrix("symmetric", rate * (1 - 1 / num_classes), num_classes)
    torch.testing.assert_close(uniform, symmetric, atol=1e-14, rtol=0)


@settings(deadline=None)
@given(num_classes=st.integers(2, 20), rate=rates)
def test_pair_and_ring_are_circulant(num_classes, rate):
    """A shift of the classes leaves T as it is, and ring is pair averaged with its reverse."""
    pair = noise.transition_matrix("pair", rate, num_classes)
    ring = noise.transition_matrix("ring", rate, num_classes)
    for matrix in (pair, ring):
        assert torch.equal(matrix.roll((1, 1), (0, 1)), matrix)
    for label in range(num_classes):
        assert pair[label, (label + 1) % num_classes] == pytest.approx(rate)
    torch.testing.assert_close(ring, (pair + pair.T) / 2, atol=1e-14, rtol=0)


def test_with_two_classes_every_full_flip_is_the_same():
    for kind in ("symmetric", "pair", "ring"):
        assert torch.equal(noise.transition_matrix(kind, 1.0, 2), torch.tensor([[0.0, 1], [1, 0]]).double())


def full_flip(dataset):
    """Where each class goes at rate 1, by class name."""
    names = data.SETS[dataset].classes
    target = noise.transition_matrix("asymmetric", 1.0, len(names), dataset).argmax(1).tolist()
    return {names[i]: names[j] for i, j in enumerate(target) if i != j}


@pytest.mark.parametrize(
    "dataset, expected",
    [
        ("mnist", {"7": "1", "2": "7", "5": "6", "6": "5", "3": "8"}),
        ("digits", {"7": "1", "2": "7", "5": "6", "6": "5", "3": "8"}),
        (
            "fashion_mnist",
            {
                "Ankle boot": "Sneaker",
                "Sneaker": "Sandal",
                "Pullover": "Shirt",
                "Coat": "Dress",
                "Dress": "Coat",
            },
        ),
        (
            "cifar10",
            {"truck": "automobile", "bird": "airplane", "deer": "horse", "cat": "dog", "dog": "cat"},
        ),
    ],
)
def test_asymmetric_maps_are_the_standard_ones(dataset, expected):
    assert full_flip(dataset) == expected


def test_cifar100_goes_round_its_twenty_superclasses_of_five():
    groups = [[f for f, c in enumerate(noise.CIFAR100_COARSE) if c == coarse] for coarse in range(20)]
    assert [len(group) for group in groups] == [5] * 20
    target = noise.transition_matrix("asymmetric", 1.0, 100, "cifar100").argmax(1).tolist()
    for group in groups:
        for fine, following in zip(group, group[1:] + group[:1], strict=True):
            assert target[fine] == following
    assert sorted(target) == list(range(100)), "a permutation: no class is emptied, none grows"
    names = data.SETS["cifar100"].classes
    assert [names[fine] for fine in groups[14]] == ["baby", "boy", "girl", "man", "woman"]
    assert [names[fine] for fine in groups[17]] == [
        "maple_tree",
        "oak_tree",
        "palm_tree",
        "pine_tree",
        "willow_tree",
    ]


# --- draws ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.1, 0.4, 0.8, 1.0])
@pytest.mark.parametrize(
    "kind, num_classes, dataset",
    [(kind, 10, "cifar10") for kind in noise.LABEL_KINDS] + [("asymmetric", 100, "cifar100"), ("ring", 3, None)],
)
def test_the_realised_matrix_is_within_a_binomial_bound(kind, num_classes, dataset, rate):
    """100 000 draws against Bernstein's bound, which a cell breaks with probability 2 exp(-t) at most:

    |mean - p| <= sqrt(2 p (1-p) t / n) + 2 t / (3 n), here with t = 25.
    """
    true = noise.transition_matrix(kind, rate, num_classes, dataset)
    labels = torch.arange(100_000) % num_classes
    noisy = noise.flip_labels(labels, kind, rate, num_classes, seeded(), dataset)
    found = torch.from_numpy(confusion_matrix(labels, noisy, labels=range(num_classes), normalize="true"))
    n, t = torch.bincount(labels)[:, None], 25
    bound = (2 * true * (1 - true) * t / n).sqrt() + 2 * t / (3 * n)
    assert ((found - true).abs() <= bound).all()
    assert (found[true == 0] == 0).all(), "what has no probability never happens"


def test_draws_are_independent_of_each_other():
    """Neighbouring examples flip together as often as chance has it."""
    labels = torch.zeros(100_000, dtype=torch.long)
    flipped = noise.flip_labels(labels, "symmetric", 0.5, 10, seeded()).ne(0).double() - 0.5
    correlation = (flipped[1:] * flipped[:-1]).mean().item() / 0.25
    assert abs(correlation) < 5 / math.sqrt(len(labels))


@settings(deadline=None, max_examples=50)
@given(what=label_noise(), rate=rates, seed=st.integers(0, 2**63 - 1), n=st.integers(0, 50))
def test_label_noise_depends_on_its_generator_alone(what, rate, seed, n):
    kind, num_classes, dataset = what
    labels = torch.arange(n) % num_classes
    state = torch.get_rng_state()
    first = noise.flip_labels(labels, kind, rate, num_classes, seeded(seed), dataset)
    assert torch.equal(torch.get_rng_state(), state), "the global generator is not touched"
    torch.rand(3)
    np.random.default_rng().random()
    noise.flip_labels(labels, "symmetric", 0.5, num_classes, seeded(seed + 1))
    second = noise.flip_labels(labels.numpy().astype(np.uint8), kind, rate, num_classes, seeded(seed), dataset)
    assert torch.equal(first, second)
    assert first.dtype == torch.int64 and first.shape == labels.shape
    assert torch.equal(labels, torch.arange(n) % num_classes), "the clean labels stay as they were"


def test_another_seed_gives_other_noise():
    labels = torch.arange(1000) % 10
    a, b = (noise.flip_labels(labels, "symmetric", 0.4, 10, seeded(seed)) for seed in (0, 1))
    assert not torch.equal(a, b)


@pytest.mark.parametrize("kind, rate", [("none", 0.4), ("symmetric", 0.0), ("asymmetric", 0)])
def test_no_noise_returns_the_labels_in_a_new_tensor(kind, rate):
    labels = torch.arange(10)
    noisy = noise.flip_labels(labels, kind, rate, 10, seeded(), "mnist")
    assert torch.equal(noisy, labels) and noisy.data_ptr() != labels.data_ptr()


@pytest.mark.parametrize("rate", [-0.1, 1.1, math.nan, math.inf, "0.4", None])
def test_a_rate_outside_its_range_is_refused(rate):
    for kind in noise.LABEL_KINDS:
        with pytest.raises(ValueError, match=r"rate of label noise=.* was given; allowed: a number in \[0, 1\]"):
            noise.flip_labels(torch.arange(10), kind, rate, 10, seeded(), "mnist")


def test_bad_label_noise_is_refused():
    labels = torch.arange(10)
    with pytest.raises(ValueError, match=r"unknown label noise 'symetric'.*Did you mean 'symmetric'"):
        noise.transition_matrix("symetric", 0.1, 10)
    with pytest.raises(ValueError, match=r"num_classes of label noise=1 was given; .*\[2, inf\)"):
        noise.transition_matrix("symmetric", 0.1, 1)
    with pytest.raises(ValueError, match=r"no standard map.*'kmnist'.*none, symmetric, uniform, pair, ring"):
        noise.transition_matrix("asymmetric", 0.1, 10, "kmnist")
    with pytest.raises(ValueError, match=r"no standard map.*None"):
        noise.transition_matrix("asymmetric", 0.1, 10)
    with pytest.raises(ValueError, match="cifar100 has 100 classes, got 10"):
        noise.transition_matrix("asymmetric", 0.1, 10, "cifar100")
    for wrong in (labels + 1, labels - 1):
        for rate in (0.0, 0.1):
            with pytest.raises(ValueError, match="labels must lie in 0 to 9"):
                noise.flip_labels(wrong, "symmetric", rate, 10, seeded())
    for wrong in (labels.float(), labels[None], labels > 3):
        with pytest.raises(ValueError, match="labels must be integers"):
            noise.flip_labels(wrong, "symmetric", 0.1, 10, seeded())


# --- images -----------------------------------------------------------------------------------------------

LEVELS = {"none": 0.5, "gaussian": 0.3, "salt_pepper": 0.4, "blur": 1.2}
image_shapes = st.tuples(st.integers(1, 5), st.sampled_from([1, 3]), st.integers(2, 9), st.integers(2, 9))


@settings(deadline=None, max_examples=60)
@given(
    kind=st.sampled_from(noise.IMAGE_KINDS),
    level=st.floats(0, 1),
    shape=image_shapes,
    seed=st.integers(0, 2**31),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_image_noise_keeps_shape_type_and_range_and_depends_on_its_generator_alone(kind, level, shape, seed, dtype):
    images = torch.rand(shape, generator=seeded(1), dtype=dtype)
    kept, state = images.clone(), torch.get_rng_state()
    first = noise.corrupt_images(images, kind, level, seeded(seed))
    assert torch.equal(torch.get_rng_state(), state), "the global generator is not touched"
    torch.rand(3)
    assert torch.equal(first, noise.corrupt_images(images, kind, level, seeded(seed)))
    assert torch.equal(images, kept), "the clean images stay as they were"
    assert first.shape == images.shape and first.dtype == dtype
    assert first.min() >= 0 and first.max() <= 1


@pytest.mark.parametrize("kind", noise.IMAGE_KINDS)
def test_level_zero_changes_nothing(kind):
    images = torch.rand(4, 3, 8, 8, generator=seeded())
    assert torch.equal(noise.corrupt_images(images, kind, 0.0, seeded()), images)


@pytest.mark.parametrize("kind, level", LEVELS.items())
def test_a_last_chunk_that_is_not_full_is_treated_like_the_others(monkeypatch, kind, level):
    images = torch.rand(50, 1, 8, 8, generator=seeded())
    whole = noise.corrupt_images(images, kind, level, seeded())
    monkeypatch.setattr(noise, "CHUNK", 16)
    in_chunks = noise.corrupt_images(images, kind, level, seeded())
    torch.testing.assert_close(in_chunks, whole)


def test_gaussian_noise_has_its_deviation_and_is_clipped():
    """From mid grey at deviation 0.1 nothing is clipped (5 sigma); from black, half of it is."""
    sigma, shape = 0.1, (500, 1, 20, 20)
    change = noise.corrupt_images(torch.full(shape, 0.5), "gaussian", sigma, seeded()) - 0.5
    n = change.numel()
    assert change.mean().item() == pytest.approx(0, abs=5 * sigma / math.sqrt(n))
    assert change.std().item() == pytest.approx(sigma, abs=5 * sigma / math.sqrt(2 * n))
    black = noise.corrupt_images(torch.zeros(shape), "gaussian", sigma, seeded())
    assert (black == 0).double().mean().item() == pytest.approx(0.5, abs=5 * 0.5 / math.sqrt(n))
    assert black.mean().item() == pytest.approx(sigma / math.sqrt(2 * math.pi), abs=5 * sigma / math.sqrt(n))


@settings(deadline=None, max_examples=20)
@given(level=rates, seed=st.integers(0, 2**31))
def test_salt_and_pepper_hits_whole_pixels_half_each(level, seed):
    images = torch.full((40, 3, 25, 25), 0.5)
    noisy = noise.corrupt_images(images, "salt_pepper", level, seeded(seed))
    assert torch.equal(noisy[:, 0], noisy[:, 1]) and torch.equal(noisy[:, 0], noisy[:, 2])
    n = noisy[:, 0].numel()
    for value in (0, 1):
        share = (noisy[:, 0] == value).double().mean().item()
        p = level / 2
        assert abs(share - p) <= math.sqrt(2 * p * (1 - p) * 25 / n) + 50 / (3 * n)  # Bernstein, as above
    untouched = (noisy != 0) & (noisy != 1)
    assert (noisy[untouched] == 0.5).all()


def test_salt_and_pepper_at_level_one_leaves_no_pixel():
    noisy = noise.corrupt_images(torch.full((10, 1, 8, 8), 0.5), "salt_pepper", 1.0, seeded())
    assert set(noisy.unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("level", [0.5, 1.0, 2.0])
def test_blur_spreads_a_point_into_a_gaussian_of_that_deviation(level):
    images = torch.zeros(1, 1, 41, 41, dtype=torch.float64)
    images[0, 0, 20, 20] = 1
    blurred = noise.corrupt_images(images, "blur", level, None)[0, 0]
    t = torch.arange(41).double() - 20
    kernel = torch.where(t.abs() <= math.ceil(3 * level), (-(t**2) / (2 * level**2)).exp(), 0)
    kernel /= kernel.sum()
    torch.testing.assert_close(blurred, torch.outer(kernel, kernel), atol=1e-12, rtol=0)


@settings(deadline=None, max_examples=30)
@given(level=st.floats(0, 50), shape=image_shapes, grey=st.floats(0, 1))
def test_blur_works_at_any_size_and_leaves_flat_images_flat(level, shape, grey):
    images = torch.full(shape, grey, dtype=torch.float64)
    torch.testing.assert_close(noise.corrupt_images(images, "blur", level, None), images)


def test_more_blur_leaves_less_contrast():
    images = data.to_tensor(data.load("digits").x_test)
    contrast = [noise.corrupt_images(images, "blur", level, None).std().item() for level in (0, 0.5, 1, 2, 4)]
    assert contrast == sorted(contrast, reverse=True) and contrast[-1] < 0.5 * contrast[0]


def test_bad_image_noise_is_refused():
    images = torch.rand(2, 1, 8, 8, generator=seeded())
    with pytest.raises(ValueError, match=r"unknown image noise 'gausian'.*Did you mean 'gaussian'"):
        noise.corrupt_images(images, "gausian", 0.1, seeded())
    for kind in noise.IMAGE_KINDS:
        for level in (-0.1, math.nan, math.inf, "0.1"):
            with pytest.raises(
                ValueError, match=f"{kind}=.* was given; allowed: a number in {re.escape(noise.LEVELS[kind])}"
            ):
                noise.corrupt_images(images, kind, level, seeded())
    for kind in ("gaussian", "blur"):  # what is beyond does not fit the kernels
        assert noise.corrupt_images(images, kind, 1000.0, seeded()).isfinite().all()
        with pytest.raises(ValueError, match=r"\[0, 1000\]"):
            noise.corrupt_images(images, kind, 1e40, seeded())
    with pytest.raises(ValueError, match=r"salt_pepper=1.5 was given; allowed: a number in \[0, 1\]"):
        noise.corrupt_images(images, "salt_pepper", 1.5, seeded())
    for wrong in (images[0], images.mul(255).byte(), images[:0]):
        with pytest.raises(ValueError, match="must be float, NCHW, not empty"):
            noise.corrupt_images(wrong, "gaussian", 0.1, seeded())
    for wrong in (images * 255, images - 1, torch.full_like(images, math.nan)):
        with pytest.raises(ValueError, match=r"must lie in \[0, 1\].*before standardising"):
            noise.corrupt_images(wrong, "gaussian", 0.1, seeded())
