"""One training run: a configuration in, one row out."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import platform
import subprocess
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from torch import Tensor, nn

from lossbook import __version__, data, losses, models, noise
from lossbook.checks import check_name, check_range

OPTIMISERS = ("adam", "sgd")
AUGMENTATIONS = ("none", "shift_flip")
MODES = ("exact", "fast")
VALIDATION_SHARE = 0.1
PROBE = 5000  # training examples on which memorisation is measured, evenly from the training split
# Corrupted test sets on which a run with `panel=True` is judged: kind and level.
PANEL = (
    *(("gaussian", level) for level in (0.1, 0.2, 0.3, 0.5)),
    *(("salt_pepper", level) for level in (0.05, 0.1, 0.2, 0.4)),
    *(("blur", level) for level in (0.5, 1.0, 1.5, 2.0)),
)


@dataclass(frozen=True)
class Config:
    """Everything that decides a run. Invalid values are refused here, before any data is read.

    dataset        a name of `data.NAMES`
    model          a name of `models.MODELS`
    loss           a name or spec of `losses`, such as "fourier(s=2)"; stored in canonical form
    noise_kind     of the training labels: `noise.LABEL_KINDS`
    noise_rate     in [0, 1]
    image_noise    of the training images: `noise.IMAGE_KINDS`
    image_level    in the unit of that kind: see `noise.corrupt_images`
    augment        "none", or "shift_flip": shift by up to 4 pixels, and flip left-right
    optimiser      "adam", or "sgd" (momentum 0.9)
    learning_rate  at the start; it falls to zero along a cosine
    weight_decay   coupled L2
    epochs         passes over the training split
    batch_size     examples a step; the last, smaller batch of an epoch is dropped
    train_size     training images used, 0 for all
    mode           "exact": float32; "fast": matrix products and convolutions in bfloat16, losses and weights in float32
    panel          also judge the trained network on the corrupted test sets of PANEL
    seed           gives one generator each for split, initialisation, order, label noise, image noise, augmentation
    """

    dataset: str = "digits"
    model: str = "mlp"
    loss: str = "cross_entropy"
    noise_kind: str = "none"
    noise_rate: float = 0.0
    image_noise: str = "none"
    image_level: float = 0.0
    augment: str = "none"
    optimiser: str = "adam"
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    epochs: int = 10
    batch_size: int = 128
    train_size: int = 0
    mode: str = "exact"
    panel: bool = False
    seed: int = 0

    def __post_init__(self):
        for name, allowed in (
            ("dataset", data.NAMES),
            ("model", models.MODELS),
            ("noise_kind", noise.LABEL_KINDS),
            ("image_noise", noise.IMAGE_KINDS),
            ("augment", AUGMENTATIONS),
            ("optimiser", OPTIMISERS),
            ("mode", MODES),
        ):
            check_name(name, getattr(self, name), allowed)
        for name, kind, interval in (
            ("noise_rate", float, "[0, 1]"),
            ("image_level", float, "[0, inf)"),
            ("learning_rate", float, "(0, inf)"),
            ("weight_decay", float, "[0, inf)"),
            ("epochs", int, "[1, inf)"),
            ("batch_size", int, "[1, inf)"),
            ("train_size", int, "[0, inf)"),
            ("seed", int, "[0, inf)"),
        ):
            value = getattr(self, name)
            check_range(name, value, interval)
            if kind is int and not isinstance(value, int):
                raise ValueError(f"{name}={value!r} was given; allowed: a whole number in {interval}")
            object.__setattr__(self, name, kind(value))
        if not isinstance(self.panel, bool):
            raise ValueError(f"panel={self.panel!r} was given; allowed: True, False")
        if not isinstance(self.loss, str):
            raise ValueError(f"loss={self.loss!r} was given; allowed: a name or a spec such as 'fourier(s=2)'")
        # one spelling for the same thing, so that the same run has the same hash
        object.__setattr__(self, "loss", canonical_loss(self.loss, len(data.SETS[self.dataset].classes)))
        if self.noise_kind == "none" or self.noise_rate == 0:
            object.__setattr__(self, "noise_kind", "none")
            object.__setattr__(self, "noise_rate", 0.0)
        if self.image_noise == "none" or self.image_level == 0:
            object.__setattr__(self, "image_noise", "none")
            object.__setattr__(self, "image_level", 0.0)
        elif self.image_noise == "salt_pepper" and self.image_level > 1:
            raise ValueError(f"image_level={self.image_level} was given; allowed for salt_pepper: a share from 0 to 1")
        if self.noise_kind == "asymmetric" and self.dataset == "kmnist":
            raise ValueError("kmnist has no standard asymmetric map; allowed: symmetric, uniform, pair, ring")

    @property
    def hash(self) -> str:
        """Sixteen hexadecimal digits of the configuration; a field at its default does not enter."""
        changed = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        return hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:16]


@functools.lru_cache(maxsize=1024)
def canonical_loss(spec: str, num_classes: int = 10) -> str:
    """The one spelling of a loss: hyper-parameters sorted, those at their default left out. ValueError if unknown."""
    name, hyper = losses.parse(spec)
    losses.create(name, num_classes, **hyper)
    defaults = losses.lookup(name).defaults
    values = {k: float(v) if isinstance(defaults[k], float) else v for k, v in hyper.items()}
    changed = [f"{k}={_literal(v)}" for k, v in sorted(values.items()) if v != defaults[k]]
    return f"{name}({', '.join(changed)})" if changed else name


def _literal(value: object) -> str:
    """The shortest literal that reads back as the value; a tuple is written as a list."""
    if isinstance(value, float):
        return short if float(short := f"{value:g}") == value else repr(value)
    return f"[{', '.join(map(_literal, value))}]" if isinstance(value, list | tuple) else repr(value)


def generator(purpose: str, seed: int) -> torch.Generator:
    """A generator of its own for each purpose: changing one source of chance leaves the others as they are."""
    return torch.Generator().manual_seed(derived_seed(purpose, seed))


def derived_seed(purpose: str, seed: int) -> int:
    """A seed for one purpose, by hashing."""
    return int.from_bytes(hashlib.sha256(f"{purpose}:{seed}".encode()).digest()[:7], "big")


@functools.lru_cache(maxsize=2)
def _images(name: str) -> tuple[data.Dataset, Tensor, Tensor]:
    dataset = data.load(name)
    return dataset, data.to_tensor(dataset.x_train), data.to_tensor(dataset.x_test)


@dataclass(frozen=True)
class Split:
    """The tensors of a run, on its device. Images are standardised; `labels` are the noisy training labels."""

    train: Tensor
    labels: Tensor
    clean: Tensor
    validation: Tensor
    validation_labels: Tensor
    test: Tensor
    test_labels: Tensor
    dataset: data.Dataset
    panel: dict[tuple[str, float], Tensor]


def prepare(config: Config, device: torch.device) -> Split:
    """Load, corrupt, split and standardise the data of a run. The test labels are never touched."""
    dataset, x_train, x_test = _images(config.dataset)
    clean = torch.from_numpy(dataset.y_train).long()
    if config.train_size:
        if config.train_size > len(clean):
            raise ValueError(f"train_size={config.train_size} was given; {config.dataset} has {len(clean)} images")
        chosen = torch.randperm(len(clean), generator=generator("subset", config.seed))[: config.train_size]
        x_train, clean = x_train[chosen], clean[chosen]
    labels = noise.flip_labels(
        clean,
        config.noise_kind,
        config.noise_rate,
        dataset.num_classes,
        generator("labels", config.seed),
        config.dataset,
    )
    mean, std = _statistics(config.dataset)

    def standard(images: Tensor, kind: str = "none", level: float = 0.0, purpose: str = "images") -> Tensor:
        if kind != "none":
            images = noise.corrupt_images(images, kind, level, generator(purpose, config.seed))
        return data.standardise(images, mean, std).to(
            device, torch.bfloat16 if config.mode == "fast" else torch.float32
        )

    images = standard(x_train, config.image_noise, config.image_level)
    order = torch.randperm(len(clean), generator=generator("split", config.seed))
    held_out, kept = order.tensor_split([round(VALIDATION_SHARE * len(order))])
    panel = {(k, v): standard(x_test, k, v, f"panel {k} {v}") for k, v in PANEL} if config.panel else {}
    return Split(
        images[kept], labels[kept].to(device), clean[kept].to(device), images[held_out], labels[held_out].to(device),
        standard(x_test), torch.from_numpy(dataset.y_test).long().to(device), dataset, panel,
    )  # fmt: skip


@functools.lru_cache(maxsize=8)
def _statistics(name: str):
    return data.channel_statistics(_images(name)[0].x_train)


def shift_flip(images: Tensor, random: torch.Generator) -> Tensor:
    """Shift each image by up to 4 pixels either way (reflected at the border), and flip it left-right at random."""
    batch, _, height, width = images.shape
    padded = nn.functional.pad(images, (4, 4, 4, 4), mode="reflect")
    dy, dx, flip = (torch.randint(0, n, (batch, 1), generator=random).to(images.device) for n in (9, 9, 2))
    rows = dy + torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device)
    columns = dx + torch.where(flip == 1, columns.flip(0), columns)
    example = torch.arange(batch, device=images.device).view(-1, 1, 1)
    return padded.permute(0, 2, 3, 1)[example, rows.unsqueeze(2), columns.unsqueeze(1)].permute(0, 3, 1, 2)


def make_loss(config: Config, num_classes: int) -> losses.Loss:
    """The loss of a run. Permuted classes get the permutation of the run's seed, so that no single one decides."""
    name, hyper = losses.parse(config.loss)
    if hyper.get("placement") == "permuted":
        hyper.setdefault("permutation_seed", derived_seed("placement", config.seed) % 2**32)
    return losses.create(name, num_classes=num_classes, **hyper)


@torch.no_grad()
def predict(model: nn.Module, images: Tensor, mode: str = "exact", batch: int = 2000) -> Tensor:
    """Predicted classes, with the network in evaluation mode."""
    model.eval()
    with precision(mode, images.device):
        return torch.cat([model(part).argmax(-1) for part in images.split(batch)])


def precision(mode: str, device: torch.device):
    """The arithmetic of a mode: autocast to bfloat16 for "fast", nothing for "exact"."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=mode == "fast")


@contextmanager
def one_thread(device: torch.device):
    """On the CPU every run uses one thread: a sum has one order, so the same configuration gives the same row.

    Numbers below 1e-38 are flushed to zero there: arithmetic on them is many times slower.
    """
    if device.type != "cpu":
        yield
        return
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        torch.set_flush_denormal(True)
        yield
    finally:
        torch.set_num_threads(before)
        torch.set_flush_denormal(False)


def default_device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def train(config: Config, device: str | torch.device | None = None) -> dict[str, object]:
    """Train one network and return its row: the configuration, results, curves (a value an epoch) and provenance.

    The last epoch is the result; the best test accuracy is kept as a footnote and selects nothing. A run whose loss
    turns NaN or infinite ends with status "diverged" and the curves up to there. The clock covers the epochs with
    their evaluation, and leaves out loading the data and building the network.
    """
    device = torch.device(device) if device is not None else default_device()
    with one_thread(device):
        split = prepare(config, device)
        return _train(config, split, device)


def _train(config: Config, split: Split, device: torch.device) -> dict[str, object]:
    model = models.create(
        config.model,
        split.dataset.input_shape,
        split.dataset.num_classes,
        derived_seed("initialisation", config.seed),
    ).to(device)
    criterion = make_loss(config, split.dataset.num_classes)
    steps = len(split.train) // config.batch_size
    if steps == 0:
        raise ValueError(
            f"batch_size={config.batch_size} was given for {len(split.train)} training images; give a smaller one"
        )
    settings = dict(lr=config.learning_rate, weight_decay=config.weight_decay)
    if config.optimiser == "adam":
        optimiser = torch.optim.Adam(model.parameters(), **settings, fused=True)
    else:
        optimiser = torch.optim.SGD(model.parameters(), **settings, momentum=0.9, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps * config.epochs)
    order, augmentation = generator("order", config.seed), generator("augmentation", config.seed)
    flipped = (split.labels[:PROBE] != split.clean[:PROBE]).nonzero().squeeze(1)

    evaluate = functools.partial(predict, model, mode=config.mode)
    curves = {
        "train_loss": [],
        "test_accuracy": [],
        "validation_accuracy": [],
        "memorised": [],
        "recovered": [],
    }
    status, begin = "done", time.perf_counter()
    for _ in range(config.epochs):
        model.train()
        total = torch.zeros((), device=device)
        for chosen in torch.randperm(len(split.train), generator=order).to(device).split(config.batch_size)[:steps]:
            images = split.train[chosen]
            if config.augment == "shift_flip":
                images = shift_flip(images, augmentation)
            with precision(config.mode, device):
                loss = criterion(model(images), split.labels[chosen])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.detach()
        curves["train_loss"].append(total.item() / steps)
        curves["test_accuracy"].append(accuracy(evaluate(split.test), split.test_labels))
        curves["validation_accuracy"].append(accuracy(evaluate(split.validation), split.validation_labels))
        told = evaluate(split.train[flipped]) if len(flipped) else flipped
        curves["memorised"].append(accuracy(told, split.labels[flipped]))  # predicts the wrong label it was told
        curves["recovered"].append(accuracy(told, split.clean[flipped]))  # predicts the true label it never saw
        if not math.isfinite(curves["train_loss"][-1]):
            status = "diverged"
            break
    seconds = time.perf_counter() - begin

    panel = {f"{k} {v:g}": accuracy(evaluate(x), split.test_labels) for (k, v), x in split.panel.items()}
    return {
        "hash": config.hash,
        **asdict(config),
        "status": status,
        "test_accuracy": curves["test_accuracy"][-1],
        "best_test_accuracy": max(curves["test_accuracy"]),
        "validation_accuracy": curves["validation_accuracy"][-1],
        "realised_noise_rate": noise.realised_rate(split.clean, split.labels),
        **{f"{name}_curve": values for name, values in curves.items()},
        "panel_noise": list(panel),
        "panel_accuracy": list(panel.values()),
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": seconds,
        "images_per_second": len(curves["train_loss"]) * steps * config.batch_size / seconds,
        **provenance(device),
    }


def accuracy(predicted: Tensor, labels: Tensor) -> float:
    """Share of equal entries; NaN where there is none."""
    return (predicted == labels).float().mean().item() if len(labels) else math.nan


@functools.lru_cache(maxsize=4)
def provenance(device: torch.device) -> dict[str, str]:
    """Where a row comes from: device, versions, commit, and a hash of the library's sources (for a dirty tree)."""
    here = Path(__file__).parent
    sources = hashlib.sha256(b"".join(p.read_bytes() for p in sorted(here.rglob("*.py")))).hexdigest()[:16]
    git = subprocess.run(["git", "-C", here, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True)
    return {
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else platform.machine() + " CPU, 1 thread",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "lossbook": __version__,
        "commit": git.stdout.strip() or "unknown",
        "sources": sources,
    }
