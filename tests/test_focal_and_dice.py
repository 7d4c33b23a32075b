"""Focal and Dice loss: the derivation against autograd, torchvision, MONAI and scikit-learn."""

import functools
import json
import math
import re

import numpy
import pytest
import scipy.optimize
import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, jaccard_score
from torchvision.ops import sigmoid_focal_loss

from lossbook import losses
from lossbook.results import PROJECT
from lossbook.symbolic import focal_and_dice as derived

seeds = st.integers(0, 2**32 - 1)
logits = st.floats(-8, 8)
gammas = st.floats(0, 5)
z = sympy.Symbol("z", real=True)


@functools.cache
def binary(g):
    """Value, and the derivative in the logit, of the binary focal loss as functions of (p, γ, α)."""
    value = derived.binary_focal(derived.p, g, alpha=derived.alpha)
    arguments = [derived.p, derived.gamma, derived.alpha]
    return sympy.lambdify(arguments, [value, derived.slope_in_logit(value)], "math")


@settings(deadline=None, max_examples=60)
@given(at=logits, gamma=gammas, alpha=st.floats(0.01, 0.99), g=st.sampled_from([0, 1]))
def test_binary_focal_and_its_gradient_equal_torchvision(at, gamma, alpha, g):
    x = torch.tensor(at, dtype=torch.float64, requires_grad=True)
    theirs = sigmoid_focal_loss(x, torch.tensor(float(g), dtype=torch.float64), alpha=alpha, gamma=gamma)
    (slope,) = torch.autograd.grad(theirs, x)
    value, gradient = binary(g)(torch.sigmoid(x).item(), gamma, alpha)
    assert theirs.item() == pytest.approx(value, abs=1e-10)
    assert slope.item() == pytest.approx(gradient, abs=1e-10)


def test_gradient_has_the_closed_form():
    p, gamma = derived.p, derived.gamma
    stated = (1 - p) ** gamma * (gamma * p * sympy.log(p) + p - 1)
    assert sympy.simplify(derived.slope_in_logit(derived.binary_focal(p, 1)) - stated) == 0
    by_logit = sympy.diff(derived.binary_focal(derived.sigmoid(z), 1), z)
    for at in (-3.0, 0.2, 4.0):  # the chain rule p (1 - p), against the derivative through the sigmoid
        inside = by_logit.subs({z: at, gamma: 1.5}).evalf(20)
        assert float(inside) == pytest.approx(float(stated.subs({p: 1 / (1 + math.exp(-at)), gamma: 1.5})), abs=1e-12)


def test_pull_relative_to_cross_entropy():
    """Easy examples fade as (1 + γ)(1 - p)^γ; the hardest count as in cross-entropy; those between count for more."""
    pull = derived.relative_pull()
    for gamma in (1, 2, 3):
        here = pull.subs(derived.gamma, gamma)
        assert sympy.limit(here, derived.p, 0, "+") == 1
        assert sympy.limit(here / (1 - derived.p) ** gamma, derived.p, 1, "-") == 1 + gamma
        assert here.subs(derived.p, 0.1).evalf() > 1.1
    assert sympy.simplify(pull.subs(derived.gamma, 0)) == 1


@settings(deadline=None, max_examples=30)
@given(seed=seeds, gamma=st.floats(0.1, 5), classes=st.integers(2, 6))
def test_softmax_focal_is_the_loss_of_the_catalogue(seed, gamma, classes):
    random = numpy.random.default_rng(seed)
    x, label = torch.from_numpy(2 * random.standard_normal(classes)), int(random.integers(classes))
    p = derived.pixels("p", classes)
    value = sympy.lambdify([*p, derived.gamma], derived.softmax_focal(p, label), "math")
    ours = losses.focal(x, torch.tensor(label), gamma=gamma).item()
    assert ours == pytest.approx(value(*torch.softmax(x, 0).tolist(), gamma), abs=1e-10)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("classes", [2, 5])
def test_monai_divides_the_softmax_focal_by_the_classes(classes):
    """Its mean runs over (batch, classes), and only the column of the label is not zero."""
    from monai.losses import FocalLoss

    x = torch.randn(7, classes, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.arange(7) % classes
    theirs = FocalLoss(use_softmax=True, to_onehot_y=True, gamma=2.0)(x, y[:, None]).item()
    assert theirs * classes == pytest.approx(losses.focal(x, y, gamma=2.0).mean().item(), rel=1e-5)


def test_one_against_rest_takes_its_gamma():
    z = sympy.symbols("z_:3", real=True)
    general = derived.one_against_rest(z, 1)
    for gamma in (0, 2):
        assert derived.one_against_rest(z, 1, gamma) == general.subs(derived.gamma, gamma)


@settings(deadline=None, max_examples=30)
@given(seed=seeds, gamma=st.floats(0.1, 5), classes=st.integers(2, 6))
def test_one_against_rest_is_torchvisions_and_no_softmax(seed, gamma, classes):
    """With alpha < 0 torchvision weighs both sides alike. The two agree for two classes and logits (z, 0)."""
    random = numpy.random.default_rng(seed)
    x, label = torch.from_numpy(2 * random.standard_normal(classes)), int(random.integers(classes))
    letters = sympy.symbols(f"z_:{classes}", real=True)
    value = sympy.lambdify([*letters, derived.gamma], derived.one_against_rest(letters, label), "math")
    one_hot = torch.nn.functional.one_hot(torch.tensor(label), classes).double()
    theirs = sigmoid_focal_loss(x, one_hot, alpha=-1, gamma=gamma).sum().item()
    assert theirs == pytest.approx(value(*x.tolist(), gamma), abs=1e-10)
    assert abs(theirs - losses.focal(x, torch.tensor(label), gamma=gamma).item()) > 1e-9
    pair = torch.stack([x[0], torch.zeros_like(x[0])])
    single = sigmoid_focal_loss(x[0], torch.ones_like(x[0]), alpha=-1, gamma=gamma).item()
    assert losses.focal(pair, torch.tensor(0), gamma=gamma).item() == pytest.approx(single, abs=1e-12)


@pytest.mark.parametrize("gamma", [0.5, 2.0, 5.0])
@pytest.mark.parametrize("share", [0.05, 0.3, 0.9])
def test_minimiser_is_not_the_share_of_positives(gamma, share):
    """At the p that `calibration` answers with the share, the expected loss is smallest on a grid; p leans to 1/2."""
    p = numpy.linspace(1e-4, 1 - 1e-4, 20001)
    expected = -share * (1 - p) ** gamma * numpy.log(p) - (1 - share) * p**gamma * numpy.log(1 - p)
    best = p[expected.argmin()]
    stated = derived.calibration().subs({derived.p: best, derived.gamma: gamma}).evalf()
    assert float(stated) == pytest.approx(share, abs=2e-3)
    assert abs(best - 0.5) < abs(share - 0.5) - 0.01
    curve = derived.calibration(derived.alpha).subs(derived.alpha, 0.25)
    weighted = float(curve.subs({derived.p: best, derived.gamma: gamma}))
    assert weighted / (1 - weighted) == pytest.approx(3 * float(stated) / (1 - float(stated)))


@pytest.mark.parametrize(("classes", "share"), [(2, 0.7), (10, 0.3), (10, 0.9), (100, 0.05), (100, 0.09), (100, 0.5)])
@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_minimiser_of_the_softmax_form(classes, share, gamma):
    """The loss that trains is least at the p that `calibration_of_class` answers with the share."""
    p = torch.linspace(1e-3, 1 - 1e-3, 20001, dtype=torch.float64)
    others = (1 - p) / (classes - 1)
    logits = torch.stack([p, *[others] * (classes - 1)], 1).log()
    target = torch.full((classes,), (1 - share) / (classes - 1), dtype=torch.float64)
    target[0] = share
    best = p[losses.focal(logits, target.expand_as(logits), gamma=gamma).argmin()].item()
    of_class = derived.calibration_of_class().subs({derived.gamma: gamma, derived.N: classes})
    assert float(of_class.subs(derived.p, best)) == pytest.approx(share, abs=1e-3)
    if gamma == 2:
        assert (best > share) == (classes == 100 and share < 0.2)  # too sure, of many classes and a small share


# --- Dice ---------------------------------------------------------------------------------------------------------

VARIANTS = [
    {"squared": squared, "above": above, "below": below}
    for squared in (False, True)
    for above, below in ((0, 0), (1e-5, 1e-5), (1, 1), (0, 1e-5))
]


def masks(seed, shape=(2, 1, 2, 3)):
    """Probabilities, and a mask with foreground in every image."""
    random = numpy.random.default_rng(seed)
    p, g = random.uniform(size=shape), random.integers(2, size=shape).astype(float)
    g[..., 0, 0] = 1
    return torch.from_numpy(p), torch.from_numpy(g)


@functools.cache
def monai():
    from monai.losses import DiceLoss

    return DiceLoss


@functools.cache
def lambdified(pixels, squared, above, below):
    p, g = derived.pixels("p", pixels), derived.pixels("g", pixels)
    return sympy.lambdify([*p, *g], derived.dice(p, g, squared, above, below), "math")


def dice_loss(p, g, **variant):
    return 1 - lambdified(p.numel(), **variant)(*p.flatten().tolist(), *g.flatten().tolist())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: "-".join(map(str, variant.values())))
def test_every_variant_equals_monai(variant):
    """Denominator and smoothing, image by image and over the whole batch, in float32 as MONAI computes."""
    for seed in range(3):
        p, g = masks(seed)
        options = {
            "squared_pred": variant["squared"],
            "smooth_nr": variant["above"],
            "smooth_dr": variant["below"],
        }
        each = monai()(reduction="none", **options)(p, g).flatten()
        ours = [dice_loss(a, b, **variant) for a, b in zip(p, g, strict=True)]
        numpy.testing.assert_allclose(each, ours, atol=1e-6)
        pooled = monai()(batch=True, **options)(p, g).item()
        assert pooled == pytest.approx(dice_loss(p, g, **variant), abs=1e-6)
        assert abs(pooled - numpy.mean(ours)) > 1e-6, "pooling over the batch is another loss"


@pytest.mark.filterwarnings("ignore")
def test_table_of_derivation_12_is_monais_and_torchvisions():
    """Every number that the notebook prints for its two masks, from MONAI and torchvision instead of our formulas."""
    notebook = PROJECT / "notebooks/derivations/12_focal_and_dice.ipynb"
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    (cell,) = (cell for cell in cells if "".join(cell["source"]).startswith("probabilities = numpy.array("))
    printed = "".join(cell["outputs"][0]["text"]).splitlines()
    g = torch.tensor([[1, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0]]).double().view(2, 1, 6)
    p = torch.tensor([[0.9, 0.7, 0.4, 0.3, 0.1, 0.1], [0.3, 0.6, 0.2, 0.1, 0.1, 0.1]]).double().view(2, 1, 6)

    def both(p, g, **options):
        return [monai()(batch=batch, **options)(p, g).item() for batch in (False, True)]

    expected = []
    for squared in (False, True):
        for smooth in (0, 1e-5, 1):
            expected.append(both(p, g, squared_pred=squared, smooth_nr=smooth, smooth_dr=smooth))
    channels = [torch.cat([1 - mask, mask], 1) for mask in (p, g)]  # background first, as MONAI has it
    expected.append(both(*channels, smooth_nr=0, smooth_dr=0))
    focal = sigmoid_focal_loss(torch.logit(p), g)
    expected.append([focal.sum().item(), focal.mean().item()])
    shown = [[float(number) for number in re.findall(r"\d\.\d{4}", line)] for line in printed[1:]]
    numpy.testing.assert_allclose(shown, expected, atol=5.1e-5)
    alone = both(*channels, smooth_nr=0, smooth_dr=0, include_background=False)
    assert alone == pytest.approx(both(p, g, smooth_nr=0, smooth_dr=0))


@pytest.mark.filterwarnings("ignore")
def test_empty_target_in_monai_and_in_the_formula():
    """Anything predicted costs almost 1, nothing predicted costs 0, and without smoothing it is 0/0."""
    empty = torch.zeros(1, 1, 2, 3, dtype=torch.float64)
    some = torch.full_like(empty, 0.5)
    smooth = {"squared": False, "above": 1e-5, "below": 1e-5}
    for p, expected in ((some, 1 - 1e-5 / (3 + 1e-5)), (empty, 0.0)):
        assert dice_loss(p, empty, **smooth) == pytest.approx(expected, abs=1e-12)
        assert monai()()(p, empty).item() == pytest.approx(expected, abs=1e-6)
    assert monai()(smooth_nr=0)(empty, empty).item() == 1, "the smoothing above is what makes it 0"
    assert math.isnan(monai()(smooth_nr=0, smooth_dr=0)(empty, empty).item())


@settings(deadline=None, max_examples=25)
@given(seed=seeds)
def test_vnet_gradient_equals_autograd(seed):
    p, g = (tensor.flatten()[:4] for tensor in masks(seed))
    letters = derived.pixels("p", 4), derived.pixels("g", 4)
    stated = [derived.vnet_gradient(*letters, j) for j in range(4)]
    gradient = sympy.lambdify([*letters[0], *letters[1]], stated, "math")
    p.requires_grad_()
    (found,) = torch.autograd.grad(2 * (p * g).sum() / (p.square().sum() + g.square().sum()), p)
    numpy.testing.assert_allclose(gradient(*p.tolist(), *g.tolist()), found, atol=1e-10)


def test_vnet_gradient_is_the_derivative():
    p, g = derived.pixels("p", 3), derived.pixels("g", 3)
    for j in range(3):
        assert sympy.simplify(sympy.diff(derived.dice(p, g, squared=True), p[j]) - derived.vnet_gradient(p, g, j)) == 0


@settings(deadline=None, max_examples=25)
@given(seed=seeds)
def test_hard_masks_give_f1_and_iou(seed):
    """scikit-learn's F1 and Jaccard score; both denominators; D = 2 IoU / (1 + IoU)."""
    p, g = (tensor.flatten() for tensor in masks(seed))
    p = (p > 0.4).double()
    for squared in (False, True):
        assert 1 - dice_loss(p, g, squared=squared, above=0, below=0) == pytest.approx(f1_score(g, p, zero_division=0))
    iou = jaccard_score(g, p, zero_division=0)
    assert 2 * iou / (1 + iou) == pytest.approx(f1_score(g, p, zero_division=0))


@settings(deadline=None, max_examples=25)
@given(seed=seeds, extra=st.integers(1, 50))
def test_background_that_is_rightly_left_out_changes_nothing(seed, extra):
    p, g = (tensor.flatten().tolist() for tensor in masks(seed))
    more = [0] * extra
    for squared in (False, True):
        assert derived.dice(p + more, g + more, squared) == pytest.approx(derived.dice(p, g, squared))


@settings(deadline=None, max_examples=25)
@given(share=st.integers(1, 39), q=st.floats(0.01, 0.99), squared=st.booleans())
def test_balance_of_foreground_and_background_equals_autograd(share, q, squared):
    """The summed slopes of 40 pixels, all at probability q, of which `share` are foreground."""
    g = (torch.arange(40) < share).double()
    p = torch.full((40,), q, dtype=torch.float64, requires_grad=True)
    loss = 1 - 2 * (p * g).sum() / ((p.square() if squared else p).sum() + g.sum())
    (slope,) = torch.autograd.grad(loss, p)
    found = -slope[:share].sum() / slope[share:].sum()
    stated = derived.balance(*derived.dice_slopes(squared)).subs({derived.f: share / 40, derived.q: q})
    assert found.item() == pytest.approx(float(stated), rel=1e-9)


def test_balance_survives_rare_foreground():
    """As f → 0 the ratio tends to 1 (linear) and 1/2 (squared), at any q; that of cross-entropy to 0."""
    for squared, limit in ((False, 1), (True, sympy.Rational(1, 2))):
        ratio = derived.balance(*derived.dice_slopes(squared))
        assert sympy.simplify(sympy.limit(ratio, derived.f, 0) - limit) == 0
    ratio = derived.balance(-1 / derived.q, 1 / (1 - derived.q))
    assert sympy.limit(ratio, derived.f, 0) == 0


@pytest.mark.parametrize("count", range(2, 7))
def test_slope_in_a_shared_bias_is_the_sum_of_the_slopes(count):
    slope, total = derived.slope_in_bias(count)
    assert sympy.simplify(slope - total) == 0


def test_focal_loss_is_balanced_by_a_prior_far_above_the_share_of_the_foreground():
    """With γ = 2, α = 1/4 the balance tends to f / (9 q³) as q → 0; for rare foreground it is 1 at q near (f / 9)^⅓."""
    f, q, quarter = derived.f, derived.q, sympy.Rational(1, 4)
    up, down = (sympy.diff(derived.binary_focal(q, label, 2, quarter), q) for label in (1, 0))
    ratio = derived.balance(up, down)
    assert sympy.limit(ratio * (1 - f) / f * q**3, q, 0) == sympy.Rational(1, 9)
    found = sympy.lambdify((f, q), ratio, "numpy")
    for share, off in ((1e-3, 0.06), (1e-5, 0.03), (1e-7, 0.01)):
        balanced = scipy.optimize.brentq(lambda prior, share=share: found(share, prior) - 1, share, 0.5)
        assert balanced == pytest.approx((share / 9) ** (1 / 3), rel=off) and found(share, share) > 1e5
    assert round(found(0.001, 0.01)) == 118  # as derivation 12 says


def test_where_the_bias_alone_balances_a_loss():
    """At q = f cross-entropy, at √f V-Net's Dice; the linear Dice nowhere: its best constant is all foreground."""
    f, q = derived.f, derived.q
    assert derived.balance(-1 / q, 1 / (1 - q)).subs(q, f) == 1
    assert sympy.simplify(derived.balance(*derived.dice_slopes(squared=True)).subs(q, sympy.sqrt(f)) - 1) == 0
    excess = derived.balance(*derived.dice_slopes()) - 1
    assert sympy.simplify(excess - f / (q * (1 - f))) == 0  # positive
    share, guesses = 0.01, torch.linspace(0.001, 1, 1000, dtype=torch.float64)
    best = {power: (2 * share * guesses / (guesses**power + share)).argmax() for power in (1, 2)}
    assert guesses[best[1]] == 1 and guesses[best[2]] == pytest.approx(0.1, abs=1e-3)
