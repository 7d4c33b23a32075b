"""Losses between images as a network sees them: differences of features, and of their Gram matrices.

F is the C × M matrix of one layer's features of one image, with C channels at M = H W positions:

    feature term  ‖F(x) - F(y)‖² / (C M)
    style term    ‖G(x) - G(y)‖² with G = F Fᵀ / (C M)

The network is the caller's: nothing is downloaded. `lossbook.symbolic.perceptual` derives what is stated here.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn

from lossbook.checks import check_name, check_range
from lossbook.losses._registry import wide


def gram_matrix(features: Tensor) -> Tensor:
    """G = F Fᵀ / (C H W)

    features (B, C, H, W). Returns (B, C, C), symmetric and positive semidefinite. It does not change when the
    positions of an image are permuted.
    """
    rows = features.flatten(2)
    return rows @ rows.mT / (rows.shape[1] * rows.shape[2])


def feature_distance(x: Tensor, y: Tensor) -> Tensor:
    """‖x - y‖² / (C H W)

    x, y (B, C, H, W). Returns (B,), range [0, inf). Gradient in x: 2 (x - y) / (C H W). Convex in the features x.
    """
    if x.shape != y.shape:
        raise ValueError(f"feature_distance: shapes {tuple(x.shape)} and {tuple(y.shape)} were given; allowed: equal")
    return (wide(x) - wide(y)).square().flatten(1).mean(1)


def style_distance(x: Tensor, y: Tensor) -> Tensor:
    """‖G(x) - G(y)‖², with G = F Fᵀ / (C H W)

    x, y (B, C, H, W), of one C; H and W may differ. Returns (B,), range [0, inf). Gradient in x:
    4 (G(x) - G(y)) F / (C H W). Not convex in the features x: -x has the same Gram matrix.
    """
    if x.shape[:2] != y.shape[:2]:
        raise ValueError(
            f"style_distance: shapes {tuple(x.shape)} and {tuple(y.shape)} were given; allowed: of one batch and as "
            "many channels"
        )
    return (gram_matrix(wide(x)) - gram_matrix(wide(y))).square().flatten(1).sum(1)


def _up_to(network: nn.Module, layers: Sequence[str]) -> fx.GraphModule:
    """A frozen copy of the network that ends at the named layers and gives a tuple of what they give."""
    network = copy.deepcopy(network).eval().requires_grad_(False)
    if any(parameter.dtype in (torch.float16, torch.bfloat16) for parameter in network.parameters()):
        network.float()
    try:
        traced = fx.symbolic_trace(network)
    except fx.proxy.TraceError as error:
        raise ValueError(
            f"PerceptualLoss: {type(network).__name__} was given, whose steps depend on its input ({error}); "
            "allowed: a network that takes the same steps for all images"
        ) from error
    calls = {node.target: node for node in traced.graph.nodes if node.op == "call_module"}
    for layer in layers:
        check_name("layer", layer, calls)
    steps = list(traced.graph.nodes)
    for step in reversed(steps[1 + max(steps.index(calls[layer]) for layer in layers) :]):
        traced.graph.erase_node(step)
    for layer in layers:  # kept apart: what comes after may write over them in place
        with traced.graph.inserting_after(calls[layer]):
            calls[layer] = traced.graph.call_method("clone", (calls[layer],))
    traced.graph.output(tuple(calls[layer] for layer in layers))
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced


class PerceptualLoss(nn.Module):
    """Σ content_weight · feature term + Σ style_weight · style term, over the layers named for each

    network  a module that takes images (B, C, H, W). A frozen copy is kept, in evaluation mode and up to the last layer
             named; its parameters get no gradient, the images do
    content  layers of the feature term: modules such as convolutions, named as in `network.named_modules()`, that give
             (B, C, H, W). A layer that is called more than once counts with its last call
    style    layers of the style term
    mean     of each channel, subtracted from the images: the normalisation that the network was trained with
    std      of each channel, divided by after that

    Returns (B,), range [0, inf): 0 for equal images, and for others that the layers cannot tell apart. Not convex.
    Computed in the network's own precision, float32 at least, also inside autocast. Value and gradient are finite for
    images up to ±1e4; the gradient handed back to float16 images may exceed what float16 can hold.
    Source: Johnson, Alahi, Fei-Fei 2016 (arXiv 1603.08155); the paper's layers belong to a pretrained VGG-16.
    """

    def __init__(
        self,
        network: nn.Module,
        content: Sequence[str] = (),
        style: Sequence[str] = (),
        *,
        mean: Sequence[float],
        std: Sequence[float],
        content_weight: float = 1.0,
        style_weight: float = 1.0,
    ):
        super().__init__()
        for kind, names in (("content", content), ("style", style)):
            if isinstance(names, str):
                raise ValueError(f"PerceptualLoss: {kind}={names!r} was given; allowed: a list of names, [{names!r}]")
        if not (content or style):
            raise ValueError("PerceptualLoss: neither content nor style names a layer; name at least one")
        for kind, values in (("mean", mean), ("std", std)):
            if not hasattr(values, "__len__") or isinstance(values, str):
                raise ValueError(f"PerceptualLoss: {kind}={values!r} was given; allowed: a list, one number a channel")
        if len(mean) != len(std) or not len(mean):
            raise ValueError(
                f"PerceptualLoss: {len(mean)} means and {len(std)} standard deviations were given; allowed: one of "
                "each for every channel of the images"
            )
        for value in mean:
            check_range("PerceptualLoss: mean", value, "(-inf, inf)")
        for value in std:
            check_range("PerceptualLoss: std", value, "(0, inf)")
        check_range("PerceptualLoss: content_weight", content_weight, "[0, inf)")
        check_range("PerceptualLoss: style_weight", style_weight, "[0, inf)")
        self.content, self.style = tuple(content), tuple(style)
        self.content_weight, self.style_weight = content_weight, style_weight
        self.layers = tuple(dict.fromkeys(self.content + self.style))
        self.network = _up_to(network, self.layers)
        dtype = next((parameter.dtype for parameter in self.network.parameters()), torch.float32)
        self.register_buffer("mean", torch.tensor(list(mean), dtype=dtype).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(list(std), dtype=dtype).view(-1, 1, 1))

    def _apply(self, *args, **kwargs) -> PerceptualLoss:
        """A model that holds this loss may be halved as a whole; its network and images stay in float32."""
        super()._apply(*args, **kwargs)
        return self.float() if self.mean.dtype in (torch.float16, torch.bfloat16) else self

    def train(self, mode: bool = True) -> PerceptualLoss:
        """The network stays in evaluation mode: the loss of an image must not depend on the batch that it is in."""
        super().train(mode)
        self.network.eval()
        return self

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """The features (B, C, H, W) of the named layers, of images (B, C, H, W) that are not yet normalised."""
        found = dict(zip(self.layers, self.network((images.to(self.mean.dtype) - self.mean) / self.std), strict=True))
        for name, values in found.items():
            if values.ndim != 4:
                raise ValueError(
                    f"PerceptualLoss: layer {name!r} gives {tuple(values.shape)}; allowed: layers that give "
                    "(batch, channels, height, width), such as convolutions"
                )
        return found

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Loss of images (B, C, H, W) against images of the same shape: (B,)."""
        channels = len(self.mean)
        if (
            prediction.shape != target.shape
            or prediction.ndim != 4
            or prediction.shape[1] != channels
            or not (prediction.is_floating_point() and target.is_floating_point())
        ):
            raise ValueError(
                f"PerceptualLoss: images are {prediction.dtype} of shape {tuple(prediction.shape)} and {target.dtype} "
                f"of shape {tuple(target.shape)}; allowed: floating point, both (batch, {channels}, height, width)"
            )
        with torch.autocast(prediction.device.type, enabled=False):
            seen, wanted = self.features(prediction), self.features(target)
            content = sum(feature_distance(seen[name], wanted[name]) for name in self.content)
            style = sum(style_distance(seen[name], wanted[name]) for name in self.style)
            return self.content_weight * content + self.style_weight * style
