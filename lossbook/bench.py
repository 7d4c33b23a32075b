"""What the losses cost: tables of times, all sides of a comparison measured in turns in one process on one thread.

Every table of `TABLES` is a function (device, quick) -> DataFrame with one row a measurement: `what` took `seconds` a
call, `against` took `seconds_against`, and `ratio` is the first over the second, with the `target` it is held to where
there is one. `quick` makes everything small enough for a test, and the times meaningless.
"""

from __future__ import annotations

import functools
import math
import os
import shutil
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy
import pandas
import scipy.linalg
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.benchmark import Timer

from lossbook import data, losses, results, training
from lossbook.losses import spectral
from lossbook.losses._registry import distribution

FUSED = "torch.nn.functional.cross_entropy"


# --- the clock -----------------------------------------------------------------------------------------------


def timed(sides: dict[str, Callable[[], object]], quick: bool = False) -> dict[str, float]:
    """Seconds a call of each side: the median over its turns, in each of which it is called for some 3 ms.

    The sides take turns, so that what slows the machine for a while slows all of them. Each is called once before the
    clock starts. One torch thread; on a GPU the clock waits for it.
    """
    timers = {name: Timer("side()", globals={"side": side}, num_threads=1) for name, side in sides.items()}
    calls, turns, seconds = {}, {}, {name: [] for name in sides}
    for name, timer in timers.items():
        timer.timeit(1)
        once = timer.timeit(1).mean
        calls[name] = 1 if quick else max(1, round(0.003 / once))
        turns[name] = 1 if quick else min(50, max(3, round(0.15 / (calls[name] * once))))
    for turn in range(max(turns.values())):
        for name, timer in timers.items():
            if turn < turns[name]:
                seconds[name].append(timer.timeit(calls[name]).mean)
    return {name: statistics.median(values) for name, values in seconds.items()}


def compiler() -> str | None:
    """The C++ compiler that torch.compile would call, or None where there is none."""
    return shutil.which(os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++"))


def _table(rows: list[dict[str, object]], leaves_out: str) -> pandas.DataFrame:
    table = pandas.DataFrame(rows)
    table.insert(table.columns.get_loc("seconds_against") + 1, "ratio", table["seconds"] / table["seconds_against"])
    return table.assign(leaves_out=leaves_out)


# --- losses --------------------------------------------------------------------------------------------------


class Counterpart(NamedTuple):
    """What a user would call in place of a loss: its name, the mean loss of (logits, target), and what it computes."""

    name: str
    function: Callable[[Tensor, Tensor], Tensor]
    same_number: bool = True
    soft: bool = False  # takes distributions, not class indices


def _one_hot(labels: Tensor, logits: Tensor) -> Tensor:
    return F.one_hot(labels, logits.shape[-1]).to(logits.dtype)


def _kl_div(logits: Tensor, target: Tensor) -> Tensor:
    return F.kl_div(F.log_softmax(logits, -1), target, reduction="batchmean")


def _mse_loss(logits: Tensor, labels: Tensor) -> Tensor:
    return F.mse_loss(torch.softmax(logits, -1), _one_hot(labels, logits), reduction="sum") / len(logits)


def _l1_loss(logits: Tensor, labels: Tensor) -> Tensor:
    return F.l1_loss(torch.softmax(logits, -1), _one_hot(labels, logits), reduction="sum") / len(logits)


def _sigmoid_focal_loss(logits: Tensor, labels: Tensor) -> Tensor:
    from torchvision.ops import sigmoid_focal_loss

    target = _one_hot(labels, logits)
    return sigmoid_focal_loss(logits, target, alpha=-1, gamma=0.5, reduction="sum") / len(logits)


# A loss that is not named here has no counterpart in a library, and stands against the fused cross-entropy.
COUNTERPARTS = {
    "cross_entropy": Counterpart(FUSED, F.cross_entropy),
    "label_smoothing": Counterpart(FUSED, functools.partial(F.cross_entropy, label_smoothing=0.1)),
    "kl_divergence": Counterpart("torch.nn.functional.kl_div", _kl_div, soft=True),
    "brier": Counterpart("torch.nn.functional.mse_loss", _mse_loss),
    "mae": Counterpart("torch.nn.functional.l1_loss", _l1_loss),
    "focal": Counterpart("torchvision.ops.sigmoid_focal_loss", _sigmoid_focal_loss, same_number=False),
}
NO_COUNTERPART = Counterpart(FUSED, F.cross_entropy, same_number=False)


def sinkhorn(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean Sinkhorn divergence of geomloss, at its defaults, with the classes as points c / C of a line."""
    import geomloss

    batch, classes = logits.shape
    points = torch.arange(classes, device=logits.device, dtype=logits.dtype).div(classes)
    points = points.view(1, classes, 1).repeat(batch, 1, 1)
    divergence = geomloss.SamplesLoss("sinkhorn")
    return divergence(torch.softmax(logits, -1), points, _one_hot(labels, logits), points).mean()


def emd2(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean exact optimal transport cost by POT, one call an example, with cost |i - j| between classes i and j."""
    import ot

    k = torch.arange(logits.shape[-1], device=logits.device, dtype=logits.dtype)
    cost = (k[:, None] - k).abs()
    pairs = zip(torch.softmax(logits, -1), _one_hot(labels, logits), strict=True)
    return torch.stack([ot.emd2(p, y, cost) for p, y in pairs]).mean()


def _examples(batch: int, classes: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Logits that want a gradient, class indices, and distributions."""
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(batch, classes, generator=random).to(device).requires_grad_()
    labels = torch.randint(classes, (batch,), generator=random).to(device)
    return logits, labels, torch.softmax(torch.randn(batch, classes, generator=random), -1).to(device)


def _step(loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, target: Tensor) -> Callable[[], None]:
    """Forward and backward, the old gradient dropped first as an optimiser's zero_grad does."""

    def step() -> None:
        logits.grad = None
        loss(logits, target).backward()

    return step


def loss_cost(device: torch.device | str = "cpu", quick: bool = False) -> pandas.DataFrame:
    """Forward and backward of every loss of the catalogue, averaged over a batch of 1024, at 10 and 100 classes.

    `fourier` stands against the fused cross-entropy, eager and compiled, and the target is for the better of the two
    on each side; against geomloss and POT it is eager, as they are. The others are eager, against their counterpart.
    """
    device, rows = torch.device(device), []
    modes = ["eager", *(["compiled"] if compiler() and not quick else [])]
    uncompiled = "" if len(modes) > 1 else "nothing compiled: " + ("a quick run" if quick else "no C++ compiler found")
    for classes in (10, 100):
        logits, labels, soft = _examples(8 if quick else 1024, classes, device)
        common = {"classes": classes, "batch": len(logits), "direction": "forward + backward"}
        fourier = losses.create("fourier", num_classes=classes)

        sides = {}
        for mode in modes:
            for name, loss in (("fourier", fourier), (FUSED, F.cross_entropy)):
                chosen = torch.compile(loss, fullgraph=True, dynamic=False) if mode == "compiled" else loss
                sides[name, mode] = _step(chosen, logits, labels)
        seconds = timed(sides, quick)
        target = 1.3 if classes == 10 or device.type == "cuda" else 2.0
        for mode in [*modes, "better of both"]:
            chosen = modes if mode == "better of both" else [mode]
            rows.append(
                {
                    "what": "fourier",
                    "against": FUSED,
                    "same_number": False,
                    **common,
                    "mode": mode,
                    "seconds": min(seconds["fourier", m] for m in chosen),
                    "seconds_against": min(seconds[FUSED, m] for m in chosen),
                    "target": target if mode == "better of both" else math.nan,
                    "note": uncompiled if mode == "better of both" else "",
                }
            )

        transport = {"geomloss.SamplesLoss, sinkhorn, blur 0.05": (sinkhorn, 1 / 50), "ot.emd2": (emd2, 1 / 200)}
        steps = {name: _step(function, logits, labels) for name, (function, _) in transport.items()}
        seconds = timed({"fourier": _step(fourier, logits, labels)} | steps, quick)
        for name, (_, target) in transport.items():
            row = {"what": "fourier", "against": name, "same_number": False, **common, "mode": "eager"}
            row |= {"seconds": seconds["fourier"], "seconds_against": seconds[name], "target": target}
            rows.append(row | {"note": "one call an example" if name == "ot.emd2" else ""})

        for name in losses.names():
            if name == "fourier":
                continue
            other = COUNTERPARTS.get(name, NO_COUNTERPART)
            target = soft if other.soft else labels
            loss = losses.create(name, num_classes=classes)
            sides = {"ours": _step(loss, logits, target), "theirs": _step(other.function, logits, target)}
            seconds = timed(sides, quick)
            row = {"what": name, "against": other.name, "same_number": other.same_number, **common, "mode": "eager"}
            row |= {"seconds": seconds["ours"], "seconds_against": seconds["theirs"], "target": math.nan}
            rows.append(row | {"note": "" if name in COUNTERPARTS else "no counterpart in a library"})
    return _table(rows, "making the batch, the network, the optimiser; of compiled sides the compilation")


# --- the quadratic form or the FFT ---------------------------------------------------------------------------


def ring_root(classes: int, s: float = 1.0) -> Tensor:
    """The symmetric root of `spectral.quadratic_form(classes, s)`, float64: the circulant matrix of m(k)^{-s}.

    The loss takes an eigendecomposition, which any placement allows; for thousands of classes that is too slow here.
    """
    column = numpy.fft.ifft(spectral.frequency_weights((classes,), s / 2)).real
    return torch.from_numpy(scipy.linalg.circulant(column))


def crossover(device: torch.device | str = "cpu", quick: bool = False) -> pandas.DataFrame:
    """`fourier` from the probabilities on, forward and backward, by FFT against by quadratic form, from 2 classes up.

    Powers of two, round numbers and primes: the FFT likes some lengths better than others. Above 4096 classes the
    matrix alone would take a gigabyte and more, and the FFT stands alone.
    """
    device, rows = torch.device(device), []
    counts = {2**k for k in range(1, 17)} | {10, 100, 1000, 10_000} | {31, 61, 97, 127, 251, 509, 1021}
    largest = spectral.LARGEST_QUADRATIC_FORM.get(device.type, spectral.LARGEST_QUADRATIC_FORM["cpu"])
    for classes in sorted({2, 10, 31, 256} if quick else counts):
        batch = min(1024, max(1, 2**17 // classes))
        logits, labels, _ = _examples(batch, classes, device)
        p = torch.softmax(logits.detach(), -1).requires_grad_()
        sides = {"fft": _step(by_fft, p, labels)}
        if classes <= 4096:
            root = ring_root(classes).to(p)
            sides["form"] = _step(functools.partial(by_form, root=root), p, labels)
        seconds = timed(sides, quick)
        rows.append(
            {
                "what": "fourier by FFT",
                "against": "fourier by quadratic form",
                "classes": classes,
                "batch": batch,
                "direction": "forward + backward",
                "seconds": seconds["fft"],
                "seconds_against": seconds.get("form", math.nan),
                "used": "FFT" if classes > largest else "quadratic form",
                "note": "" if "form" in sides else f"a matrix of {4 * classes**2 / 2**30:.1f} GiB: not made",
            }
        )
    return _table(rows, "softmax; making the tables of the form and of the spectrum")


def by_fft(p: Tensor, labels: Tensor) -> Tensor:
    """Mean of `fourier` at its defaults from probabilities (B, C), through the FFT."""
    return spectral._by_fft(p - distribution(labels, p), (p.shape[-1],), 1.0, "wrap").mean()


def by_form(p: Tensor, labels: Tensor, root: Tensor) -> Tensor:
    """The same through the quadratic form, given its root (C, C)."""
    return spectral._by_form(p.mT, labels, root).mean()


# --- images --------------------------------------------------------------------------------------------------

# Pairs of pixels: beyond the first geomloss wants pykeops, beyond the second the exact solver of POT takes minutes.
SINKHORN_PAIRS, EXACT_PAIRS = 5000**2, 1500**2


def image_pair(images: data.Dataset, size: int) -> Tensor:
    """The first test image of a set and the first of another class, (2, size, size), bilinear, each of mass 1."""
    other = int((images.y_test != images.y_test[0]).argmax())
    pair = data.to_tensor(images.x_test[[0, other]])
    if pair.shape[-1] != size:
        pair = F.interpolate(pair, size=(size, size), mode="bilinear", align_corners=False)
    return (pair / pair.sum((-2, -1), keepdim=True)).squeeze(1)


def _cloud(image: Tensor) -> tuple[Tensor, Tensor]:
    """The pixels of an image that carry mass, as weights (n,) and points (n, 2) of the unit square."""
    where = image.nonzero()
    return image[image > 0], where.to(image.dtype) / image.shape[-1]


def _pot(a: Tensor, x: Tensor, b: Tensor, y: Tensor, exact: bool) -> float:
    """Optimal transport cost for |x - y|²/2 by POT, in float64: exact, or with the entropy of geomloss's blur 0.05."""
    import ot

    a, x, b, y = (t.double().cpu().numpy() for t in (a, x, b, y))
    cost = ot.dist(x, y) / 2
    return ot.emd2(a / a.sum(), b / b.sum(), cost) if exact else ot.sinkhorn2(a / a.sum(), b / b.sum(), cost, 0.05**2)


def image_distance(device: torch.device | str = "cpu", quick: bool = False) -> pandas.DataFrame:
    """The 2-D Fourier metric between two real images against optimal transport between their pixels that carry mass.

    Digits of scikit-learn, and MNIST where its file is there, resized from 28 to 512 pixels, and to 2048 for the growth
    of the Fourier metric alone. The sides measure different things: the metric lives on the torus, transport costs
    |x - y|²/2 in the plane.
    """
    import geomloss

    device, rows = torch.device(device), []
    sets = ["digits", *(["mnist"] if (data.data_root() / "mnist.npz").is_file() else [])]
    for dataset in map(data.load, sets):
        for size in (16, 28) if quick else (28, 64, 128, 256, 512, 1024, 2048):
            one, other = image_pair(dataset, size).to(device)
            clouds = (*_cloud(one), *_cloud(other))
            pairs = len(clouds[0]) * len(clouds[2])
            exact = pairs <= EXACT_PAIRS
            sides = {"fourier_distance": functools.partial(losses.fourier_distance, one, other, dims=2)}
            if pairs <= SINKHORN_PAIRS:
                sides["geomloss"] = functools.partial(geomloss.SamplesLoss("sinkhorn"), *clouds)
                sides["POT"] = functools.partial(_pot, *clouds, exact=exact)
            with torch.no_grad():
                seconds = timed(sides, quick)
            pixels = f"{len(clouds[0])} x {len(clouds[2])} pixels with mass"
            for side, name, reason in (
                ("geomloss", "geomloss.SamplesLoss, sinkhorn, blur 0.05", "needs pykeops"),
                ("POT", "ot.emd2" if exact else "ot.sinkhorn2, reg 0.0025", "dense costs too large"),
            ):
                rows.append(
                    {
                        "what": "fourier_distance",
                        "against": name,
                        "dataset": dataset.name,
                        "size": size,
                        "pixels": size**2,
                        "direction": "forward",
                        "seconds": seconds["fourier_distance"],
                        "seconds_against": seconds.get(side, math.nan),
                        "target": 0.01 if size == 64 else math.nan,
                        "note": pixels + ("" if side in seconds else f": not done, {reason}"),
                    }
                )
    return _table(rows, "resizing, choosing the pixels with mass; the weights of the frequencies, kept between calls")


# --- all tables ----------------------------------------------------------------------------------------------

TABLES = {"loss_cost": loss_cost, "crossover": crossover, "image_distance": image_distance}


def write(table: pandas.DataFrame, name: str, device: torch.device | str = "cpu") -> Path:
    """Write a table with where it comes from to data/results/bench/<name>.csv, and return that path."""
    path = results.PUBLISHED / "bench" / f"{name}.csv"
    table = table.assign(**training.provenance(torch.device(device)), cpu=torch.backends.cpu.get_cpu_capability())
    results.write_atomically(path, lambda temporary: table.to_csv(temporary, index=False, float_format="%.4g"))
    return path
