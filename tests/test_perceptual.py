"""The perceptual loss: the derivation against autograd, what it cannot see, and the contract of a loss."""

import math

import numpy
import pytest
import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from lossbook import data
from lossbook.losses.perceptual import PerceptualLoss, feature_distance, gram_matrix, style_distance
from lossbook.symbolic import perceptual as derived

seeds = st.integers(0, 2**32 - 1)
RGB = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.25)}


def network(seed=0, activation=None, **options):
    """A small one with a head that fixes no image size, in float32."""
    torch.manual_seed(seed)
    activation = activation or nn.ReLU()
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, **options), activation, nn.Conv2d(6, 5, 3, padding=1, **options), nn.ReLU()
    )


def images(seed=0, shape=(4, 3, 8, 8)):
    random = torch.Generator().manual_seed(seed)
    return torch.rand((2, *shape), generator=random, dtype=torch.float64).unbind()


def maps(seed, shape=(3, 2, 1, 3)):
    random = torch.Generator().manual_seed(seed)
    return torch.randn((2, *shape), generator=random, dtype=torch.float64).unbind()


# --- the derivation against autograd ------------------------------------------------------------------------------

F, T = derived.features("f", 2, 3), derived.features("t", 2, 3)
TERMS = {
    "feature": (derived.feature_term(F, T), derived.feature_gradient(F, T), feature_distance),
    "gram": (derived.gram_term(F, T), derived.gram_gradient(F, T), style_distance),
}


@pytest.mark.parametrize("term", TERMS)
def test_stated_gradient_is_the_derivative(term):
    value, gradient, _ = TERMS[term]
    assert (derived.derivative(value, F) - gradient).expand() == sympy.zeros(2, 3)


@pytest.mark.parametrize("term", TERMS)
@settings(deadline=None, max_examples=25)
@given(seed=seeds)
def test_derivation_equals_autograd(term, seed):
    value, gradient, function = TERMS[term]
    lambdified = sympy.lambdify([*F, *T], [value, *gradient], "math")
    x, y = maps(seed)
    x.requires_grad_()
    values = function(x, y)
    (slopes,) = torch.autograd.grad(values.sum(), x)
    for a, b, found, slope in zip(x, y, values, slopes, strict=True):
        expected = lambdified(*a.flatten().tolist(), *b.flatten().tolist())
        assert found.item() == pytest.approx(expected[0], abs=1e-10)
        numpy.testing.assert_allclose(slope.flatten(), expected[1:], atol=1e-10)


def test_gatys_normalisation_is_a_quarter():
    assert sympy.expand(derived.gatys_term(F, T) - derived.gram_term(F, T) / 4) == 0


def test_a_permutation_puts_columns_in_that_order():
    F = derived.features("F", 2, 3)
    assert F * derived.permutation([1, 2, 0]) == F.extract([0, 1], [1, 2, 0])


# --- what it cannot see -------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=25)
@given(seed=seeds)
def test_gram_is_blind_to_place_sign_and_rotation_of_positions(seed):
    x, y = maps(seed, (2, 4, 3, 5))
    order = torch.randperm(15, generator=torch.Generator().manual_seed(seed))
    turned = torch.linalg.qr(torch.randn(15, 15, generator=torch.Generator().manual_seed(seed), dtype=x.dtype))[0]
    for same in (x.flatten(2)[..., order], -x.flatten(2), x.flatten(2) @ turned):
        same = same.view_as(x)
        torch.testing.assert_close(style_distance(same, y), style_distance(x, y), atol=1e-12, rtol=1e-12)
        assert (style_distance(same, x) < 1e-24).all() and (feature_distance(same, x) > 1e-3).all()


def test_equal_gram_matrices_differ_by_an_isometry_of_positions():
    """The converse: from F Fᵀ = F' F'ᵀ, with M >= C and full rank, Q = F⁺ F' carries F over to F'."""
    x = maps(0, (1, 3, 2, 4))[0].flatten(2)[0]
    turned = x @ torch.linalg.qr(torch.randn(8, 8, dtype=x.dtype))[0]
    Q = torch.linalg.pinv(x) @ turned
    torch.testing.assert_close(x @ Q, turned)
    torch.testing.assert_close(Q @ Q.mT, torch.linalg.pinv(x) @ x)  # an isometry on the rows of F


def test_tiling_changes_neither_term_under_periodic_padding():
    loss = PerceptualLoss(network(padding_mode="circular").double(), ["0"], ["3"], **RGB)
    x, y = images()
    torch.testing.assert_close(loss(x.tile(2, 2), y.tile(2, 2)), loss(x, y), rtol=1e-10, atol=0)
    sums = [(a - b).square().sum() for a, b in ((x, y), (x.tile(2, 2), y.tile(2, 2)))]
    assert (sums[1] / sums[0]).item() == pytest.approx(4)  # a plain sum of squares grows with the area


@pytest.mark.parametrize("factor", [0.1, 7.0])
def test_scale_of_the_input_enters_squared_and_to_the_fourth(factor):
    """A network of ReLUs without biases is homogeneous: its features carry the factor 1/std, and Gram its square."""
    plain = network(bias=False).double()
    x, y = images()
    for kind, power in (("content", 2), ("style", 4)):
        one, other = (
            PerceptualLoss(plain, **{kind: ["1", "3"]}, mean=(0.5,) * 3, std=(std,) * 3) for std in (1.0, 1 / factor)
        )
        torch.testing.assert_close(other(x, y), factor**power * one(x, y), rtol=1e-10, atol=0)


def test_a_shift_is_forgiven_behind_pooling_and_not_before():
    """Distance to one's own shifted picture over that to another digit is lower behind pooling, without training."""
    digits = torch.from_numpy(data.load("digits").x_test[:200]).double().div(255).unsqueeze(1)
    shifted = torch.nn.functional.pad(digits, (1, 0))[..., :-1]
    for seed in range(3):
        torch.manual_seed(seed)
        layers = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4), nn.Conv2d(16, 16, 1), nn.ReLU()
        ).double()
        before, behind = (
            (loss(digits, shifted) / loss(digits, digits.roll(1, 0))).median().item()
            for loss in (PerceptualLoss(layers, [name], mean=[0.3], std=[0.4]) for name in ("1", "4"))
        )
        assert behind < 0.8 * before


# --- values -------------------------------------------------------------------------------------------------------


def test_value_by_hand_and_per_example():
    """Both terms of two layers by explicit calls of the layers; an example's value does not depend on the others."""
    layers = network().double()
    loss = PerceptualLoss(layers, ["1", "2"], ["3"], **RGB, content_weight=0.5, style_weight=3.0)
    x, y = images()
    normalised = [
        (z - torch.tensor(RGB["mean"]).view(3, 1, 1)) / torch.tensor(RGB["std"]).view(3, 1, 1) for z in (x, y)
    ]
    (x1, x2, x3), (y1, y2, y3) = ([layers[:2](z), layers[:3](z), layers(z)] for z in normalised)
    expected = 0.5 * sum((a - b).square().mean((1, 2, 3)) for a, b in ((x1, y1), (x2, y2)))
    grams = [torch.einsum("bchw,bdhw->bcd", z, z) / z[0].numel() for z in (x3, y3)]
    expected = expected + 3 * (grams[0] - grams[1]).square().sum((1, 2))
    torch.testing.assert_close(loss(x, y), expected, rtol=1e-6, atol=0)
    plain = PerceptualLoss(layers, ["1", "2"], ["3"], **RGB)(x, y)  # both count once
    terms = [PerceptualLoss(layers, *names, **RGB)(x, y) for names in ((["1", "2"], []), ([], ["3"]))]
    torch.testing.assert_close(plain, sum(terms))
    torch.testing.assert_close(terms[1], (grams[0] - grams[1]).square().sum((1, 2)), rtol=1e-6, atol=0)
    torch.testing.assert_close(loss(x[1:2], y[1:2]), loss(x, y)[1:2])


def test_zero_at_equal_images_and_positive_elsewhere():
    loss = PerceptualLoss(network(), ["1"], ["3"], **RGB)
    x, y = (z.float() for z in images())
    assert (loss(x, x) == 0).all() and (loss(x, y) > 0).all()


def test_gram_matrix_is_symmetric_and_positive_semidefinite():
    g = gram_matrix(maps(2, (3, 6, 2, 2))[0])
    assert torch.equal(g, g.mT) and torch.linalg.eigvalsh(g).min() > -1e-12


# --- the contract of a loss ---------------------------------------------------------------------------------------


def test_derivatives_against_finite_differences():
    loss = PerceptualLoss(network(activation=nn.Softplus()).double(), ["1"], ["2"], **RGB)
    x, y = images(shape=(2, 3, 4, 4))
    assert gradcheck(lambda x: loss(x, y), x.requires_grad_())
    assert gradgradcheck(lambda x: loss(x, y), x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_finite_for_extreme_images_in_every_precision(dtype):
    loss = PerceptualLoss(network(), ["1"], ["3"], **RGB)
    x = torch.tensor([-1e4, 0.0, 1e4]).view(3, 1, 1, 1).expand(3, 3, 8, 8).to(dtype).requires_grad_()
    y = x.detach().flip(0)
    value = loss(x, y)
    value.sum().backward()
    assert value.dtype == torch.float32 and value.isfinite().all() and value[0] > 0
    assert x.grad.dtype == dtype and not x.grad.isnan().any()
    if dtype != torch.float16:  # the style term grows with the fourth power, and its slope beyond float16's 65504
        assert x.grad.isfinite().all()


def test_autocast_changes_nothing():
    loss = PerceptualLoss(network(), ["1"], ["3"], **RGB)
    x, y = (z.float() for z in images())
    outside, half = loss(x, y), loss(x.bfloat16().float(), y)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss(x, y), outside) and torch.equal(loss(x.bfloat16(), y), half)


def test_a_half_precision_network_is_raised_to_float32():
    assert PerceptualLoss(network().half(), ["1"], **RGB)(*(z.half() for z in images())).dtype == torch.float32
    raised = PerceptualLoss(network().bfloat16(), ["1"], **RGB)
    assert raised.features(images()[0].float())["1"].dtype == torch.float32
    loss, (x, y) = PerceptualLoss(network(), ["1"], **RGB), (1e4 * z.float() for z in images())
    expected = loss(x, y)
    halved = torch.nn.Sequential(loss).half()[0]  # as part of a model
    assert halved(x, y).isfinite().all() and halved(x.half(), y).dtype == torch.float32
    torch.testing.assert_close(halved(x, y), expected, rtol=1e-2, atol=0)


@pytest.mark.filterwarnings("ignore")  # torch's own, while it compiles
def test_compiled_and_vmapped_equal_eager():
    loss = PerceptualLoss(network().double(), ["1"], ["3"], **RGB)
    x, y = images()
    eager = loss(x, y)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(loss, fullgraph=True, backend="aot_eager")(x, y), eager)
    one = torch.func.vmap(lambda x, y: loss(x[None], y[None])[0])(x, y)
    torch.testing.assert_close(one, eager)


def test_network_is_a_frozen_copy_in_evaluation_mode():
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(9, 2))
    loss = PerceptualLoss(layers.train(), ["1", "2"], **RGB).train()
    x, y = (z.float() for z in images())
    assert not any(p.requires_grad for p in loss.parameters()) and all(p.requires_grad for p in layers.parameters())
    assert not loss.network.training and layers.training and layers[2].inplace
    before = loss.network.state_dict()
    loss(x.requires_grad_(), y).sum().backward()  # images of 8 × 8, for which the head is not made: it is not run
    assert x.grad.abs().sum() > 0
    assert all(torch.equal(before[key], value) for key, value in loss.network.state_dict().items())
    normalised = loss.features(x)["1"]
    assert normalised.min() < 0, "the ReLU that follows wrote over the features"


def test_an_operation_in_place_writes_over_no_features():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)

        def forward(self, x):
            x = self.first(x)
            nn.functional.relu(x, inplace=True)
            return self.second(x)

    torch.manual_seed(0)
    x, y, layers = *(z.float() for z in images()), InPlace()
    alone = PerceptualLoss(layers, ["first"], **RGB)
    beside = PerceptualLoss(layers, ["first"], ["second"], style_weight=0.0, **RGB)
    first, second = beside.features(x).values()
    assert first.min() < 0 and torch.equal(alone.features(x)["first"], first)
    torch.testing.assert_close(second, layers.second(first.relu()), rtol=0, atol=0)
    torch.testing.assert_close(beside(x, y), alone(x, y), rtol=0, atol=0)


def test_terms_refuse_features_that_do_not_go_together():
    one, other = torch.rand(4, 3, 5, 5), torch.rand(1, 3, 5, 5)
    for term in (feature_distance, style_distance):
        with pytest.raises(ValueError, match="allowed"):
            term(one, other)
        assert term(300 * one.half(), 0 * one.half()).isfinite().all()
    tiled = torch.cat([one, one], 3)  # images of another size have Gram matrices of the same
    torch.testing.assert_close(style_distance(one, tiled), torch.zeros(4), atol=1e-7, rtol=0)


def test_a_network_without_weights_is_one():
    x, y = (z.float() for z in images())
    pooled = [nn.functional.avg_pool2d(z / torch.tensor(RGB["std"]).view(3, 1, 1), 2) for z in (x, y)]
    torch.testing.assert_close(
        PerceptualLoss(nn.Sequential(nn.AvgPool2d(2)), ["0"], **RGB)(x, y), feature_distance(*pooled)
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"content": ["O"]}, "unknown layer 'O'; allowed: 0, 1, 2, 3"),
        ({"content": "0"}, r"content='0' was given; allowed: a list of names, \['0'\]"),
        ({}, "name at least one"),
        ({"content": ["0"], "mean": 0.5}, "mean=0.5 was given; allowed: a list"),
        ({"content": ["0"], "mean": (0.5,)}, "1 means and 3 standard deviations"),
        ({"content": ["0"], "std": (0.2, 0.0, 0.2)}, r"std=0.0 was given; allowed: a number in \(0, inf\)"),
        ({"style": ["0"], "style_weight": -1.0}, r"style_weight=-1.0 was given; allowed: a number in \[0, inf\)"),
        ({"style": ["0"], "mean": (0.5, math.nan, 0.5)}, "mean=nan was given"),
        ({"content": ["0"], "content_weight": -1.0}, "content_weight=-1.0 was given"),
        ({"content": ["0"], "mean": (), "std": ()}, "0 means and 0 standard deviations"),
    ],
)
def test_bad_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        PerceptualLoss(network(), **(RGB | arguments))


def test_a_network_whose_steps_depend_on_its_images_is_refused():
    class Switching(nn.Sequential):
        def forward(self, x):
            return super().forward(x if x.mean() > 0 else -x)

    with pytest.raises(ValueError, match="Switching was given, whose steps depend on its input"):
        PerceptualLoss(Switching(nn.Conv2d(3, 4, 3)), ["0"], **RGB)


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 8, 7)),
        (torch.zeros(2, 1, 8, 8), torch.zeros(2, 1, 8, 8)),
        (torch.zeros(3, 8, 8), torch.zeros(3, 8, 8)),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(2, 3, 8, 8)),
        (torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 8, 8, dtype=torch.uint8)),
    ],
)
def test_bad_images_are_refused(x, y):
    with pytest.raises(ValueError, match=r"allowed: floating point, both \(batch, 3, height, width\)"):
        PerceptualLoss(network(), ["0"], **RGB)(x, y)


def test_a_layer_without_positions_is_refused():
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())
    with pytest.raises(ValueError, match=r"layer '1' gives \(4, 144\); allowed: layers that give \(batch, channels"):
        PerceptualLoss(layers, ["1"], **RGB)(*(z.float() for z in images()))
