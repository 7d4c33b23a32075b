"""Linear models under the rooted logistic losses of arXiv 2310.03890: speed, direction, conditioning, wrong labels.

Every run is gradient descent from zero, in float64, on mean loss(y wᵀx) + l2/2 ‖w‖². Steps are counted in units of 1/L,
where L bounds the curvature of the *logistic* objective: a step of one is safe for it, whatever the data.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy
import torch
from sklearn import datasets
from sklearn.exceptions import ConvergenceWarning
from sklearn.svm import LinearSVC
from torch import Tensor

from lossbook.checks import check_fields, check_name
from lossbook.losses.rooted import margin_loss
from lossbook.tasks import Runs, Task
from lossbook.training import generator

LOSSES = ("logistic", *(f"rooted_logistic(k={k})" for k in (1, 2, 3, 8)), "rooted_bounded(k=3, m=3)")
DATASETS = ("separable", "overlapping", "iris", "wine", "breast_cancer", "digits")
SEPARABLE = ("separable", "iris", "wine", "digits")  # a training set of which some plane parts the classes
QUESTIONS = ("speed", "direction", "noise")
RULES = ("equal", "matched", "tuned")

STEPS = 2.0 ** numpy.arange(-1, 6.5, 0.5)  # among which "tuned" chooses, the same for every loss
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of label noise: each with each of the three steps
NOISE_STEPS = (1.0, 4.0, 16.0)
TOLERANCE = 1e-6  # of the gradient's norm, relative to that at zero, so that the scale of a loss does not matter
LIMIT = 10_000  # iterations
PATIENCE = 2  # the other steps go on for this many times the iterations of the first that arrives
NOISE_ITERATIONS = 500
DIRECTION_ITERATIONS = 5_000
LEVERAGE = 10.0  # how far out a mislabelled point of leverage lies, as a multiple of where it was


@dataclass(frozen=True, kw_only=True)
class RootedLinear(Task):
    """A linear model under one loss, on one draw or split of the data.

    dataset        one of DATASETS: two synthetic sets, and four that scikit-learn carries, as two classes
    loss           "logistic", "rooted_logistic(k=3)" or "rooted_bounded(k=3, m=3)"
    learning_rate  the step in units of 1/L
    question       "speed": iterations until the gradient is TOLERANCE of what it was, and the Hessian's condition;
                   "direction": angle to the separator of largest margin; "noise": accuracy on clean test labels
    rule           "equal": the step as it is; "matched": divided by the loss's curvature at zero, relative to the
                   logistic loss; "tuned": of STEPS times the step, that which takes the fewest iterations, or for
                   "noise", of NOISE_STEPS times the matched step and PENALTIES, what is best on validation data
    l2             in [0, inf); not used by tuned "noise"
    flips          for "noise", share of training and validation labels that are turned, in [0, 1/2)
    outliers       for "noise", number of training points that are moved out by LEVERAGE and mislabelled
    """

    question: str = "speed"
    rule: str = "equal"
    l2: float = 1e-2
    flips: float = 0.0
    outliers: int = 0

    def __post_init__(self):
        super().__post_init__()
        check_fields(
            self,
            dict(dataset=DATASETS, model=("linear",), question=QUESTIONS, rule=RULES),
            dict(l2="[0, inf)", flips="[0, 0.5)", outliers="[0, inf)"),
        )
        margin_loss(self.loss)
        if self.question == "direction":
            check_name("dataset that can be separated", self.dataset, SEPARABLE)
            check_name("rule of a direction", self.rule, RULES[:2])
        if self.question != "noise" and (self.flips or self.outliers):
            raise ValueError(
                f"flips={self.flips} and outliers={self.outliers} were given for question={self.question!r}; "
                "allowed: 0 for both, but for question='noise'"
            )

    def run(self, device: torch.device) -> dict[str, object]:
        """Answer the question; the columns are those of `_speed`, `_direction` and `_noise`."""
        loss = margin_loss(self.loss)
        return {"speed": self._speed, "direction": self._direction, "noise": self._noise}[self.question](loss, device)

    def _speed(self, loss: Callable[[Tensor], Tensor], device: torch.device) -> dict[str, object]:
        """Iterations of the best step (NaN: not within LIMIT), of all that were tried, and the Hessian's condition.

        A step has diverged if the objective ends above where it began, or is no number.
        """
        rows = example_rows(*examples(self.dataset, self.seed)[0]).to(device)
        steps = self.learning_rate * (STEPS if self.rule == "tuned" else numpy.ones(1))
        steps = torch.as_tensor(steps, dtype=rows.dtype, device=device)
        if self.rule == "matched":
            steps = steps / (4 * curvature(loss))
        penalty = torch.full_like(steps, self.l2)
        arrived, last = torch.full_like(steps, math.nan), LIMIT
        for iteration, (weights, gradient) in enumerate(descent(rows, loss, steps, penalty)):
            size = gradient.norm(dim=1)
            if iteration == 0:
                wanted, there = TOLERANCE * size, weights.clone()
            new = (size <= wanted) & arrived.isnan()
            if new.any():
                arrived[new], there[new] = iteration, weights[new]  # a step too large may leave again
                last = min(last, PATIENCE * iteration)
            if iteration >= last or not (arrived.isnan() & size.isfinite()).any():
                there = torch.where(arrived.isnan()[:, None], weights, there)
                break
        start = objective(rows, loss, torch.zeros_like(there), penalty)
        diverged = arrived.isnan() & ~(objective(rows, loss, there, penalty) <= start)
        best = int(arrived.nan_to_num(nan=math.inf).argmin())
        at_optimum = hessian(rows, loss, there[best], self.l2) if arrived[best].isfinite() else None
        return {
            "status": "diverged" if diverged[best] else "done",
            "iterations": float(arrived[best]),
            "step": float(steps[best]),
            "steps_tried": steps.tolist(),
            "iterations_tried": arrived.tolist(),
            "diverged_tried": diverged.tolist(),
            "condition_zero": condition(hessian(rows, loss, torch.zeros_like(there[best]), self.l2)),
            "condition_optimum": math.nan if at_optimum is None else condition(at_optimum),
        }

    def _direction(self, loss: Callable[[Tensor], Tensor], device: torch.device) -> dict[str, object]:
        """Angle in degrees to the separator of largest margin, at iterations evenly spaced in their logarithm."""
        rows = example_rows(*examples(self.dataset, self.seed)[0])
        goal, rows = largest_margin(rows).to(device), rows.to(device)
        step = torch.tensor([self.learning_rate], dtype=rows.dtype, device=device)
        if self.rule == "matched":
            step = step / (4 * curvature(loss))
        shown = sorted({round(10**power) for power in numpy.linspace(0, math.log10(DIRECTION_ITERATIONS), 40)})
        angles, margins, watched = [], [], set(shown)
        for iteration, (weights, _) in enumerate(descent(rows, loss, step, torch.full_like(step, self.l2))):
            if iteration in watched:
                unit = weights[0] / weights[0].norm()
                angles.append(math.degrees(math.acos((unit @ goal).clamp(-1, 1))))  # NaN stays NaN
                margins.append(float((rows @ unit).min() / (rows @ goal).min()))
            if iteration == shown[-1]:
                break
        finite = math.isfinite(angles[-1])
        return {
            "status": "done" if finite else "diverged",
            "curve_iterations": shown,
            "angle_curve": angles,
            "margin_curve": margins,
            "angle": angles[-1],
        }

    def _noise(self, loss: Callable[[Tensor], Tensor], device: torch.device) -> dict[str, object]:
        """Accuracy on clean test labels after NOISE_ITERATIONS; tuned, at the best penalty and matched step.

        That is by validation accuracy, on a quarter of the training data, whose labels are turned at the same rate. Of
        equals the larger penalty and then the smaller step is taken.
        """
        (x, y), (x_test, y_test) = examples(self.dataset, self.seed)
        random = generator("noise", self.seed)
        y = torch.where(torch.rand(len(y), generator=random, dtype=torch.float64) < self.flips, -y, y)
        order = torch.randperm(len(y), generator=random)
        held, kept = order[: len(y) // 4], order[len(y) // 4 :]
        x_kept, y_kept = x[kept].clone(), y[kept].clone()
        x_kept[: self.outliers, :-1] *= LEVERAGE  # all but the constant
        y_kept[: self.outliers] *= -1
        rows = example_rows(x_kept, y_kept).to(device)
        candidates = [(self.l2, 1.0)]
        if self.rule == "tuned":
            candidates = list(itertools.product(sorted(PENALTIES, reverse=True), NOISE_STEPS))
        penalties, steps = torch.tensor(candidates, dtype=rows.dtype, device=device).T
        steps = self.learning_rate * steps
        if self.rule != "equal":
            steps = steps / (4 * curvature(loss))
        weights, _ = next(itertools.islice(descent(rows, loss, steps, penalties), NOISE_ITERATIONS, None))
        validation = accuracies(weights, x[held].to(device), y[held].to(device))
        best = int(validation.argmax())
        finite = bool(weights[best].isfinite().all())
        return {
            "status": "done" if finite else "diverged",
            "validation_score": float(validation[best]),
            "test_accuracy": float(accuracies(weights, x_test.to(device), y_test.to(device))[best]),
            "chosen_l2": float(penalties[best]),
            "step": float(steps[best]),
        }


def examples(dataset: str, seed: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Training and test data, each x (n, d) in float64 with a column of ones at the end, and y (n) of -1 and 1.

    The synthetic sets have ten normal features with standard deviations from 1 down to 1/5, and 200 training and 2000
    test examples; "separable" is labelled by the side of a plane and pushed 0.3 away from it, "overlapping" by the
    logistic model. Of the others 70 % are for training, standardised by their mean and standard deviation (digits: one
    standard deviation for all pixels): iris setosa against the rest, wine class 1 against the rest, digits 3 against 8.
    """
    random = generator("examples", seed)
    if dataset in ("separable", "overlapping"):
        x = torch.randn(2200, 10, generator=random, dtype=torch.float64) * torch.logspace(0, -math.log10(5), 10)
        normal = torch.nn.functional.normalize(torch.randn(10, generator=random, dtype=torch.float64), dim=0)
        if dataset == "separable":
            y = (x @ normal).sign()
            x = x + 0.3 * y[:, None] * normal
        else:
            chance = torch.rand(len(x), generator=random, dtype=torch.float64)
            y = torch.where(chance < torch.sigmoid(3 * x @ normal), 1.0, -1.0).double()
        order, train = torch.arange(len(x)), 200
    else:
        table = getattr(datasets, f"load_{dataset}")()
        values, classes = table.data, table.target
        if dataset == "digits":
            values, classes = values[(classes == 3) | (classes == 8)], classes[(classes == 3) | (classes == 8)]
        positive = {"iris": 0, "wine": 1, "breast_cancer": 1, "digits": 3}[dataset]
        x = torch.as_tensor(values, dtype=torch.float64)
        y = torch.where(torch.as_tensor(classes) == positive, 1.0, -1.0).double()
        order, train = torch.randperm(len(x), generator=random), round(0.7 * len(x))
        centred = x[order[:train]] - x[order[:train]].mean(0)
        scale = centred.std() if dataset == "digits" else centred.std(0)
        x = (x - x[order[:train]].mean(0)) / scale
    x = torch.cat([x, torch.ones(len(x), 1, dtype=torch.float64)], dim=1)
    return (x[order[:train]], y[order[:train]]), (x[order[train:]], y[order[train:]])


def example_rows(x: Tensor, y: Tensor) -> Tensor:
    """y x, so that the margins are rows @ weights."""
    return y[:, None] * x


def descent(
    rows: Tensor, loss: Callable[[Tensor], Tensor], steps: Tensor, penalties: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """Gradient descent from zero without end, for several steps and penalties side by side.

    rows (n, d); steps in units of 1/L and penalties, both (candidates). Yields the weights and the gradient there,
    both (candidates, d).
    """
    steps = steps / (torch.linalg.eigvalsh(rows.T @ rows / len(rows))[-1] / 4 + penalties)
    weights = rows.new_zeros(len(steps), rows.shape[1])
    while True:
        margins = (weights @ rows.T).requires_grad_()
        (slope,) = torch.autograd.grad(loss(margins).sum(), margins)
        gradient = slope @ rows / len(rows) + penalties[:, None] * weights
        yield weights, gradient
        weights = weights - steps[:, None] * gradient


def objective(rows: Tensor, loss: Callable[[Tensor], Tensor], weights: Tensor, penalties: Tensor) -> Tensor:
    """What `descent` goes down on, (candidates)."""
    return loss(weights @ rows.T).mean(dim=1) + penalties / 2 * weights.square().sum(dim=1)


def curvatures(loss: Callable[[Tensor], Tensor], margins: Tensor) -> Tensor:
    """Second derivative of a loss at each of the margins."""
    margins = margins.detach().requires_grad_()
    (slope,) = torch.autograd.grad(loss(margins).sum(), margins, create_graph=True)
    return torch.autograd.grad(slope.sum(), margins)[0]


def curvature(loss: Callable[[Tensor], Tensor]) -> float:
    """Second derivative of a loss at margin zero; 1/4 for the logistic loss."""
    return float(curvatures(loss, torch.zeros(1, dtype=torch.float64)))


def hessian(rows: Tensor, loss: Callable[[Tensor], Tensor], weights: Tensor, penalty: float) -> Tensor:
    """Hessian of the objective at weights (d), (d, d)."""
    weighted = rows * curvatures(loss, rows @ weights)[:, None]
    return rows.T @ weighted / len(rows) + penalty * torch.eye(rows.shape[1], dtype=rows.dtype, device=rows.device)


def condition(matrix: Tensor) -> float:
    """Largest eigenvalue over smallest; NaN where the matrix is not positive definite."""
    values = torch.linalg.eigvalsh(matrix)
    return float(values[-1] / values[0]) if values[0] > 0 else math.nan


def accuracies(weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Share of examples on the right side, (candidates); a margin of zero or NaN is wrong."""
    return (weights @ example_rows(x, y).T > 0).double().mean(dim=1)


def largest_margin(rows: Tensor) -> Tensor:
    """Unit normal (d) of the separator through the origin with the largest margin; ValueError where there is none."""
    signs = numpy.where(numpy.arange(len(rows)) % 2, 1, -1)  # any two classes: the sign goes to the row and comes back
    machine = LinearSVC(loss="hinge", C=1e6, fit_intercept=False, tol=1e-9, max_iter=100_000, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # told by n_iter_, and refused below
        normal = torch.as_tensor(machine.fit(signs[:, None] * rows.numpy(), signs).coef_[0])
    if machine.n_iter_ >= machine.max_iter or not (rows @ normal > 0).all():
        raise ValueError("no plane parts the classes of this training set; a direction is asked of separable data only")
    return normal / normal.norm()


DEFAULT = ("separable", "linear")
PAPER = tuple((dataset, "linear") for dataset in DATASETS)


def runs(profile: str, dataset: str, model: str) -> Runs:
    """Every loss on every question that the data set allows; what is tuned, a run tunes itself, on training data."""
    check_name("dataset", dataset, DATASETS)
    check_name("model", model, ("linear",))
    losses, noises = LOSSES, [{}, {"flips": 0.1}, {"flips": 0.3}, {"outliers": 6}]
    if profile == "smoke":
        losses, noises = ("logistic", "rooted_logistic(k=3)", "rooted_bounded(k=3, m=3)"), noises[2:3]
    # smoke has a seed of its own, which is not among the published rows: it always runs
    seeds = {"smoke": (100,), "quick": range(3), "paper": range(5)}[profile]
    settings = [{"question": "speed", "rule": rule} for rule in RULES]
    settings += [{"question": "direction", "rule": "matched", "l2": 0.0}] * (dataset in SEPARABLE)
    settings += [{"question": "noise", "rule": "tuned", **noise} for noise in noises]
    settings += [{"question": "noise", "rule": "matched", "l2": 1e-3, **noise} for noise in noises]
    return Runs(
        tuple(
            RootedLinear(dataset=dataset, model=model, loss=loss, learning_rate=1.0, seed=seed, **setting)
            for seed in seeds
            for setting in settings
            for loss in losses
        )
    )
