"""One training run: a configuration in, one row out."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import math
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lossbook import __version__, data, losses, models, noise
from lossbook.checks import check_fields, check_range, check_whole, count_of_environment

OPTIMISERS = ("adam", "sgd", "sgd_plain", "airbench")
AUGMENTATIONS = ("none", "shift_flip", "crop_flip")
VIEWS = (1, 2, 6)
MODES = ("exact", "fast")
# In the airbench recipe the biases of batch norm learn so many times faster, and the bias of the whitening layer for a
# share of the steps.
BIAS_RATE_FACTOR, WHITENING_SHARE = 64, 0.3
PART = 2000  # images that a network in evaluation mode sees at once
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

    dataset        a name of `data.NAMES` or `data.TABLES`; a table takes a multi-layer perceptron and no image noise
    model          a name of `models.MODELS`
    loss           a name or spec of `losses`, such as "fourier(s=2)"; stored in canonical form
    noise_kind     of the training labels: `noise.LABEL_KINDS`
    noise_rate     in [0, 1]
    image_noise    of the training images: `noise.IMAGE_KINDS`
    image_level    in the unit of that kind: see `noise.corrupt_images`
    augment        "none"; "shift_flip": shift by up to 4 pixels, and flip left-right at random; "crop_flip": shift by
                   up to 2, and flip in every second epoch
    optimiser      "adam"; "sgd" (momentum 0.9); "sgd_plain" (without); "airbench" (momentum 0.85, Nesterov; biases of
                   batch norm at 64 times the rate, that of a whitening layer fixed after three tenths of the steps;
                   every fifth step goes on from a slow average of the weights)
    learning_rate  at the start, from where it falls to zero along a cosine; for "airbench" at its highest
    weight_decay   coupled L2
    epochs         passes over the training split
    batch_size     examples a step; the last, smaller batch of an epoch is dropped
    train_size     training images used, 0 for all
    mode           "exact": float32; "fast": matrix products and convolutions in bfloat16 where the processor has
                   instructions for it (`in_bfloat16`), losses and weights in float32
    validation_share  of the training images, held out
    views          of each test image in the final accuracy: 1; 2, with its mirror image; 6, also shifted by a pixel
    panel          also judge the trained network on the corrupted test sets of PANEL
    seed           gives one generator each for split, initialisation, order, label noise, image noise, augmentation,
                   dropout
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
    validation_share: float = 0.1
    views: int = 1
    panel: bool = False
    seed: int = 0

    def __post_init__(self):
        names = dict(
            dataset=data.ALL,
            model=models.MODELS,
            noise_kind=noise.LABEL_KINDS,
            image_noise=noise.IMAGE_KINDS,
            augment=AUGMENTATIONS,
            optimiser=OPTIMISERS,
            mode=MODES,
            views=VIEWS,
        )
        whole = dict(epochs="[1, inf)", batch_size="[1, inf)", train_size="[0, inf)", seed="[0, inf)", views="[1, inf)")
        real = dict(
            noise_rate="[0, 1]",
            image_level="[0, inf)",
            learning_rate="(0, inf)",
            weight_decay="[0, inf)",
            validation_share="[0, 1)",
        )
        check_fields(self, names, real)
        for name, interval in whole.items():
            object.__setattr__(self, name, check_whole(name, getattr(self, name), interval))
        for name in real:
            object.__setattr__(self, name, float(getattr(self, name)))
        if not isinstance(self.panel, bool):
            raise ValueError(f"panel={self.panel!r} was given; allowed: True, False")
        if not isinstance(self.loss, str):
            raise ValueError(f"loss={self.loss!r} was given; allowed: a name or a spec such as 'fourier(s=2)'")
        # one spelling for the same thing, so that the same run has the same hash
        object.__setattr__(self, "loss", canonical_loss(self.loss, len(data.spec(self.dataset).classes)))
        if self.noise_kind == "none" or self.noise_rate == 0:
            object.__setattr__(self, "noise_kind", "none")
            object.__setattr__(self, "noise_rate", 0.0)
        if self.image_noise == "none" or self.image_level == 0:
            object.__setattr__(self, "image_noise", "none")
            object.__setattr__(self, "image_level", 0.0)
        else:
            check_range("image_level", self.image_level, noise.LEVELS[self.image_noise])
        spec = data.spec(self.dataset)
        models.check(self.model, spec.input_shape)
        if self.noise_kind == "asymmetric":  # which not every set has
            noise.transition_matrix(self.noise_kind, self.noise_rate, len(spec.classes), self.dataset)
        if self.dataset in data.TABLES:
            for name, value in dict(image_noise="none", augment="none", views=1, panel=False).items():
                if getattr(self, name) != value:
                    raise ValueError(
                        f"{name}={getattr(self, name)!r} was given for {self.dataset}, a table; allowed: {value!r}"
                    )
        if self.train_size > spec.train:
            raise ValueError(f"train_size={self.train_size} was given; {self.dataset} has {spec.train} examples")
        of_training = self.train_size or spec.train
        held_out = round(self.validation_share * of_training)
        if self.validation_share and not held_out:
            raise ValueError(
                f"validation_share={self.validation_share} was given, less than one of {of_training} examples; "
                "allowed: 0 for none, or more"
            )
        if self.batch_size > (left := of_training - held_out):
            raise ValueError(
                f"batch_size={self.batch_size} was given; allowed: up to {left}, what is left for training"
            )

    @property
    def hash(self) -> str:
        """Sixteen hexadecimal digits of the configuration; a field at its default does not enter."""
        return configuration_hash(self)

    @property
    def data_sets(self) -> tuple[str, ...]:
        """The sets that the run reads."""
        return (self.dataset,)

    @property
    def group(self) -> Config | None:
        """What configurations have in common that can be trained together; None where this one has to be alone."""
        if self.model not in models.STACKABLE or self.augment != "none":
            return None
        return replace(
            self, loss="cross_entropy", noise_kind="none", noise_rate=0.0, image_noise="none", image_level=0.0, seed=0
        )


def configuration_hash(config) -> str:
    """Sixteen hexadecimal digits of a dataclass; a field at its default does not enter, so that fields can be added."""
    changed = {f.name: getattr(config, f.name) for f in fields(config) if getattr(config, f.name) != f.default}
    return hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:16]


@functools.lru_cache(maxsize=1024)
def canonical_loss(spec: str, num_classes: int = 10) -> str:
    """The one spelling of a loss: hyper-parameters sorted, those at their default left out. ValueError if unknown."""
    name, hyper = losses.parse(spec)
    losses.create(name, num_classes, **hyper)
    defaults = losses.lookup(name).defaults
    values = {k: float(v) if isinstance(defaults[k], float) else v for k, v in hyper.items()}
    # of shuffled classes no permutation named means another one for each seed: see `make_loss`
    named = {"permutation_seed"} if values.get("placement") == "permuted" else set()
    changed = [f"{k}={_literal(v)}" for k, v in sorted(values.items()) if v != defaults[k] or k in named]
    return f"{name}({', '.join(changed)})" if changed else name


def _literal(value: object) -> str:
    """The shortest literal that reads back as the value; a tuple is written as a list."""
    if isinstance(value, float):
        return short if float(short := f"{value:g}") == value else repr(value)
    return f"[{', '.join(map(_literal, value))}]" if isinstance(value, list | tuple) else repr(value)


def generator(purpose: str, seed: int, device: str | torch.device = "cpu") -> torch.Generator:
    """A generator of its own for each purpose: changing one source of chance leaves the others as they are."""
    return torch.Generator(device).manual_seed(derived_seed(purpose, seed))


def derived_seed(purpose: str, seed: int) -> int:
    """A seed for one purpose, by hashing."""
    return int.from_bytes(hashlib.sha256(f"{purpose}:{seed}".encode()).digest()[:7], "big")


def _images(
    name: str, part: str, kind: str, level: float, seed: int, purpose: str, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Standardised images of a set, damaged first where a kind is given."""
    dataset, mean, std = data.load_with_statistics(name)
    if name in data.TABLES:
        rows = (getattr(dataset, f"x_{part}") - mean) / std
        return torch.from_numpy(rows).to(device, dtype)
    images = data.to_tensor(getattr(dataset, f"x_{part}"))
    if kind != "none":
        images = noise.corrupt_images(images, kind, level, generator(purpose, seed))
    return data.standardise(images, mean, std).to(device, dtype)


# Kept on the device between runs: those that are the same for every seed, and those that are drawn.
_images_of_every_seed = functools.lru_cache(maxsize=16)(_images)
_images_of_a_seed = functools.lru_cache(maxsize=16)(_images)


@functools.lru_cache(maxsize=256)
def _noisy_labels(name: str, kind: str, rate: float, seed: int) -> Tensor:
    """Noisy labels of all training images; kept, because every loss of a grid meets the same ones."""
    dataset = data.load_with_statistics(name)[0]
    return noise.flip_labels(dataset.y_train, kind, rate, dataset.num_classes, generator("labels", seed), name)


@dataclass(frozen=True, eq=False)
class Split:
    """The data of a run, on its device.

    dataset     the set as it was loaded
    images      (N, channels, height, width) all training images, standardised; of a table (N, features)
    labels      (N,) their noisy labels; `clean` the true ones
    train       positions (m,) of the training split in these; `validation` (v,) those of the rest
    test        (n, channels, height, width) and `test_labels` (n,), which noise never touches
    panel       damaged test sets (n, channels, height, width), by kind and level
    """

    dataset: data.Dataset
    images: Tensor
    labels: Tensor
    clean: Tensor
    train: Tensor
    validation: Tensor
    test: Tensor
    test_labels: Tensor
    panel: dict[tuple[str, float], Tensor]


def prepare(config: Config, device: torch.device) -> Split:
    """Load, corrupt, split and standardise the data of a run."""
    dataset = data.load_with_statistics(config.dataset)[0]
    clean = torch.from_numpy(dataset.y_train).long()
    labels = _noisy_labels(config.dataset, config.noise_kind, config.noise_rate, config.seed)
    positions = torch.arange(len(clean))
    if config.train_size:
        positions = torch.randperm(len(clean), generator=generator("subset", config.seed))[: config.train_size]
    order = torch.randperm(len(positions), generator=generator("split", config.seed))
    validation, train = positions[order].tensor_split([round(config.validation_share * len(order))])

    def images(part: str, kind: str = "none", level: float = 0.0, purpose: str = "") -> Tensor:
        dtype = torch.bfloat16 if in_bfloat16(config.mode, device) else torch.float32
        if kind in noise.DRAWN_IMAGE_KINDS:
            return _images_of_a_seed(config.dataset, part, kind, level, config.seed, purpose, dtype, device)
        return _images_of_every_seed(config.dataset, part, kind, level, 0, "", dtype, device)

    return Split(
        dataset,
        images("train", config.image_noise, config.image_level, "images"),
        *(tensor.to(device) for tensor in (labels, clean, train, validation)),
        images("test"),
        torch.from_numpy(dataset.y_test).long().to(device),
        {(k, v): images("test", k, v, f"panel {k} {v}") for k, v in PANEL} if config.panel else {},
    )


def shift_flip(images: Tensor, offsets: Tensor, flip: Tensor, pixels: int = 4) -> Tensor:
    """Shift each image by up to so many pixels either way (reflected at the border), and flip some left-right.

    images (n, channels, height, width); offsets (n, 2), whole numbers from 0 to 2 * pixels, where `pixels` is no shift;
    flip (n,) boolean.
    """
    batch, _, height, width = images.shape
    padded = nn.functional.pad(images, (pixels,) * 4, mode="reflect").permute(0, 2, 3, 1)
    rows = offsets[:, :1] + torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device)
    columns = offsets[:, 1:] + torch.where(flip[:, None], columns.flip(0), columns)
    example = torch.arange(batch, device=images.device).view(-1, 1, 1)
    return padded[example, rows.unsqueeze(2), columns.unsqueeze(1)].permute(0, 3, 1, 2)


def augment(images: Tensor, kind: str, epoch: int, random: torch.Generator, out: Tensor) -> None:
    """All images of an epoch, augmented on their device and written to `out`."""
    pixels = {"shift_flip": 4, "crop_flip": 2}[kind]
    offsets = torch.randint(0, 2 * pixels + 1, (len(images), 2), generator=random)
    flip = torch.randint(0, 2, (len(images),), generator=random) == 1
    if kind == "crop_flip":  # every image is seen from either side in turn
        sides = torch.randint(0, 2, (len(images),), generator=torch.Generator().manual_seed(random.initial_seed()))
        flip = (sides + epoch) % 2 == 1
    chunks = (tensor.to(images.device).split(data.CHUNK) for tensor in (offsets, flip))
    for seen, image, offset, side in zip(out.split(data.CHUNK), images.split(data.CHUNK), *chunks, strict=True):
        seen.copy_(shift_flip(image, offset, side, pixels))


def make_loss(config: Config, num_classes: int) -> losses.Loss:
    """The loss of a run, a value an example. Each seed permutes the classes anew, so that no one order decides."""
    name, hyper = losses.parse(config.loss)
    if hyper.get("placement") == "permuted":
        hyper.setdefault("permutation_seed", derived_seed("placement", config.seed) % 2**32)
    return losses.create(name, num_classes=num_classes, reduction="none", **hyper)


@torch.no_grad()
def predict(network: Callable[[Tensor], Tensor], parts: Iterable[Tensor], mode: str, views: int = 1) -> Tensor:
    """Logits (M, n, C) of a stack of networks that is in evaluation mode, part by part of the images (M, b, ...).

    views  1: the image; 2: mean logit of it and its mirror image; 6: of these, also shifted by a pixel either way
    """
    found = []
    for images in parts:
        seen = [images]
        if views == 6:
            padded = nn.functional.pad(images.flatten(0, 1), (1, 1, 1, 1), mode="reflect").unflatten(
                0, images.shape[:2]
            )
            seen = [images, images, padded[..., :-2, :-2], padded[..., 2:, 2:]]  # half the weight on the image itself
        with precision(mode, images.device):
            logits = sum(network(image) for image in seen)
            if views > 1:
                logits = (logits + sum(network(image.flip(-1)) for image in seen)) / (2 * len(seen))
        found.append(logits.float())
    return torch.cat(found, 1)


def calibration(logits: Tensor, labels: Tensor, bins: int = 15) -> tuple[float, float]:
    """Mean negative log-likelihood, in nats, and expected calibration error, in [0, 1], of logits (n, C).

    The error is the mean over examples of |accuracy - confidence| of their bin, confidence being the largest
    probability, in bins of equal width (Naeini et al. 2015; Guo et al. 2017). NaN where a logit is not finite.
    """
    log_p = torch.log_softmax(logits.double(), -1)
    if not log_p.isfinite().all():
        return math.nan, math.nan
    confidence, predicted = log_p.exp().max(-1)
    gap = (predicted == labels).double() - confidence
    place = (confidence * bins).long().clamp_max(bins - 1)
    error = torch.zeros(bins, dtype=gap.dtype, device=gap.device).index_add_(0, place, gap).abs().sum() / len(gap)
    return -log_p.gather(1, labels[:, None]).mean().item(), error.item()


def precision(mode: str, device: torch.device):
    """The arithmetic of a mode: autocast to bfloat16 for "fast" where there is hardware for it, nothing for "exact"."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=in_bfloat16(mode, device))


def in_bfloat16(mode: str, device: torch.device) -> bool:
    """Whether a mode multiplies in bfloat16 on a device: a CPU without instructions for it is ten times slower then."""
    return mode == "fast" and (device.type != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported())


@contextmanager
def arithmetic(mode: str, device: torch.device):
    """How a run computes.

    On the CPU with one thread: a sum has one order, so the same configuration gives the same row (in a stack of the
    same size, which the row states), and runs go side by side. LOSSBOOK_THREADS gives more threads to a run that is
    long and alone. Numbers below 1e-38 are flushed to zero there: arithmetic on them is many times slower. In bfloat16
    attention goes by its formula: the gradient of the fused kernel takes ten times as long there. On a GPU "exact"
    means float32 without TF32 and deterministic cuDNN kernels, "fast" the kernels that prove fastest.
    """
    products = torch.get_float32_matmul_precision()
    if device.type == "cpu":
        before = torch.get_num_threads()
        flushed = not torch.tensor(1e-310, dtype=torch.float64).mul(1).item()  # torch sets this and does not tell it
        try:
            torch.set_num_threads(threads())
            torch.set_flush_denormal(True)
            torch.set_float32_matmul_precision(_float32_products())
            with sdpa_kernel(SDPBackend.MATH) if in_bfloat16(mode, device) else nullcontext():
                yield
        finally:
            torch.set_num_threads(before)
            torch.set_flush_denormal(flushed)
            torch.set_float32_matmul_precision(products)
    else:
        with torch.backends.cudnn.flags(
            enabled=True, benchmark=mode == "fast", deterministic=mode == "exact", allow_tf32=mode == "fast"
        ):
            try:
                if mode == "exact":
                    torch.set_float32_matmul_precision("highest")  # the caller may allow TF32
                yield
            finally:
                torch.set_float32_matmul_precision(products)


def threads() -> int:
    """Threads of a run on the CPU: LOSSBOOK_THREADS, else one."""
    return count_of_environment("LOSSBOOK_THREADS", most=1024) or 1  # at 100000 torch ended the process


@functools.lru_cache(maxsize=1)
def _float32_products() -> str:
    """Torch's precision setting under which this processor multiplies float32 matrices fastest, and in float32.

    "medium" hands them to oneDNN, twice as fast as MKL on an AMD processor, and allows it bfloat16, which it takes only
    where there are matrix units for it. Whether it does shows in a product: bfloat16 would be wrong by a part in 10^3.
    """
    before = torch.get_float32_matmul_precision()
    one, other = torch.randn(2, 256, 256, generator=torch.Generator().manual_seed(0))
    try:
        torch.set_float32_matmul_precision("medium")
        error = (one @ other - (one.double() @ other.double())).abs().max().item()
    finally:
        torch.set_float32_matmul_precision(before)
    return "medium" if error < 1e-3 else "highest"


def default_device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def train(config: Config, device: str | torch.device | None = None) -> dict[str, object]:
    """Train one network and return its row: the configuration, results, curves (a value an epoch) and provenance.

    The last epoch is the result; the best test accuracy is kept as a footnote and selects nothing. Negative
    log-likelihood and calibration error are those of the test set, as trained and with the logits multiplied by the
    factor that makes the loss's own optimum calibrated (`losses.calibration_factor`; NaN where none is known). A run
    whose loss turns NaN or infinite ends with status "diverged" and the curves up to there. The clock covers the epochs
    with their evaluation, and leaves out loading the data and building the network.
    """
    return train_together([config], device)[0]


def train_together(configs: Sequence[Config], device: str | torch.device | None = None) -> list[dict[str, object]]:
    """Train several networks as one stacked model; the rows are those of `train`, up to the rounding of sums.

    Configurations go together that have the same `Config.group`. The wall time is shared out evenly among the rows.
    """
    groups = {config.group for config in configs}
    if len(configs) > 1 and (len(groups) > 1 or None in groups):
        raise ValueError(f"{len(configs)} configurations of {len(groups)} groups were given; allowed: one group")
    device = torch.device(device) if device is not None else default_device()
    with arithmetic(configs[0].mode, device), torch.random.fork_rng():
        torch.manual_seed(derived_seed("dropout", configs[0].seed))  # dropout takes torch's own generator
        # runs that differ in their loss alone share their data, and the tensors that hold them
        data_of = [replace(config, loss="cross_entropy") for config in configs]
        splits = {config: prepare(config, device) for config in dict.fromkeys(data_of)}
        return _train(configs, [splits[config] for config in data_of], device)


def _train(configs: Sequence[Config], splits: list[Split], device: torch.device) -> list[dict[str, object]]:
    shared, dataset = configs[0], splits[0].dataset
    origin = provenance(device, len(configs))  # of the sources that run, which may be edited meanwhile
    initial = {
        seed: models.create(
            shared.model, dataset.input_shape, dataset.num_classes, derived_seed("initialisation", seed)
        )
        for seed in {config.seed for config in configs}
    }
    members = [initial[config.seed] for config in configs]
    labels, clean, train, validation = (
        torch.stack([getattr(split, field) for split in splits]) for field in ("labels", "clean", "train", "validation")
    )
    # the distinct image tensors in one, and where each run's begin
    distinct = list({id(split.images): split.images for split in splits}.values())
    images = distinct[0] if len(distinct) == 1 else torch.cat(distinct)
    begins = [next(i for i, tensor in enumerate(distinct) if tensor is split.images) for split in splits]
    begin = torch.tensor(begins, device=device)[:, None] * len(distinct[0])
    if hasattr(members[0], "whiten"):
        members[0].whiten(images[train[0, :PROBE]].float())
    network = models.Stack(members).to(device, memory_format=models.memory_format(shared.model, device))
    forward = network
    if device.type == "cuda" and shared.mode == "fast" and shared.model not in models.STACKABLE:
        # compiled once an architecture: later runs have other weights, not other code. A stack of perceptrons is done
        # with hundreds of runs before its compilation would be.
        torch._dynamo.config.recompile_limit = 64  # a process may meet several architectures, each in several shapes
        forward = torch.compile(network.forward, dynamic=False)

    criteria = [make_loss(config, dataset.num_classes) for config in configs]
    alike = [list(group) for _, group in itertools.groupby(range(len(configs)), key=lambda run: repr(criteria[run]))]
    optimiser = _optimiser(shared, network, device)
    seen = torch.empty_like(images) if shared.augment != "none" else images
    total = torch.zeros(len(configs), device=device)

    def step(chosen: Tensor) -> None:
        batch, wanted = _take(seen, chosen + begin), labels.gather(1, chosen)
        with precision(shared.mode, device):
            logits = forward(batch)
            loss = torch.cat(
                [criteria[runs[0]](logits[runs[0] : runs[-1] + 1], wanted[runs[0] : runs[-1] + 1]).mean(-1)
                 for runs in alike]
            )  # fmt: skip
        optimiser.zero_grad()
        loss.sum().backward()
        optimiser.step()
        total.add_(loss.detach())

    steps = train.shape[1] // shared.batch_size
    advance = step
    if device.type == "cuda":
        advance = _captured(step, train[:, : shared.batch_size], network, optimiser, total)
    order = {config.seed: generator("order", config.seed) for config in configs}
    random = generator("augmentation", shared.seed)
    rate = _rates(shared, steps * shared.epochs)
    averaged = _Lookahead(network) if shared.optimiser == "airbench" else None

    probe = train[:, :PROBE]
    flipped = labels.gather(1, probe) != clean.gather(1, probe)
    curves: list[dict[str, list[float]]] = [
        {name: [] for name in ("train_loss", "test_accuracy", "validation_accuracy", "memorised", "recovered")}
        for _ in configs
    ]
    going, start = set(range(len(configs))), time.perf_counter()

    def predicted(positions: Tensor) -> Tensor:
        """Classes (M, n) of each run's own training images at its positions (M, n)."""
        parts = (_take(images, part + begin) for part in positions.split(PART, 1))
        return predict(forward, parts, shared.mode).argmax(-1)

    def test_logits_of(views: int) -> Tensor:
        """Logits (M, n, C) of the test set, which all runs share."""
        parts = (part.expand(len(configs), *part.shape) for part in splits[0].test.split(PART))
        return predict(forward, parts, shared.mode, views)

    for epoch in range(shared.epochs):
        network.train()
        total.zero_()
        if shared.augment != "none":
            augment(images, shared.augment, epoch, random, seen)
        shuffled = {seed: torch.randperm(train.shape[1], generator=source).to(device) for seed, source in order.items()}
        chosen = train.gather(1, torch.stack([shuffled[config.seed] for config in configs]))
        for i, batch in enumerate(chosen[:, : steps * shared.batch_size].split(shared.batch_size, 1), epoch * steps):
            for group in optimiser.param_groups:
                _set_rate(group, rate[i] * group["rate_factor"] if i < group["until"] * len(rate) else 0.0)
            advance(batch)
            if averaged and i % 5 == 4:
                averaged.update(0.95**5 * (i / len(rate)) ** 3)
        if averaged and epoch == shared.epochs - 1:
            averaged.update(1.0)
        network.eval()
        # without a wrong label both shares of them are NaN, whatever is predicted
        on_probe = predicted(probe) if flipped.any() else labels.gather(1, probe)
        test_logits = test_logits_of(views=1)
        values = {
            "train_loss": total / steps,
            "test_accuracy": accuracy(test_logits.argmax(-1), splits[0].test_labels),
            "validation_accuracy": accuracy(predicted(validation), labels.gather(1, validation)),
            "memorised": accuracy(on_probe, labels.gather(1, probe), flipped),  # predicts the wrong label it was told
            "recovered": accuracy(on_probe, clean.gather(1, probe), flipped),  # predicts the true label it never saw
        }
        values = {name: value.tolist() for name, value in values.items()}
        for run in sorted(going):
            for name, curve in curves[run].items():
                curve.append(values[name][run])
            if not math.isfinite(values["train_loss"][run]):
                going.discard(run)
        if not going:
            break
    seconds = (time.perf_counter() - start) / len(configs)
    panel = {}
    for kind, level in splits[0].panel:  # each seed has its own damaged images, and each network sees those of its seed
        parts = zip(*(split.panel[kind, level].split(PART) for split in splits), strict=True)
        found = predict(forward, map(torch.stack, parts), shared.mode).argmax(-1)
        panel[f"{kind} {level:g}"] = accuracy(found, splits[0].test_labels).tolist()
    test_accuracy = [curve["test_accuracy"][-1] for curve in curves]
    if shared.views > 1:
        test_accuracy = accuracy(test_logits_of(shared.views).argmax(-1), splits[0].test_labels).tolist()
    parameters = sum(p.numel() for p in network.parameters()) // len(configs)
    return [
        {
            "hash": config.hash,
            **asdict(config),
            "test_accuracy": test_accuracy[run],
            **_summary(config, split, curves[run], test_logits[run]),
            "panel_noise": list(panel),
            "panel_accuracy": [shares[run] for shares in panel.values()],
            "parameters": parameters,
            "seconds": seconds,
            "images_per_second": len(curves[run]["train_loss"]) * steps * shared.batch_size / seconds,
            **origin,
        }
        for run, (config, split) in enumerate(zip(configs, splits, strict=True))
    ]


def _summary(config: Config, split: Split, curves: dict[str, list[float]], logits: Tensor) -> dict[str, object]:
    """What a row says of a run by its curves, and by its logits (n, C) of the test set after the last epoch."""
    used = torch.cat([split.train, split.validation])
    factor = losses.calibration_factor(config.loss, split.dataset.num_classes)
    nll, error = calibration(logits, split.test_labels)
    nll_rescaled, error_rescaled = calibration(logits * (math.nan if factor is None else factor), split.test_labels)
    # the last step may be the one that diverges
    done = math.isfinite(curves["train_loss"][-1]) and bool(logits.isfinite().all())
    return {
        "status": "done" if done else "diverged",
        "best_test_accuracy": max(curves["test_accuracy"]),
        "validation_accuracy": curves["validation_accuracy"][-1],
        "nll": nll,
        "calibration_error": error,
        "nll_rescaled": nll_rescaled,
        "calibration_error_rescaled": error_rescaled,
        "realised_noise_rate": (split.clean[used] != split.labels[used]).double().mean().item(),
        **{f"{name}_curve": values for name, values in curves.items()},
    }


def _take(images: Tensor, positions: Tensor) -> Tensor:
    """images[positions], by the kernel that copies whole images: several times faster on a CPU."""
    return images.flatten(1).index_select(0, positions.flatten()).view(*positions.shape, *images.shape[1:])


def accuracy(predicted: Tensor, labels: Tensor, where: Tensor | None = None) -> Tensor:
    """Share of equal entries in each row (M, n), where `where` says so; NaN where there is none."""
    right = (predicted == labels).float()
    return right.mean(1) if where is None else (right * where).sum(1) / where.sum(1)


def _optimiser(config: Config, network: nn.Module, device: torch.device) -> torch.optim.Optimizer:
    """The optimiser of a run; each group learns at `rate_factor` times the rate, `until` that share of the steps."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    shifts, whitening = set(), set()
    if config.optimiser == "airbench":
        shifts = {m.bias for m in network.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)}
        whitening = {network.member[0].bias} if isinstance(network.member, models.Airbench) else set()
    kinds = (
        (set(parameters) - shifts - whitening, 1.0, 1.0),
        (shifts, BIAS_RATE_FACTOR, 1.0),
        (whitening, 1.0, WHITENING_SHARE),
    )
    groups = [  # the decay is such that the rate times the decay is the same for all
        {
            "params": [p for p in parameters if p in members],
            "rate_factor": factor,
            "until": until,
            "weight_decay": config.weight_decay / factor,
        }
        for members, factor, until in kinds
        if members
    ]
    for group in groups:  # on a GPU a tensor, which a recorded step reads anew each time
        group["lr"] = torch.tensor(config.learning_rate, device=device) if device.type == "cuda" else 0.0
    if config.optimiser == "adam":
        return torch.optim.Adam(groups, fused=True, capturable=device.type == "cuda")
    momentum = {"sgd": 0.9, "sgd_plain": 0.0, "airbench": 0.85}[config.optimiser]
    return torch.optim.SGD(groups, fused=True, momentum=momentum, nesterov=config.optimiser == "airbench")


def _rates(config: Config, steps: int) -> list[float]:
    """The learning rate of every step: along a cosine to zero, or up and down again."""
    if config.optimiser != "airbench":
        return [config.learning_rate * (1 + math.cos(math.pi * i / steps)) / 2 for i in range(steps)]
    at, share = (0, int(0.23 * steps), steps), (0.2, 1.0, 0.07)
    return (config.learning_rate * numpy.interp(range(steps), at, share)).tolist()


def _set_rate(group: dict, rate: float) -> None:
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


class _Lookahead:
    """A slow average of weights and statistics, from which training goes on each time it is updated."""

    def __init__(self, network: nn.Module):
        self.fast = [tensor for tensor in network.state_dict().values() if tensor.is_floating_point()]
        self.slow = [tensor.clone() for tensor in self.fast]

    @torch.no_grad()
    def update(self, decay: float) -> None:
        torch._foreach_lerp_(self.slow, self.fast, 1 - decay)
        torch._foreach_copy_(self.fast, self.slow)


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """The one stream to record on: cuBLAS keeps a workspace for every stream it has seen."""
    return torch.cuda.Stream(device)


def recorded(
    step: Callable[[], object], device: torch.device, ready: Callable[[], object] = lambda: None
) -> torch.cuda.CUDAGraph:
    """A step as one CUDA graph, recorded when it has run three times and `ready` has been called."""
    side = _side_stream(device)
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    ready()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        step()
    return graph


def _captured(
    step: Callable[[Tensor], None], example: Tensor, network: nn.Module, optimiser: torch.optim.Optimizer, total: Tensor
) -> Callable[[Tensor], None]:
    """The step recorded as one CUDA graph, so that no launch is waited for; what the warm-up changes is put back."""
    chosen = example.clone()
    weights = [tensor for tensor in network.state_dict().values()]
    before = [tensor.clone() for tensor in weights]
    network.train()
    graph = recorded(functools.partial(step, chosen), chosen.device, optimiser.zero_grad)
    for tensor, value in zip(weights, before, strict=True):
        tensor.copy_(value)
    for state in optimiser.state.values():
        for tensor in filter(torch.is_tensor, state.values()):
            tensor.zero_()
    total.zero_()

    def replay(batch: Tensor) -> None:
        chosen.copy_(batch)
        graph.replay()

    return replay


@functools.cache
def _sources() -> str:
    files = sorted(path for path in Path(__file__).parent.rglob("*") if path.suffix in (".py", ".cpp"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]


# hashed at import, when file and running code agree: a sweep's workers are forks of a process that may be older than
# an edit
_sources()


def _output(*command: str | Path) -> str:
    """What a command prints; nothing where it fails, or where there is no such command."""
    if not shutil.which(command[0]):
        return ""
    done = subprocess.run(command, capture_output=True, text=True)
    return "" if done.returncode else done.stdout.strip()


@functools.lru_cache(maxsize=4)
def _provenance(device: torch.device) -> dict[str, str]:
    here = Path(__file__).parent
    top, _, commit = _output("git", "-C", here, "rev-parse", "--show-toplevel", "--short=12", "HEAD").partition("\n")
    if not (top and here.parent.samefile(top)):  # installed, it may lie in a repository of something else
        commit = "unknown"
    elif _output("git", "-C", here, "status", "--porcelain", "."):
        commit += "-dirty"
    name = f"{platform.machine()} CPU with {torch.backends.cpu.get_cpu_capability()}"
    if device.type == "cuda":
        query = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", f"--id={device.index or 0}")
        driver = _output(*query) or "unknown"
        name = f"{torch.cuda.get_device_name(device)}, driver {driver}, CUDA {torch.version.cuda}"
    return {
        "device": name,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "lossbook": __version__,
        "commit": commit,
        "sources": _sources(),
    }


def provenance(device: torch.device, together: int = 1) -> dict[str, str]:
    """Where a row comes from: device, versions, commit ("-dirty": changed since), and a hash of the library."""
    found = dict(_provenance(device))
    if device.type == "cpu":
        found["device"] += ", 1 thread" if threads() == 1 else f", {threads()} threads"
    if together > 1:
        found["device"] += f", {together} networks together"
    return found
