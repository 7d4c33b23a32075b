"""Losses of latent features on the hypersphere: POD (arXiv 2111.15449), PEDCC-Loss, and what they are compared with.

These take features z (B, D), not logits, and compare them with a vector a_j for each class. So they are no entries of
the catalogue of losses: `HEADS` lists them, and `head` makes one to put on a backbone that gives D numbers an example:

    backbone = models.create("mlp", (1, 8, 8), num_classes=64)
    head = hypersphere.head("pod(delta='norm')", num_classes=10, dim=64)
    head(backbone(images), labels).backward()
    head.predict(backbone(images))

ẑ = z/‖z‖ throughout. A feature of length zero, or so short that its square is zero in floating point, has no
direction: its cosines are 0, with gradient 0. Near it the gradient of a cosine is as 1/‖z‖. A float16 tensor cannot
hold that below about a thousandth; what flows back to one is cut to the largest number that it holds.
`lossbook.symbolic.pod` derives what is stated here. What is known of the two papers beyond their abstracts comes from
the code that their authors released.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossbook.checks import check_name, check_range, check_whole
from lossbook.losses._registry import (
    check_hyper_parameters,
    check_shapes,
    check_tensors,
    parse,
    plain_values,
    refuse_labels,
    transformed,
    wide,
)
from lossbook.losses.likelihood import cross_entropy
from lossbook.seeding import seeded

FIRST_DELTA = 0.05  # of the schedules that need a norm, before one epoch has measured it


# --- where the classes sit -----------------------------------------------------------------------------------


def simplex_centroids(num_classes: int, dim: int, seed: int = 0) -> Tensor:
    """C unit vectors with all pairwise cosines -1/(C - 1), the least possible: float64 (C, D), rotated by the seed.

    √(C/(C-1)) H Qᵀ, with H (C, C-1) an orthonormal basis of the vectors that sum to zero (Helmert's) and Q (D, C-1) a
    random orthonormal frame. ValueError unless D >= C - 1: fewer dimensions hold no such C vectors.
    """
    num_classes, dim, seed = _check_sizes("simplex_centroids", num_classes, dim, seed)
    if dim < num_classes - 1:
        raise ValueError(
            f"simplex_centroids: {num_classes} classes in {dim} dimensions were given; allowed: at least "
            f"{num_classes - 1} dimensions. With fewer, take repulsion_centroids (in a head, centroids='repulsion')"
        )
    from scipy.linalg import helmert

    normal = torch.randn(dim, num_classes - 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    frame, triangle = torch.linalg.qr(normal)
    frame = frame * triangle.diagonal().sign()  # Q is unique, and uniformly distributed, once R has a positive diagonal
    return math.sqrt(num_classes / (num_classes - 1)) * torch.from_numpy(helmert(num_classes).T) @ frame.T


def repulsion_centroids(num_classes: int, dim: int, seed: int = 0, steps: int = 1000) -> Tensor:
    """C unit vectors that so many steps of charge repulsion leave: float64 (C, D), for any number of dimensions.

    The route of the first PEDCC papers. The force on a point is Σ (u_m - u_n)/‖u_m - u_n‖³ over the others (distances
    not below 0.01), its tangential part alone. A hundredth of it is added to the velocity, and the point moves by the
    velocity of the step before, and back onto the sphere. The released code takes 200 steps; that is too few.
    """
    num_classes, dim, seed = _check_sizes("repulsion_centroids", num_classes, dim, seed)
    check_whole("repulsion_centroids: steps", steps, "[0, inf)")
    random = torch.Generator().manual_seed(seed)
    u = F.normalize(torch.randn(num_classes, dim, generator=random, dtype=torch.float64))
    velocity = torch.zeros_like(u)
    for _ in range(steps):
        distance = (2 - 2 * u @ u.T).clamp_min(1e-4).sqrt()
        weight = distance**-3
        force = weight.sum(1, keepdim=True) * u - weight @ u  # a point does not push itself: its two terms cancel
        force = force - (force * u).sum(1, keepdim=True) * u
        u, velocity = F.normalize(u + velocity), velocity + 0.01 * force
    return u


def _check_sizes(name: str, num_classes: int, dim: int, seed: int) -> tuple[int, int, int]:
    return (
        check_whole(f"{name}: num_classes", num_classes, "[2, inf)"),
        check_whole(f"{name}: dim", dim, "[1, inf)"),
        check_whole(f"{name}: seed", seed, "[0, inf)"),
    )


# --- terms of the losses -------------------------------------------------------------------------------------


def _check_features(name: str, features: Tensor, dim: int) -> None:
    check_tensors(name, features)
    if not features.is_floating_point() or features.ndim < 1 or features.shape[-1] != dim:
        raise ValueError(
            f"{name}: features are {features.dtype} of shape {tuple(features.shape)}; "
            f"allowed: floating point of shape (batch, {dim}), as the class vectors have {dim} dimensions"
        )


def _check(name: str, features: Tensor, target: Tensor, dim: int) -> None:
    check_tensors(name, features, target)
    _check_features(name, features, dim)
    if target.shape != features.shape[:-1] or target.dtype == torch.bool or target.dtype.is_floating_point:
        raise ValueError(
            f"{name}: target is {target.dtype} of shape {tuple(target.shape)} for features of shape "
            f"{tuple(features.shape)}; allowed: class indices (integers) of shape {tuple(features.shape[:-1])}"
        )


class _FromHalf(torch.autograd.Function):
    """float16 to float32; a gradient that float16 cannot hold comes back as the largest number that it can."""

    generate_vmap_rule = True

    @staticmethod
    def forward(features: Tensor) -> Tensor:
        return features.float()

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        largest = torch.finfo(torch.float16).max
        return gradient.clamp(-largest, largest).half()


def _outside_autocast(function: Callable[..., Tensor], features: Tensor, *rest: Tensor) -> Tensor:
    """function(features, ...), in float32 or wider."""
    features = _FromHalf.apply(features) if features.dtype == torch.float16 else wide(features)
    dtype, device = features.dtype, features.device.type
    if torch.compiler.is_compiling() and torch.is_autocast_enabled(device):
        features = features.double()  # compiled there, the backward of a product is taken in bfloat16; of float64 not
    with torch.autocast(device, enabled=False):
        return function(features, *rest).to(dtype)


def _of_labels(
    name: str, classes: int, function: Callable[[Tensor, Tensor], Tensor], features: Tensor, target: Tensor
) -> Tensor:
    """function(features, target), in float32 or wider; a label that is no class is named."""
    try:
        return _outside_autocast(function, features, target.long())
    except (IndexError, RuntimeError):
        refuse_labels(name, target, classes)
        raise


def _term(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Wrap a term: input checked, autocast off, half precision raised to float32."""

    @functools.wraps(function)
    def term(features: Tensor, target: Tensor, centroids: Tensor, **hyper) -> Tensor:
        check_tensors(function.__name__, centroids)
        _check(function.__name__, features, target, centroids.shape[-1])
        return _of_labels(
            function.__name__,
            len(centroids),
            lambda z, y: function(z, y, centroids.to(z), **hyper),
            features,
            target,
        )

    return term


def direction(features: Tensor) -> Tensor:
    """ẑ = z/‖z‖ of features (*batch, D); zero, with gradient zero, where ‖z‖ is zero in floating point."""
    length = torch.linalg.vector_norm(features, dim=-1, keepdim=True)
    return features / length.masked_fill(length == 0, math.inf)


@_term
def norm_adaptive_cosine(features: Tensor, target: Tensor, centroids: Tensor, *, delta: float | Tensor = 0.0) -> Tensor:
    """(1 - z·a_y / √(‖z‖² + δ²))²: the squared cosine distance between (z, δ) and (a_y, 0)

    features (*batch, D), target indices (*batch), centroids (C, D) of length 1. Returns (*batch), range [0, 4].
    With r = ‖z‖ and c the cosine of z and a_y, ∂/∂r = -2 c δ² (√(r² + δ²) - c r)/(r² + δ²)², so the norm grows where
    c > 0, and ∂/∂c = -2 r (√(r² + δ²) - c r)/(r² + δ²). It cannot fall below (1 - 1/√(1 + δ²/r²))².
    delta is a number, or a tensor () that is not asked whether it is negative.
    δ = 0 is the squared cosine loss of Hyperspherical Prototype Networks (arXiv 1901.10514), blind to the norm.
    Not convex. Smooth for δ > 0; for δ = 0 but at z = 0. Source: code released with arXiv 2111.15449.
    """
    beside = features[..., :1]
    if isinstance(delta, Tensor):
        beside = delta.to(features).expand_as(beside)
    else:
        check_range("norm_adaptive_cosine: delta", delta, "[0, inf)")
        beside = torch.full_like(beside, delta)
    with_delta = torch.cat([features, beside], -1)
    cosines = direction(with_delta)[..., :-1] @ centroids.mT
    return (1 - cosines.gather(-1, target.unsqueeze(-1)).squeeze(-1)).square()


@_term
def decorrelation(features: Tensor, target: Tensor, centroids: Tensor) -> Tensor:
    """Σ_{k≠l} S_kl² / (D - 1), with S = Σ_i e_i e_iᵀ / (B - 1) and e_i = ẑ_i - a_{y_i}

    features (B, D), target indices (B,), centroids (C, D) of length 1. Returns a scalar: it is a statistic of the whole
    batch, not a mean over examples. S is about the given centroids, not about the mean of the batch.
    At least 0, at most 4/(D - 1) (B/(B - 1))² (1 - mean cosine)², which is next to nothing for a large D:
    see `lossbook.symbolic.pod`. It depends on the axes, so on the seed of the centroids.
    ValueError for fewer than two examples or dimensions. Source: code released with arXiv 2111.15449.
    """
    if features.ndim != 2 or min(features.shape) < 2:
        raise ValueError(
            f"decorrelation: features of shape {tuple(features.shape)} were given; allowed: (B, D) with at least 2 "
            "examples and 2 dimensions. Drop the last batch of an epoch where one example is left over"
        )
    error = direction(features) - centroids.index_select(0, target)
    spread = error.T @ error / (len(error) - 1)
    return (spread - spread.diagonal().diag()).square().sum() / (features.shape[1] - 1)


@_term
def centroid_distance(features: Tensor, target: Tensor, centroids: Tensor) -> Tensor:
    """‖z - a_y‖²

    features (*batch, D), target indices (*batch), centroids (C, D) of any length. Returns (*batch), range [0, inf).
    Gradient 2 (z - a_y). For directions ‖ẑ - a_y‖² = 2 - 2c, so (1 - c)² = ‖ẑ - a_y‖⁴/4.
    """
    return (features - centroids.index_select(0, target.reshape(-1)).view(features.shape)).square().sum(-1)


def complement_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Entropy of the probabilities of the wrong classes, p_j/(1 - p_y), over its number of classes C - 1

    logits (*batch, C), target indices (*batch). Returns (*batch), range [0, ln(C - 1)/(C - 1)]. Complement objective
    training (Chen et al. 2019) maximises it, in turns with cross-entropy. It does not depend on the logit of y.
    """
    check_shapes("complement_entropy", logits, target)
    if target.is_floating_point():
        raise ValueError(f"complement_entropy: target is {target.dtype}; allowed: class indices (integers)")
    return _outside_autocast(_complement_entropy, logits, target.long().unsqueeze(-1))


def _complement_entropy(logits: Tensor, label: Tensor) -> Tensor:
    log_p = torch.log_softmax(logits.scatter(-1, label, -math.inf), -1)
    return -(log_p.exp() * log_p.scatter(-1, label, 0.0)).sum(-1) / (logits.shape[-1] - 1)


# Delta as the released code has had it, in the order of time: "zero" since October 2021, "norm" since May 2022,
# "growing" since October 2022. n is the mean norm measured in an epoch, e the number of epochs done.
SCHEDULES: dict[str, Callable[[int, float, float], float]] = {
    "zero": lambda e, n, alpha: 0.0,
    "norm": lambda e, n, alpha: n if e else FIRST_DELTA,
    "growing": lambda e, n, alpha: alpha * e * n if e else FIRST_DELTA,
}


def scheduled_delta(schedule: str | float, epochs_done: int, mean_norm: float = 0.0, alpha: float = 0.01) -> float:
    """Delta of the epoch that comes after `epochs_done` others.

    schedule   "zero"; "norm": the mean norm of the epoch before; "growing": alpha times the epochs done times that norm
               (0.05 in the first epoch of both); or a number, which stays
    mean_norm  over the training examples of the epoch before, of the scores A z, which is √(C/(C-1)) times the norm of
               z within the span of the centroids
    alpha      growth in an epoch: 1/epochs brings delta to the norm at the end (0.01: the released 100 epochs)
    """
    if isinstance(schedule, str):
        check_name("schedule of delta", schedule, SCHEDULES)
        return SCHEDULES[schedule](epochs_done, mean_norm, alpha)
    check_range("delta", schedule, "[0, inf)")
    return float(schedule)


def neural_collapse(features: Tensor, target: Tensor, num_classes: int) -> dict[str, float]:
    """How far features (n, D) with class indices (n,) are from neural collapse (Papyan et al. 2020); all 0 at collapse.

    within_class  tr(S_W S_B⁺)/C, the scatter within classes over the scatter between their means
    equiangular   standard deviation of the cosines between class means, the mean of all taken off
    simplex       mean |cosine + 1/(C-1)| of the same cosines

    ValueError where a class has no example, and for an index that is none of a class.
    """
    features, target = features.detach().double(), target.long()
    if (there := target.unique().tolist()) != list(range(num_classes)):
        raise ValueError(
            f"neural_collapse: examples of the classes {there} were given; allowed: of each from 0 to {num_classes - 1}"
        )
    count = torch.bincount(target)
    means = torch.zeros(num_classes, features.shape[1], dtype=torch.float64, device=features.device)
    means = means.index_add_(0, target, features) / count.unsqueeze(1)
    within, between = features - means[target], means - means.mean(0)
    scatter = torch.linalg.pinv(between.T @ between / num_classes, rtol=1e-10, hermitian=True)
    cosines = direction(between) @ direction(between).T
    cosines = cosines[~torch.eye(num_classes, dtype=torch.bool, device=features.device)]
    return {
        "within_class": ((within @ scatter) * within).sum(1).mean().item() / num_classes,
        "equiangular": cosines.std(correction=0).item(),
        "simplex": (cosines + 1 / (num_classes - 1)).abs().mean().item(),
    }


# --- heads ---------------------------------------------------------------------------------------------------


class Head(nn.Module):
    """Features (B, D) and class indices (B,) to a scalar loss, the mean over the batch; and the decision by logits.

    Computed in float32 or wider, autocast off. Heads that keep statistics do so in training mode only.
    """

    name = "head"  # in messages; that of each in `HEADS`

    def __init__(self, num_classes: int, dim: int):
        super().__init__()
        self.num_classes, self.dim = num_classes, dim

    def forward(self, features: Tensor, target: Tensor) -> Tensor:
        """The loss. ValueError for a wrong shape, type or number of dimensions, on a CPU also for a wrong class."""
        _check(self.name, features, target, self.dim)
        if features.ndim != 2 or not len(features):
            raise ValueError(
                f"{self.name}: features of shape {tuple(features.shape)} were given; allowed: (B, {self.dim}), B >= 1"
            )
        return _of_labels(self.name, self.num_classes, self.loss, features, target)

    def logits(self, features: Tensor) -> Tensor:
        """Scores (B, C), the largest of which is the decision; margins are of training only."""
        _check_features(self.name, features, self.dim)
        return _outside_autocast(self.scores, features)

    def predict(self, features: Tensor) -> Tensor:
        """Class indices (B,)."""
        return self.logits(features).argmax(-1)

    def class_vectors(self) -> Tensor:
        """The vectors (C, D) that features are compared with."""
        raise NotImplementedError

    def end_epoch(self) -> None:
        """To be called after each epoch; heads with a schedule go on in it."""


class CrossEntropy(Head):
    """-ln softmax(W z + b)_y: plain cross-entropy with a learned last layer"""

    def __init__(self, num_classes: int, dim: int, seed: int):
        super().__init__(num_classes, dim)
        self.linear = nn.Linear(dim, num_classes)

    def scores(self, features: Tensor) -> Tensor:
        return F.linear(features, self.linear.weight.to(features), self.linear.bias.to(features))

    def loss(self, features: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(self.scores(features), target).mean()

    def class_vectors(self) -> Tensor:
        return self.linear.weight


class Center(CrossEntropy):
    """cross-entropy + (λ/2) ‖z - c_y‖², the centres c following the features: center loss (Wen et al. 2016)

    weight  λ
    rate    α: each centre moves by -α Σ_{y_i=j} (c_j - z_i)/(1 + n_j) a batch
    """

    def __init__(self, num_classes: int, dim: int, seed: int, *, weight: float = 0.003, rate: float = 0.5):
        super().__init__(num_classes, dim, seed)
        check_range("center: weight", weight, "[0, inf)")
        check_range("center: rate", rate, "[0, 1]")
        self.weight, self.rate = weight, rate
        self.register_buffer("centres", torch.zeros(num_classes, dim))

    def loss(self, features: Tensor, target: Tensor) -> Tensor:
        pull = centroid_distance(features, target, self.centres).mean()
        if self.training:
            self._follow(features.detach(), target)
        return super().loss(features, target) + self.weight / 2 * pull

    @torch.no_grad()
    def _follow(self, features: Tensor, target: Tensor) -> None:
        centres = self.centres.to(features)
        move = torch.zeros_like(centres).index_add_(0, target, centres[target] - features)
        self.centres -= self.rate * move / (1 + torch.bincount(target, minlength=self.num_classes)).unsqueeze(1)


class Complement(CrossEntropy):
    """cross-entropy - complement entropy: complement objective training (Chen et al. 2019), as one sum

    The original takes a step on each in turn; a step on the sum is the same to first order in the learning rate.
    """

    def loss(self, features: Tensor, target: Tensor) -> Tensor:
        logits = self.scores(features)
        return (cross_entropy(logits, target) - complement_entropy(logits, target)).mean()


CENTROIDS = ("simplex", "repulsion", "learned")


class _Prototypes(Head):
    """A head with one unit vector for each class: fixed on a simplex, fixed by repulsion, or learned."""

    def __init__(self, num_classes: int, dim: int, seed: int, *, centroids: str = "simplex"):
        super().__init__(num_classes, dim)
        vectors = _unit_vectors(num_classes, dim, seed, centroids)
        if centroids == "learned":
            self.centroids = nn.Parameter(vectors)
        else:
            self.register_buffer("centroids", vectors)

    def class_vectors(self) -> Tensor:
        return direction(self.centroids) if isinstance(self.centroids, nn.Parameter) else self.centroids

    def scores(self, features: Tensor) -> Tensor:
        return features @ self.class_vectors().to(features).T


def _unit_vectors(num_classes: int, dim: int, seed: int, centroids: str) -> Tensor:
    """Class vectors (C, D) in float32; "learned" begins at random."""
    check_name("centroids of a head", centroids, CENTROIDS)
    if centroids == "learned":
        return F.normalize(torch.randn(num_classes, dim))
    return {"simplex": simplex_centroids, "repulsion": repulsion_centroids}[centroids](num_classes, dim, seed).float()


class Pod(_Prototypes):
    """mean (1 - z·a_y/√(‖z‖² + δ²))² + w Σ_{k≠l} S_kl²/(D - 1): POD Loss (Zhu & Zu, arXiv 2111.15449)

    delta          "growing", "norm", "zero" or a number: see `scheduled_delta`. The schedules need `end_epoch`
    alpha          growth of "growing" in an epoch
    decorrelation  its weight w
    centroids      "simplex", "repulsion", or "learned". Nothing in the loss keeps learned ones apart: it is least, and
                   useless, where all are one
    """

    def __init__(
        self, num_classes: int, dim: int, seed: int, *, delta: str | float = "growing", alpha: float = 0.01,
        decorrelation: float = 1.0, centroids: str = "simplex",
    ):  # fmt: skip
        super().__init__(num_classes, dim, seed, centroids=centroids)
        check_range("pod: alpha", alpha, "[0, inf)")
        check_range("pod: decorrelation", decorrelation, "[0, inf)")
        self.schedule, self.alpha, self.decorrelation = delta, alpha, decorrelation
        self.epochs_done = 0
        self.register_buffer("norms", torch.zeros(2))  # their sum in this epoch, and their number: see `_apply`
        # for compiled code, which would be compiled anew for another number, and for stacks of heads
        self.register_buffer("delta_there", None, persistent=False)
        self.delta = scheduled_delta(delta, 0)

    @property
    def delta(self) -> float:
        """The delta of this epoch."""
        return self._delta

    @delta.setter
    def delta(self, value: float) -> None:
        self._delta = value
        self.delta_there = torch.tensor(value, dtype=torch.float32, device=self.norms.device)

    def loss(self, features: Tensor, target: Tensor) -> Tensor:
        centroids = self.class_vectors()
        delta = self.delta_there if torch.compiler.is_compiling() or transformed() else self.delta
        value = norm_adaptive_cosine(features, target, centroids, delta=delta).mean()
        if self.decorrelation:
            value = value + self.decorrelation * decorrelation(features, target, centroids)
        if self.training:
            with torch.no_grad():
                norms = self.scores(features).norm(dim=1)
                self.norms += torch.stack([norms.sum(), norms.new_tensor(len(norms))])
        return value

    def end_epoch(self) -> None:
        """Set delta for the next epoch, from the norms of this one in training mode; without any it stays."""
        total, count = self.norms.tolist()
        self.epochs_done += 1
        if count:
            self.delta = scheduled_delta(self.schedule, self.epochs_done, total / count, self.alpha)
        self.norms.zero_()

    def _apply(self, *args, **kwargs):
        super()._apply(*args, **kwargs)
        self.norms = self.norms.float()  # in half precision their sum would stop growing, or overflow
        self.delta = self.delta  # of its tensor half precision had kept three digits
        return self

    def get_extra_state(self) -> dict[str, float]:
        """What `state_dict` has beside tensors; in numbers, so that a step on a GPU waits for none."""
        return {"epochs_done": self.epochs_done, "delta": self.delta}

    def set_extra_state(self, state: dict[str, float]) -> None:
        self.epochs_done, self.delta = state["epochs_done"], state["delta"]


class SquaredCosine(_Prototypes):
    """mean (1 - cos(z, a_y))²: Hyperspherical Prototype Networks (Mettes et al., arXiv 1901.10514)"""

    def loss(self, features: Tensor, target: Tensor) -> Tensor:
        return norm_adaptive_cosine(features, target, self.class_vectors()).mean()


class _Scaled(_Prototypes):
    """A head whose scores are s cos θ_j."""

    scale: float = 1.0

    def scores(self, features: Tensor) -> Tensor:
        return self.scale * super().scores(direction(features))


class ScaledCosine(_Scaled):
    """-ln softmax(s cos(z, a_j))_y: cross-entropy on fixed simplex logits, the fixed-ETF classifier

    scale  s. For p_y = 0.99 at perfect alignment it must be (C-1)/C ln(99 (C-1)): 6.1 for 10 classes
    """

    def __init__(self, num_classes: int, dim: int, seed: int, *, scale: float = 10.0, centroids: str = "simplex"):
        super().__init__(num_classes, dim, seed, centroids=centroids)
        check_range("fixed_etf: scale", scale, "(0, inf)")
        self.scale = scale

    def loss(self, features: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(self.scores(features), target).mean()


class _Margin(_Scaled):
    """Cross-entropy on s cos θ_j, where a subclass makes the logit of the label smaller, so harder to raise."""

    def with_margin(self, cosine: Tensor) -> Tensor:
        """What stands for cos θ_y in training."""
        raise NotImplementedError

    def loss(self, features: Tensor, target: Tensor) -> Tensor:
        index = target.unsqueeze(1)
        scores = self.scores(features)
        score = self.scale * self.with_margin(scores.gather(1, index) / self.scale)
        return cross_entropy(scores.scatter(1, index, score), target).mean()


def _angle(cosine: Tensor) -> Tensor:
    """acos, its slope cut to zero within a few roundings of cosine 1 or -1, where it is infinite."""
    edge = 1 - 4 * torch.finfo(cosine.dtype).eps
    return cosine.clamp(-edge, edge).acos()


class AmSoftmax(_Margin):
    """-ln softmax(s (cos θ_j - m [j = y]))_y: AM-softmax (Wang et al. 2018). CosFace is the same with s = 64"""

    def __init__(
        self, num_classes: int, dim: int, seed: int, *, scale: float = 30.0, margin: float = 0.35,
        centroids: str = "learned",
    ):  # fmt: skip
        super().__init__(num_classes, dim, seed, centroids=centroids)
        check_range(f"{self.name}: scale", scale, "(0, inf)")
        check_range(f"{self.name}: margin", margin, "[0, 2]")
        self.scale, self.margin = scale, margin

    def with_margin(self, cosine: Tensor) -> Tensor:
        return cosine - self.margin


class ArcFace(_Margin):
    """-ln softmax(s cos(θ_j + m [j = y]))_y, m in radians; s (cos θ_y - m sin m) past θ_y = π - m (Deng et al. 2019)"""

    def __init__(
        self, num_classes: int, dim: int, seed: int, *, scale: float = 64.0, margin: float = 0.5,
        centroids: str = "learned",
    ):  # fmt: skip
        super().__init__(num_classes, dim, seed, centroids=centroids)
        check_range("arcface: scale", scale, "(0, inf)")
        check_range("arcface: margin", margin, "[0, 3.14]")
        self.scale, self.margin = scale, margin

    def with_margin(self, cosine: Tensor) -> Tensor:
        angle = _angle(cosine)
        beyond = cosine - self.margin * math.sin(self.margin)
        return torch.where(angle <= math.pi - self.margin, torch.cos(angle + self.margin), beyond)


class SphereFace(_Margin):
    """-ln softmax(‖z‖ cos θ_j, of the label ‖z‖ (λ cos θ + ψ(θ))/(1 + λ))_y: A-softmax, SphereFace (Liu et al. 2017)

    ψ(θ) = (-1)^k cos(mθ) - 2k for θ in [kπ/m, (k+1)π/m].

    margin     m, a whole number
    annealing  λ = max(5, 1000/(1 + 0.12 t)) in training step t, as in the released recipe; else λ = 0
    """

    def __init__(
        self, num_classes: int, dim: int, seed: int, *, margin: int = 4, annealing: bool = True,
        centroids: str = "learned",
    ):  # fmt: skip
        super().__init__(num_classes, dim, seed, centroids=centroids)
        check_whole("sphereface: margin", margin, "[1, inf)")
        self.margin, self.annealing = margin, annealing
        self.register_buffer("steps", torch.tensor(0))  # a tensor, so that torch.compile takes each step for the same

    def with_margin(self, cosine: Tensor) -> Tensor:
        share = (1000 / (1 + 0.12 * self.steps)).clamp_min(5.0) if self.annealing else 0.0
        turned = self.margin * _angle(cosine)
        k = (turned.detach() / math.pi).floor()
        psi = (1 - 2 * (k % 2)) * torch.cos(turned) - 2 * k
        return (share * cosine + psi) / (1 + share)

    def loss(self, features: Tensor, target: Tensor) -> Tensor:
        index = target.unsqueeze(1)
        cosines = self.scores(features)
        cosines = cosines.scatter(1, index, self.with_margin(cosines.gather(1, index)))
        if self.training:
            self.steps = self.steps + 1  # not in place: a compiled backward would then read the next step's number
        return cross_entropy(torch.linalg.vector_norm(features, dim=1, keepdim=True) * cosines, target).mean()


class Pedcc(AmSoftmax):
    """AM-softmax on fixed centroids + w (mean ‖ẑ - a_y‖²)^N: PEDCC-Loss (Zhu et al., arXiv 1904.06008)

    weight  w. The released code took the mean over all B·D numbers, w = 1/D, and later their sum, w = B
    power   N >= 1. (A root has an infinite slope at zero)
    """

    def __init__(
        self, num_classes: int, dim: int, seed: int, *, scale: float = 7.5, margin: float = 0.35, weight: float = 1.0,
        power: float = 1.0, centroids: str = "simplex",
    ):  # fmt: skip
        super().__init__(num_classes, dim, seed, scale=scale, margin=margin, centroids=centroids)
        check_range("pedcc: weight", weight, "[0, inf)")
        check_range("pedcc: power", power, "[1, inf)")
        self.weight, self.power = weight, power

    def loss(self, features: Tensor, target: Tensor) -> Tensor:
        distance = centroid_distance(direction(features), target, self.class_vectors()).mean()
        return super().loss(features, target) + self.weight * distance**self.power


HEADS: dict[str, type[Head]] = {
    "cross_entropy": CrossEntropy,
    "center": Center,
    "sphereface": SphereFace,
    "am_softmax": AmSoftmax,
    "arcface": ArcFace,
    "cot": Complement,
    "pedcc": Pedcc,
    "squared_cosine": SquaredCosine,
    "fixed_etf": ScaledCosine,
    "pod": Pod,
}
for _name, _kind in HEADS.items():
    _kind.name = _name


def head(spec: str, num_classes: int, dim: int, seed: int = 0, **hyper) -> Head:
    """Make a head by name, or by a spec such as "pod(delta='norm', decorrelation=0.0)".

    spec         one of `HEADS`, with hyper-parameters or without
    num_classes  C >= 2
    dim          D, the features that the backbone gives for an example
    seed         of learned weights, and of the rotation of fixed centroids
    hyper        the head's own hyper-parameters

    head(features, labels) is the mean loss of a batch, and `predict` decides. Call `end_epoch` after each epoch: the
    delta of POD follows what was seen in it.

    ValueError for an unknown name or hyper-parameter, a value out of range, or a D too small for the centroids.
    """
    name, parsed = parse(spec)
    hyper = plain_values(parsed | hyper)
    check_name("head", name, HEADS)
    num_classes, dim, seed = _check_sizes(name, num_classes, dim, seed)
    parameters = inspect.signature(HEADS[name]).parameters.values()
    check_hyper_parameters(name, hyper, {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY})
    with seeded(seed):
        return HEADS[name](num_classes, dim, seed, **hyper)
