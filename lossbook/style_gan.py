"""A style-based generator and its critic, small enough for images of 8x8 to 32x32.

The pieces are those of StyleGAN2 (Karras et al. 2020, arXiv 1912.04958): a mapping network turns noise into a style,
the style scales the input channels of every convolution (modulation), the output is divided by the standard deviation
that this gives it (demodulation), each layer adds noise of its own, and images are summed over the resolutions. The
critic ends in the spread of its features over the batch. Weights are stored with unit variance and scaled when used,
so that one learning rate suits all layers.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossbook.checks import check_name
from lossbook.seeding import seeded

GROUP = 4  # images over which the critic sees the spread


@dataclass(frozen=True)
class Size:
    """How large the networks are.

    capacity  channels at a resolution r: capacity / r, at most `widest`
    latent    dimension of the noise and of the style
    mapping   layers from the one to the other
    """

    capacity: int
    widest: int
    latent: int
    mapping: int

    def channels(self, resolution: int) -> int:
        return min(self.widest, max(1, self.capacity // resolution))


SIZES = {"style_small": Size(224, 32, 32, 2), "style": Size(2048, 256, 128, 4)}


def resolutions(size: int) -> list[int]:
    """From 4 to 7 pixels up to `size`, doubling: 7, 14, 28 or 4, 8, 16, 32."""
    found = [size]
    while found[0] > 7 and found[0] % 2 == 0:
        found.insert(0, found[0] // 2)
    if found[0] > 7:
        raise ValueError(f"images of {size} pixels were given; allowed: 4 to 7 pixels, doubled any number of times")
    return found


def activation(x: Tensor) -> Tensor:
    """Leaky ReLU, scaled so that it keeps the size of its input."""
    return F.leaky_relu(x, 0.2) * math.sqrt(2)


class Linear(nn.Module):
    """A linear layer whose weights have unit variance and are scaled at run time; `rate` scales its learning rate."""

    def __init__(self, inputs: int, outputs: int, bias: float = 0.0, rate: float = 1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / rate)
        self.bias = nn.Parameter(torch.full((outputs,), bias / rate))
        self.scale, self.rate = rate / math.sqrt(inputs), rate

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.scale, self.bias * self.rate)


class Convolution(nn.Module):
    """A convolution of the same kind, which keeps height and width."""

    def __init__(self, inputs: int, outputs: int, kernel: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.scale = 1 / math.sqrt(inputs * kernel**2)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.scale, self.bias, padding="same")


class ModulatedConvolution(nn.Module):
    """Σ_i w_oi s_i * x_i over input channels i with the style s of each image, divided by ‖w_o s‖ for every output o.

    Scaling the input channels is scaling the weights, and dividing the output is dividing them, so that the whole batch
    goes through one convolution. For independent inputs of unit variance the outputs have unit variance.
    """

    def __init__(self, inputs: int, outputs: int, latent: int, kernel: int = 3, demodulate: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.scale = 1 / math.sqrt(inputs * kernel**2)
        self.style = Linear(latent, inputs, bias=1.0)
        self.demodulate = demodulate

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """Maps x (B, inputs, height, width), style w (B, latent) to (B, outputs, height, width)."""
        style, weight = self.style(w), self.weight * self.scale
        x = F.conv2d(x * style[:, :, None, None], weight, padding="same")
        if self.demodulate:
            variance = style.square() @ weight.square().sum((2, 3)).T
            x = x * torch.rsqrt(variance + 1e-8)[:, :, None, None]
        return x


class Layer(nn.Module):
    """A modulated convolution, noise of its own, a bias, and the activation."""

    def __init__(self, inputs: int, outputs: int, latent: int):
        super().__init__()
        self.convolution = ModulatedConvolution(inputs, outputs, latent)
        self.strength = nn.Parameter(torch.zeros(()))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor, w: Tensor, random: torch.Generator) -> Tensor:
        x = self.convolution(x, w)
        noise = torch.randn(len(x), 1, *x.shape[2:], generator=random, device=x.device)
        return activation(x + self.strength * noise + self.bias[:, None, None])


class ToImage(nn.Module):
    """A 1x1 modulated convolution to the channels of the image."""

    def __init__(self, inputs: int, outputs: int, latent: int):
        super().__init__()
        self.convolution = ModulatedConvolution(inputs, outputs, latent, kernel=1, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        return self.convolution(x, w) + self.bias[:, None, None]


def twice(x: Tensor) -> Tensor:
    """Twice the height and width, bilinear."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


class Generator(nn.Module):
    """Noise (B, latent) to images (B, channels, size, size), about -1 to 1 and not clipped."""

    def __init__(self, input_shape: tuple[int, int, int], size: Size):
        super().__init__()
        self.latent = size.latent
        pixels = resolutions(input_shape[1])
        widths = [size.channels(resolution) for resolution in pixels]
        self.mapping = nn.ModuleList(Linear(size.latent, size.latent, rate=0.01) for _ in range(size.mapping))
        self.constant = nn.Parameter(torch.randn(1, widths[0], pixels[0], pixels[0]))
        self.first = Layer(widths[0], widths[0], size.latent)
        self.images = nn.ModuleList(ToImage(width, input_shape[0], size.latent) for width in widths)
        self.layers = nn.ModuleList(
            nn.ModuleList([Layer(before, width, size.latent), Layer(width, width, size.latent)])
            for before, width in itertools.pairwise(widths)
        )

    def forward(self, z: Tensor, random: torch.Generator) -> Tensor:
        w = z * torch.rsqrt(z.square().mean(1, keepdim=True) + 1e-8)
        for layer in self.mapping:
            w = activation(layer(w))
        x = self.first(self.constant.expand(len(z), -1, -1, -1), w, random)
        image = self.images[0](x, w)
        for (up, same), to_image in zip(self.layers, self.images[1:], strict=True):
            x = same(up(twice(x), w, random), w, random)
            image = twice(image) + to_image(x, w)
        return image


class Critic(nn.Module):
    """Images (B, channels, size, size) to scores (B,), higher for what seems real; B a multiple of GROUP."""

    def __init__(self, input_shape: tuple[int, int, int], size: Size):
        super().__init__()
        pixels = resolutions(input_shape[1])[::-1]
        widths = [size.channels(resolution) for resolution in pixels]
        self.first = Convolution(input_shape[0], widths[0], 1)
        self.layers = nn.ModuleList(Convolution(*pair, 3) for pair in itertools.pairwise(widths))
        self.last = Convolution(widths[-1] + 1, widths[-1], 3)
        self.hidden = Linear(widths[-1] * pixels[-1] ** 2, widths[-1])
        self.score = Linear(widths[-1], 1)

    def forward(self, images: Tensor) -> Tensor:
        x = activation(self.first(images))
        for layer in self.layers:
            x = F.avg_pool2d(activation(layer(x)), 2)
        x = activation(self.last(torch.cat([x, spread(x)], 1)))
        return self.score(activation(self.hidden(x.flatten(1)))).squeeze(1)


def spread(x: Tensor) -> Tensor:
    """The standard deviation over each GROUP of images, averaged over channels and pixels: one more channel."""
    groups = x.unflatten(0, (-1, GROUP))
    variance = (groups - groups.mean(1, keepdim=True)).square().mean(1)  # twice as fast as `var` over such an axis
    deviation = (variance + 1e-8).sqrt().mean((1, 2, 3))
    return deviation.repeat_interleave(GROUP).view(-1, 1, 1, 1).expand(-1, 1, *x.shape[2:])


def create(name: str, input_shape: tuple[int, int, int], seed: int = 0) -> tuple[Generator, Critic]:
    """Generator and critic of a size by name for square images (channels, size, size), initialised from seed alone."""
    check_name("model", name, SIZES)
    with seeded(seed):
        return Generator(input_shape, SIZES[name]), Critic(input_shape, SIZES[name])


def gradient_penalty(critic: nn.Module, images: Tensor) -> Tensor:
    """R1: mean over the images of ‖∇_x critic(x)‖², itself differentiable in the critic's weights."""
    images = images.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(critic(images).sum(), images, create_graph=True)
    return gradient.square().sum((1, 2, 3)).mean()
