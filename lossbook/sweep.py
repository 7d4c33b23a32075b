"""The grids of the experiments, and the sweep that runs what is missing of them.

An experiment is tuned first: each loss gets the same learning rates to choose from, judged on clean data by the
validation split of a seed that is not used again. Then the grid is run with the rate chosen. Every run is a `Config`,
every result a row; a row that is there is not run again.
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import pandas

from lossbook import data, models, results
from lossbook.checks import check_name
from lossbook.training import Config, canonical_loss, default_device, train

LOSSES = (
    "cross_entropy",
    "brier",
    "mae",
    "gce",
    "sce",
    "nce_rce",
    "label_smoothing",
    "rps",
    "fourier(s=0.5)",
    "fourier",
    "fourier(s=2)",
    "fourier(placement='permuted')",
)
IMAGE_LOSSES = tuple(loss for loss in LOSSES if loss not in ("sce", "nce_rce", "label_smoothing"))
TUNING_SEED = 1000
SYMMETRIC = tuple(("symmetric", rate) for rate in (0.0, 0.2, 0.4, 0.6))
TRAINING_IMAGES = (("none", 0.0), ("gaussian", 0.3), ("salt_pepper", 0.2), ("blur", 1.5))
PROFILES = ("smoke", "quick", "paper")


@dataclass(frozen=True)
class Grid:
    """What a profile asks of one data set and network. `noise` is (kind, rate) of labels or (kind, level) of images."""

    losses: tuple[str, ...]
    noise: tuple[tuple[str, float], ...]
    seeds: tuple[int, ...]
    epochs: int
    learning_rates: tuple[float, ...] = (1e-3,)
    tuning_noise: tuple[str, float] = ("none", 0.0)
    batch_size: int = 128
    mode: str = "exact"
    augment: str = "none"

    def __post_init__(self):
        object.__setattr__(self, "losses", tuple(canonical_loss(loss) for loss in self.losses))


def noisy_labels(profile: str, dataset: str, model: str) -> Grid:
    """Losses against wrong training labels."""
    wrong = (("asymmetric", 0.4),) if dataset != "kmnist" else (("pair", 0.4),)
    if profile == "smoke":
        return Grid(("cross_entropy", "brier", "fourier"), (("symmetric", 0.0), ("symmetric", 0.4)), (0, 1), epochs=2)
    if profile == "quick":
        small = dataset == "digits"
        settings = SYMMETRIC + wrong if small else (("symmetric", 0.0), ("symmetric", 0.4))
        return Grid(
            LOSSES,
            settings,
            (0, 1, 2) if small else (0, 1),
            20 if small else 4,
            batch_size=64 if small else 128,
        )
    if model == "mlp":
        settings = SYMMETRIC + wrong + (("symmetric", 0.8), ("pair", 0.4), ("ring", 0.4))
        rates = (3e-4, 1e-3, 3e-3)
        return Grid(LOSSES, settings, (0, 1, 2, 3, 4), epochs=15, learning_rates=rates, batch_size=512, mode="fast")
    epochs = {"cnn_small": 6, "cnn8": 60, "resnet18": 60}[model]
    augment = "shift_flip" if dataset.startswith("cifar") and model != "cnn_small" else "none"
    settings = (("symmetric", 0.0), ("symmetric", 0.4), *wrong)
    return Grid(LOSSES, settings, (0, 1, 2, 3, 4), epochs, batch_size=256, mode="fast", augment=augment)


def noisy_images(profile: str, dataset: str, model: str) -> Grid:
    """Losses against noise on the training images; every network is judged on the panel of noisy test sets too."""
    base = noisy_labels(profile, dataset, model)
    if profile == "smoke":
        return replace(base, noise=TRAINING_IMAGES[:2])
    return replace(base, losses=IMAGE_LOSSES, noise=TRAINING_IMAGES, seeds=base.seeds[:3])


EXPERIMENTS: dict[str, Callable[[str, str, str], Grid]] = {
    "noisy_labels": noisy_labels,
    "noisy_images": noisy_images,
}


@dataclass(frozen=True)
class Plan:
    """The runs of an experiment: those that tune, and those of the grid, each waiting for its learning rate."""

    experiment: str
    tuning: tuple[Config, ...]
    grid: tuple[Config, ...]
    out: Path | None

    def chosen(self, rows: pandas.DataFrame) -> list[Config]:
        """The grid with each loss at the learning rate of best validation accuracy; the only one where one is given."""
        if not self.tuning:
            return list(self.grid)
        tuned = rows[rows["hash"].isin({config.hash for config in self.tuning})]
        if untuned := {config.loss for config in self.tuning} - set(tuned["loss"]):
            raise ValueError(f"{self.experiment}: no tuning runs for {', '.join(sorted(untuned))}; run the sweep first")
        ranked = tuned.sort_values(["validation_accuracy", "learning_rate"], ascending=[False, True])
        best = ranked.drop_duplicates("loss")
        rates = best.set_index("loss")["learning_rate"]
        return [replace(config, learning_rate=float(rates[config.loss])) for config in self.grid]


def plan(
    experiment: str,
    profile: str = "quick",
    dataset: str = "digits",
    model: str = "mlp",
    losses: Iterable[str] = (),
    noise: Iterable[str] = (),
    seeds: Iterable[int] = (),
    epochs: int = 0,
    learning_rates: Iterable[float] = (),
    out: str = "",
) -> Plan:
    """The plan of an experiment, checked: ValueError for whatever is not allowed, before any work.

    losses, noise, seeds, epochs and learning_rates replace those of the profile where they are given; noise is written
    "symmetric 0.4", and one learning rate alone is used without tuning. out is the folder of the rows, data/runs by
    default.
    """
    check_name("experiment", experiment, EXPERIMENTS)
    check_name("profile", profile, PROFILES)
    check_name("dataset", dataset, data.NAMES)
    check_name("model", model, models.MODELS)
    if not isinstance(out, str | Path):
        raise ValueError(f"out={out!r} was given; allowed: the path of a folder, empty for data/runs")
    for key, value in (("losses", losses), ("noise", noise), ("seeds", seeds), ("learning_rates", learning_rates)):
        if isinstance(value, str) or not isinstance(value, Iterable):
            raise ValueError(f"{key}={value!r} was given; allowed: a list, empty for that of the profile")
    grid = EXPERIMENTS[experiment](profile, dataset, model)
    changes = {
        "losses": tuple(losses),
        "noise": tuple(parse_noise(text) for text in noise),
        "seeds": tuple(seeds),
        "epochs": epochs,
        "learning_rates": tuple(learning_rates),
    }
    grid = replace(grid, **{key: value for key, value in changes.items() if value})
    of_images = experiment == "noisy_images"

    def configure(loss: str, kind: str, level: float, rate: float, seed: int) -> Config:
        noisy = dict(image_noise=kind, image_level=level) if of_images else dict(noise_kind=kind, noise_rate=level)
        return Config(dataset=dataset, model=model, loss=loss, learning_rate=rate, epochs=grid.epochs,
                      batch_size=grid.batch_size, mode=grid.mode, augment=grid.augment, panel=of_images, seed=seed,
                      **noisy)  # fmt: skip

    tuning = [
        configure(loss, *grid.tuning_noise, rate, TUNING_SEED) for rate in grid.learning_rates for loss in grid.losses
    ]
    first = grid.learning_rates[0]
    runs = [
        configure(loss, kind, level, first, seed)
        for seed in grid.seeds
        for kind, level in grid.noise
        for loss in grid.losses
    ]
    return Plan(
        experiment,
        tuple(tuning) if len(grid.learning_rates) > 1 else (),
        tuple(runs),
        Path(out) if out else None,
    )


def parse_noise(text: str) -> tuple[str, float]:
    """Split "symmetric 0.4" into the kind and the rate or level."""
    try:
        kind, level = str(text).split()
        return kind, float(level)
    except ValueError:
        raise ValueError(f"noise {text!r} was given; allowed: a kind and a number, such as 'symmetric 0.4'") from None


def settings(experiment: str, names: dict[str, object]) -> Plan:
    """The plan of a notebook, from its `globals()`: a name that is no parameter is refused; papermill only warns."""
    hidden = {"In", "Out", "exit", "quit", "get_ipython", "open"}
    given = {
        key: value
        for key, value in names.items()
        if not key.startswith("_") and key not in hidden and not callable(value) and not isinstance(value, ModuleType)
    }
    allowed = plan.__annotations__.keys() - {"experiment", "return"}
    for key in given:
        check_name("parameter", key, sorted(allowed))
    return plan(experiment, **given)


def run(plan: Plan, workers: int | None = None) -> pandas.DataFrame:
    """Run what is missing of a plan, tuning first, and return the rows of its grid.

    On the CPU the runs go to `workers` processes of one thread each (one a core by default); on a GPU one after
    another. Each row is written as its run ends, so a killed sweep loses the runs in flight and no more.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"workers={workers} was given; allowed: a whole number from 1")
    if plan.tuning:
        _run(plan, plan.tuning, workers, "tuning")
    rows = results.load(plan.experiment, plan.out)
    grid = plan.chosen(rows)
    _run(plan, grid, workers, "running")
    rows = results.load(plan.experiment, plan.out).set_index("hash")
    return rows.loc[list(dict.fromkeys(config.hash for config in grid))].reset_index()


def published(experiment: str) -> pandas.DataFrame:
    """The committed rows of the paper profile's grid: without the tuning runs and the controls beside it."""
    rows = results.published(experiment)
    wanted: set[str] = set()
    for (dataset, model), there in rows.groupby(["dataset", "model"]):
        grid = plan(experiment, "paper", dataset, model, losses=there["loss"].unique())
        wanted |= {config.hash for config in grid.chosen(rows)}
    return rows[rows["hash"].isin(wanted)].reset_index(drop=True)


def missing(plan: Plan, configs: Iterable[Config]) -> list[Config]:
    """The configurations that have no row yet, neither on this machine nor among the published ones."""
    there = set(results.published(plan.experiment)["hash"])
    there |= {path.stem for path in results.row_path(plan.experiment, "", plan.out).parent.glob("*.parquet")}
    return [config for config in dict.fromkeys(configs) if config.hash not in there]


def _run(plan: Plan, configs: Iterable[Config], workers: int | None, what: str) -> None:
    waiting = missing(plan, configs)
    if not waiting:
        return
    for name in {config.dataset for config in waiting}:
        data.load(name)  # a missing or damaged file is met here, before any run
    begin, told = time.monotonic(), 0.0
    for done, row in enumerate(_rows(waiting, workers), start=1):
        results.write_row(row, plan.experiment, plan.out)
        now = time.monotonic()
        if sys.stdout.isatty() and (now - told > 1 or done == len(waiting)):
            told, left = now, (now - begin) / done * (len(waiting) - done)
            print(f"\r{what} {done}/{len(waiting)} {row['dataset']} {row['loss']}, {left / 60:.1f} min left".ljust(90),
                  end="\n" if done == len(waiting) else "", flush=True)  # fmt: skip


def _rows(configs: list[Config], workers: int | None) -> Iterable[dict[str, object]]:
    """The rows of the runs, as they end."""
    workers = workers or (os.cpu_count() or 1)
    if default_device().type != "cpu" or workers == 1 or len(configs) == 1:
        yield from map(train, configs)
        return
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(min(workers, len(configs)), mp_context=context) as pool:
        futures = [pool.submit(train, config) for config in configs]
        try:
            for future in concurrent.futures.as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
