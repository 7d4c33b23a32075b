"""The Fourier loss of class indices on a CPU, value and gradient in one pass over the batch: `_kernel_cpu.cpp`.

Of PyTorch's own operations it takes a dozen, several of which go number by number along rows as short as ten classes.
The source is compiled at the first call, in half a second, by the compiler that torch.compile would call, and kept in
the user's cache folder. Where that cannot be done, PyTorch's operations do the work.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

MOST_CLASSES = 128  # more do not fit a core's nearest cache, and a product of PyTorch's is faster
VECTORS = {"AVX2": ["-mavx2", "-mfma"], "AVX512": ["-mavx512f", "-mfma"]}  # by what PyTorch finds the processor to have


def compiler() -> str | None:
    """The C++ compiler that torch.compile would call, or None where there is none."""
    return shutil.which(os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++"))


@functools.cache
def _compiled() -> Callable[..., int] | None:
    """The function of the source, which is compiled unless it has been; None where that fails."""
    source, command = Path(__file__).with_suffix(".cpp"), compiler()
    flags = ["-O3", "-shared", "-fPIC", f"-DMOST_CLASSES={MOST_CLASSES}"]
    flags += VECTORS.get(torch.backends.cpu.get_cpu_capability(), [])
    key = hashlib.sha256(source.read_bytes() + repr((platform.machine(), command, flags)).encode()).hexdigest()[:16]
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lossbook"
        library = cache / f"{source.stem}-{key}.so"
        if command and not library.exists():
            cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=cache) as folder:
                made = Path(folder) / library.name
                subprocess.run([command, *flags, source, "-o", made], check=True, capture_output=True)
                os.replace(made, library)  # whole, also where processes meet here
        function = ctypes.CDLL(str(library)).of_labels
    except (OSError, RuntimeError, subprocess.CalledProcessError):
        return None
    function.argtypes = [*[ctypes.c_void_p] * 5, *[ctypes.c_int64] * 2, ctypes.c_float]
    return function


def takes(logits: Tensor, labels: Tensor) -> bool:
    """Whether `both` is the faster way for them: they are plain tensors in memory, and so few that PyTorch too would
    have one thread work on them, or one is all it has."""
    return (
        logits.shape[-1] <= MOST_CLASSES
        and logits.dtype == torch.float32
        and (logits.numel() <= 2**15 or torch.get_num_threads() == 1)
        and labels.is_cpu
        and type(labels) is Tensor
        and type(logits) in (Tensor, torch.nn.Parameter)
        and not torch._C._len_torch_dispatch_stack()
        and not torch._C._is_tracing()
        and _compiled() is not None
    )


def both(logits: Tensor, labels: Tensor, hessian: Tensor, share: float = 1.0) -> tuple[Tensor, Tensor]:
    """The values (B,) and the gradient (B, C) of float32 logits (B, C) at labels (B,), with the matrix 2 Q (C, C).

    Both are multiplied by share. IndexError for a label that is no class.
    """
    batch, classes = logits.shape
    logits, labels = logits.contiguous(), labels.contiguous()
    value, gradient = logits.new_empty(batch), torch.empty_like(logits)
    pointers = (tensor.data_ptr() for tensor in (logits, labels, hessian, value, gradient))
    if _compiled()(*pointers, batch, classes, share):
        raise IndexError("a label is no class")
    return value, gradient
