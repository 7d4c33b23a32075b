"""What the losses cost: tables of times, all sides measured in turns, on one thread but for grids of runs.

Every table of `TABLES` is a function (device, quick) -> DataFrame with one row a measurement: `what` took `seconds` a
call, `against` took `seconds_against`, and `ratio` is the first over the second, with the `target` it is held to where
there is one. `quick` makes everything small enough for a test, and the times meaningless.
"""

from __future__ import annotations

import functools
import io
import math
import statistics
import struct
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy
import pandas
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.benchmark import Timer

from lossbook import data, losses, models, results, sweep, training
from lossbook.checks import check_name
from lossbook.losses import spectral
from lossbook.losses._kernel_cpu import compiler
from lossbook.losses._registry import distribution

FUSED = "torch.nn.functional.cross_entropy"
GEOMLOSS = "geomloss.SamplesLoss, sinkhorn, blur 0.05"


# --- the clock -----------------------------------------------------------------------------------------------


def timed(sides: dict[str, Callable[[], object]], quick: bool = False) -> dict[str, float]:
    """Seconds a call of each side: the median over its turns, in each of which it is called for some 3 ms.

    The sides take turns, up to 50, so that what slows the machine for a while slows all of them; of a side that takes
    more than a second one call is timed. Two calls that are not timed go before each turn. One torch thread; on a GPU
    the clock waits for it.
    """
    timers = {name: Timer("side()", globals={"side": side}, num_threads=1) for name, side in sides.items()}
    first = {name: timer.timeit(1).mean for name, timer in timers.items()}
    if quick:
        return first
    calls = {name: max(1, round(0.003 / once)) for name, once in first.items()}
    turns = {name: min(50, max(3, round(0.15 / (calls[name] * once)))) for name, once in first.items() if once < 1}
    seconds = {name: [] if name in turns else [once] for name, once in first.items()}
    for turn in range(max(turns.values(), default=0)):
        for name, count in turns.items():
            if turn < count:
                seconds[name].append(timers[name].timeit(calls[name]).mean)
    return {name: statistics.median(values) for name, values in seconds.items()}


FIRST = ("what", "against", "same_number", "dataset", "size", "pixels", "classes", "batch", "direction", "mode")
FIRST += ("seconds", "seconds_against", "ratio", "target")


def _table(rows: list[dict[str, object]], leaves_out: str) -> pandas.DataFrame:
    """The rows with their ratio, the columns that every table has first and the words last."""
    table = pandas.DataFrame(rows)
    table["ratio"] = table["seconds"] / table["seconds_against"]
    words = table.pop("note").fillna("") if "note" in table else ""
    first = [column for column in FIRST if column in table]
    return table[[*first, *table.columns.difference(first, sort=False)]].assign(note=words, leaves_out=leaves_out)


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


def _mean_of(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The mean of a loss as a function of (logits, target), as the other side is."""
    loss = losses.lookup(name).function
    return lambda logits, target: loss(logits, target, reduction="mean")


def _step(loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, target: Tensor) -> Callable[[], tuple[Tensor]]:
    """Forward, and backward to the gradient in the logits, which is what a loss hands on to a network."""
    return lambda: torch.autograd.grad(loss(logits, target), logits)


def loss_cost(device: torch.device | str = "cpu", quick: bool = False) -> pandas.DataFrame:
    """Forward and backward of every loss of the catalogue, averaged over a batch of 1024, at 10 and 100 classes.

    `fourier` stands against the fused cross-entropy, eager and compiled, and the target is for the better of the two
    on each side; against geomloss and POT it is eager, as they are. The others are eager, against their counterpart.
    """
    device, rows = torch.device(device), []
    for classes in (10, 100):
        examples = _examples(8 if quick else 1024, classes, device)
        for part in (_against_fused, _against_transport, _against_counterparts):
            common = {"classes": classes, "batch": len(examples[0]), "direction": "forward + backward"}
            rows += [row | common for row in part(*examples, quick)]
    return _table(rows, "making the batch, the network, the optimiser; of compiled sides the compilation")


def _against_fused(logits: Tensor, labels: Tensor, soft: Tensor, quick: bool) -> list[dict[str, object]]:
    classes = logits.shape[-1]
    sides = {"fourier": _mean_of("fourier"), FUSED: F.cross_entropy}
    steps = {(name, "eager"): _step(loss, logits, labels) for name, loss in sides.items()}
    note = "nothing compiled: " + ("a quick run" if quick else "no C++ compiler found")
    if compiler() and not quick:
        note = ""
        for name, loss in sides.items():
            steps[name, "compiled"] = _step(torch.compile(loss, fullgraph=True, dynamic=False), logits, labels)
    modes = list(dict.fromkeys(mode for _, mode in steps))
    if logits.is_cuda:  # what a step costs a run, which starts all its kernels at once
        steps |= {
            (name, f"{mode}, recorded"): training.recorded(step, logits.device).replay
            for (name, mode), step in steps.items()
        }
    seconds = timed(steps, quick)
    rows = [
        {
            "what": "fourier",
            "against": FUSED,
            "same_number": False,
            "mode": mode,
            "seconds": min(seconds["fourier", m] for m in chosen),
            "seconds_against": min(seconds[FUSED, m] for m in chosen),
        }
        for mode, chosen in [
            *((mode, [mode]) for _, mode in list(steps)[:: len(sides)]),
            *([("better of both, recorded", [f"{mode}, recorded" for mode in modes])] if logits.is_cuda else []),
            ("better of both", modes),
        ]
    ]
    rows[-1] |= {"target": 1.3 if classes == 10 or logits.is_cuda else 2.0, "note": note}
    return rows


def _against_transport(logits: Tensor, labels: Tensor, soft: Tensor, quick: bool) -> list[dict[str, object]]:
    others = {GEOMLOSS: (sinkhorn, 1 / 50, ""), "ot.emd2": (emd2, 1 / 200, "one call an example")}
    steps = {name: _step(function, logits, labels) for name, (function, _, _) in others.items()}
    ours = _step(_mean_of("fourier"), logits, labels)
    seconds = timed({"fourier": ours} | steps, quick)
    return [
        {
            "what": "fourier",
            "against": name,
            "same_number": False,
            "mode": "eager",
            "seconds": seconds["fourier"],
            "seconds_against": seconds[name],
            "target": target,
            "note": note,
        }
        for name, (_, target, note) in others.items()
    ]


def _against_counterparts(logits: Tensor, labels: Tensor, soft: Tensor, quick: bool) -> list[dict[str, object]]:
    rows = []
    for name in losses.names():
        if name == "fourier":
            continue
        other = COUNTERPARTS.get(name, NO_COUNTERPART)
        target = soft if other.soft else labels
        sides = {"ours": _step(_mean_of(name), logits, target), "theirs": _step(other.function, logits, target)}
        seconds = timed(sides, quick)
        rows.append(
            {
                "what": name,
                "against": other.name,
                "same_number": other.same_number,
                "mode": "eager",
                "seconds": seconds["ours"],
                "seconds_against": seconds["theirs"],
                "note": "" if name in COUNTERPARTS else "no counterpart in a library",
            }
        )
    return rows


# --- the quadratic form or the FFT ---------------------------------------------------------------------------


def crossover(device: torch.device | str = "cpu", quick: bool = False) -> pandas.DataFrame:
    """`fourier`, forward and backward, by FFT against by quadratic form, from 2 classes up.

    Powers of two, round numbers and primes: the FFT likes some lengths better than others. Above 4096 classes the
    matrix alone would take a quarter of a gigabyte and more, and the FFT stands alone.
    """
    device, rows = torch.device(device), []
    counts = {2**k for k in range(1, 17)} | {10, 100, 1000, 10_000} | {31, 61, 97, 127, 251, 509, 1021}
    for classes in sorted({2, 10, 31, 1024} if quick else counts):
        batch = min(1024, max(1, 2**17 // classes))
        logits, labels, _ = _examples(batch, classes, device)
        sides = {"fft": _step(by_fft, logits, labels)}
        if classes <= 4096:
            sides["form"] = _step(by_form, logits, labels)
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
                "used": "FFT" if classes > spectral.LARGEST_QUADRATIC_FORM else "quadratic form",
                "note": "" if "form" in sides else f"a matrix of {4 * classes**2 / 2**30:.1f} GiB: not made",
            }
        )
    return _table(rows, "making the tables of the form and of the spectrum")


def by_fft(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean of `fourier` at its defaults from logits (B, C), through the FFT."""
    difference = torch.softmax(logits, -1) - distribution(labels, logits)
    return spectral._by_fft(difference, (logits.shape[-1],), 1.0, "wrap").mean()


def by_form(logits: Tensor, labels: Tensor) -> Tensor:
    """The same through the quadratic form."""
    return spectral._by_form(logits, labels, "mean", logits.shape[-1])


# --- images --------------------------------------------------------------------------------------------------

# Pairs of pixels up to which a side is asked: geomloss wants pykeops beyond; POT would take minutes.
GEOMLOSS_PAIRS, SINKHORN_PAIRS, EXACT_PAIRS = 5000**2, 3000**2, 1500**2


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

    Digits of scikit-learn, and MNIST where its file is there, resized from 28 to 2048 pixels; the other sides end where
    there are too many pairs of pixels. The sides measure different things: the metric lives on the torus, transport
    costs |x - y|²/2 in the plane.
    """
    import geomloss

    device, rows = torch.device(device), []
    for dataset in map(data.load, filter(data.is_there, ("digits", "mnist"))):
        for size in (16, 28) if quick else (28, 64, 128, 256, 512, 1024, 2048):
            one, other = image_pair(dataset, size).to(device)
            clouds = (*_cloud(one), *_cloud(other))
            pairs = len(clouds[0]) * len(clouds[2])
            exact = pairs <= EXACT_PAIRS
            sides = {"fourier_distance": functools.partial(losses.fourier_distance, one, other, dims=2)}
            if pairs <= GEOMLOSS_PAIRS:
                sides["geomloss"] = functools.partial(geomloss.SamplesLoss("sinkhorn"), *clouds)
            if pairs <= SINKHORN_PAIRS:
                sides["POT"] = functools.partial(_pot, *clouds, exact=exact)
            with torch.no_grad():
                seconds = timed(sides, quick)
            pixels = f"{len(clouds[0])} x {len(clouds[2])} pixels with mass"
            for side, name, reason in (
                ("geomloss", GEOMLOSS, "needs pykeops"),
                ("POT", "ot.emd2" if exact else "ot.sinkhorn2, reg 0.0025", "takes minutes"),
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


# --- many runs ------------------------------------------------------------------------------------------------


def user_loop(
    dataset: data.Dataset, batch_size: int, epochs: int, folder: Path, device: torch.device
) -> tuple[float, float]:
    """Seconds and test accuracy of a run of the loop that a user would write: our mlp, Adam, torchvision's MNIST.

    A DataLoader with two workers brings the images, one by one through ToTensor and Normalize. folder takes the set in
    the files that torchvision reads.
    """
    from torchvision import datasets, transforms

    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    for part, x, y in (("train", dataset.x_train, dataset.y_train), ("t10k", dataset.x_test, dataset.y_test)):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 2051, *x.shape) + x.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, len(y)) + y.tobytes())
    mean, std = data.channel_statistics(dataset.x_train)
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, std)])
    train, test = (datasets.MNIST(folder, train=part, transform=transform) for part in (True, False))
    loader = torch.utils.data.DataLoader(train, batch_size, shuffle=True, num_workers=2, drop_last=True)
    judge = torch.utils.data.DataLoader(test, batch_size, num_workers=2)
    model = models.create("mlp", dataset.input_shape, dataset.num_classes).to(device)
    optimiser, criterion = torch.optim.Adam(model.parameters()), torch.nn.CrossEntropyLoss()
    begin = time.perf_counter()
    for _ in range(epochs):
        model.train()
        for images, labels in loader:
            optimiser.zero_grad()
            criterion(model(images.to(device)), labels.to(device)).backward()
            optimiser.step()
        model.eval()
        with torch.no_grad():
            right = sum((model(images.to(device)).argmax(-1).cpu() == labels).sum().item() for images, labels in judge)
    return time.perf_counter() - begin, right / len(dataset.y_test)


def _grid(dataset: str, mode: str, batch_size: int, seeds: int, epochs: int) -> list[training.Config]:
    """Runs that do what the loop does: all images, clean labels, the test set judged after every epoch."""
    settings = dict(dataset=dataset, mode=mode, batch_size=batch_size, epochs=epochs, validation_share=0.0)
    return [
        training.Config(loss=loss, seed=s, **settings) for loss in ("cross_entropy", "fourier") for s in range(seeds)
    ]


def many_runs(device: torch.device | str = "cpu", quick: bool = False) -> pandas.DataFrame:
    """A run of the multi-layer perceptron out of a grid (2 losses x 5 seeds) against the loop that a user would write.

    On the CPU our runs go to two processes of one thread; the clock of a run is halved, as two run at a time. On a GPU
    they are one stacked model of 2 losses x 50 seeds, and the loop trains there too. Accuracy: of our runs after their
    epochs, of the loop's after one.
    """
    device = torch.device(device)
    dataset, epochs, seeds = ("mnist", 4, 5) if data.is_there("mnist") and not quick else ("digits", 1, 1)
    seeds = 50 if device.type == "cuda" and not quick else seeds
    loaded, rows, processes = data.load(dataset), [], 2 if device.type == "cpu" else 1
    for batch_size in (128,) if quick else (512, 128):
        with tempfile.TemporaryDirectory() as folder:
            loops = [user_loop(loaded, batch_size, 1, Path(folder), device)]
            grids = [_grid(dataset, mode, batch_size, seeds, epochs) for mode in training.MODES]
            measured = [_grid_seconds(grid, device) for grid in grids]
            loops.append(user_loop(loaded, batch_size, 1, Path(folder), device))  # before and after: machines drift
        for mode, (seconds, accuracy, together) in zip(training.MODES, measured, strict=True):
            rows.append({
                "what": "a run of the grid", "against": "the loop a user would write", "dataset": dataset,
                "mode": mode, "batch": batch_size, "runs": 2 * seeds, "together": together, "processes": processes,
                "epochs": epochs, "seconds": seconds, "seconds_against": numpy.mean([loop[0] for loop in loops]),
                "target": 1 / ({"exact": 10, "fast": 20}[mode] if device.type == "cpu" else 100),
                "test_accuracy": accuracy, "accuracy_against": numpy.mean([loop[1] for loop in loops]),
            })  # fmt: skip
    return _table(rows, "seconds a run and epoch; starting processes, loading the data, making the networks")


def _grid_seconds(configs: list[training.Config], device: torch.device) -> tuple[float, float, int]:
    """Seconds a run and epoch, mean test accuracy, and how many networks are trained together."""
    processes = 2 if device.type == "cpu" else 1
    stacks = sweep.stacks(configs, processes, device.type)
    # every process trains one run first: what it loads and compiles is none of the clock's business
    warm = [[replace(configs[0], seed=1000 + i, epochs=1)] for i in range(processes)]
    rows = [row for stack in sweep.trained(warm + stacks, processes) for row in stack if row["seed"] < 1000]
    seconds, accuracy = (numpy.mean([row[name] for row in rows]) for name in ("seconds", "test_accuracy"))
    return seconds / configs[0].epochs / processes, accuracy, max(map(len, stacks))


def stacking(device: torch.device | str = "cpu", quick: bool = False) -> pandas.DataFrame:
    """Multi-layer perceptrons trained together as one stacked model against one at a time, in one process."""
    device, rows = torch.device(device), []
    sets = [("digits", 64)]
    if data.is_there("mnist") and not quick:
        sets += [("mnist", 64), ("mnist", 128), ("mnist", 512)]
    for dataset, batch_size in sets:
        for mode in training.MODES:
            epochs = 20 if dataset == "digits" and not quick else 1
            configs = [
                training.Config(dataset=dataset, mode=mode, batch_size=batch_size, epochs=epochs, seed=s)
                for s in range(2 if quick else 64 if dataset == "digits" or device.type == "cuda" else 8)
            ]
            training.train(configs[0], device)
            one = min(training.train(configs[0], device)["seconds"] for _ in range(1 if quick else 2))
            for together in (n for n in (2, 4, 8, 16, 32, 64) if n <= len(configs)):
                values = together * batch_size * math.prod(data.spec(dataset).image)
                rows.append({
                    "what": "stacked", "against": "one at a time", "dataset": dataset, "mode": mode,
                    "batch": batch_size, "together": together, "values": values,
                    "seconds": training.train_together(configs[:together], device)[0]["seconds"] / epochs,
                    "seconds_against": one / epochs,
                })  # fmt: skip
    return _table(rows, "seconds a run and epoch; loading the data, making the networks")


# --- all tables ----------------------------------------------------------------------------------------------

TABLES = {
    "loss_cost": loss_cost,
    "crossover": crossover,
    "image_distance": image_distance,
    "many_runs": many_runs,
    "stacking": stacking,
}


def write(table: pandas.DataFrame, name: str, device: torch.device | str = "cpu") -> Path:
    """Write a table with where it comes from to data/results/bench/<name>.csv and return that path.

    Of a GPU it is <name>_gpu.csv, so that it stands beside that of a CPU. The rows of a CPU take the place of those
    from one with the same vector instructions, the column `cpu`; the rows of other CPUs stay.
    """
    device, cpu = torch.device(device), torch.backends.cpu.get_cpu_capability()
    path = results.PUBLISHED / "bench" / f"{name}{'' if device.type == 'cpu' else '_gpu'}.csv"
    written = table.assign(**training.provenance(device), cpu=cpu).to_csv(index=False, float_format="%.4g")
    # as text: read as numbers, a commit such as 0123 would lose its zero
    read = functools.partial(pandas.read_csv, dtype=str, keep_default_na=False)
    rows = read(io.StringIO(written))
    if device.type == "cpu" and path.exists():
        before = read(path)
        rows = pandas.concat([before[before["cpu"] != cpu], rows]).fillna("")
    results.write_atomically(path, lambda temporary: rows.to_csv(temporary, index=False))
    return path


def run(names: Sequence[str] = ()) -> None:
    """Measure the tables that are named, or all, on the device at hand; print and write each as it is done."""
    for name in names:
        check_name("table", name, TABLES)
    device = training.default_device()
    for name in names or TABLES:
        table = TABLES[name](device)
        shown = table.drop(columns=["leaves_out", *(["note"] if "note" in table else [])])
        print(f"{name}. The clock leaves out: {table['leaves_out'].iloc[0]}.")
        print(shown.to_string(index=False, float_format="{:.3g}".format), flush=True)  # first: a disk may be full
        path = write(table, name, device)
        print(f"written: {path.relative_to(results.PROJECT)}", end="\n\n", flush=True)
