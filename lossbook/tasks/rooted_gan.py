"""Fine-tuning a style-based generator with the logistic and with the rooted loss, judged by FID.

A generator and its critic are trained with the logistic loss on one set of images. From that checkpoint, the same for
every loss of a seed, they go on with each loss on another set: another data set, or classes that were held out.

FID is computed on features of a classifier that is trained here, so its numbers compare with each other and with no
published ones. Real images are judged against real ones beside it: that floor is what a perfect generator would reach.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lossbook import data, judges, style_gan
from lossbook.checks import check_fields, check_name
from lossbook.losses.rooted import margin_loss
from lossbook.tasks import Runs, Task
from lossbook.training import canonical_loss, derived_seed, generator

LOSSES = ("logistic", "rooted_logistic(k=2)", "rooted_logistic(k=3)", "rooted_logistic(k=20)")
# What is fine-tuned to, and what the generator has seen before: another data set, or the same without some classes.
BEGINNINGS = {
    "digits": ("digits", "56789"),
    "mnist": ("mnist", "8"),
    "fashion_mnist": ("mnist", ""),
    "cifar10": ("cifar10", "8"),
}
DEFAULT = ("digits", "style_small")
PAPER = (
    ("fashion_mnist", "style_small"),
    ("fashion_mnist", "style"),
    ("mnist", "style"),
    ("cifar10", "style"),
)
VALIDATION_SHARE = 0.1
BETAS = (0.0, 0.99)  # of Adam
PENALTY_EVERY = 8  # steps; R1 is that much larger then
HALF_LIFE = 40  # steps after which a weight counts half in the average generator
PICTURES = 12  # made images that a row keeps
CHUNK = 500  # images made or judged at a time


@dataclass(frozen=True, kw_only=True)
class FineTuning(Task):
    """One fine-tuning run, with the pre-training that it begins from.

    dataset            what is fine-tuned to: a name of `data.NAMES`
    source             the data set of the pre-training
    classes            held out of it and fine-tuned to, a digit each, where both are the same data set; else empty
    model              a name of `style_gan.SIZES`
    loss               "logistic", or "rooted_logistic(k=2)" with another k
    learning_rate      of the fine-tuning; that of the pre-training is `pretraining_rate`
    pretraining_steps  with the logistic loss, then `steps` with the loss, of `batch_size` images each
    gamma              of the R1 penalty in the fine-tuning: gamma / 2 times the squared gradient of the critic at real
                       images; in the pre-training it is 1
    samples            real images, and as many made ones, from which a FID is computed; fewer where there are fewer
    pieces             of the fine-tuning, at whose ends FID is measured
    seed               gives one generator each for initialisation, order, noise, and the images that are judged
    """

    source: str
    classes: str = ""
    pretraining_rate: float = 3e-3
    pretraining_steps: int = 1000
    steps: int = 400
    batch_size: int = 16
    gamma: float = 1.0
    samples: int = 2000
    pieces: int = 8

    def __post_init__(self):
        super().__post_init__()
        check_fields(
            self,
            dict(dataset=data.NAMES, source=data.NAMES, model=style_gan.SIZES),
            dict(
                pretraining_rate="(0, inf)",
                pretraining_steps="[1, inf)",
                steps="[1, inf)",
                batch_size="[1, inf)",
                gamma="[0, inf)",
                samples="[2, inf)",
                pieces=f"[1, {self.steps}]",
            ),
        )
        if self.batch_size % style_gan.GROUP:
            raise ValueError(f"batch_size={self.batch_size} was given; allowed: multiples of {style_gan.GROUP}")
        known = [str(label) for label in range(len(data.SETS[self.dataset].classes))]
        for label in self.classes:
            check_name("class", label, known)
        if (self.source == self.dataset) != bool(self.classes):
            raise ValueError(
                f"source={self.source!r} and classes={self.classes!r} were given for {self.dataset}; allowed: some of "
                "its classes where source is the same data set, none where it is another"
            )
        shapes = [data.SETS[name].input_shape for name in (self.source, self.dataset)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"images of {self.source} are {shapes[0]}, of {self.dataset} {shapes[1]}; give two alike")
        margin_loss(self.loss)
        if self.loss != "logistic":
            object.__setattr__(self, "loss", canonical_loss(self.loss))

    @property
    def data_sets(self) -> tuple[str, ...]:
        """The set that is fine-tuned to, and that of the pre-training."""
        return self.dataset, self.source

    def run(self, device: torch.device) -> dict[str, object]:
        """Fine-tune from the checkpoint of the seed and judge the average generator.

        fid, validation_fid       at the end, to test images and to those held out of the training images
        fid_curve at step_curve   to test images, the first before fine-tuning
        floor, expected_floor     FID of training images to test images: measured, and `judges.expected_fid`
        lowest_margin             of all that the loss saw; below -88.7 the unshifted power overflows in float32
        pictures_before, pictures  made from the same noise: uint8, PICTURES images (channels, height, width) in a row
        """
        judge = _judge(self.dataset, self.classes, self.samples, device)
        images = to_signed(select(self.dataset, "train", self.classes).to(device))
        # what does not touch the pre-training at one value, so that all losses of a seed share the checkpoint
        beginning = replace(self, loss="logistic", learning_rate=1.0, steps=1, pieces=1, gamma=1.0, samples=2)
        networks = copy.deepcopy(_pretrained(beginning, device))
        made = functools.partial(networks.make, seed=self.seed, device=device)
        before = made(judge.count("test"))
        curves = {"step_curve": [0], "fid_curve": [judge.fid("test", before)]}
        found = {"status": "diverged", "pictures_before": before[:PICTURES].flatten().cpu().numpy()}
        pictures, lowest = before, numpy.inf
        for end, values in fit(networks, images, self, "fine-tuning"):
            lowest = min(lowest, values.pop("lowest_margin"))
            for name, value in values.items():
                curves.setdefault(f"{name}_curve", []).append(value)
            if not all(map(numpy.isfinite, values.values())):
                break
            pictures = made(judge.count("test"))
            curves["step_curve"].append(end)
            curves["fid_curve"].append(judge.fid("test", pictures))
        else:
            found["status"] = "done"
        done = found["status"] == "done"
        validation = judge.fid("validation", made(judge.count("validation"))) if done else numpy.nan
        return {
            **found,
            "pictures": pictures[:PICTURES].flatten().cpu().numpy(),
            "fid_before": curves["fid_curve"][0],
            "fid": curves["fid_curve"][-1] if done else numpy.nan,
            "validation_fid": validation,
            "validation_score": -validation,
            "floor": judge.floor,
            "expected_floor": judge.expected_floor,
            "judged": judge.count("test"),
            "classifier_accuracy": judge.accuracy,
            "lowest_margin": lowest,
            **curves,
            "parameters": sum(p.numel() for p in networks.generator.parameters()),
        }


class Networks(NamedTuple):
    """A generator, its critic, and the moving average of the generator, which makes the images that are judged."""

    generator: style_gan.Generator
    critic: style_gan.Critic
    average: AveragedModel

    @torch.no_grad()
    def make(self, count: int, seed: int, device: torch.device) -> Tensor:
        """uint8 images (count, channels, height, width); the same seed gives the same noise."""
        random = generator("judged", seed, device)
        parts = []
        for begin in range(0, count, CHUNK):
            z = torch.randn(min(CHUNK, count - begin), self.generator.latent, generator=random, device=device)
            parts.append(to_bytes(self.average(z, random)))
        return torch.cat(parts)


def fit(networks: Networks, images: Tensor, task: FineTuning, phase: str) -> Iterator[tuple[int, dict[str, float]]]:
    """Train both in turn, and after each piece yield the step and means since the last: losses and scores.

    networks  changed in place
    images    (n, channels, height, width) from -1 to 1
    phase     gives noise and order of its own
    """
    steps, loss, device = task.steps, margin_loss(task.loss), images.device
    random = generator(f"{phase} noise", task.seed, device)
    order = generator(f"{phase} order", task.seed, device)
    generator_network, critic, average = networks
    of_generator, of_critic = (
        torch.optim.Adam(network.parameters(), task.learning_rate, BETAS, fused=True)
        for network in (generator_network, critic)
    )
    ends = [round(steps * piece / task.pieces) for piece in range(1, task.pieces + 1)]
    sums, count = torch.zeros(4, device=device), 0
    lowest = torch.full((), torch.inf, device=device)

    def noise() -> Tensor:
        return torch.randn(task.batch_size, generator_network.latent, generator=random, device=device)

    for step in range(1, steps + 1):
        real = images[torch.randint(len(images), (task.batch_size,), generator=order, device=device)]
        with torch.no_grad():
            made = generator_network(noise(), random)
        margins = critic(torch.cat([real, made])) * torch.tensor([1.0, -1.0], device=device).repeat_interleave(
            len(real)
        )
        critic_loss = 2 * loss(margins).mean()  # a mean over the real ones and one over the made ones
        objective = critic_loss
        if task.gamma and step % PENALTY_EVERY == 0:
            objective = objective + PENALTY_EVERY * task.gamma / 2 * style_gan.gradient_penalty(critic, real)
        of_critic.zero_grad()
        objective.backward()
        of_critic.step()

        critic.requires_grad_(False)
        scores = critic(generator_network(noise(), random))
        generator_loss = loss(scores).mean()
        of_generator.zero_grad()
        generator_loss.backward()
        of_generator.step()
        critic.requires_grad_(True)
        average.update_parameters(generator_network)

        seen, count = margins.detach(), count + 1
        sums += torch.stack([generator_loss.detach(), critic_loss.detach(), *seen.unflatten(0, (2, -1)).mean(1)])
        lowest = torch.minimum(lowest, torch.cat([seen, scores.detach()]).min())
        if step in ends:
            names = ("generator_loss", "critic_loss", "real_margin", "made_margin")
            yield step, dict(zip(names, (sums / count).tolist(), strict=True)) | {"lowest_margin": lowest.item()}
            sums, count = torch.zeros_like(sums), 0


@functools.lru_cache(maxsize=2)
def _pretrained(task: FineTuning, device: torch.device) -> Networks:
    """The checkpoint from which the losses of a seed begin; kept in this process."""
    shape = data.SETS[task.source].input_shape
    made = style_gan.create(task.model, shape, derived_seed("initialisation", task.seed))
    generator_network, critic = (network.to(device) for network in made)
    average = AveragedModel(generator_network, multi_avg_fn=get_ema_multi_avg_fn(0.5 ** (1 / HALF_LIFE)))
    networks = Networks(generator_network, critic, average)
    images = to_signed(select(task.source, "train", task.classes, without=True).to(device))
    pretraining = replace(task, steps=task.pretraining_steps, learning_rate=task.pretraining_rate)
    for _ in fit(networks, images, pretraining, "pre-training"):
        pass
    return networks


def select(dataset: str, part: str, classes: str = "", without: bool = False) -> Tensor:
    """uint8 images (n, channels, height, width) of "train", "validation" or "test", of some classes or of the others.

    The validation images are a tenth of the training images, the same for every seed: so all FIDs have one reference.
    """
    images, labels = _part(dataset, part)
    if not classes:
        return images
    chosen = torch.isin(labels, torch.tensor([int(label) for label in classes]))
    return images[chosen ^ without]


def _part(dataset: str, part: str) -> tuple[Tensor, Tensor]:
    found = data.load(dataset)
    if part == "test":
        return data.channels_first(found.x_test), torch.from_numpy(found.y_test).long()
    chosen = _positions(dataset, part)
    return data.channels_first(found.x_train[chosen]), torch.from_numpy(found.y_train[chosen]).long()


def _positions(dataset: str, part: str) -> Tensor:
    """Where "train" and "validation" are among the training images; the classifier learns from the former."""
    order = judges.training_order(dataset, 0)
    kept = len(order) - round(VALIDATION_SHARE * len(order))
    return order[:kept] if part == "train" else order[kept:]


def to_signed(images: Tensor) -> Tensor:
    """uint8 images as float32 from -1 to 1."""
    return images.float() / 127.5 - 1


def to_bytes(images: Tensor) -> Tensor:
    """Images from -1 to 1 as uint8, clipped."""
    return (images * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)


class Judge:
    """FID of images to the test images, and to the validation images, of some classes of a data set.

    The features are what the last layer sees of a small convolutional network that is trained on the training split;
    `accuracy` is that of the network on the whole test set.
    """

    def __init__(self, dataset: str, classes: str, samples: int, device: torch.device):
        _, *self.statistics = data.load_with_statistics(dataset)
        size, epochs = len(_positions(dataset, "train")), 20 if dataset == "digits" else 3
        self.network = judges.classifier(dataset, "cnn_small", "judge", 0, size, epochs, 1e-3, device)
        images, labels = _part(dataset, "test")
        found = self.network[-1](self.features(images.to(device)).float()).argmax(1)
        self.accuracy = (found.cpu() == labels).double().mean().item()
        real = {part: select(dataset, part, classes)[:samples].to(device) for part in ("test", "validation")}
        self.real = {part: self.features(images) for part, images in real.items()}
        reference = self.features(select(dataset, "train", classes)[: self.count("test")].to(device))
        self.floor = judges.fid(self.real["test"], reference)
        self.expected_floor = judges.expected_fid(torch.cov(reference.T), self.count("test"), len(reference))

    def features(self, images: Tensor) -> Tensor:
        """Features (n, d), float64, of uint8 images (n, channels, height, width)."""
        parts = (data.standardise(part.float() / 255, *self.statistics) for part in images.split(CHUNK))
        return torch.cat([self.network[:-1](part) for part in parts]).double()

    def count(self, part: str) -> int:
        """Real images of a part, and how many made ones they are to be compared with."""
        return len(self.real[part])

    def fid(self, part: str, images: Tensor) -> float:
        """FID of uint8 images (n, channels, height, width) to the real ones of "test" or "validation"."""
        return judges.fid(self.real[part], self.features(images))


_judge = functools.lru_cache(maxsize=2)(Judge)


def runs(profile: str, dataset: str, model: str) -> Runs:
    """Every loss with every seed, learning rate and penalty; nothing is tuned beforehand, the table shows all rates.

    The best rate of a loss is read off the validation FIDs; the rate shared by all is the logistic loss's best.
    """
    check_name("dataset", dataset, BEGINNINGS)
    source, classes = BEGINNINGS[dataset]
    compared, seeds, rates, penalties = LOSSES, (0, 1, 2), (3e-3,), (1.0, 0.0)
    if profile == "smoke":
        compared, seeds, penalties = LOSSES[:2], (0, 1), (1.0,)
        settings = dict(pretraining_steps=16, steps=8, pieces=2, samples=100)
    elif profile == "quick":
        compared = LOSSES[:2]
        settings = dict(pretraining_steps=100, steps=36, pieces=3, samples=500)
    elif model == "style_small":
        penalties, seeds, settings = (1.0,), range(20), dict(pretraining_steps=2000, steps=320, pieces=4)
    else:
        rates = (1e-3, 3e-3, 9e-3)
        settings = dict(pretraining_steps=10000, steps=3000, batch_size=64, samples=10000, pieces=10)
    return Runs(
        tuple(
            FineTuning(dataset=dataset, model=model, loss=loss, learning_rate=rate, seed=seed, source=source,
                       classes=classes, gamma=gamma, **settings)
            for seed in seeds
            for gamma in penalties
            for rate in rates
            for loss in compared
        )
    )  # fmt: skip
