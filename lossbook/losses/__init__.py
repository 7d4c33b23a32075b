"""Losses as pure functions `(logits, target, *, hyper-parameters, reduction) -> Tensor`, and their catalogue."""

from lossbook.losses import hypersphere
from lossbook.losses._registry import catalogue, create, gradient_scale, lookup, names, parse
from lossbook.losses.likelihood import (
    bootstrap_hard,
    bootstrap_soft,
    cross_entropy,
    focal,
    kl_divergence,
    label_smoothing,
)
from lossbook.losses.perceptual import PerceptualLoss
from lossbook.losses.pointwise import categorical_hinge, hinge, huber, log_cosh, poisson, squared_hinge
from lossbook.losses.ranking import average_precision_hinge, ndcg_hinge
from lossbook.losses.regression import pinball, tukey
from lossbook.losses.robust import gce, js, nce_rce, sce
from lossbook.losses.rooted import (
    calibration_factor,
    rooted_bounded,
    rooted_bounded_binary,
    rooted_logistic,
    rooted_logistic_binary,
)
from lossbook.losses.scoring import brier, mae, rps
from lossbook.losses.spectral import fourier, fourier_distance

__all__ = [
    "PerceptualLoss",
    "average_precision_hinge",
    "bootstrap_hard",
    "bootstrap_soft",
    "brier",
    "calibration_factor",
    "catalogue",
    "categorical_hinge",
    "create",
    "cross_entropy",
    "focal",
    "fourier",
    "fourier_distance",
    "gce",
    "gradient_scale",
    "hinge",
    "huber",
    "hypersphere",
    "js",
    "kl_divergence",
    "label_smoothing",
    "log_cosh",
    "lookup",
    "mae",
    "names",
    "nce_rce",
    "ndcg_hinge",
    "parse",
    "pinball",
    "poisson",
    "rooted_bounded",
    "rooted_bounded_binary",
    "rooted_logistic",
    "rooted_logistic_binary",
    "rps",
    "sce",
    "squared_hinge",
    "tukey",
]
