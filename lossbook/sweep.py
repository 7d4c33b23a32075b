"""The grids of the experiments, and the sweep that runs what is missing of them.

An experiment is tuned first: each loss gets the same learning rates to choose from, judged on clean data by the
validation split of a seed that is not used again. Then the grid is run with the rate chosen. Every run is a `Config`,
every result a row; a row that is there is not run again.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import importlib
import itertools
import math
import multiprocessing
import os
import queue
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType

import pandas
import torch
from torch.utils.flop_counter import FlopCounterMode

from lossbook import data, losses, models, results, tasks
from lossbook.checks import check_name, check_path, check_range, check_whole, count_of_environment
from lossbook.tasks import TUNING_SEED
from lossbook.training import Config, canonical_loss, default_device, provenance, threads, train_together

SHUFFLED = "fourier(placement='permuted')"  # shuffled classes, beside the Fourier loss wherever it is tried
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
    SHUFFLED,
)
QUICK_LOSSES = ("cross_entropy", "brier", "gce", *(loss for loss in LOSSES if loss.startswith("fourier")))
# Also made for wrong labels, or said to gain by a bound: tried in the perceptron alone, whose runs are cheap.
MORE_LOSSES = ("bootstrap_soft", "bootstrap_hard", "js", "rooted_logistic", "rooted_bounded")
IMAGE_LOSSES = tuple(loss for loss in LOSSES if loss not in ("sce", "nce_rce", "label_smoothing"))
SYMMETRIC = tuple(("symmetric", rate) for rate in (0.0, 0.2, 0.4, 0.6))
TRAINING_IMAGES = (("none", 0.0), ("gaussian", 0.3), ("salt_pepper", 0.2), ("blur", 1.5))
PROFILES = ("smoke", "quick", "paper")
# Input values of one step, over all networks, up to which they are trained together.
VALUES_TOGETHER = {"cpu": 2**20, "cuda": 2**27}
MOST_TOGETHER = {"cpu": 32, "cuda": 2**20}  # on a CPU, the gradients of more are memory that is mapped anew each step
FEWEST_TOGETHER = 4  # two or three gain nothing on the one at a time
UNKNOWN = "not known before the first run"
BASES = ("measured", "measured elsewhere", "estimated", UNKNOWN)  # of what a run is expected to take, the surest first
PIECE = 8  # minutes: a sweep of hours is run in calls of no more
# Fields in which runs have to agree, as far as they have them, for the time of one to tell that of another.
SAME_COST = ("dataset", "model", "mode", "batch_size", "train_size", "images", "views", "steps", "pretraining_steps",
             "question", "rule")  # fmt: skip
# Where no run like it is measured yet: floating-point operations a second, of one CPU thread or a GPU, and the least
# that a step takes by itself. An H100 reached 5e13 with a stack of perceptrons and 1.6e14 with the airbench network.
OPERATIONS_PER_SECOND = {"cpu": 1e11, "cuda": 5e13}
SECONDS_PER_STEP = {"cpu": 0.0, "cuda": 3e-4}
# What the paper profile runs where nothing is named: data sets and their networks.
PAPER = (
    ("mnist", "mlp"),
    ("fashion_mnist", "mlp"),
    ("mnist", "cnn_small"),
    ("fashion_mnist", "cnn_small"),
    ("cifar10", "cnn_small"),
    ("cifar10", "airbench"),
)
# The recipe of the airbench family; at its origin with labels smoothed by 0.2, a rate of 1.5 and 9.9 epochs, by which
# the mean of many runs is 94.0 %, so that half of them fall short of it. Two more epochs give room.
AIRBENCH_EPOCHS = 12
NOISY_AIRBENCH_EPOCHS = 5  # of 423 runs in two experiments, which take an H200 nine minutes so
AIRBENCH = dict(
    optimiser="airbench", augment="crop_flip", batch_size=1024, weight_decay=0.00133, views=6, mode="fast"
)  # fmt: skip


@dataclass(frozen=True)
class Grid:
    """What a profile asks of one data set and network.

    noise    (kind, rate) of labels or (kind, level) of images
    matched  each loss has the learning rates divided by the scale of its gradient: `losses.gradient_scale`
    recipe   the fields of `Config` in which all runs differ from the defaults
    """

    losses: tuple[str, ...]
    noise: tuple[tuple[str, float], ...]
    seeds: tuple[int, ...]
    epochs: int
    learning_rates: tuple[float, ...] = (1e-3,)
    matched: bool = False
    recipe: dict[str, object] = field(default_factory=dict)


def noisy_labels(profile: str, dataset: str, model: str) -> Grid:
    """Losses against wrong training labels."""
    wrong = (("asymmetric", 0.4),) if dataset != "kmnist" else (("pair", 0.4),)
    if profile == "smoke":
        names = ("cross_entropy", "brier", "fourier", SHUFFLED)
        return Grid(names, (("symmetric", 0.0), ("symmetric", 0.4)), (0, 1), epochs=2)
    if profile == "quick":
        if dataset == "digits":
            few = dict(batch_size=32, train_size=200)  # so few that a network learns them by heart within seconds
            return Grid(QUICK_LOSSES, SYMMETRIC[::2] + SYMMETRIC[-1:], (0, 1, 2), 15, (3e-3,), recipe=few)
        return Grid(LOSSES, (("symmetric", 0.0), ("symmetric", 0.4)), (0, 1), epochs=4)
    seeds = tuple(range(10 if model == "mlp" else 5))
    if model == "mlp":
        settings = SYMMETRIC + wrong + (("symmetric", 0.8), ("pair", 0.4), ("ring", 0.4))
        rates, recipe = (3e-4, 1e-3, 3e-3), dict(batch_size=512, mode="fast")
        return Grid((*LOSSES, *MORE_LOSSES), settings, seeds, epochs=15, learning_rates=rates, recipe=recipe)
    settings = (("symmetric", 0.0), ("symmetric", 0.4), *wrong)
    if model == "airbench":
        return Grid(LOSSES, settings, seeds, NOISY_AIRBENCH_EPOCHS, learning_rates=(0.5, 1.5, 4.5), recipe=AIRBENCH)
    epochs, recipe = {"cnn_small": 6, "cnn8": 60, "resnet18": 60}, dict(batch_size=256, mode="fast")
    check_name("model of the paper profile", model, ("mlp", *epochs, "airbench"))
    if dataset.startswith("cifar") and model != "cnn_small":
        recipe["augment"] = "shift_flip"
    return Grid(LOSSES, settings, seeds, epochs[model], recipe=recipe)


def noisy_images(profile: str, dataset: str, model: str) -> Grid:
    """Losses against noise on the training images; every network is judged on the panel of noisy test sets too."""
    base = noisy_labels(profile, dataset, model)
    if profile == "smoke":
        return replace(base, noise=TRAINING_IMAGES[:2])
    kept = tuple(loss for loss in IMAGE_LOSSES if loss in base.losses)
    noise = TRAINING_IMAGES if profile == "paper" else (*TRAINING_IMAGES[:2], TRAINING_IMAGES[-1])
    return replace(base, losses=kept, noise=noise)


# Classes of losses that are the same but for a factor: the negative controls of the study.
CONTROLS = (
    ("cross_entropy", "kl_divergence", "kl_divergence(class_reduction='mean')", "poisson"),
    ("brier", "huber"),
    ("mae", "hinge"),
)
STUDY = tuple(dict.fromkeys([*losses.names(), *itertools.chain(*CONTROLS), SHUFFLED]))
FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0)  # of a learning rate, to choose from


def _rates(rate: float, factors: Sequence[float]) -> tuple[float, ...]:
    """Multiples of a learning rate, rounded, so that the same run has the same hash on every processor."""
    return tuple(float(f"{rate * factor:.4g}") for factor in factors)


def loss_study(profile: str, dataset: str, model: str) -> dict[str, Grid]:
    """The loss as a hyper-parameter, by optimiser and protocol.

    same     every loss at one learning rate
    matched  that rate, divided by the scale of the loss's gradient; for stochastic gradient descent
    tuned    the best of as many rates for every loss, around the matched one, for Adam around the shared one
    """
    names, seeds, factors = STUDY, tuple(range(10 if dataset in data.TABLES else 5)), FACTORS
    if profile != "paper":
        names, seeds, factors = (*CONTROLS[0][:3], *CONTROLS[1]), (0, 1, 2), (0.3, 1.0, 3.0)
    if profile == "smoke":
        names, seeds, factors = ("cross_entropy", "kl_divergence", "brier"), (0, 1), (0.3, 1.0)
    if dataset in data.TABLES:
        epochs, recipe = 50, dict(batch_size=16, validation_share=0.3)
    elif dataset == "digits":
        epochs, recipe = 15, dict(batch_size=64)
        if profile != "paper":  # some of the images: what a core carries in seconds
            epochs, recipe = 4, dict(batch_size=32, train_size=500)
    else:
        epochs, recipe = 4, dict(batch_size=512 if model == "mlp" else 256, mode="fast")
    epochs = 2 if profile == "smoke" else epochs
    grids, clean = {}, (("none", 0.0),)
    for optimiser, rate in (("sgd", 0.05), ("adam", 1e-3)):
        grid = Grid(names, clean, seeds, epochs, (rate,), recipe=recipe | dict(optimiser=optimiser))
        rates = _rates(rate, factors)
        grids[f"{optimiser} same"] = grid
        # Adam divides the scale of the gradient out; to match it would undo that
        matched = optimiser == "sgd"
        if matched:
            grids[f"{optimiser} matched"] = replace(grid, matched=True)
        grids[f"{optimiser} tuned"] = replace(grid, matched=matched, learning_rates=rates)
    return grids


ROOTED = (
    "cross_entropy",
    "focal(gamma=2)",
    *(f"rooted_logistic(k={k})" for k in (2, 3, 8)),
    *(f"rooted_bounded(k={k}, m={k})" for k in (2, 3, 8)),
)


def rooted_deep(profile: str, dataset: str, model: str) -> dict[str, Grid]:
    """Rooted objectives in deep networks, by optimiser: at a learning rate shared by all losses, and at tuned ones.

    "adam few images" is the shared rate on 6000 images of the large sets, which a CPU carries for a transformer, too.
    """
    few_names = (*ROOTED[:2], "rooted_logistic(k=3)", "rooted_bounded(k=3, m=3)")
    few_images = dict(batch_size=128, train_size=6000)
    names, seeds, factors = ROOTED, tuple(range(5)), FACTORS
    if profile != "paper":
        names = few_names
        seeds, factors = ((0, 1, 2), (0.3, 1.0, 3.0)) if profile == "quick" else ((0, 1), (0.3, 1.0))
    if dataset == "digits":
        epochs, recipe = 20, dict(batch_size=64)
        if profile != "paper":  # some of the images: what a core carries in seconds
            epochs, recipe = {"smoke": 2, "quick": 5}[profile], dict(batch_size=32, train_size=500)
    else:
        epochs, recipe = 6, dict(batch_size=512 if model == "mlp" else 256, mode="fast")
        if profile != "paper":
            seeds, recipe = tuple(range(5)), few_images
    grids, clean = {}, (("none", 0.0),)
    for optimiser, rate in (("sgd", 0.05), ("adam", 1e-3)):
        grid = Grid(names, clean, seeds, epochs, (rate,), recipe=recipe | dict(optimiser=optimiser))
        rates = _rates(rate, factors)
        grids[f"{optimiser} shared"] = grid
        grids[f"{optimiser} tuned"] = replace(grid, learning_rates=rates)
    few = recipe if dataset == "digits" else few_images  # the digits are few themselves
    grids["adam few images"] = replace(grids["adam shared"], losses=few_names, recipe=few | dict(optimiser="adam"))
    return grids


def regularised_likelihood(profile: str, dataset: str, model: str) -> dict[str, Grid]:
    """The recipe of the study notes (maximum likelihood, dropout, weight decay, momentum), and without each in turn."""
    if model not in models.PERCEPTRONS:
        raise ValueError(f"model={model!r} was given; allowed: mlp, whose dropout is what is tried")
    seeds, epochs, factors = {
        "smoke": ((0, 1), 2, (1.0,)),
        "quick": ((0, 1, 2), 8, (1.0, 3.0)),
        "paper": (tuple(range(5)), 40, FACTORS),
    }[profile]
    recipe = dict(model="mlp_dropout", optimiser="sgd", weight_decay=5e-4, batch_size=32, train_size=500)
    if profile != "smoke" and dataset != "digits":
        recipe |= dict(train_size=5000, batch_size=128)
    rates = _rates(0.05, factors)
    whole = Grid(("cross_entropy",), (("none", 0.0),), seeds, epochs, rates, recipe=recipe)
    changes = {
        "without dropout": dict(model="mlp"),
        "without weight decay": dict(weight_decay=0.0),
        "without momentum": dict(optimiser="sgd_plain"),
        "without all three": dict(model="mlp", weight_decay=0.0, optimiser="sgd_plain"),
    }
    grids = {"whole recipe": whole, "squared error": replace(whole, losses=("brier",), matched=True)}
    grids |= {name: replace(whole, recipe=recipe | change) for name, change in changes.items()}
    for name in ("without momentum", "without all three"):  # momentum of 0.9 makes ten steps of one
        grids[name] = replace(grids[name], learning_rates=tuple(10 * rate for rate in rates))
    return grids


def airbench(profile: str, dataset: str, model: str) -> Grid:
    """CIFAR10 in a dozen epochs: the recipe on all training images, none held out."""
    check_name("model of airbench", model, ("airbench",))
    names = ("label_smoothing(epsilon=0.2)", "cross_entropy")
    recipe = AIRBENCH | dict(validation_share=0.0)
    if profile != "paper":  # what a core carries in minutes
        few = dict(batch_size=128, train_size={"smoke": 500, "quick": 5000}[profile], views=1)
        return Grid(names, (("none", 0.0),), (0,), 2, (1.5,), recipe=recipe | few)
    return Grid(names, (("none", 0.0),), tuple(range(5)), AIRBENCH_EPOCHS, (1.5,), recipe=recipe)


STUDY_SETS = (
    *((name, "mlp") for name in (*data.TABLES, "digits", "mnist", "fashion_mnist")),
    ("cifar10", "cnn_small"),
)
ROOTED_SETS = tuple(
    (dataset, model)
    for model in ("mlp", "cnn_small", "vit")
    for dataset in ("mnist", "fashion_mnist", "cifar10")
    if (dataset, model) != ("cifar10", "mlp")
)
# Classifiers, each with the data sets and networks of its paper profile. All others are in `tasks`.
EXPERIMENTS: dict[str, tuple[Callable[[str, str, str], Grid | dict[str, Grid]], tuple[tuple[str, str], ...]]] = {
    "noisy_labels": (noisy_labels, PAPER),
    "noisy_images": (noisy_images, PAPER),
    "loss_study": (loss_study, STUDY_SETS),
    "rooted_deep": (rooted_deep, ROOTED_SETS),
    "regularised_likelihood": (
        regularised_likelihood,
        (("mnist", "mlp"), ("fashion_mnist", "mlp"), ("cifar10", "mlp")),
    ),
    "airbench": (airbench, (("cifar10", "airbench"),)),
}
# Of a profile these may be changed. Where rates are tuned, by one protocol and another, or each part has losses of its
# own, the rest stands fast; so it does in tasks.
CHANGES = ("losses", "noise", "seeds", "epochs", "learning_rates")
FEWER_CHANGES = {
    "loss_study": ("losses", "seeds", "epochs"),
    "rooted_deep": ("losses", "seeds", "epochs"),
    "regularised_likelihood": ("seeds", "epochs"),
}


def experiments() -> list[str]:
    """Names of all experiments."""
    return [*EXPERIMENTS, *tasks.NAMES]


def changes_of(experiment: str) -> tuple[str, ...]:
    """What of a profile may be changed, beside its data set and network."""
    return FEWER_CHANGES.get(experiment, CHANGES) if experiment in EXPERIMENTS else ("losses", "seeds")


def variants(experiment: str) -> list[str]:
    """The parts of an experiment that have grids of their own; most have one, without a name."""
    check_name("experiment", experiment, experiments())
    grids = EXPERIMENTS[experiment][0]("smoke", *_default(experiment)) if experiment in EXPERIMENTS else {}
    return list(grids) if isinstance(grids, dict) and grids else [""]


@dataclass(frozen=True)
class Plan:
    """The runs of an experiment: those that tune, and those of the grid, each waiting for its learning rate."""

    experiment: str
    tuning: tuple[Config | tasks.Task, ...]
    grid: tuple[Config | tasks.Task, ...]
    out: Path | None
    variant: str = ""

    def of(self, names: Iterable[str]) -> Plan:
        """What it holds of these losses."""
        tuning, grid = (tuple(run for run in part if run.loss in names) for part in (self.tuning, self.grid))
        return replace(self, tuning=tuning, grid=grid)

    def chosen(self, rows: pandas.DataFrame) -> list[Config]:
        """The grid with each loss at the learning rate of best validation accuracy; the only one where one is given."""
        if not self.tuning or not self.grid:
            return list(self.grid)
        tuned = rows[rows["hash"].isin({config.hash for config in self.tuning})]
        if untuned := {config.loss for config in self.tuning} - set(tuned["loss"]):
            raise ValueError(f"{self.experiment}: no tuning runs for {', '.join(sorted(untuned))}; run the sweep first")
        score = tuned["validation_accuracy" if isinstance(self.grid[0], Config) else "validation_score"]
        tuned = tuned.assign(score=score.where(tuned["status"] != "diverged"))  # of NaN logits a class is right, too
        ranked = tuned.sort_values(["score", "learning_rate"], ascending=[False, True])
        best = ranked.drop_duplicates("loss")
        rates = best.set_index("loss")["learning_rate"]
        return [replace(config, learning_rate=float(rates[config.loss])) for config in self.grid]


def plan(
    experiment: str,
    profile: str = "quick",
    dataset: str = "",
    model: str = "",
    losses: Iterable[str] = (),
    noise: Iterable[str] = (),
    seeds: Iterable[int] = (),
    epochs: int = 0,
    learning_rates: Iterable[float] = (),
    variant: str = "",
    out: str = "",
) -> Plan:
    """The plan of an experiment, checked: ValueError for whatever is not allowed, before any work.

    dataset and model are those of the quick profile by default. losses, noise, seeds, epochs and learning_rates replace
    those of the profile where they are given, as far as they are among `changes_of(experiment)`. noise is written
    "symmetric 0.4", and one learning rate alone is used without tuning. variant is one of `variants(experiment)`.
    out is the folder of the rows, data/runs by default.
    """
    check_name("experiment", experiment, experiments())
    check_name("profile", profile, PROFILES)
    check_name("variant", variant, variants(experiment))
    for key, value in {"dataset": dataset, "model": model}.items():
        if not isinstance(value, str):
            raise ValueError(f"{key}={value!r} was given; allowed: a name, empty for that of the profile")
    check_whole("epochs", epochs, "[0, inf)")
    if not isinstance(out, str | Path):
        raise ValueError(f"out={out!r} was given; allowed: the path of a folder, empty for data/runs")
    changes = {"losses": losses, "noise": noise, "seeds": seeds, "learning_rates": learning_rates}
    for key, value in changes.items():
        if isinstance(value, str | Mapping) or not isinstance(value, Iterable):
            raise ValueError(
                f"{key}={value!r} was given; allowed: a list, empty for that of the profile; "
                f"papermill takes one as -y '{key}: [...]'"
            )
    changes = {key: tuple(value) for key, value in changes.items()} | {"epochs": epochs}
    for loss in changes["losses"]:
        if not isinstance(loss, str):
            raise ValueError(f"losses holds {loss!r}; allowed: names or specs, such as 'fourier(s=2)'")
    changes = {key: value for key, value in changes.items() if value}
    for key in changes:
        check_name(f"change to {experiment}", key, changes_of(experiment))
    build = _classifiers if experiment in EXPERIMENTS else _task
    default = _default(experiment)
    tuning, grid = build(experiment, profile, dataset or default[0], model or default[1], variant, changes)
    if TUNING_SEED in {config.seed for config in grid}:
        raise ValueError(f"seeds holds {TUNING_SEED}; allowed: any other, for that one chooses the learning rates")
    # what is named twice, in one spelling or two, is one run
    tuning, grid = (tuple(dict.fromkeys(part)) for part in (tuning, grid))
    return Plan(experiment, tuning, grid, check_path("out", out) if out else None, variant)


def _default(experiment: str) -> tuple[str, str]:
    """The data set and network of the quick profile; an experiment made for one pair has that."""
    if experiment not in EXPERIMENTS:
        return _module(experiment).DEFAULT
    paper = EXPERIMENTS[experiment][1]
    return paper[0] if len(paper) == 1 else ("digits", "mlp")


def _classifiers(
    experiment: str, profile: str, dataset: str, model: str, variant: str, changes: dict
) -> tuple[list[Config], list[Config]]:
    """The runs of one of `EXPERIMENTS`: those that tune, and the grid."""
    check_name("dataset", dataset, data.ALL)
    check_name("model", model, models.MODELS)
    grids, paper = EXPERIMENTS[experiment]
    if dataset in data.TABLES and not any(name in data.TABLES for name, _ in paper):
        raise ValueError(f"dataset={dataset!r} was given, a table; allowed: sets of images, {', '.join(data.NAMES)}")
    grid = grids(profile, dataset, model)
    grid = grid[variant] if isinstance(grid, dict) else grid
    if "noise" in changes:
        changes["noise"] = tuple(parse_noise(text) for text in changes["noise"])
    of_images, classes = experiment == "noisy_images", len(data.spec(dataset).classes)
    grid = replace(grid, **changes)
    for rate in grid.learning_rates:
        check_range("learning_rate", rate, "(0, inf)")
    grid = replace(grid, losses=tuple(canonical_loss(loss, classes) for loss in grid.losses))
    scales = {loss: losses.gradient_scale(loss, classes) if grid.matched else 1.0 for loss in grid.losses}

    def configure(loss: str, kind: str, level: float, rate: float, seed: int) -> Config:
        # rounded, so that the same run has the same hash on every processor
        rate = float(f"{rate / scales[loss]:.4g}") if grid.matched else rate
        noisy = dict(image_noise=kind, image_level=level) if of_images else dict(noise_kind=kind, noise_rate=level)
        fields = dict(dataset=dataset, model=model, loss=loss, learning_rate=rate, epochs=grid.epochs, panel=of_images)
        return Config(**(fields | noisy | grid.recipe), seed=seed)

    rates = grid.learning_rates
    if len(rates) > 1 and not grid.recipe.get("validation_share", Config.validation_share):
        raise ValueError(
            f"learning_rates={list(rates)} were given, and {experiment} holds no images out to choose by; give one"
        )
    tuning = [configure(loss, "none", 0.0, rate, TUNING_SEED) for rate in rates for loss in grid.losses]
    runs = [
        configure(loss, kind, level, rates[0], seed)
        for seed in grid.seeds
        for kind, level in grid.noise
        for loss in grid.losses
    ]
    return tuning if len(rates) > 1 else [], runs


def _module(experiment: str) -> ModuleType:
    return importlib.import_module(f"lossbook.tasks.{experiment}")


def _task(
    experiment: str, profile: str, dataset: str, model: str, variant: str, changes: dict
) -> tuple[list[tasks.Task], list[tasks.Task]]:
    """The runs of a task: those that tune, and the grid."""
    runs = _module(experiment).runs(profile, dataset, model)
    tuning, grid = list(runs.tuning), list(runs.grid)
    known = sorted({task.loss for task in grid})
    if wanted := [_spelt(loss, known) for loss in changes.get("losses", ())]:
        for loss in wanted:
            check_name(f"loss of the {profile} profile of {experiment}", loss, known)
        tuning, grid = ([task for task in part if task.loss in wanted] for part in (tuning, grid))
    if seeds := changes.get("seeds"):
        first = [task for task in grid if task.seed == grid[0].seed]
        grid = [replace(task, seed=seed) for seed in seeds for task in first]
    return tuning, grid


def _spelt(loss: str, known: Sequence[str]) -> str:
    """A loss as it is written among the known ones: what it means counts, and not how it is written."""
    if not any("(" in one for one in known):  # names of a task's own: its huber need not be that of the catalogue
        return loss
    meant = _meaning(loss)
    return next((one for one in known if _meaning(one) == meant), loss)


def _meaning(spec: str) -> tuple[str, dict[str, object]]:
    """Name and hyper-parameters, those of the catalogue filled up with their defaults."""
    name, hyper = losses.parse(spec) if "(" in spec else (spec, {})
    return name, (losses.lookup(name).defaults if name in losses.names() else {}) | hyper


def pairs(
    experiment: str, profile: str, datasets: Sequence[str] = (), models_: Sequence[str] = ()
) -> list[tuple[str, str]]:
    """Data sets with their networks: what is named; in the paper profile, what it holds of that.

    A data set that the paper profile does not hold stands by itself, for `plan` to refuse or to take; a network that it
    does not hold is put on all its data sets.
    """
    check_name("experiment", experiment, experiments())
    classifiers = experiment in EXPERIMENTS
    for name in datasets if classifiers else ():
        check_name("dataset", name, data.ALL)
    for name in models_ if classifiers else ():
        check_name("model", name, models.MODELS)
    paper = EXPERIMENTS[experiment][1] if classifiers else _module(experiment).PAPER
    if profile == "paper" and not (datasets and models_):
        held = [(d, m) for d, m in paper if (not datasets or d in datasets) and (not models_ or m in models_)]
        known = {name for pair in held for name in pair}
        sets = dict.fromkeys(d for d, _ in paper)
        held += [(d, "") for d in datasets if d not in known]
        return held + [(d, m) for m in models_ if m not in known for d in sets]
    return list(itertools.product(datasets or [""], models_ or [""]))


def parse_noise(text: str) -> tuple[str, float]:
    """Split "symmetric 0.4" into the kind and the rate or level."""
    try:
        kind, level = str(text).split()
        return kind, float(level)
    except ValueError:
        raise ValueError(f"noise {text!r} was given; allowed: a kind and a number, such as 'symmetric 0.4'") from None


def settings(experiment: str, names: dict[str, object], variant: str = "", **always: Sequence[str]) -> Plan:
    """The plan of a notebook, from its `globals()`: a name that is no parameter is refused; papermill only warns.

    Names that came after a first call are the notebook's own, which a second run of its cells finds there.

    always  what the notebook cannot do without, by parameter: put before what a list names
    """
    hidden = {"In", "Out", "exit", "quit", "get_ipython", "open"}
    allowed = ("profile", "dataset", "model", *changes_of(experiment), "out")
    judged = names.setdefault("_names_at_first", frozenset(names)).union(allowed) - hidden
    given = {
        key: value
        for key, value in names.items()
        if key in judged and not key.startswith("_") and not callable(value) and not isinstance(value, ModuleType)
    }
    for key in given:
        check_name(f"parameter of {experiment}", key, allowed)
    for key, entries in always.items():
        if given.get(key) and isinstance(given[key], list | tuple):
            given[key] = [*entries, *(entry for entry in given[key] if entry not in entries)]
    return plan(experiment, **given, variant=variant)


def run(plan: Plan, workers: int | None = None, deadline: float = math.inf) -> pandas.DataFrame:
    """Run what is missing of a plan, tuning first, and return the rows of its grid that are there then.

    The runs go to `workers` processes: on the CPU LOSSBOOK_WORKERS, else one a core, each of one thread or
    of LOSSBOOK_THREADS; on a GPU one. More share it, which pays where a network by itself leaves it idle. Runs
    that gain by it are trained together, as one stacked model.
    Each row is written as its run ends, those of a stack together: a killed sweep loses what is in flight and no more.

    deadline  on the clock of time.monotonic(): nothing is begun that is expected to end later
    """
    return run_all([plan], workers, deadline)[0]


def run_all(plans: Sequence[Plan], workers: int | None = None, deadline: float = math.inf) -> list[pandas.DataFrame]:
    """`run` for several plans of one experiment, in the same processes: first what tunes, then the grids."""
    _workers(workers)
    first = plans[0]
    _run(first, [config for plan in plans for config in plan.tuning], workers, deadline, "tuning")
    rows = results.load(first.experiment, first.out, with_published=not results.afresh())
    there = set(rows["hash"])
    grids = [plan.chosen(rows) if there >= {config.hash for config in plan.tuning} else [] for plan in plans]
    _run(first, [config for grid in grids for config in grid], workers, deadline, "running")
    rows = results.load(first.experiment, first.out, with_published=not results.afresh()).set_index("hash")
    wanted = [dict.fromkeys(config.hash for config in grid) for grid in grids]
    return [rows.loc[[run for run in runs if run in rows.index]].reset_index() for runs in wanted]


def shortest_minutes(plans: Sequence[Plan], workers: int | None = None) -> float:
    """What the shortest run takes of all that is missing of one experiment; 0 where nothing is."""
    rows = results.load(plans[0].experiment, plans[0].out)
    left = [run for plan in plans for run in missing(plan, plan.tuning) or missing(plan, plan.chosen(rows))]
    return min((expected_seconds(stack[0], rows)[0] / 60 for stack in stacks(left, workers)), default=0.0)


def outlook(plans: Iterable[Plan], workers: int | None = None) -> pandas.DataFrame:
    """What a sweep has before it, a line each for the tuning and the grid of every plan.

    Columns: dataset, model, variant, part, runs, there (already), minutes (expected for the rest on this machine),
    basis (how that is known; of several, the least sure) and pieces (calls of `lossbook run --minutes 8` that it
    takes). What is not known is NaN. A run that stands in two lines takes its time in the first.
    """
    lines, counted = [], set()
    for plan in plans:
        rows = results.load(plan.experiment, plan.out)  # this machine's before the published: they choose the rates
        tuning = missing(plan, plan.tuning)
        untuned = {run.loss for run in tuning}
        tuned = plan.of({run.loss for run in plan.grid} - untuned)
        grid = missing(plan, tuned.chosen(rows)) + list(plan.of(untuned).grid)
        for part, configs, waiting in (("tuning", plan.tuning, tuning), ("grid", plan.grid, grid)):
            if not configs:
                continue
            new = [run for run in waiting if run not in counted]
            counted.update(new)
            count, one = Counter(map(_kind, new)), {_kind(run): run for run in new or configs}
            costs = {kind: expected_seconds(run, rows) for kind, run in one.items()}
            basis = max((basis for _, basis in costs.values()), key=BASES.index)
            known = basis != UNKNOWN or not new
            minutes = sum(count[kind] * seconds for kind, (seconds, _) in costs.items()) / 60 if known else math.nan
            if default_device().type == "cpu":  # a network that fills a GPU gains nothing by sharing it
                minutes /= max(1, min(_workers(workers), len(new)))
            lines.append({
                "dataset": configs[0].dataset, "model": configs[0].model, "variant": plan.variant, "part": part,
                "runs": len(configs), "there": len(configs) - len(waiting), "minutes": minutes, "basis": basis,
                "pieces": math.ceil(minutes / PIECE) if known else None,
            })  # fmt: skip
    return pandas.DataFrame(lines).astype({"pieces": "Int64"})


def _kind(run: Config | tasks.Task) -> tuple[object, ...]:
    """What runs of one cost have in common."""
    return tuple(getattr(run, name, None) for name in (*SAME_COST, "epochs"))


def expected_seconds(config: Config, rows: pandas.DataFrame) -> tuple[float, str]:
    """Wall time of one run and how it is known: by rows like it of this device or, of a task, of another; or estimated.

    Rows are like it that agree in SAME_COST; the passes over the data are reckoned in. (0.0, UNKNOWN) for a task that
    no row is like.
    """
    device = default_device()
    columns = [name for name in SAME_COST if hasattr(config, name)]
    epochs = [name for name in ("epochs",) if hasattr(config, name)]
    alike = rows.reindex(columns=[*columns, *epochs, "seconds", "device"]).dropna()
    for column in columns:
        alike = alike[alike[column] == getattr(config, column)]
    here = provenance(device)["device"].split(",")[0]
    devices = [str(there).split(",")[0] for there in alike["device"]]
    same, basis = [there == here for there in devices], "measured"
    if not any(same) and not isinstance(config, Config):
        same, basis = [("CPU" in there) == ("CPU" in here) for there in devices], "measured elsewhere"
    if any(same):
        share = config.epochs / alike["epochs"] if epochs else 1.0
        return float((alike["seconds"] * share)[same].median()), basis
    if not isinstance(config, Config):
        return 0.0, UNKNOWN
    examples = config.train_size or data.spec(config.dataset).train
    seconds = examples * _operations(config.dataset, config.model) / OPERATIONS_PER_SECOND[device.type]
    if config.model not in models.STACKABLE:  # alone; a stack shares its steps out
        seconds = max(seconds, examples / config.batch_size * SECONDS_PER_STEP[device.type])
    return seconds * config.epochs, "estimated"


@functools.lru_cache(maxsize=32)
def _operations(dataset: str, model: str) -> float:
    """Floating-point operations of training on one example: forward, and twice that backward."""
    spec = data.spec(dataset)
    network = models.create(model, spec.input_shape, len(spec.classes)).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, *spec.input_shape))
    return 3.0 * counter.get_total_flops()


def published(experiment: str) -> pandas.DataFrame:
    """The committed rows of the paper profile's grid: without the tuning runs and the controls beside it.

    The column `variant` says to which part of the experiment a row belongs; one that belongs to several is repeated.
    """
    rows, parts = results.published(experiment), []
    if rows.empty:
        return rows
    for variant in variants(experiment):
        wanted: set[str] = set()
        for (dataset, model), there in rows.groupby(["dataset", "model"]):
            try:
                grid, known = plan(experiment, "paper", dataset, model, variant=variant), set(there["loss"])
            except ValueError:  # rows of a set or a network that the paper profile does not hold
                continue
            if grid.tuning:  # a loss whose tuning is not published yet has no rows of this part either
                known = set(rows.loc[rows["hash"].isin({config.hash for config in grid.tuning}), "loss"])
            wanted |= {config.hash for config in grid.of(known).chosen(rows)}
        parts.append(rows[rows["hash"].isin(wanted)].assign(variant=variant))
    return pandas.concat(parts, ignore_index=True)


def missing(plan: Plan, configs: Iterable[Config]) -> list[Config]:
    """The configurations that have no row yet, neither on this machine nor (if not `afresh`) among the published."""
    there = set() if results.afresh() else set(results.published(plan.experiment)["hash"])
    there |= {path.stem for path in results.rows_folder(plan.experiment, plan.out).glob("*.parquet")}
    return [config for config in dict.fromkeys(configs) if config.hash not in there]


def _run(plan: Plan, configs: Iterable[Config], workers: int | None, deadline: float, what: str) -> None:
    """Train what is missing, as far as the deadline lets it; of the plan only experiment and folder are asked."""
    waiting = missing(plan, configs)
    for name in {name for config in waiting for name in config.data_sets} & set(data.NAMES):
        data.load(name)  # a missing or damaged file is met here, before any run
    if not waiting:
        return
    folder = results.rows_folder(plan.experiment, plan.out)
    try:  # whether a row can be written shows before the first run, not after it
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ValueError(f"out={str(plan.out or results.RUNS)!r} cannot be written ({error}); name another") from error
    begin, told, done = time.monotonic(), 0.0, 0
    pieces = stacks(waiting, workers)
    known = results.load(plan.experiment, plan.out) if deadline < math.inf else None
    if known is not None:
        pieces = [part for stack in pieces for part in _cut(stack, (deadline - begin) / 2, known)]

    def fits(stack: list[Config]) -> bool:
        return time.monotonic() + expected_seconds(stack[0], known)[0] * len(stack) < deadline

    for rows in trained(pieces, workers, fits if known is not None else None):
        for row in rows:
            results.write_row(row, plan.experiment, plan.out)
        now, done = time.monotonic(), done + len(rows)
        if sys.stdout and sys.stdout.isatty() and (now - told > 1 or done == len(waiting)):
            told, left = now, (now - begin) / done * (len(waiting) - done)
            state = f"{what} {done}/{len(waiting)} {rows[-1]['dataset']} {rows[-1]['loss']}"
            width = shutil.get_terminal_size().columns - 1  # a line that is full would begin another
            line = f"{state}, {left / 60:.1f} min left"[:width].ljust(width)
            print(f"\r{line}", end="\n" if done == len(waiting) else "", flush=True)


def stacks(configs: Iterable[Config], workers: int | None = None, device: str | None = None) -> list[list[Config]]:
    """The runs in the order given, those that gain by it put together: each list is trained as one stacked model.

    Stacking saves the cost of launching many small operations: on a CPU it pays while a step's images are few, on a GPU
    for every multi-layer perceptron (`lossbook bench stacking` measures it). Every worker gets its share.
    """
    device = device or default_device().type
    groups: dict[object, list[Config]] = {}
    for config in configs:
        groups.setdefault(config.group or config, []).append(config)
    made = []
    for group in groups.values():
        if group[0].group is None:
            made += [[config] for config in group]
            continue
        values = group[0].batch_size * math.prod(data.spec(group[0].dataset).image)
        share = math.ceil(len(group) / (_workers(workers) if device == "cpu" else 1))
        size = min(share, MOST_TOGETHER[device], VALUES_TOGETHER[device] // values)
        size = math.ceil(len(group) / math.ceil(len(group) / size)) if size >= FEWEST_TOGETHER else 1  # about as large
        # sorted, because runs of the same loss that stand side by side share one call of it
        made += [sorted(group[i : i + size], key=lambda config: config.loss) for i in range(0, len(group), size)]
    return made


def _cut(stack: list[Config], seconds: float, rows: pandas.DataFrame) -> list[list[Config]]:
    """The stack in parts, none of which is expected to take longer than so many seconds if a run does not."""
    each = expected_seconds(stack[0], rows)[0] if len(stack) > 1 else 0.0
    size = max(1, int(seconds / each)) if each else len(stack)
    return [stack[i : i + size] for i in range(0, len(stack), size)]


def _carry_out(stack: list[Config] | list[tasks.Task]) -> list[dict[str, object]]:
    return train_together(stack) if isinstance(stack[0], Config) else [tasks.row(task) for task in stack]


def _workers(workers: int | None) -> int:
    """Processes: what is asked for; else one on a GPU, and on the CPU LOSSBOOK_WORKERS, or one for every `threads`."""
    if workers is not None:
        if workers < 1:
            raise ValueError(f"workers={workers} was given; allowed: a whole number from 1")
        return workers
    if default_device().type != "cpu":
        return 1
    return count_of_environment("LOSSBOOK_WORKERS") or max(1, cores() // threads())


def _context() -> multiprocessing.context.BaseContext:
    """How processes are started: on Linux as forks of one that has imported all this, elsewhere each by itself.

    Also where the path of the temporary folder is long: the forks are asked for over a socket in it, with a path of its
    own of at most 107 characters.
    """
    if sys.platform != "linux" or len(os.fsencode(tempfile.gettempdir())) > 70:
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def cores() -> int:
    """How many processors this process may use, which a batch system may keep below what the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def processes(count: int, context: multiprocessing.context.BaseContext) -> Iterator[concurrent.futures.Executor]:
    """A pool whose processes have this one's environment and end with it, also where it is interrupted or killed."""
    others = multiprocessing.active_children()
    with concurrent.futures.ProcessPoolExecutor(count, context, _begin_worker, (dict(os.environ),)) as pool:
        try:
            yield pool
        except BaseException:  # interrupted, or a row cannot be written: what is under way would be lost all the same
            for process in set(multiprocessing.active_children()) - set(others):
                process.terminate()
            raise
        finally:
            pool.shutdown(cancel_futures=True)


def _begin_worker(environment: dict[str, str]) -> None:
    """What a worker does first: take the environment of its sweep, and end as soon as the process of that is gone.

    A fork has the environment of the first sweep, and this may be another. A sweep may be killed, and its workers
    would go on. Of an interruption, which a terminal sends to all, the sweep hears, and ends them.
    """
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def trained(
    stacks: list[list[Config]], workers: int | None, fits: Callable[[list[Config]], bool] | None = None
) -> Iterable[list[dict[str, object]]]:
    """The rows of the stacks, as they end. None is begun for which there is no time: `fits` is asked, if given.

    Where one fails, none is begun any more, and those that are under way are waited for before its error is raised.
    """
    workers = min(_workers(workers), len(stacks))
    if workers == 1:
        yield from map(_carry_out, filter(fits, stacks) if fits else stacks)
        return
    ahead = 0 if fits else 2  # without a deadline two more than there are workers: none waits for this process
    # By a queue: concurrent.futures.wait, interrupted while it takes its locks, keeps them, and the pool never ends.
    waiting, going, ended, failed = iter(stacks), 0, queue.SimpleQueue(), None
    with processes(workers, _context()) as pool:
        while True:
            while going < workers + ahead and (stack := next(waiting, None)):
                if not fits or fits(stack):
                    try:
                        pool.submit(_carry_out, stack).add_done_callback(ended.put)
                        going += 1
                    except BrokenProcessPool as error:
                        failed, waiting = failed or error, iter(())
            if not going:
                break
            try:  # an interruption may come to another thread; it is heard where this one wakes
                future, going = ended.get(timeout=1), going - 1
            except queue.Empty:
                continue
            if error := future.exception():
                failed, waiting = failed or error, iter(())
            else:
                yield future.result()
    if isinstance(failed, BrokenProcessPool):
        raise ChildProcessError(
            "a process of the sweep was killed, perhaps for want of memory; rows that are written stay, the same "
            "command goes on: give it fewer --workers. Or it did not start, as in a script that calls this outside of "
            "`if __name__ == '__main__'`"
        ) from failed
    if failed:
        raise failed
