"""What every loss shares: its entry in the catalogue, the checks of its input, and float32 or wider arithmetic."""

from __future__ import annotations

import ast
import functools
import inspect
import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from lossbook.checks import check_name, check_range


@dataclass(frozen=True)
class Entry:
    """One row of the catalogue: the loss, its properties, and the range of each numeric hyper-parameter.

    The properties are statements about the loss of a class, at its defaults. `tests/test_losses.py` checks every one.

    proper     the expected loss under label distribution q is least exactly at p = q
    symmetric  the sum of the loss over all C labels is the same for every prediction
    bounded    the loss has a finite upper bound over all logits
    convex     the loss is convex in the logits
    smooth     the loss is twice differentiable in the logits (`rooted_logistic` up to its seam)
    """

    name: str
    function: Callable[..., Tensor]
    proper: bool
    symmetric: bool
    bounded: bool
    convex: bool
    smooth: bool
    source: str
    ranges: dict[str, str] = field(default_factory=dict)

    @property
    def definition(self) -> str:
        """First line of the docstring: the formula."""
        return inspect.getdoc(self.function).splitlines()[0]

    @property
    def defaults(self) -> dict[str, object]:
        """Hyper-parameters and their defaults."""
        parameters = inspect.signature(self.function).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "reduction"}


REGISTRY: dict[str, Entry] = {}
FLAGS = ("proper", "symmetric", "bounded", "convex", "smooth")
REDUCTIONS = ("mean", "sum", "none")
WIDE = (torch.float32, torch.float64)


def reduced(values: Tensor, reduction: str) -> Tensor:
    """The values of all examples, or their mean or sum."""
    return values if reduction == "none" else getattr(values, reduction)()


def register(*, ranges: dict[str, str] | None = None, **properties) -> Callable:
    """Enter a loss into the catalogue and wrap it: input checked, autocast off, half precision raised to float32.

    Every loss takes a `reduction` of `REDUCTIONS`. A function that has this parameter itself is handed it.
    """

    def decorate(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        name, signature = function.__name__, inspect.signature(function)
        reduces, intervals = "reduction" in signature.parameters, ranges or {}

        @functools.wraps(function)
        def loss(logits: Tensor, target: Tensor, *, reduction: str = "none", **hyper) -> Tensor:
            check_shapes(name, logits, target)
            if reduction not in REDUCTIONS:
                check_name(f"reduction of {name}", reduction, REDUCTIONS)
            for key, value in hyper.items():
                if key in intervals:
                    check_range(f"{name}: {key}", value, intervals[key])
                if isinstance(value, numpy.floating):
                    hyper[key] = float(value)  # a formula would lose digits in a narrower type
            if logits.dtype not in WIDE:  # asked first: a conversion that changes nothing still costs microseconds
                logits = logits.float()
            wanted = logits.dtype if target.is_floating_point() else torch.int64
            if target.dtype != wanted:
                target = target.to(wanted)
            if reduces:
                hyper["reduction"] = reduction
            try:
                if not torch._C._is_any_autocast_enabled():  # to switch off what is off takes 10 µs
                    values = function(logits, target, **hyper)
                else:
                    with torch.autocast(logits.device.type, enabled=False):
                        values = function(logits, target, **hyper)
            except (IndexError, RuntimeError):
                refuse_labels(name, target, logits.shape[-1])
                raise
            return values if reduces else reduced(values, reduction)

        # torch.compile counts compilations by code, and stops after eight: each loss has its own
        loss.__code__ = loss.__code__.replace(co_name=name)
        flags = [("" if properties[flag] else "not ") + flag for flag in FLAGS]
        loss.__doc__ = (
            f"{inspect.getdoc(function)}\n\nAt its defaults: {', '.join(flags)}. Source: {properties['source']}.\n"
        )
        if not reduces:
            reduction = inspect.Parameter("reduction", inspect.Parameter.KEYWORD_ONLY, default="none", annotation="str")
            loss.__signature__ = signature.replace(parameters=[*signature.parameters.values(), reduction])
        REGISTRY[name] = Entry(name=name, function=loss, ranges=intervals, **properties)
        return loss

    return decorate


def check_tensors(name: str, *given: object) -> None:
    """Refuse what is no tensor."""
    for value in given:
        if not isinstance(value, Tensor):
            raise ValueError(f"{name}: {', '.join(type(v).__name__ for v in given)} were given; allowed: torch tensors")


def check_shapes(name: str, logits: Tensor, target: Tensor) -> None:
    """Refuse anything but logits (*batch, C >= 2) with indices (*batch) or distributions (*batch, C)."""
    check_tensors(name, logits, target)
    shape, soft = logits.shape, target.is_floating_point()
    if not logits.is_floating_point() or len(shape) < 1 or shape[-1] < 2:
        raise ValueError(
            f"{name}: logits are {logits.dtype} of shape {tuple(shape)}; "
            "allowed: floating point of shape (batch, classes) with at least 2 classes"
        )
    if target.shape != (shape if soft else shape[:-1]) or target.is_complex() or target.dtype == torch.bool:
        raise ValueError(
            f"{name}: target is {target.dtype} of shape {tuple(target.shape)} for logits of shape "
            f"{tuple(shape)}; allowed: class indices (integers) of shape {tuple(shape[:-1])} "
            f"or distributions (floating point) of shape {tuple(shape)}"
        )


def refuse_labels(name: str, target: Tensor, classes: int) -> None:
    """Say which class index made an operation fail. Asked after it has: to look first takes time, on a GPU a wait."""
    if target.is_cpu and target.numel() and not target.is_floating_point() and not transformed():
        for index in torch.stack(target.long().aminmax()).tolist():
            if not 0 <= index < classes:
                raise ValueError(
                    f"{name}: target holds the class index {index}; allowed: 0 to {classes - 1}, one for each class. "
                    "Leave out examples that have none"
                )


def transformed() -> bool:
    """Whether torch.func or forward mode is at work, for which a fused function may have no rules."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def wide(values: Tensor) -> Tensor:
    """Half precision raised to float32."""
    return values if values.dtype in WIDE else values.float()


def names() -> list[str]:
    """Names of all losses, in the order of the catalogue."""
    return list(REGISTRY)


def parse(spec: str) -> tuple[str, dict[str, object]]:
    """Split "fourier(s=2, pad=10)" into the name and its hyper-parameters; a bare name has none.

    The values are Python literals and nothing else; no code is run. ValueError for anything else.
    """
    try:
        call = ast.parse(spec.strip(), mode="eval").body
        if isinstance(call, ast.Name):
            return call.id, {}
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and not call.args:
            hyper = {k.arg: ast.literal_eval(k.value) for k in call.keywords}
            if None not in hyper and len(hyper) == len(call.keywords):  # neither **mapping nor a key given twice
                return call.func.id, hyper
    except (SyntaxError, ValueError, TypeError, AttributeError):
        pass
    raise ValueError(f"loss {spec!r} was given; allowed: a name or name(key=value, ...), such as fourier(s=2)")


def plain_values(hyper: dict[str, object]) -> dict[str, object]:
    """Hyper-parameters with numbers and arrays of NumPy, and tensors, as Python's own."""
    return {key: value.tolist() if hasattr(value, "tolist") else value for key, value in hyper.items()}


def check_hyper_parameters(name: str, hyper: dict[str, object], defaults: dict[str, object]) -> None:
    """Refuse hyper-parameters that a loss or a head has not, and what is no bool for one that is."""
    for key, value in hyper.items():
        check_name(f"hyper-parameter of {name}", key, defaults)
        if isinstance(defaults[key], bool) and not isinstance(value, bool):
            raise ValueError(f"{name}: {key}={value!r} was given; allowed: True, False")


def lookup(name: str) -> Entry:
    """The catalogue entry of a loss; ValueError for an unknown one: with the nearest name, or where else it is."""
    if not isinstance(name, str):
        check_name("loss", name, REGISTRY)  # asked first: what is no string need not be hashable
    if name not in REGISTRY:
        from lossbook import losses  # not before: it imports this module

        elsewhere = {key: f"losses.hypersphere.head({key!r}, num_classes, dim)" for key in losses.hypersphere.HEADS}
        elsewhere |= {key: f"losses.{key}" for key in losses.__all__}
        if name in elsewhere:
            raise ValueError(
                f"unknown loss {name!r}: the catalogue holds the losses of logits against classes; use "
                f"lossbook.{elsewhere[name]}"
            )
    check_name("loss", name, REGISTRY)
    return REGISTRY[name]


class Loss(nn.Module):
    """A loss with its hyper-parameters and reduction fixed, for use in a training loop."""

    def __init__(self, entry: Entry, num_classes: int, reduction: str, hyper: dict[str, object]):
        super().__init__()
        self.entry, self.num_classes, self.reduction, self.hyper = entry, num_classes, reduction, hyper

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Loss of logits (B, C) against indices (B,) or distributions (B, C), reduced."""
        if isinstance(logits, Tensor) and logits.ndim and logits.shape[-1] != self.num_classes:
            check_shapes(self.entry.name, logits, target)  # the shape as a whole comes first
            raise ValueError(
                f"{self.entry.name}: logits have {logits.shape[-1]} classes, made for num_classes={self.num_classes}; "
                f"create the loss with num_classes={logits.shape[-1]}"
            )
        return self.entry.function(logits, target, reduction=self.reduction, **self.hyper)

    def extra_repr(self) -> str:
        hyper = "".join(f", {key}={value!r}" for key, value in self.hyper.items())
        return f"{self.entry.name}, num_classes={self.num_classes}, reduction={self.reduction!r}{hyper}"


def create(name: str, num_classes: int = 10, reduction: str = "mean", **hyper) -> Loss:
    """Make the nn.Module of a loss by name, or by a spec such as "fourier(s=2)".

    name         one of `names()`
    num_classes  C >= 2
    reduction    "mean", "sum" or "none" (one value an example)
    hyper        the loss's own hyper-parameters

    ValueError for an unknown name or hyper-parameter, or a value out of range: before any data is seen.
    """
    if isinstance(name, str) and name not in REGISTRY and "(" in name:
        name, parsed = parse(name)
        hyper = parsed | hyper
    entry = lookup(name)
    if not isinstance(num_classes, numbers.Integral) or num_classes < 2:
        raise ValueError(f"{name}: num_classes={num_classes!r} was given; allowed: an integer of at least 2")
    hyper = plain_values(hyper)
    check_hyper_parameters(name, hyper, entry.defaults)
    loss = Loss(entry, num_classes, reduction, dict(hyper))
    try:  # a bad value is refused here, not in training
        loss(torch.zeros(1, num_classes), torch.zeros(1, dtype=torch.long))
    except TypeError as error:  # of a value that no check expected, such as a list for a name
        raise ValueError(f"{name}: {hyper} was given; allowed: values like {entry.defaults} ({error})") from error
    return loss


def gradient_scale(spec: str, num_classes: int) -> float:
    """Norm of the gradient in the logits at the uniform prediction z = 0, in units of cross-entropy's.

    spec         a name or a spec such as "gce(q=0.5)", as for `create`
    num_classes  C >= 2

    Mean over the C class labels, which differ only where the order of the classes matters. Cross-entropy itself has
    the norm sqrt(1 - 1/C). A learning rate of plain SGD divided by this scale makes first steps equally long where the
    gradient at z = 0 is parallel to p - y: for all but `fourier` and `rps`, of which it holds in the logits alone.
    ValueError as for `create`.
    """
    loss = create(spec, num_classes, reduction="sum")
    with torch.inference_mode(False), torch.enable_grad():
        logits = torch.zeros(num_classes, num_classes, dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(loss(logits, torch.arange(num_classes)), logits)
    scale = slope.norm(dim=-1).mean().item() / math.sqrt(1 - 1 / num_classes)
    if not scale:
        raise ValueError(f"{spec} has no gradient at the uniform prediction, so that no rate matches its scale")
    return scale


def catalogue():
    """The table of all losses as a pandas DataFrame: definition, hyper-parameters, properties, source."""
    import pandas

    rows = []
    for entry in REGISTRY.values():
        hyper = ", ".join(f"{key}={value!r}" for key, value in entry.defaults.items())
        flags = {flag: getattr(entry, flag) for flag in FLAGS}
        rows.append(
            {
                "name": entry.name,
                "definition": entry.definition,
                "hyper-parameters": hyper,
                **flags,
                "source": entry.source,
            }
        )
    return pandas.DataFrame(rows).set_index("name")


def distribution(target: Tensor, like: Tensor) -> Tensor:
    """Targets as distributions (*batch, C): indices become one-hot, distributions pass. An index >= C raises."""
    if target.is_floating_point():
        return target
    return torch.zeros_like(like).scatter(-1, target.unsqueeze(-1), 1.0)


def one_minus_exp(x: Tensor) -> Tensor:
    """1 - e^x for x <= 0, exact in value near 0 and in gradient far from it.

    The gradient of torch.expm1 is its result + 1, which float32 rounds to 0 below x = -17.
    """
    return torch.where(x > -1, -torch.expm1(x), 1 - torch.exp(x))


def expected(values: Tensor, target: Tensor, function: Callable[[Tensor], Tensor] = lambda x: x) -> Tensor:
    """Mean of function(values), values (*batch, C), under the target: of the given class, or the weighted sum.

    For class indices the function is called on their entries alone.
    """
    if target.is_floating_point():
        return (target * function(values)).sum(-1)
    return function(values.gather(-1, target.unsqueeze(-1)).squeeze(-1))
