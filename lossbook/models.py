"""Networks of the experiments, initialised by a generator of their own."""

from __future__ import annotations

import itertools
import math

import torch
from torch import nn

from lossbook.checks import check_name


def mlp(input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """Three hidden layers of 256 ReLUs: enough to memorise wrong labels within 15 epochs of MNIST."""
    widths = (math.prod(input_shape), 256, 256, 256)
    hidden = [layer for pair in itertools.pairwise(widths) for layer in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(256, num_classes))


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


MODELS = {"mlp": mlp, "cnn_small": cnn_small, "cnn8": cnn8, "resnet18": resnet18}


def lookup(name: str):
    """The function that builds a network; ValueError with the nearest name for an unknown one."""
    check_name("model", name, MODELS)
    return MODELS[name]


def create(name: str, input_shape: tuple[int, int, int], num_classes: int, seed: int = 0) -> nn.Module:
    """A network by name for images of input_shape (channels, height, width), initialised from seed alone."""
    build = lookup(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(input_shape, num_classes)
