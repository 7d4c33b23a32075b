"""Experiments that are no plain classification of images: a task is a configuration that runs itself.

A module of this folder is an experiment of the same name, found by `lossbook run` and by its notebook. It holds

* a frozen dataclass derived from `Task`: everything that decides a run, and `run`, which carries it out;
* `runs(profile, dataset, model) -> Runs`: what a profile asks for, with ValueError for what is not possible;
* `DEFAULT`, the data set and network of the smoke and quick profiles, and `PAPER`, those of the paper profile.

Rows, resuming, learning rates chosen on validation data, processes side by side: `sweep` does that for all of them.
"""

from __future__ import annotations

import math
import pkgutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from lossbook import data, models
from lossbook.checks import check_name, check_range, check_whole
from lossbook.training import PART, arithmetic, configuration_hash, default_device, derived_seed, provenance

NAMES = tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))
TUNING_SEED = 1000  # of the runs that choose learning rates; no run of a grid has it
_trained = Counter()  # "images" that `epochs` has taken steps with, in this process


@dataclass(frozen=True, kw_only=True)
class Task:
    """What every task has; its own dataclass adds fields with defaults and checks them in `__post_init__`.

    dataset        where the data come from
    model          the network
    loss           what is compared; runs of one loss share the learning rate that is chosen for it
    learning_rate  in (0, inf)
    seed           gives one generator for each purpose: `training.generator(purpose, seed)`
    """

    group: ClassVar[None] = None  # tasks are never trained together as one model

    dataset: str
    model: str
    loss: str
    learning_rate: float
    seed: int = 0

    def __post_init__(self):
        check_range("learning_rate", self.learning_rate, "(0, inf)")
        for field in fields(self):  # one type for the same number, so that the same run has the same hash
            name, value = field.name, getattr(self, field.name)
            if field.type == "int":  # annotations are strings; but for the seed its range is checked where the field is
                interval = "[0, inf)" if name == "seed" else "(-inf, inf)"
                object.__setattr__(self, name, check_whole(name, value, interval))
            elif field.type == "float":
                check_range(name, value, "(-inf, inf)")
                object.__setattr__(self, name, float(value))

    @property
    def hash(self) -> str:
        """Sixteen hexadecimal digits of the configuration; a field at its default does not enter."""
        return configuration_hash(self)

    @property
    def data_sets(self) -> tuple[str, ...]:
        """The sets that the run reads; they are fetched before any run begins."""
        return (self.dataset,)

    def run(self, device: torch.device) -> dict[str, object]:
        """Carry it out and return the results, columns of the row: numbers, strings, lists of numbers.

        status            "diverged" where a loss turned NaN or infinite; left out, it is "done"
        validation_score  by which learning rates are chosen, on data held out of the training data; higher is better
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Runs:
    """What a profile asks for.

    grid    the runs, every seed of every setting; their learning rate is replaced where there is tuning
    tuning  the same budget of learning rates for each loss, with the seed `TUNING_SEED`; empty for none
    """

    grid: tuple[Task, ...]
    tuning: tuple[Task, ...] = ()


def check_network(model: str, dataset: str) -> None:
    """Refuse a network that does not take these images, and airbench, whose first layer `training` alone prepares."""
    check_name("model", model, [name for name in models.MODELS if name != "airbench"])
    models.check(model, data.SETS[dataset].input_shape)


def epochs(
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    positions: Tensor,
    batch_size: int,
    count: int,
    order: torch.Generator,
    loss: Callable[[Tensor], Tensor],
    counted: bool = True,
) -> Iterator[float]:
    """Train for `count` epochs, one each time it is asked, and give the mean loss of its steps.

    The learning rate falls to zero along a cosine.

    positions  of the training examples (N,), shuffled by `order`; the last, smaller batch is dropped
    loss       of the examples at the positions of a batch, a scalar
    counted    whether the images enter a row's images a second
    """
    steps = len(positions) // batch_size
    schedule = CosineAnnealingLR(optimiser, steps * count)
    for _ in range(count):
        network.train()
        shuffled = positions[torch.randperm(len(positions), generator=order).to(positions.device)]
        total = torch.zeros((), device=positions.device)
        for batch in shuffled[: steps * batch_size].split(batch_size):
            value = loss(batch)
            optimiser.zero_grad()
            value.backward()
            optimiser.step()
            schedule.step()
            total += value.detach()
        _trained["images"] += steps * batch_size * counted
        yield total.item() / steps


@torch.no_grad()
def outputs(network: nn.Module, inputs: Tensor) -> Tensor:
    """What a network gives in evaluation mode, part by part, so that memory is bounded."""
    network.eval()
    return torch.cat([network(part) for part in inputs.split(PART)])


def row(task: Task) -> dict[str, object]:
    """Run a task and return its row: the configuration, results, wall time of all of `run`, and provenance.

    images_per_second counts the images of `epochs`, each as often as a step was taken with it; NaN where there is none.
    """
    device = default_device()
    origin = provenance(device)  # of the sources that run, which may be edited meanwhile
    begin, before = time.perf_counter(), _trained["images"]
    with arithmetic("exact", device), torch.random.fork_rng():
        torch.manual_seed(derived_seed("dropout", task.seed))  # dropout takes torch's own generator
        found = task.run(device)
    seconds, images = time.perf_counter() - begin, _trained["images"] - before
    return {
        "hash": task.hash,
        **asdict(task),
        "status": "done",
        **found,
        "seconds": seconds,
        "images_per_second": images / seconds if images else math.nan,
        **origin,
    }
