"""Networks of the experiments, initialised by a generator of their own."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lossbook.checks import check_name
from lossbook.seeding import seeded


def mlp(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Three hidden layers of 256 ReLUs: enough to memorise wrong labels within 15 epochs of MNIST."""
    widths = (math.prod(input_shape), 256, 256, 256)
    hidden = [layer for pair in itertools.pairwise(widths) for layer in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(256, num_classes))


def mlp_dropout(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """The same with dropout: a fifth of the inputs and half of the hidden units are left out at each step."""
    layers: list[nn.Module] = []
    for layer in mlp(input_shape, num_classes):
        layers += [layer, nn.Dropout(0.2)] if isinstance(layer, nn.Flatten) else [layer]
        layers += [nn.Dropout(0.5)] if isinstance(layer, nn.ReLU) else []
    return nn.Sequential(*layers)


def cnn_small(input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """Two strided convolutions (16, 32 channels, batch norm) and a hidden layer: seconds an epoch on a CPU core."""
    channels, height, width = input_shape
    reduced = math.ceil(height / 4) * math.ceil(width / 4)
    return nn.Sequential(
        nn.Conv2d(channels, 16, 5, stride=2, padding=2, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * reduced, 128),
        nn.ReLU(),
        nn.Linear(128, num_classes),
    )


def cnn8(input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """The noisy-label literature's 8-layer CNN: six convolutions in three blocks (64, 128, 196), two linear layers."""
    channels, height, width = input_shape
    layers: list[nn.Module] = []
    for block in (64, 128, 196):
        for _ in range(2):
            layers += [nn.Conv2d(channels, block, 3, padding=1), nn.BatchNorm2d(block), nn.ReLU()]
            channels = block
        layers.append(nn.MaxPool2d(2))
    flat = channels * (height // 8) * (width // 8)
    layers += [
        nn.Flatten(),
        nn.Linear(flat, 256),
        nn.BatchNorm1d(256),
        nn.ReLU(),
        nn.Linear(256, num_classes),
    ]
    return nn.Sequential(*layers)


def resnet18(input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """torchvision's ResNet-18 with the CIFAR stem: a 3x3 convolution of stride 1 and no pooling."""
    import torchvision

    model = torchvision.models.resnet18(num_classes=num_classes)
    model.conv1 = nn.Conv2d(input_shape[0], 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


def densenet121(input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """torchvision's DenseNet-121 with the CIFAR stem: a 3x3 convolution of stride 1 and no pooling."""
    import torchvision

    model = torchvision.models.densenet121(num_classes=num_classes)
    model.features.conv0 = nn.Conv2d(input_shape[0], 64, 3, padding=1, bias=False)
    model.features.pool0 = nn.Identity()
    return model


def vit(input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """torchvision's vision transformer, small: four layers of width 64 with four heads, on 16, 49 or 64 patches."""
    from torchvision.models.vision_transformer import VisionTransformer

    channels, size, _ = input_shape
    patch = 4 if size >= 28 else 2
    model = VisionTransformer(
        size, patch, num_layers=4, num_heads=4, hidden_dim=64, mlp_dim=128, num_classes=num_classes
    )
    if channels != 3:
        colour = model.conv_proj
        model.conv_proj = nn.Conv2d(channels, 64, patch, stride=patch)
        nn.init.trunc_normal_(model.conv_proj.weight, std=colour.weight.std().item() * math.sqrt(3 / channels))
        nn.init.zeros_(model.conv_proj.bias)
    return model


class Airbench(nn.Sequential):
    """A network of the airbench family, made for CIFAR10 in ten to twelve epochs: colour images of 32x32.

    A fixed convolution that whitens 2x2 patches, three blocks of two convolutions (64, 256, 256 channels), each
    convolution begun as the identity where it has as many inputs as outputs, and small logits. Batch norm has biases
    and no scales. `whiten` has to see images before training.
    """

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int):
        channels = input_shape[0]
        filters = 2 * 4 * channels
        layers: list[nn.Module] = [nn.Conv2d(channels, filters, 2), nn.GELU()]
        layers[0].weight.requires_grad_(False)
        for inputs, outputs in itertools.pairwise((filters, 64, 256, 256)):
            layers += [_identity_convolution(inputs, outputs), nn.MaxPool2d(2), _shift_norm(outputs), nn.GELU()]
            layers += [_identity_convolution(outputs, outputs), _shift_norm(outputs), nn.GELU()]
        linear = nn.Linear(256, num_classes, bias=False)
        super().__init__(*layers, nn.MaxPool2d(3), nn.Flatten(), linear)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of images (B, channels, height, width), a ninth of what the last layer says."""
        return super().forward(images) / 9

    @torch.no_grad()
    def whiten(self, images: Tensor) -> None:
        """Make the first layer the principal directions of 2x2 patches, scaled to unit variance, and their minus."""
        patches = images.unfold(2, 2, 1).unfold(3, 2, 1).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(0, 2)
        values, vectors = torch.linalg.eigh(torch.cov(patches.T.double()).cpu())
        directions = (vectors / (values + 5e-4).sqrt()).T.flip(0).unflatten(1, self[0].weight.shape[1:])
        self[0].weight.copy_(torch.cat([directions, -directions]))
        self[0].bias.zero_()


def _identity_convolution(inputs: int, outputs: int) -> nn.Conv2d:
    """A 3x3 convolution whose first filters copy their input."""
    layer = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    nn.init.dirac_(layer.weight.data[: min(inputs, outputs)])
    return layer


def _shift_norm(channels: int) -> nn.BatchNorm2d:
    """Batch norm with a bias and no scale; its statistics follow the last few batches."""
    layer = nn.BatchNorm2d(channels, momentum=0.4, eps=1e-12)
    layer.weight.requires_grad_(False)
    return layer


class Stack(nn.Module):
    """M networks of one architecture run as one: images (M, B, ...) to logits (M, B, C), a network each.

    One network is called as it is. Several have their parameters stacked along a new first axis, and `torch.vmap` makes
    one batched product of M products. Networks with buffers (batch norm) are refused.
    """

    def __init__(self, members: Sequence[nn.Module]):
        super().__init__()
        self.member = members[0]
        self.names: list[str] = []
        if len(members) > 1:
            if any(True for _ in members[0].buffers()):
                raise ValueError("networks with buffers, such as batch norm, cannot be stacked; train them one by one")
            stacked, _ = torch.func.stack_module_state(list(members))
            self.names = list(stacked)
            self.member = None
            self._skeleton = (members[0].to("meta"),)  # in a tuple, so that its parameters are not ours
            # matrices transposed, as batched products make their gradients: else each of these is copied every step
            self.values = nn.ParameterList(
                value.detach().mT.contiguous() if value.ndim == 3 else value.detach() for value in stacked.values()
            )

    def forward(self, images: Tensor) -> Tensor:
        if self.member is not None:
            return self.member(images.squeeze(0)).unsqueeze(0)

        def one(values: dict[str, Tensor], image: Tensor) -> Tensor:
            return torch.func.functional_call(self._skeleton[0], values, (image,))

        values = (value.mT if value.ndim == 3 else value for value in self.values)
        return torch.vmap(one)(dict(zip(self.names, values, strict=True)), images)


MODELS = {
    "mlp": mlp,
    "mlp_dropout": mlp_dropout,
    "cnn_small": cnn_small,
    "cnn8": cnn8,
    "resnet18": resnet18,
    "densenet121": densenet121,
    "vit": vit,
    "airbench": Airbench,
}
WIDE = ("cnn8", "resnet18", "densenet121", "airbench")  # of many channels
PERCEPTRONS = ("mlp", "mlp_dropout")  # of any input, tables too
STACKABLE = ("mlp",)  # stacked convolutions become grouped ones, which are slow; dropout differs from run to run


def check(name: str, input_shape: tuple[int, ...]) -> None:
    """Refuse, with a ValueError, a network that there is not, or that does not take inputs of this shape."""
    check_name("model", name, MODELS)
    if len(input_shape) != 3 and name not in PERCEPTRONS:
        allowed = ", ".join(PERCEPTRONS)
        raise ValueError(f"model={name!r} was given for a table, of {input_shape[0]} features; allowed: {allowed}")
    if name == "airbench" and min(input_shape[1:]) < 28:
        raise ValueError(f"model={name!r} was given for images of shape {input_shape}; allowed: of at least 28x28")


def memory_format(name: str, device: torch.device) -> torch.memory_format:
    """Channels last on a GPU and for wide convolutions, which are faster so; narrow ones on a CPU would be slower."""
    return torch.channels_last if device.type == "cuda" or name in WIDE else torch.preserve_format


def create(name: str, input_shape: tuple[int, ...], num_classes: int, seed: int = 0) -> nn.Module:
    """A network by name for images of input_shape (channels, height, width), initialised from seed alone.

    The rows of a table, input_shape (features,), are for the multi-layer perceptron.
    """
    check(name, input_shape)
    with seeded(seed):
        return MODELS[name](input_shape, num_classes)
