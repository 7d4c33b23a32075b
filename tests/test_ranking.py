"""The ranking hinges: the derivation, brute force over all rankings, scikit-learn's measures, and autograd agree."""

import functools
import itertools
import math
from collections import Counter

import numpy
import pytest
import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, ndcg_score

from lossbook import data, losses, results, sweep
from lossbook.losses import ranking
from lossbook.symbolic import ranking as derived
from lossbook.tasks import outputs, row
from lossbook.tasks import ranking as experiment

EACH = pytest.mark.parametrize("measure", ranking.MEASURES)
HINGES = {"average_precision": losses.average_precision_hinge, "ndcg": losses.ndcg_hinge}
LEAVES = (0, 6, math.inf)  # the pure divide and conquer, a mixture, the exhaustive scan
seeds = st.integers(0, 2**32 - 1)


def example(p, n, seed, scale=1.0, ties=False):
    """Scores (p + n,) in float64 and which of them are relevant, in random order."""
    random = numpy.random.default_rng(seed)
    scores = random.integers(-2, 3, p + n) / 2 if ties else random.standard_normal(p + n)
    relevant = random.permutation(numpy.arange(p + n) < p)
    return torch.from_numpy(scale * scores.astype(float)), torch.from_numpy(relevant)


def gradient(function, scores, relevant, **hyper):
    scores = scores.clone().requires_grad_()
    return torch.autograd.grad(function(scores, relevant, **hyper).sum(), scores)[0]


def split(scores, relevant):
    """The scores of positives and negatives, each falling, as lists."""
    return (sorted(scores[part].tolist(), reverse=True) for part in (relevant, ~relevant))


@functools.cache
def brute_force(p, n, measure):
    """The maximum over all interleavings, as a function of s_1 ... s_p, t_1 ... t_n in falling order."""
    s, t = derived.scores("s", p), derived.scores("t", n)
    margins = [derived.margin(ahead, s, t, measure).evalf(20) for ahead in derived.interleavings(p, n)]
    values = sympy.lambdify([*s, *t], margins, "math")
    return lambda *numbers: max(values(*numbers))


# --- the definitions, against scikit-learn ------------------------------------------------------------------------


@EACH
@settings(deadline=None, max_examples=30)
@given(seed=seeds, p=st.integers(1, 6), n=st.integers(1, 8))
def test_definitions_against_scikit_learn(measure, seed, p, n):
    scores, relevant = (tensor.numpy() for tensor in example(p, n, seed))
    ranked = relevant[numpy.argsort(-scores)]
    ahead = numpy.cumsum(~ranked)[ranked]
    if measure == "average_precision":
        oracle, definition = average_precision_score(relevant, scores), derived.average_precision(ranked.tolist())
    else:
        oracle, definition = ndcg_score(relevant[None].astype(float), scores[None]), derived.ndcg(ranked.tolist())
    assert float(definition) == pytest.approx(oracle, abs=1e-12)
    assert 1 - float(derived.loss(ahead.tolist(), measure)) == pytest.approx(oracle, abs=1e-12)
    assert 1 - ranking.ranking_loss(ahead, measure) == pytest.approx(oracle, abs=1e-12)


@EACH
@pytest.mark.parametrize(("p", "n"), [(1, 4), (3, 2), (2, 3)])
def test_loss_from_the_negatives_ahead_is_the_definition(measure, p, n):
    definition = derived.average_precision if measure == "average_precision" else derived.ndcg
    for ahead in derived.interleavings(p, n):
        listed = derived.as_list(ahead, n)
        assert sum(listed) == p and len(listed) == p + n
        assert sympy.simplify(derived.loss(ahead, measure) - 1 + definition(listed)) == 0


# --- the decomposition and the monotone best position -------------------------------------------------------------


@EACH
@pytest.mark.parametrize(("p", "n"), [(1, 1), (1, 4), (4, 1), (2, 2), (3, 2), (2, 3)])
def test_margin_splits_over_the_negatives(measure, p, n):
    s, t = derived.scores("s", p), derived.scores("t", n)
    for ahead in derived.interleavings(p, n):
        whole, parts = derived.margin(ahead, s, t, measure), derived.over_negatives(ahead, s, t, measure)
        assert sympy.simplify(sympy.expand(whole - parts)) == 0


def test_gain_in_closed_form():
    i, j, h, p = derived.i, derived.j, derived.h, derived.p
    assert sympy.simplify(derived.gain(i, j, p) - i / ((i + j - 1) * (i + j) * p)) == 0
    assert sympy.simplify(derived.telescoped() - (1 - i / (i + h))) == 0
    assert sympy.simplify(derived.slope_of_gain() + 2 * i / (p * (i + j - 1) * (i + j) * (i + j + 1))) == 0
    m = sympy.Symbol("m", integer=True, nonnegative=True)
    assert derived.slope_of_gain().subs(j, m + 1).is_negative
    assert derived.curvature_of_discount().is_positive


def test_two_positives_are_best_in_the_order_of_their_scores():
    better, worse, first, last = sympy.symbols("s_a s_b h_a h_b", real=True)
    stated = 2 * (better - worse) * (last - first) / (derived.p * derived.n)
    assert sympy.expand(derived.exchange() - stated) == 0


@EACH
def test_gain_of_the_loss_is_the_derived_one_and_falls(measure):
    i, j = numpy.arange(1, 5)[:, None], numpy.arange(1, 8)
    value = ranking.gain(i, j, 4, measure)
    stated = [
        [float(derived.gain(sympy.Integer(a), sympy.Integer(b), 4, measure)) for b in range(1, 8)] for a in range(1, 5)
    ]
    numpy.testing.assert_allclose(value, stated, rtol=1e-12)
    assert (numpy.diff(value, axis=1) < 0).all()


@EACH
@settings(deadline=None, max_examples=30)
@given(seed=seeds, p=st.integers(1, 12), n=st.integers(1, 40), scale=st.floats(0.1, 30), ties=st.booleans())
def test_best_position_never_falls_with_the_rank(measure, seed, p, n, scale, ties):
    random = numpy.random.default_rng(seed)
    s, t = scale * random.standard_normal(p), scale * random.standard_normal(n)
    if ties:
        s, t = s.round(), t.round()
    s, t = -numpy.sort(-s), -numpy.sort(-t)
    positions = [ranking.best_positions(s, t, measure, leaf=leaf) for leaf in LEAVES]
    assert (numpy.diff(positions[-1]) >= 0).all()
    if not ties:  # ties may take each other's places
        assert all((position == positions[-1]).all() for position in positions)


# --- the hinge: brute force, gradient, properties -----------------------------------------------------------------


@EACH
@settings(deadline=None, max_examples=40)
@given(seed=seeds, p=st.integers(1, 3), n=st.integers(1, 4), scale=st.floats(0.01, 10), ties=st.booleans())
def test_value_is_the_maximum_over_all_interleavings(measure, seed, p, n, scale, ties):
    scores, relevant = example(p, n, seed, scale, ties)
    s, t = split(scores, relevant)
    oracle = brute_force(p, n, measure)(*s, *t)
    for leaf in LEAVES:
        assert HINGES[measure](scores, relevant, leaf=leaf).item() == pytest.approx(oracle, abs=1e-10)


@EACH
def test_value_is_the_maximum_over_all_permutations(measure):
    """Rankings that keep neither kind in order are no better: all 5! of them."""
    for seed, p in itertools.product(range(5), (1, 2, 4)):
        scores, relevant = example(p, 5 - p, seed)
        s, t = scores[relevant], scores[~relevant]
        values = []
        for order in itertools.permutations(range(5)):
            ranked = relevant[list(order)]
            place = torch.tensor(order).argsort()
            above = torch.where(place[relevant][:, None] < place[~relevant], 1.0, -1.0)
            ahead = (~ranked).cumsum(0)[ranked].numpy()
            agreement = (above * (s[:, None] - t)).mean() - (s[:, None] - t).mean()
            values.append(ranking.ranking_loss(ahead, measure) + agreement.item())
        assert HINGES[measure](scores, relevant).item() == pytest.approx(max(values), abs=1e-12)


@EACH
@settings(deadline=None, max_examples=30)
@given(seed=seeds, p=st.integers(1, 20), n=st.integers(1, 60), scale=st.floats(0.1, 30), ties=st.booleans())
def test_every_search_gives_one_value_and_bounds_the_loss(measure, seed, p, n, scale, ties):
    scores, relevant = example(p, n, seed, scale, ties)
    values = [HINGES[measure](scores, relevant, leaf=leaf).item() for leaf in LEAVES]
    assert values == pytest.approx([values[0]] * len(values), abs=1e-10)
    # with ties broken against it, the ranking is at its worst, and the hinge still bounds its loss
    ranked = relevant.numpy()[numpy.lexsort((relevant.numpy(), -scores.numpy()))]
    assert values[0] >= ranking.ranking_loss(numpy.cumsum(~ranked)[ranked], measure) - 1e-10
    shifted = HINGES[measure](scores + 7, relevant).item()
    assert shifted == pytest.approx(values[0], abs=1e-9)


@EACH
@settings(deadline=None, max_examples=20)
@given(seed=seeds, p=st.integers(1, 8), n=st.integers(1, 12))
def test_gradient_against_finite_differences(measure, seed, p, n):
    scores, relevant = example(p, n, seed)
    for leaf in LEAVES:
        assert torch.autograd.gradcheck(
            lambda z, leaf=leaf: HINGES[measure](z, relevant, leaf=leaf), scores.requires_grad_(), eps=1e-9, atol=1e-5
        )


@EACH
@settings(deadline=None, max_examples=20)
@given(seed=seeds, p=st.integers(1, 3), n=st.integers(1, 3))
def test_gradient_is_the_derived_one(measure, seed, p, n):
    """SymPy's derivative of the margin of the worst ranking, lambdified, against autograd."""
    scores, relevant = example(p, n, seed, scale=0.5)
    s, t = derived.scores("s", p), derived.scores("t", n)
    numbers = [number for part in split(scores, relevant) for number in part]
    rankings = list(derived.interleavings(p, n))
    margins = sympy.lambdify([*s, *t], [derived.margin(ahead, s, t, measure) for ahead in rankings], "math")
    values = margins(*numbers)
    worst = derived.margin(rankings[values.index(max(values))], s, t, measure)
    slopes = dict(zip(numbers, (float(sympy.diff(worst, symbol)) for symbol in (*s, *t)), strict=True))
    found = gradient(HINGES[measure], scores, relevant)
    numpy.testing.assert_allclose(found, [slopes[number] for number in scores.tolist()], atol=1e-10)


@EACH
@settings(deadline=None, max_examples=30)
@given(seed=seeds, ties=st.booleans())
def test_convex_with_a_subgradient_everywhere(measure, seed, ties):
    hinge = HINGES[measure]
    here, relevant = example(6, 15, seed, ties=ties)
    there = example(6, 15, seed + 1, scale=3)[0]
    slope = gradient(hinge, here, relevant)
    assert hinge(there, relevant) >= hinge(here, relevant) + slope @ (there - here) - 1e-10
    assert slope.sum().item() == pytest.approx(0, abs=1e-12)
    assert (slope[relevant] <= 0).all() and (slope[~relevant] >= 0).all()


@EACH
def test_zero_once_the_margin_is_wide_enough(measure):
    """Perfect order alone is not enough; with a gap of n/4 between the kinds, AP asks for no more from any pair."""
    relevant = torch.arange(12) < 4
    scores = relevant.double()
    assert HINGES[measure](1e-3 * scores, relevant) > 0.5
    assert HINGES[measure](100 * scores, relevant) == 0
    assert gradient(HINGES[measure], 100 * scores, relevant).abs().max() == 0


def test_margin_asked_of_one_positive_and_the_top_negative():
    """The gap at which a lone positive is safe from n equal negatives: (n/2) max_h 1/(1+h) = n/4, from g(1, 1) = 0."""
    for n in (1, 5, 40):
        relevant = torch.arange(n + 1) == 0
        scores = torch.full((n + 1,), -1e3, dtype=torch.float64)
        scores[0], scores[1] = 0, -n / 4 - 1e-6
        assert losses.average_precision_hinge(scores, relevant) == 0
        scores[1] += 2e-6
        assert losses.average_precision_hinge(scores, relevant) > 0


# --- the contract -------------------------------------------------------------------------------------------------


@EACH
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_finite_at_large_scores_and_never_negative(measure, dtype):
    grid = torch.tensor(list(itertools.product([-1e4, 0.0, 1e4], repeat=5)), dtype=dtype)
    relevant = torch.tensor([True, False, True, False, False]).expand(grid.shape)
    scores = grid.clone().requires_grad_()
    value = HINGES[measure](scores, relevant)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert value.shape == grid.shape[:1] and value.isfinite().all() and value.min() >= 0 and value.max() > 1e4
    assert torch.equal(HINGES[measure](scores, relevant.to(dtype)), value)
    value.sum().backward()
    assert scores.grad.dtype == dtype and scores.grad.isfinite().all() and scores.grad.abs().sum() > 0


@EACH
def test_autocast_changes_nothing(measure):
    scores, relevant = example(5, 20, 0)
    outside = HINGES[measure](scores.float(), relevant)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(outside, HINGES[measure](scores.float(), relevant))


@EACH
@pytest.mark.filterwarnings("ignore")  # torch's own, while it compiles
def test_compiled_vmapped_and_batched_equal_one_list_at_a_time(measure):
    random = numpy.random.default_rng(0)
    scores = torch.from_numpy(random.standard_normal((2, 3, 9)))
    relevant = torch.from_numpy(random.random((2, 3, 9)) < 0.4)
    hinge = HINGES[measure]
    rows = zip(scores.flatten(0, 1), relevant.flatten(0, 1), strict=True)
    alone = torch.stack([hinge(*row) for row in rows]).view(2, 3)
    slopes = gradient(hinge, scores, relevant)
    torch._dynamo.reset()
    compiled = torch.compile(hinge, fullgraph=True, backend="aot_eager")
    for function in (hinge, compiled, torch.func.vmap(hinge), torch.func.vmap(hinge, in_dims=1, out_dims=1)):
        torch.testing.assert_close(function(scores, relevant), alone, rtol=0, atol=1e-12)
    torch.testing.assert_close(gradient(compiled, scores, relevant), slopes, rtol=0, atol=1e-12)
    arguments = scores[0].mT.contiguous().mT, relevant[0], measure, 0.5  # in columns: what a compiler is told of it
    torch.library.opcheck(torch.ops.lossbook.worst_ranking.default, arguments, test_utils="test_faketensor")
    shared = torch.func.vmap(hinge, in_dims=(0, None))(scores[0], relevant[0, 0])
    torch.testing.assert_close(shared[0], alone[0, 0], rtol=0, atol=1e-12)
    mapped = torch.func.vmap(torch.func.grad(hinge))(scores[0], relevant[0])
    torch.testing.assert_close(mapped, slopes[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(hinge(scores, relevant.int()), alone, rtol=0, atol=0)
    torch.testing.assert_close(hinge(scores, relevant.double()), alone, rtol=0, atol=0)


@EACH
@pytest.mark.parametrize("relevant", [[True] * 4, [False] * 4, [True], [False]])
def test_a_list_of_one_kind_is_zero_with_zero_gradient(measure, relevant):
    scores = torch.arange(float(len(relevant))).requires_grad_()
    value = HINGES[measure](scores, torch.tensor(relevant))
    value.backward()
    assert value == 0 and (scores.grad == 0).all()


@EACH
@pytest.mark.parametrize(
    ("scores", "relevant", "said"),
    [
        (torch.zeros(3), torch.zeros(4), "shape of the scores"),
        (torch.zeros(3), torch.tensor([0, 1, 2]), "booleans, or 0 and 1"),
        (torch.zeros(3), torch.tensor([0, 1, 1], dtype=torch.complex64), "allowed"),
        (torch.zeros(1000), torch.arange(1000), r"relevant holds \[0, 1, 2, 3, 4\]; allowed"),
        (torch.zeros(3, dtype=torch.long), torch.zeros(3), "floating point"),
        (torch.zeros(()), torch.zeros(()), "floating point"),
        (torch.zeros(2, 0), torch.zeros(2, 0), "at least one example"),
    ],
)
def test_refusals(measure, scores, relevant, said):
    with pytest.raises(ValueError, match=said):
        HINGES[measure](scores, relevant)


def test_scores_that_are_not_finite_show():
    relevant = torch.tensor([True, False, True])
    for value in (math.nan, math.inf):
        assert not losses.average_precision_hinge(torch.tensor([value, 0.0, 1.0]), relevant).isfinite()


# --- the work -----------------------------------------------------------------------------------------------------


@EACH
def test_work_of_the_divide_and_conquer(measure):
    """Within twice n log2(p + 1) + p log2 n, growing as that does; the exhaustive scan looks at all p n pairs."""
    random = numpy.random.default_rng(0)
    for p, n in ((1, 1000), (2, 1000), (30, 300), (100, 2000), (30, 20_000), (500, 500)):
        s, t = -numpy.sort(-random.standard_normal(p)), random.standard_normal(n)
        divided, exhaustive = Counter(), Counter()
        ranking.best_positions(s, t, measure, leaf=0, counter=divided)
        ranking.best_positions(s, t, measure, leaf=math.inf, counter=exhaustive)
        assert divided["sort"] == 0 and exhaustive["scan"] == p * n
        assert divided.total() < 2 * (n * math.log2(p + 1) + p * math.log2(n))
        assert exhaustive.total() > 2.5 * divided.total() or p < 30
    counted = Counter()
    ranking.best_positions(numpy.zeros(4), numpy.arange(8.0), measure, leaf=math.inf, counter=counted)
    assert counted == {"scan": 4 * 8, "sort": 8 * 3}  # of numbers that are in no order, n log2 n
    ranking.worst_ranking(numpy.arange(12.0), numpy.arange(12) < 4, measure, leaf=0, counter=(counted := Counter()))
    assert counted["sort"] == 4 * 2  # the positives'; the negatives are not sorted


@pytest.mark.parametrize(("p", "n"), [(1, 3), (2, 2), (2, 3), (3, 2)])
def test_every_answer_is_the_only_right_one_for_some_scores(p, n):
    """Negatives in the gaps of positives that are n apart: the maximum over all interleavings is where they are put."""
    s, t = derived.scores("s", p), derived.scores("t", n)
    every = list(derived.interleavings(p, n))
    margins = sympy.lambdify([*s, *t], [derived.margin(ahead, s, t).evalf(20) for ahead in every], "math")
    positives = n * numpy.arange(p, 0, -1.0)
    seen = set()
    for gaps in itertools.product(range(p + 1), repeat=n):
        negatives = n * (numpy.array(gaps) + 0.5)
        *_, second, best = sorted(values := margins(*positives, *-numpy.sort(-negatives)))
        assert best - second > 1e-9
        ahead = every[values.index(best)]
        assert ahead == tuple((negatives[None] > positives[:, None]).sum(1))
        place = ranking.best_positions(positives, negatives, "average_precision")
        assert (place == 1 + (positives[:, None] > negatives[None]).sum(0)).all()
        seen.add(tuple(place))
    assert len(seen) * math.factorial(p) == derived.answers(p, n)


@settings(deadline=None)
@given(p=st.integers(1, 10**6), n=st.integers(1, 10**6))
def test_no_search_by_questions_is_faster(p, n):
    """The bound of the divide and conquer is within a constant of the logarithm of the number of answers."""
    least = math.lgamma(p + 1) / math.log(2) + n * math.log2(p + 1)
    assert n * math.log2(p + 1) + p * math.log2(n + 1) + p * math.log2(p) < 4 * (least + p)
    assert p * math.log2(n + 1) <= max(n * math.log2(p + 1), p * math.log2(p + 1)) * (1 + 1e-12)
    at_zero, slope = derived.slope_of_quotient()
    assert at_zero == 0 and slope.is_positive


# --- the experiment -----------------------------------------------------------------------------------------------


def task(**changes):
    return experiment.Ranking(
        **{"dataset": "digits", "model": "mlp", "loss": "average_precision_hinge", "epochs": 2, "batch_size": 256}
        | changes
    )


@pytest.mark.parametrize("share", [0.01, 0.05, 0.1])
def test_rare_class_is_thinned_in_training_alone(share):
    labels = torch.from_numpy(data.load("digits").y_train).long()
    for seed in (0, 3, 17):
        one = task(share=share, seed=seed)
        train, validation = one.split(labels)
        assert one.rare == seed % 10 and len(torch.cat([train, validation]).unique()) == len(train) + len(validation)
        assert (labels[train] == one.rare).float().mean().item() == pytest.approx(
            share, abs=0.01 if share == 0.1 else 0.001
        )  # a tenth, or all there are
        assert (labels[validation] == one.rare).float().mean() > 0.05  # as in the whole set, a tenth
        assert len(validation) == round(0.2 * len(labels))
        for loss in experiment.LOSSES:  # paired: every loss has the same images
            assert all(map(torch.equal, task(share=share, seed=seed, loss=loss).split(labels), (train, validation)))


def test_balanced_cross_entropy_weighs_both_kinds_alike():
    scores, relevant = example(5, 35, 0)
    value = experiment.LOSSES["balanced_cross_entropy"](scores, relevant.double(), torch.tensor(7.0).double())
    kinds = [-torch.nn.functional.logsigmoid(part).mean() for part in (scores[relevant], -scores[~relevant])]
    assert value.item() == pytest.approx(sum(kinds).item() / 2, rel=1e-12)


def test_balance_is_the_irrelevant_training_images_for_each_relevant_one(monkeypatch):
    given = []
    monkeypatch.setitem(experiment.LOSSES, "cross_entropy", lambda s, r, balance: given.append(balance) or s.mean())
    relevant, images = torch.zeros(100), torch.zeros(100, 1, 8, 8)
    relevant[:7] = 1
    task(loss="cross_entropy", batch_size=32).trained(1e-3, images, relevant, torch.arange(2, 82))  # five of eighty
    assert set(map(float, given)) == {15.0}


@pytest.mark.parametrize("loss", experiment.LOSSES)
def test_a_run_learns_to_rank_and_validation_chooses_its_rate(loss):
    one = task(loss=loss, epochs=6, seed=8)
    found, again = row(one), row(one)
    assert found["status"] == "done" and found["hash"] == one.hash
    assert found["ndcg"] > found["average_precision"] > 0.5
    best = max(found["validation_scores"])
    chosen = found["validation_scores"].index(best)
    assert found["validation_score"] == best
    assert found["chosen_rate"] == pytest.approx(3e-4 * experiment.RATES[chosen])
    assert [found[name] for name in ("average_precision", "ndcg")] == [again[n] for n in ("average_precision", "ndcg")]


def test_at_a_small_rate_balance_gives_most_of_the_head_start():
    """Ten relevant images in a thousand, a rate of 0.0003: plain cross-entropy alone lags far behind."""
    loaded = data.load("digits")
    mean, std = data.channel_statistics(loaded.x_train)
    images, labels = data.standardise(loaded.x_train, mean, std), torch.from_numpy(loaded.y_train).long()
    found = {}
    for loss in experiment.LOSSES:
        one = task(loss=loss, share=0.01, seed=3, epochs=20)
        train, validation = one.split(labels)
        relevant = (labels == one.rare).float()
        scores = outputs(one.trained(3e-4, images, relevant, train), images[validation]).squeeze(1)
        found[loss] = experiment.average_precision(scores, relevant[validation])
    plain = found.pop("cross_entropy")
    assert all(value > plain + 0.2 for value in found.values())
    assert found["balanced_cross_entropy"] - plain > 0.5 * (found["average_precision_hinge"] - plain)


def test_a_diverged_run_is_recorded():
    found = row(task(learning_rate=1e35, loss="cross_entropy", epochs=1))
    assert found["status"] == "diverged" and math.isnan(found["validation_score"])


def test_profiles_give_every_loss_the_same_runs():
    for profile in ("smoke", "quick", "paper"):
        grid = experiment.runs(profile, *experiment.DEFAULT).grid
        settings_of = {
            loss: {(one.seed, one.share, one.learning_rate) for one in grid if one.loss == loss}
            for loss in experiment.LOSSES
        }
        assert len(set(map(frozenset, settings_of.values()))) == 1 and len(grid) == len(set(grid))
        assert {one.share for one in experiment.runs(profile, "cifar100", "cnn_small").grid} == {0.01}  # all there are


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"loss": "ndcg_hing"}, "ndcg_hinge"),
        ({"share": 0.2}, "share"),
        ({"share": 0.02, "dataset": "cifar100", "model": "cnn_small"}, r"share=0.02 was given; .* \(0, 0.01\]"),
        ({"dataset": "digit"}, "digits"),
        ({"model": "mpl"}, "mlp"),
        ({"model": "airbench"}, "airbench"),
        ({"batch_size": 64.5}, "whole number"),
        ({"batch_size": 1}, "batch_size"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"factors": ()}, "factors"),
        ({"factors": 3.0}, "factors=3.0"),
        ({"factors": (1.0, -1.0)}, "factors=-1.0"),
    ],
)
def test_a_bad_task_is_refused_before_any_work(changes, said):
    with pytest.raises(ValueError, match=said):
        task(**changes)


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(ValueError, match="smaller"):
        row(task(batch_size=5000))


@pytest.fixture(scope="module")
def published():
    return sweep.published("ranking")


def test_published_runs_are_whole(published):
    """Every class of Fashion-MNIST is rare once, at every share and for every loss; on CIFAR10 half of them are."""
    counts = published.groupby(["dataset", "loss", "share"])["seed"].nunique()
    assert len(counts.loc["fashion_mnist"]) == 12 and (counts.loc["fashion_mnist"] == 10).all()
    assert len(counts.loc["cifar10"]) == 4 and (counts.loc["cifar10"] == 5).all()
    assert (published["status"] == "done").all()


def test_verdict_no_loss_finds_a_rare_class_better(published):
    rows = published[published["dataset"] == "fashion_mnist"]
    table = results.paired_differences(rows, "cross_entropy", ["share"], "average_precision")
    assert len(table) == 9 and (table["difference"] < 0).all()
    hinges = table[table["loss"] != "balanced_cross_entropy"].set_index(["loss", "share"])
    assert (hinges["difference"] + hinges["half_width"] < 0.001).all()
    assert hinges.index[hinges["p_holm"] > 0.05].tolist() == [("average_precision_hinge", 0.05)]
    of_nine = table[results.holm(table["p"]) < 0.05]
    assert len(of_nine) == 3 and set(of_nine["loss"]) == {"ndcg_hinge"}
    table = results.paired_differences(rows, "balanced_cross_entropy", ["share"], "average_precision")
    ahead = table[(table["p_holm"] < 0.05) & (table["difference"] > 0)]
    assert sorted(ahead["loss"]) == ["average_precision_hinge", "cross_entropy", "ndcg_hinge"]
    assert (ahead["share"] == 0.01).all() and ahead["difference"].idxmax() == ahead.index[
        ahead["loss"] == "cross_entropy"
    ]
    rows = published[published["dataset"] == "cifar10"]
    table = results.paired_differences(rows, "cross_entropy", ["share"], "average_precision")
    assert len(table) == 3 and (table["difference"].abs() < table["half_width"]).all()
    assert (table.set_index("loss")["difference"].drop("balanced_cross_entropy") < 0.01).all()


def test_verdict_no_head_start_at_a_small_rate_where_steps_are_many(published):
    rows = published[(published["dataset"] == "fashion_mnist") & (published["share"] == 0.01)]
    steps = rows["epochs"] * (rows["train_images"] // rows["batch_size"])
    assert steps.between(800, 900).all()
    rows = rows.assign(first=rows["validation_scores"].str[0])
    table = results.paired_differences(rows, "cross_entropy", ["share"], "first").set_index("loss")
    assert abs(table.loc["average_precision_hinge", "difference"]) < 0.01
