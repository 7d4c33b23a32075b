"""Losses of a ranking: the structured hinges of average precision and NDCG, by a divide and conquer like quicksort.

p relevant examples with scores s_i and n others with scores t_j are ranked by score. Which rankings matter to the
hinge, why it splits over the negatives, and why that lets quicksort in: `notebooks/derivations/13_ranking.ipynb`.
"""

from __future__ import annotations

import math
from collections import Counter

import numpy
import torch
from torch import Tensor

from lossbook.checks import check_name
from lossbook.losses._registry import check_tensors

MEASURES = ("average_precision", "ndcg")
LEAF = 2**13  # pairs of a block up to which one vectorised scan of all is faster than dividing on, on a CPU


def discount(rank: numpy.ndarray) -> numpy.ndarray:
    """What a relevant example counts at a rank from 1 in NDCG: 1 / log2(1 + rank)."""
    return 1 / numpy.log2(1 + rank)


def gain(i: numpy.ndarray, j: numpy.ndarray, p: int, measure: str) -> numpy.ndarray:
    """What the loss of a ranking grows by as the j-th negative overtakes the i-th of p positives; i, j from 1."""
    if measure == "average_precision":
        return i / ((i + j - 1) * (i + j) * p)
    return (discount(i + j - 1) - discount(i + j)) / discount(numpy.arange(1, p + 1)).sum()


def ranking_loss(ahead: numpy.ndarray, measure: str) -> float:
    """The loss of a ranking, in [0, 1]: 1 - AP or 1 - NDCG, from ahead (p,), the negatives ahead of each positive."""
    i = numpy.arange(1, len(ahead) + 1)
    if measure == "average_precision":
        return float(1 - (i / (i + ahead)).mean())
    return float(1 - discount(i + ahead).sum() / discount(i).sum())


def best_positions(
    positives: numpy.ndarray,
    negatives: numpy.ndarray,
    measure: str,
    *,
    leaf: float = LEAF,
    counter: Counter | None = None,
) -> numpy.ndarray:
    """Where each negative stands in the ranking of greatest loss plus score: (n,) whole numbers from 1 to p + 1.

    positives  (p,) scores, falling; negatives (n,) scores in any order
    leaf       blocks of at most so many pairs are sorted and scanned whole. 0: the pure divide and conquer;
               math.inf: the exhaustive scan of all p n pairs
    counter    gets what was done: elements in "selection" and "scan", and len * log2(len) for each "sort"

    A negative at position k is ranked ahead of the positives k ... p, counted from the top. The position rises with
    the negative's rank. So the median negative is selected without sorting, placed by a scan of the positives that are
    still possible, and both halves go on with the positives cut there; a block with one place left is done.
    """
    p, n = len(positives), len(negatives)
    counter = Counter() if counter is None else counter
    order = numpy.arange(n)  # partitioned in place; at the end, negative order[j - 1] may have any rank j in its block
    falling = -negatives  # numpy's partition puts the smallest first
    position = numpy.empty(n, dtype=numpy.int64)

    def place(first: int, last: int, low: int, high: int) -> numpy.ndarray:
        """Best positions in low ... high of the negatives of ranks first + 1 ... last, which stand in order."""
        block, i = order[first:last], numpy.arange(low, high)
        value = gain(i, numpy.arange(first + 1, last + 1)[:, None], p, measure)
        value = value - 2 / (p * n) * (positives[low - 1 : high - 1] - negatives[block, None])
        from_the_end = numpy.zeros((len(block), high - low + 1))
        from_the_end[:, 1:] = value[:, ::-1].cumsum(1)
        counter["scan"] += value.size
        position[block] = high - from_the_end.argmax(1)  # of equals, the one that overtakes the fewest

    waiting = [(0, n, 1, p + 1)]
    while waiting:
        first, last, low, high = waiting.pop()
        block = order[first:last]
        if low == high or first == last:
            position[block] = low
        elif (last - first) * (high - low) <= leaf:
            block[:] = block[numpy.argsort(falling[block], kind="stable")]
            counter["sort"] += len(block) * math.log2(len(block))
            place(first, last, low, high)
        else:
            middle = (first + last) // 2
            block[:] = block[numpy.argpartition(falling[block], middle - first)]
            counter["selection"] += len(block)
            place(middle, middle + 1, low, high)
            cut = position[order[middle]]
            waiting += [(first, middle, low, cut), (middle + 1, last, cut, high)]
    return position


def worst_ranking(
    scores: numpy.ndarray,
    relevant: numpy.ndarray,
    measure: str,
    *,
    leaf: float = LEAF,
    counter: Counter | None = None,
) -> tuple[numpy.ndarray, float]:
    """The ranking that the hinge is attained at: its slope in the scores (size,), and its loss.

    scores (size,), relevant (size,) boolean. The slope is -2 h_i / (p n) for a positive behind h_i negatives, and
    2 (p + 1 - k_j) / (p n) for a negative at position k_j. Without a positive, or without a negative: zeros.
    """
    slope = numpy.zeros(len(scores))
    positives, negatives = numpy.flatnonzero(relevant), numpy.flatnonzero(~relevant)
    p, n = len(positives), len(negatives)
    if not p or not n:
        return slope, 0.0
    positives = positives[numpy.argsort(-scores[positives], kind="stable")]
    if counter is not None:
        counter["sort"] += p * math.log2(p)
    position = best_positions(scores[positives], scores[negatives], measure, leaf=leaf, counter=counter)
    ahead = numpy.bincount(position, minlength=p + 2)[1 : p + 1].cumsum()
    slope[positives] = -2 / (p * n) * ahead
    slope[negatives] = 2 / (p * n) * (p + 1 - position)
    return slope, ranking_loss(ahead, measure)


# An operator of its own, so that torch.compile and torch.vmap take the search as one step.
@torch.library.custom_op("lossbook::worst_ranking", mutates_args=())
def _worst_ranking(scores: Tensor, relevant: Tensor, measure: str, leaf: float) -> tuple[Tensor, Tensor]:
    if relevant.dtype != torch.bool and not ((relevant == 0) | (relevant == 1)).all():
        raise ValueError(f"relevant holds {relevant.unique().tolist()[:5]}; allowed: booleans, or 0 and 1")
    lists = scores.reshape(-1, scores.shape[-1]).cpu().numpy()
    marks = relevant.reshape(lists.shape).bool().cpu().numpy()
    with numpy.errstate(invalid="ignore"):  # scores that are not finite give a loss that is not
        found = [worst_ranking(*pair, measure, leaf=leaf) for pair in zip(lists, marks, strict=True)]
    slope = numpy.array([slope for slope, _ in found]).reshape(scores.shape)
    loss = numpy.array([loss for _, loss in found], dtype=float).reshape(scores.shape[:-1])
    return torch.from_numpy(slope).to(scores.device), torch.from_numpy(loss).to(scores.device)


@_worst_ranking.register_fake
def _(scores: Tensor, relevant: Tensor, measure: str, leaf: float) -> tuple[Tensor, Tensor]:
    return scores.new_empty(scores.shape), scores.new_empty(scores.shape[:-1])


@_worst_ranking.register_vmap
def _(info, in_dims, scores: Tensor, relevant: Tensor, measure: str, leaf: float):
    moved = [
        tensor.expand(info.batch_size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
        for tensor, dim in zip((scores, relevant), in_dims[:2], strict=True)
    ]
    return _worst_ranking(*moved, measure, leaf), (0, 0)


def _hinge(scores: Tensor, relevant: Tensor, measure: str, leaf: float) -> Tensor:
    check_name("measure", measure, MEASURES)
    check_tensors(f"{measure}_hinge", scores, relevant)
    if not scores.is_floating_point() or scores.ndim < 1 or scores.shape[-1] < 1:
        raise ValueError(
            f"{measure}_hinge: scores are {scores.dtype} of shape {tuple(scores.shape)}; "
            "allowed: floating point of shape (*batch, size) with at least one example"
        )
    if relevant.shape != scores.shape or relevant.is_complex():
        raise ValueError(
            f"{measure}_hinge: relevant is {relevant.dtype} of shape {tuple(relevant.shape)} for scores of shape "
            f"{tuple(scores.shape)}; allowed: booleans, or 0 and 1, of the shape of the scores"
        )
    wide = scores.double()  # the search and the sum in float64: (*batch, size) numbers, next to no time
    slope, loss = _worst_ranking(wide.detach(), relevant, measure, float(leaf))
    return (loss + (slope * wide).sum(-1)).to(torch.promote_types(scores.dtype, torch.float32))


def average_precision_hinge(scores: Tensor, relevant: Tensor, *, leaf: float = LEAF) -> Tensor:
    """max_R [1 - AP(R) + F(R)] - F(R*), with F(R) = (1/pn) Σ_ij ±(s_i - t_j), + where R has i ahead of j

    scores (*batch, size), a list of examples along the last axis; relevant the same shape, booleans or 0 and 1. R runs
    over all rankings of the list, R* has every relevant example (score s_i, p of them) ahead of all others (t_j, n).
    Returns (*batch), range [0, inf), never less than 1 - AP of the ranking by score, however ties are broken; 0 for a
    list without a relevant example or without another. float32, or float64 for float64.

    Gradient: -2 h_i/(pn) in s_i and 2 (p + 1 - k_j)/(pn) in t_j, with h_i, k_j the places in the worst ranking. Convex
    and piecewise linear in the scores, invariant to a common shift. Where several rankings are worst, as at ties, it is
    the gradient of one of them, a subgradient.

    leaf       blocks of so many pairs are scanned whole: see `best_positions`. It changes the time and not the value.

    Source: Mohapatra, Rolínek, Jawahar, Kolmogorov & Kumar, CVPR 2018, arXiv 1604.08269; the hinge: Yue et al. 2007.
    """
    return _hinge(scores, relevant, "average_precision", leaf)


def ndcg_hinge(scores: Tensor, relevant: Tensor, *, leaf: float = LEAF) -> Tensor:
    """max_R [1 - NDCG(R) + F(R)] - F(R*): `average_precision_hinge` with a discount 1 / log2(1 + rank)

    Shapes, range, gradient and the rest are those of `average_precision_hinge`. NDCG(R) is the sum of the discounts at
    the ranks of the relevant examples, divided by the sum of the first p discounts.
    """
    return _hinge(scores, relevant, "ndcg", leaf)
