"""Finding the pixels of a digit on a busy background: losses of pixels against a loss of masks, by foreground share.

A digit is blended into an image as translucent white; the pixels of its ink are the foreground, and its size sets their
share. MNIST digits lie on CIFAR10 images; the small digits of scikit-learn lie on random textures, made here.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import sigmoid_focal_loss

from lossbook import data
from lossbook.checks import check_fields
from lossbook.seeding import seeded
from lossbook.tasks import TUNING_SEED, Runs, Task, epochs, outputs
from lossbook.training import derived_seed, generator

DEFAULT = ("digits", "fcn_small")
PAPER = (("mnist", "fcn_small"),)
BACKGROUNDS = {"digits": "textures", "mnist": "cifar10"}
TEXTURE = 24  # height and width of a texture
OPACITY = 0.7  # of full ink
LONGER = ("bce", "dice", "bce_dice", "bce_prior")
THRESHOLDS = tuple(k / 20 for k in range(1, 20))  # of the probability, from which validation data choose one
PRIOR = 0.01  # probability of foreground that the focal paper's network starts with
EXAMPLES = 2  # test images kept with the first seed


def dice(logits: Tensor, mask: Tensor) -> Tensor:
    """1 - (2 Σpg + ε) / (Σp + Σg + ε) of each image, ε = 1e-5, p the probability and g the mask: value (n,).

    This is MONAI's `DiceLoss`, written out because its import alone takes seconds; a test compares the two.
    """
    p, epsilon = logits.sigmoid().flatten(1), 1e-5
    g = mask.flatten(1)
    return 1 - (2 * (p * g).sum(1) + epsilon) / (p.sum(1) + g.sum(1) + epsilon)


def bce(logits: Tensor, mask: Tensor) -> Tensor:
    """Binary cross-entropy, the mean over the pixels of each image: value (n,)."""
    return F.binary_cross_entropy_with_logits(logits, mask, reduction="none").flatten(1).mean(1)


def focal(logits: Tensor, mask: Tensor) -> Tensor:
    """The sigmoid focal loss with γ = 2 and α = 0.25, the mean over the pixels of each image: value (n,)."""
    return sigmoid_focal_loss(logits, mask, alpha=0.25, gamma=2).flatten(1).mean(1)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "bce": bce,
    "focal": focal,
    "dice": dice,
    "bce_dice": lambda logits, mask: bce(logits, mask) + dice(logits, mask),
    "focal_dice": lambda logits, mask: focal(logits, mask) + dice(logits, mask),
    "bce_prior": bce,
    "focal_prior": focal,
}


class SmallFCN(nn.Module):
    """A fully convolutional network on two scales: logits (n, 1, height, width), from the 15 x 15 about each."""

    def __init__(self, channels: int):
        super().__init__()
        self.fine = _block(channels, 8)
        self.coarse = nn.Sequential(
            _block(8, 16, stride=2), _block(16, 16, dilation=2, padding=2), nn.Conv2d(16, 32, 1), nn.PixelShuffle(2)
        )
        self.last = nn.Conv2d(16, 1, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        fine = self.fine(images)
        return self.last(torch.cat([fine, self.coarse(fine)], 1))


def _block(inputs: int, outputs: int, padding: int = 1, **options: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, padding=padding, bias=False, **options)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


MODELS = {"fcn_small": SmallFCN}


@dataclass(frozen=True, kw_only=True)
class Segmentation(Task):
    """A network trained to mark the foreground pixels.

    dataset     "digits" on random textures, grey; "mnist" on CIFAR10, in colour
    loss        one of `LOSSES`; with "_prior" the last layer starts by giving every pixel about the probability `PRIOR`
    share       of foreground pixels, in (0, 0.1]
    train_size  images trained on; a quarter as many more are for validation
    test_size   images it is judged on
    epochs      passes over the training images
    batch_size  images a step; the last, smaller batch of an epoch is dropped
    """

    share: float = 0.03
    train_size: int = 2000
    test_size: int = 1000
    epochs: int = 5
    batch_size: int = 16

    def __post_init__(self):
        super().__post_init__()
        check_fields(
            self,
            dict(dataset=BACKGROUNDS, model=MODELS, loss=LOSSES),
            dict(
                share="(0, 0.1]",
                epochs="[1, inf)",
                batch_size="[2, inf)",
                train_size=f"[{max(4, self.batch_size)}, inf)",  # and a quarter as many for validation
                test_size=f"[{EXAMPLES}, inf)",
            ),
        )

    @property
    def data_sets(self) -> tuple[str, ...]:
        """That of the digits, and that of the backgrounds."""
        return self.dataset, BACKGROUNDS[self.dataset]

    def run(self, device: torch.device) -> dict[str, object]:
        """iou: of the foreground, over all test pixels at once, where the probability is above one half.

        validation_score    the same on validation images, also after each epoch as validation_curve
        iou_at_chosen       on the test set at chosen_threshold, which is the best of `THRESHOLDS` on validation images
        precision, recall   on the test set, at one half
        *_pull_curve        Σ ∂loss/∂logit of a batch while it trains, over the foreground as a pull up and over the
                            background as a pull down: means over step 1, steps 2-3, 4-7, 8-15 and so on
        example_*           of seed 0: images (row by row, channels first), masks and probabilities, from 0 to 255
        """
        images, masks = self.composed("train", self.train_size, device)
        held, held_masks = self.composed("validation", self.train_size // 4, device)
        test, test_masks = self.composed("test", self.test_size, device)

        network = self.network().to(device)
        optimiser = torch.optim.Adam(network.parameters(), lr=self.learning_rate, fused=True)
        everything, criterion, curve = torch.arange(self.train_size, device=device), LOSSES[self.loss], []
        order, felt = generator("order", self.seed), []

        def loss(batch: Tensor) -> Tensor:
            logits, mask = network(images[batch]), masks[batch]
            logits.register_hook(lambda slopes: felt.append(pulls(slopes, mask)))
            return criterion(logits, mask).mean()

        for _ in epochs(network, optimiser, everything, self.batch_size, self.epochs, order, loss):
            found = outputs(network, held).sigmoid()
            if not found.isfinite().all():
                return {"status": "diverged", "validation_score": math.nan}
            curve.append(iou(found > 0.5, held_masks))

        doublings = [2**k - 1 for k in range(1, len(felt).bit_length())]
        up, down = torch.stack([part.mean(0) for part in torch.stack(felt).tensor_split(doublings)]).T.tolist()
        chosen = max(THRESHOLDS, key=lambda threshold: iou(found > threshold, held_masks))
        tested = outputs(network, test).sigmoid()
        marked, wanted = tested > 0.5, test_masks.bool()
        hits = (marked & wanted).sum().item()
        kept = slice(EXAMPLES if self.seed == 0 else 0)
        examples = {"images": test[kept], "masks": test_masks[kept], "probabilities": tested[kept]}
        return {
            "validation_score": curve[-1],
            "validation_curve": curve,
            "iou": iou(marked, wanted),
            "precision": hits / max(1, marked.sum().item()),
            "recall": hits / wanted.sum().item(),
            "chosen_threshold": chosen,
            "iou_at_chosen": iou(tested > chosen, wanted),
            "foreground_pull_curve": up,
            "background_pull_curve": down,
            **{f"example_{name}": (255 * x).round().int().flatten().tolist() for name, x in examples.items()},
        }

    def network(self) -> nn.Module:
        """The network with its initial weights."""
        with seeded(derived_seed("initialisation", self.seed)):
            network = MODELS[self.model](1 if self.dataset == "digits" else 3)
        if self.loss.endswith("_prior"):
            nn.init.constant_(network.last.bias, -math.log((1 - PRIOR) / PRIOR))
        return network

    def composed(self, part: str, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Images (count, channels, size, size) in [0, 1] and masks (count, 1, size, size) of 0 and 1.

        part  "train", "validation" or "test". The first two share no picture where there are enough; test pictures come
              from the test sets. Where there are fewer than asked for, they are taken again, placed anew.
        """
        begin = self.train_size if part == "validation" else 0
        purpose = "test pictures" if part == "test" else "pictures"
        digits = _take(_pictures(self.dataset)[part == "test"], begin, count, generator(purpose, self.seed))
        if self.dataset == "digits":
            backgrounds = textures(count, generator(f"{part} textures", self.seed))
        else:
            pictures = _pictures(BACKGROUNDS[self.dataset])[part == "test"]
            backgrounds = _take(pictures, begin, count, generator(f"{purpose} behind", self.seed))
        images, masks = compose(digits, backgrounds, self.share, generator(f"{part} places", self.seed))
        return images.to(device), masks.to(device)


@functools.lru_cache(maxsize=2)
def _pictures(name: str) -> dict[bool, Tensor]:
    """All pictures of the test set (True) and of the training set, uint8 (n, channels, height, width)."""
    loaded = data.load(name)
    return {True: data.channels_first(loaded.x_test), False: data.channels_first(loaded.x_train)}


def _take(pictures: Tensor, begin: int, count: int, random: torch.Generator) -> Tensor:
    """Pictures from `begin` on in a random order, in [0, 1]."""
    order = torch.randperm(len(pictures), generator=random)
    return pictures[order[torch.arange(begin, begin + count) % len(order)]].float() / 255


def textures(count: int, random: torch.Generator) -> Tensor:
    """Random grey images (count, 1, TEXTURE, TEXTURE) in [0, 1]: noise on grids of 2 to 24 points, coarse ones most."""
    image = torch.zeros(count, 1, TEXTURE, TEXTURE)
    for points in (2, 3, 6, 12, 24):
        noise = torch.randn(count, 1, points, points, generator=random)
        image += F.interpolate(noise, TEXTURE, mode="bilinear", align_corners=False) / points
    lowest, highest = image.amin((2, 3), keepdim=True), image.amax((2, 3), keepdim=True)
    return (image - lowest) / (highest - lowest)


def compose(digits: Tensor, backgrounds: Tensor, share: float, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Blend each digit (n, 1, h, w) into its background (n, channels, size, size), at a random place.

    All digits are scaled alike, so that their ink together is `share` of the area. The mask is their inkiest pixels, as
    many as make up the share over all images: equal but for ties of grey values.
    """
    size = backgrounds.shape[-1]
    side = min(size, round(size * math.sqrt(share / digits.mean().item())))
    scaled = F.interpolate(digits, side, mode="bilinear", antialias=True)
    ink = torch.zeros(len(digits), 1, size, size)
    corners = torch.randint(size - side + 1, (len(digits), 2), generator=random).tolist()
    for canvas, digit, (row, column) in zip(ink, scaled, corners, strict=True):
        canvas[:, row : row + side, column : column + side] = digit
    faintest = ink.flatten().kthvalue(ink.numel() - round(share * ink.numel()) + 1).values
    return torch.lerp(backgrounds, torch.ones(()), OPACITY * ink), (ink >= faintest).float()


def iou(marked: Tensor, mask: Tensor) -> float:
    """Intersection over union of two masks of any shape, over all their pixels at once."""
    marked, mask = marked.bool(), mask.bool()
    return ((marked & mask).sum() / (marked | mask).sum()).item()


def pulls(slopes: Tensor, mask: Tensor) -> Tensor:
    """How strongly the foreground pulls its logits up, and how strongly the background pulls its own down: (2,)."""
    return torch.stack([-(slopes * mask).sum(), (slopes * (1 - mask)).sum()])


def runs(profile: str, dataset: str, model: str) -> Runs:
    """Every loss at every share; each chooses among the same learning rates, at the smallest share.

    In the paper profile the losses of `LONGER` also train five times as long at that share.
    """
    shares, seeds, rates, names, recipe = (0.01, 0.03, 0.1), range(5), (3e-3, 1e-2, 3e-2), list(LOSSES), {}
    if profile == "smoke":
        shares, seeds, rates, recipe = (0.03,), range(2), rates[1:2], dict(epochs=1, train_size=48, test_size=20)
    elif profile == "quick":
        shares, seeds, rates = (0.03,), range(3), rates[1:]
        recipe = dict(epochs=3, train_size=160, test_size=120, batch_size=8)
    if profile != "paper":
        names = [name for name in names if not name.endswith("_prior")]
    common = dict(dataset=dataset, model=model, learning_rate=rates[0], share=shares[0], **recipe)
    first = [Segmentation(loss=loss, **common) for loss in names]
    tuning = [replace(task, learning_rate=rate, seed=TUNING_SEED) for rate in rates for task in first]
    grid = [replace(task, share=share, seed=seed) for seed in seeds for share in shares for task in first]
    if profile == "paper":
        longer = [replace(task, epochs=5 * task.epochs) for task in first if task.loss in LONGER]
        grid += [replace(task, seed=seed) for seed in seeds for task in longer]
    return Runs(tuple(grid), tuple(tuning) if len(rates) > 1 else ())
