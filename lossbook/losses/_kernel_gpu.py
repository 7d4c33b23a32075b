"""The Fourier loss of class indices on a GPU, value and gradient in one kernel.

Of PyTorch's own operations it takes eleven kernels, and to start them takes longer than their work. Imported where a
GPU is met: nothing else needs Triton.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

MOST_CLASSES = 128  # a block holds whole rows, their gradient and a part of the matrix in its registers
COLUMNS_AT_ONCE = 32
POINTERS = ("logits", "labels", "hessian", "value", "gradient")
# Kernels as compiled, each with the rows of a block and its sizes: to start one of these saves 10 µs a call.
_started: dict[tuple[int, torch.device], tuple[object, int, tuple[int, ...]]] = {}


# one kernel for all batches: a tensor may begin anywhere
@triton.jit(do_not_specialize=["batch"], do_not_specialize_on_alignment=POINTERS)
def _of_labels(
    logits, labels, hessian, value, gradient, batch, share,
    CLASSES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """Rows of logits (batch, classes) a block; COLUMNS is the power of two that holds the classes."""
    row, column = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    there = (row < batch)[:, None]
    place, inside = row[:, None] * CLASSES + column[None, :], there & (column < CLASSES)[None, :]
    z = tl.where(there, tl.load(logits + place, mask=inside, other=-float("inf")), 0.0)
    most = tl.max(z, 1)[:, None]
    p = tl.exp(z - most)
    total = tl.sum(p, 1)[:, None]
    p = p / total
    label = tl.load(labels + row, mask=row < batch, other=0)[:, None]
    g = tl.zeros((ROWS, COLUMNS), tl.float32)
    for begin in range(0, COLUMNS, PART):
        k = begin + tl.arange(0, PART)
        some = tl.load(
            logits + row[:, None] * CLASSES + k[None, :], mask=there & (k < CLASSES)[None, :], other=-float("inf")
        )
        u = tl.exp(some - most) / total - tl.where(k[None, :] == label, 1.0, 0.0)
        square = (k < CLASSES)[:, None] & (column < CLASSES)[None, :]
        q = tl.load(hessian + k[:, None] * CLASSES + column[None, :], mask=square, other=0.0)
        g = tl.dot(u, q, g, input_precision="ieee")
    known = tl.where((label >= 0) & (label < CLASSES), share, float("nan"))  # a kernel cannot raise
    g = g * known
    half = tl.sum((p - tl.where(column[None, :] == label, 1.0, 0.0)) * g, 1) / 2
    tl.store(value + row, tl.where(half < 0, 0.0, half), mask=row < batch)
    tl.store(gradient + place, p * (g - tl.sum(p * g, 1)[:, None]), mask=inside)


def both(logits: Tensor, labels: Tensor, hessian: Tensor, share: float = 1.0) -> tuple[Tensor, Tensor]:
    """The values (B,) and the gradient (B, C) of float32 logits (B, C) at labels (B,), with the matrix 2 Q (C, C).

    Both are multiplied by share. A label that is no class makes both NaN.
    """
    batch, classes = logits.shape
    logits, labels = logits.contiguous(), labels.contiguous()
    value, gradient = logits.new_empty(batch), torch.empty_like(logits)
    if batch:
        key = classes, logits.device
        kernel, rows, size = _started.get(key) or (_of_labels, *_blocks(classes))
        grid = (-(-batch // rows), 1, 1)
        compiled = kernel[grid](logits, labels, hessian, value, gradient, batch, share, *size)
        if kernel is _of_labels:
            _started[key] = compiled or kernel, rows, size  # Triton's interpreter compiles nothing
    return value, gradient


def _blocks(classes: int) -> tuple[int, tuple[int, ...]]:
    """Rows of a block, and all the sizes that the kernel is compiled for."""
    columns = max(16, triton.next_power_of_2(classes))
    rows = max(16, 2048 // columns)
    return rows, (classes, rows, columns, min(columns, COLUMNS_AT_ONCE))
