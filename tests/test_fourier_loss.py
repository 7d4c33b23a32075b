"""The derivation of the Fourier loss (symbolic) against the loss that trains (autograd)."""

import numpy
import pytest
import sympy
import torch

from lossbook import losses
from lossbook.symbolic import fourier_loss as derived

ORDERS = (0.0, 0.5, 1.0, 1.7, 3.0)
SIZES = range(2, 13)


def matrix(n: int, symbol: str, order: float) -> torch.Tensor:
    entries = [sympy.lambdify(derived.s, derived.green(m, n, symbol), "numpy")(order) for m in range(n)]
    return torch.tensor([[entries[(row - column) % n] for column in range(n)] for row in range(n)], dtype=torch.float64)


def example(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, generator=random, dtype=torch.float64)
    return logits, torch.softmax(torch.randn(n, generator=random, dtype=torch.float64), 0)


@pytest.mark.parametrize("symbol", derived.SYMBOLS)
@pytest.mark.parametrize("n", SIZES)
def test_value_gradient_and_hessian_equal_autograd(n, symbol):
    """The explicit formulas, in the probabilities and in the logits, to 1e-10."""
    for seed, order in enumerate(ORDERS):
        logits, y = example(n, 100 * n + seed)
        Q, p = matrix(n, symbol, order), torch.softmax(logits, 0)
        g = 2 * Q @ (p - y)
        r = p * (g - p @ g)
        J = p.diag() - p.outer(p)

        def loss(z, y=y, order=order):
            return losses.fourier(z, y, s=order, symbol=symbol)

        def gradient(z, loss=loss):
            return torch.func.grad(loss)(z)

        torch.testing.assert_close(loss(logits), (p - y) @ Q @ (p - y), atol=1e-10, rtol=0)
        torch.testing.assert_close(gradient(logits), r, atol=1e-10, rtol=0)
        hessian = 2 * J @ Q @ J + r.diag() - r.outer(p) - p.outer(r)
        torch.testing.assert_close(torch.func.jacrev(gradient)(logits), hessian, atol=1e-10, rtol=0)


@pytest.mark.parametrize("n", range(2, 6))
def test_symbolic_derivatives_lambdified_equal_autograd(n):
    """`logit_gradient` and `logit_hessian` themselves, as functions, for Q with s symbolic."""
    p_symbols, y_symbols = derived.vector("p", n), derived.vector("y", n)
    form = derived.quadratic_form(n)
    arguments = [*p_symbols, *y_symbols, derived.s]
    gradient = sympy.lambdify(arguments, list(derived.logit_gradient(p_symbols, y_symbols, form)), "numpy")
    hessian = sympy.lambdify(arguments, derived.logit_hessian(p_symbols, y_symbols, form), "numpy")
    for seed, order in enumerate(ORDERS):
        logits, y = example(n, seed)
        values = (*torch.softmax(logits, 0).tolist(), *y.tolist(), order)

        def loss(z, y=y, order=order):
            return losses.fourier(z, y, s=order)

        numpy.testing.assert_allclose(gradient(*values), torch.func.grad(loss)(logits), atol=1e-10)
        second = torch.func.jacrev(torch.func.grad(loss))(logits)
        numpy.testing.assert_allclose(numpy.array(hessian(*values), dtype=float), second, atol=1e-10)


@pytest.mark.parametrize("symbol", derived.SYMBOLS)
@pytest.mark.parametrize("n", SIZES)
def test_definition_is_the_quadratic_form(n, symbol):
    """The sum over frequencies and uᵀQu, two separate constructions in SymPy, and the loss: one number."""
    random = numpy.random.default_rng(n)
    p, y = random.dirichlet(numpy.ones(n)), random.dirichlet(numpy.ones(n))
    u = derived.vector("u", n)
    definition = sympy.lambdify([*u, derived.s], derived.loss(u, symbol), "numpy")
    for order in ORDERS:
        value = definition(*(p - y), order)
        trained = losses.fourier(torch.from_numpy(p).log(), torch.from_numpy(y), s=order, symbol=symbol)
        assert value == pytest.approx(trained.item(), abs=1e-12)
        assert value == pytest.approx((p - y) @ matrix(n, symbol, order).numpy() @ (p - y), abs=1e-12)


@pytest.mark.parametrize("symbol", derived.SYMBOLS)
@pytest.mark.parametrize("n", SIZES)
def test_eigenvalues_and_convexity(n, symbol):
    """Strictly convex on the simplex: one zero eigenvalue, for the constant vector, and the rest positive."""
    for order in ORDERS:
        stated = sorted(float(value.subs(derived.s, order)) for value in derived.eigenvalues(n, symbol))
        found = torch.linalg.eigvalsh(matrix(n, symbol, order))
        numpy.testing.assert_allclose(found, stated, atol=1e-12)
        assert stated[0] == 0 < stated[1]


def test_twice_differentiable_but_the_root_is_not():
    """The squared metric has a second derivative at zero error; the metric has a kink there."""
    _, y = example(5, 0)

    def along(t, power):
        direction = torch.tensor([1.0, -1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
        return losses.fourier_distance(y + t * direction, y) ** power

    step = torch.tensor(1e-3, dtype=torch.float64)
    slopes = [((along(sign * step, 1) - along(0 * step, 1)) / (sign * step)).item() for sign in (1, -1)]
    assert slopes[0] == pytest.approx(-slopes[1]) and slopes[0] > 0.1
    Q = matrix(5, "wrap", 1.0)
    curvature = (along(step, 2) + along(-step, 2)) / step**2
    assert curvature.item() == pytest.approx((2 * (Q[0, 0] - Q[0, 1]) * 2).item(), rel=1e-6)


def test_not_convex_in_the_logits_and_flat_far_off():
    """Two classes: the curvature changes sign where the wrong class leads by ln 2. Far off the gradient dies."""

    def loss(lead):
        return losses.fourier(torch.stack([lead, torch.zeros_like(lead)]), torch.tensor(1))

    curvature = torch.func.grad(torch.func.grad(loss))
    at = torch.tensor(float(sympy.log(2)), dtype=torch.float64)
    assert curvature(at - 0.1) > 0 > curvature(at + 0.1)
    assert curvature(at).item() == pytest.approx(0, abs=1e-12)
    assert torch.func.grad(loss)(at + 20) < 1e-7


def test_no_stationary_point_but_the_label():
    """g·(y - p) = -2 L: the way to the label goes downhill from everywhere, also from the faces of the simplex."""
    random = numpy.random.default_rng(0)
    for n in SIZES:
        Q = matrix(n, "wrap", 1.0).numpy()
        p, y = random.dirichlet(numpy.full(n, 0.1)), random.dirichlet(numpy.ones(n))
        assert 2 * Q @ (p - y) @ (y - p) == pytest.approx(-2 * (p - y) @ Q @ (p - y))


@pytest.mark.parametrize("n", range(2, 11))
def test_hypercube_is_a_multiple_of_brier(n):
    """The closed form of the derivation against the loss on the hypercube."""
    off, on = (derived.hypercube_green(weight, n, 1) for weight in (2, 0))
    multiple = float(on - off)
    logits, y = example(n, n)
    trained = losses.fourier(logits, y, placement="hypercube")
    assert trained.item() == pytest.approx(multiple * losses.brier(logits, y).item(), rel=1e-12)


@pytest.mark.parametrize("n", SIZES)
def test_cramer_green_function(n):
    """The closed form for the sine symbol at s = 1 against the sum over frequencies."""
    for distance in range(n):
        total = derived.green(distance, n, "sin", 1).evalf(20)
        assert float(total) == pytest.approx(float(derived.cramer_green(sympy.Integer(distance), sympy.Integer(n))))
