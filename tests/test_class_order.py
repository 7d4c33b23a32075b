"""Derivation 4 against the losses that train: prices between classes, their order, shuffles, noise in the labels."""

import functools
import itertools

import numpy as np
import pytest
import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lossbook import losses, noise
from lossbook.losses import spectral
from lossbook.symbolic import class_order as order
from lossbook.symbolic import fourier_loss

SIZES = range(2, 13)
quick = settings(deadline=None, max_examples=20)
seeds = st.integers(0, 2**32 - 1)
sizes = st.integers(2, 12)
orders = st.sampled_from([0.0, 0.5, 1.0, 1.7, 3.0])
symbols = st.sampled_from(fourier_loss.SYMBOLS)
s = fourier_loss.s


@functools.cache
def compiled(n, symbol):
    """The derived Q of a ring as a function of s."""
    return sympy.lambdify(s, fourier_loss.quadratic_form(n, symbol), "numpy")


def derived(n, value, symbol="wrap"):
    """The derived Q of a ring at one s, for the functions of the derivation to work on."""
    return sympy.Matrix(compiled(n, symbol)(value))


def distribution(seed, n):
    return np.random.default_rng(seed).dirichlet(np.ones(n))


def loss_of(p, label, **hyper):
    """The loss that trains, from probabilities (N,) and a label or a distribution (N,)."""
    target = torch.tensor(label) if np.isscalar(label) else torch.from_numpy(label)
    return losses.fourier(torch.from_numpy(p).log(), target, **hyper).item()


def array(value):
    return np.asarray(value, dtype=float)


def close(value, expected):
    np.testing.assert_allclose(array(value), array(expected), rtol=1e-10, atol=1e-10)


# --- prices and order ----------------------------------------------------------------------------------------


@quick
@given(seed=seeds, n=sizes, value=orders, symbol=symbols)
def test_the_loss_is_the_risk_of_the_label_less_the_spread(seed, n, value, symbol):
    p, label = distribution(seed, n), seed % n
    form = derived(n, value, symbol)
    price = order.costs(form)
    close(price, [[loss_of(np.eye(n)[j], k, s=value, symbol=symbol) for k in range(n)] for j in range(n)])
    expected = loss_of(p, label, s=value, symbol=symbol)
    close(order.score(p.tolist(), label, form), expected)
    close(order.score_from_costs(p.tolist(), label, price), expected)


@quick
@given(seed=seeds, n=sizes, value=orders, symbol=symbols)
def test_the_loss_is_a_multiple_of_brier_and_an_order(seed, n, value, symbol):
    p, y = distribution(seed, n), distribution(seed + 1, n)
    form = derived(n, value, symbol)
    price, rest, alpha = array(order.costs(form)), array(order.order_part(form)), float(order.brier_multiple(form))
    u = p - y
    close(alpha * u @ u + u @ rest @ u, loss_of(p, y, s=value, symbol=symbol))
    eigenvalues = np.linalg.eigvalsh(spectral.quadratic_form(n, value, symbol))[1:]
    close(alpha, eigenvalues.mean())
    close(np.trace(rest), 0)
    off = price[~np.eye(n, dtype=bool)]
    close(off.mean(), 2 * alpha)
    assert (np.abs(rest).max() < 1e-12) == (np.ptp(off) < 1e-12), "an order if and only if the prices differ"


@pytest.mark.parametrize("n", [2, 3, 4, 7, 10])  # the notebook goes from 2 to 12
def test_the_identities_hold_for_free_entries(n):
    Q, p, q = order.symmetric_matrix("q", n), fourier_loss.vector("p", n), fourier_loss.vector("y", n)
    K, label = order.costs(Q), n - 1
    assert order.vanishes(order.score(p, label, Q) - order.score_from_costs(p, label, K), p)
    assert order.vanishes((sympy.Matrix([p]) * (Q + K / 2) * sympy.Matrix(p))[0], p, total=0)
    expected = sum(q[t] * order.score(p, t, Q) for t in range(n))
    error = sympy.Matrix(p) - sympy.Matrix(q)
    assert order.vanishes(expected - (error.T * Q * error)[0] - order.spread(q, K), q)


def test_vanishes_can_say_no():
    p = fourier_loss.vector("p", 3)
    assert order.vanishes(sum(p) - 1, p) and order.vanishes(sum(p), p, total=0)
    assert not order.vanishes(sum(p), p) and not order.vanishes(p[0] * p[1], p)
    assert not order.vanishes(order.score(p, 0, order.circulant("q", 3)), p)


@quick
@given(seed=seeds, n=sizes, value=orders, pad=st.integers(0, 12))
def test_no_prediction_costs_more_than_the_dearest_label(seed, n, value, pad):
    form = spectral.quadratic_form(n, value, "wrap", "order", pad)
    price = form.diagonal()[:, None] + form.diagonal() - 2 * form
    p, label = distribution(seed, n), seed % n
    assert loss_of(p, label, s=value, pad=pad) <= price[label].max() + 1e-12
    close(loss_of(np.eye(n)[price[label].argmax()], label, s=value, pad=pad), price[label].max())


# --- shuffles and placements ---------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("n", [3, 4, 5])
def test_the_average_over_all_numberings_is_brier(n, value):
    p, y = distribution(n, n), distribution(n + 1, n)
    every = [loss_of(p, y, s=value, placement=tuple(each)) for each in itertools.permutations(range(n))]
    alpha = float(order.brier_multiple(derived(n, value)))
    close(np.mean(every), alpha * ((p - y) ** 2).sum())
    assert (np.ptp(every) > 1e-3) == (n > 3), "one numbering alone is an order, from four classes on"


@pytest.mark.parametrize("n", SIZES)
def test_a_shuffle_keeps_the_eigenvalues_and_is_the_loss_that_trains(n):
    form = fourier_loss.quadratic_form(n, order=1)
    shuffled = order.permuted(form, np.random.default_rng(3).permutation(n).tolist())
    ours = spectral.quadratic_form(n, 1.0, "wrap", "permuted", 0, 3)
    close(shuffled.evalf(20), ours)
    close(np.linalg.eigvalsh(ours), np.linalg.eigvalsh(spectral.quadratic_form(n)))


@pytest.mark.parametrize("symbol", fourier_loss.SYMBOLS)
@pytest.mark.parametrize(
    ("points", "pad"),
    [
        *(([(c,) for c in range(n)], pad) for n, pad in [(2, 0), (5, 3), (9, 0), (10, 2), (12, 0)]),
        ([divmod(c, 5) for c in range(10)], 0),
        ([divmod(c, 4) for c in (0, 3, 4, 6, 9, 11)], 1),
        (list(itertools.product(range(2), range(3), range(2))), 0),
        ([tuple(row) for row in np.eye(4, dtype=int).tolist()], 0),
    ],
)
def test_placements_are_those_of_the_loss_that_trains(points, pad, symbol):
    shape = tuple(max(axis) + 1 + pad for axis in zip(*points, strict=True))
    placed = sympy.lambdify(s, order.placed(points, shape, symbol), "numpy")
    for value in (0.0, 0.5, 1.0, 2.0):
        close(placed(value), spectral.quadratic_form(len(points), value, symbol, tuple(points), pad))


@pytest.mark.parametrize("n", SIZES)
def test_the_hypercube_is_brier(n):
    p, y = distribution(n, n), distribution(n + 1, n)
    direct = fourier_loss.hypercube_green(0, n) - fourier_loss.hypercube_green(2, n)
    assert sympy.expand(direct - order.hypercube_multiple(n)) == 0
    for value in (0.0, 0.5, 1.0, 2.0):
        multiple = order.hypercube_multiple(n).subs(s, value)
        close(loss_of(p, y, s=value, placement="hypercube"), multiple * ((p - y) ** 2).sum())
    assert order.hypercube_multiple(n, 1) == sympy.Rational(2 ** (n - 1) - 1, (n - 1) * 2 ** (n - 2))


@pytest.mark.parametrize("shape", [(2,), (7,), (12,), (2, 6), (3, 4), (2, 2, 3)])
def test_condition_numbers(shape):
    points = tuple(itertools.product(*map(range, shape)))
    for symbol, value in itertools.product(("wrap", "sin"), (0, 0.5, 1, 2)):
        values = np.linalg.eigvalsh(spectral.quadratic_form(len(points), value, symbol, points))[1:]
        close(order.condition_number(shape, symbol, sympy.nsimplify(value)).evalf(), values[-1] / values[0])
    with pytest.raises(ValueError, match=r"'raw'.*allowed: wrap, sin"):
        order.condition_number(shape, "raw")


# --- noise in the labels -------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", SIZES)
def test_transition_matrices_are_those_of_the_experiments(n):
    rate = sympy.Rational(3, 10)
    close(order.symmetric_noise(n, rate), noise.transition_matrix("symmetric", 0.3, n))
    if n > 2:
        close(order.ring_noise(n, rate), noise.transition_matrix("ring", 0.3, n))


@quick
@given(seed=seeds, n=sizes, value=orders, symbol=symbols, pad=st.integers(0, 4))
def test_the_noisy_posterior_is_the_minimiser_and_the_clean_one_is_not(seed, n, value, symbol, pad):
    """Under any transition matrix at all, for the Fourier loss as for the other strictly proper losses."""
    rng = np.random.default_rng(seed)
    clean = torch.from_numpy(rng.dirichlet(np.ones(n))) * 0.9 + 0.1 / n
    posterior = torch.from_numpy(rng.dirichlet(np.ones(n), n)).T @ clean
    fourier = functools.partial(losses.fourier, s=value, symbol=symbol, pad=pad)
    for loss in (fourier, losses.brier, losses.cross_entropy):

        def expected(p, loss=loss):
            z = p.log().requires_grad_()
            total = posterior @ loss(z.expand(n, n), torch.arange(n))
            return total.item(), torch.autograd.grad(total, z)[0]

        least, gradient = expected(posterior)
        assert gradient.abs().max() < 1e-10
        if (posterior - clean).abs().max() > 1e-3:
            assert expected(clean)[0] > least


@pytest.mark.parametrize("symbol", fourier_loss.SYMBOLS)
@pytest.mark.parametrize("n", SIZES)
def test_not_symmetric_the_sum_over_labels_doubles(n, symbol):
    generator = torch.Generator().manual_seed(n)
    z = torch.randn(50, n, generator=generator, dtype=torch.float64) * 3
    z[0], z[1] = 0, torch.full((n,), -1e4).index_fill(0, torch.tensor([n - 1]), 0.0)
    every = z[:, None].expand(50, n, n), torch.arange(n).expand(50, n)
    least = n * spectral.quadratic_form(n, 1.0, symbol)[0, 0]
    total = losses.fourier(*every, symbol=symbol).sum(1)
    close(total[:2], [least, 2 * least])
    assert total.min() >= least - 1e-12 and total.max() <= 2 * least + 1e-12 and total[2:].std() > 1e-3
    close(losses.mae(*every).sum(1), np.full(50, 2 * (n - 1)))


@pytest.mark.parametrize("n", SIZES)
def test_symmetric_noise_regularises_and_reverses_a_comparison(n):
    z = torch.randn(n, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    form = torch.from_numpy(spectral.quadratic_form(n))
    p = torch.softmax(z, 0)

    def noisy(loss, z, rate):
        return noise.transition_matrix("symmetric", rate, n)[0] @ loss(z.expand(n, n), torch.arange(n))

    rho = 0.3 * n / (n - 1)
    claimed = (1 - rho) * losses.fourier(z, torch.tensor(0)) + rho * (p @ form @ p + form[0, 0])
    close(noisy(losses.fourier, z, 0.3), claimed)

    perfect = torch.full((n,), -1e4, dtype=torch.float64).index_fill(0, torch.tensor([0]), 0.0)
    ignorant, limit = torch.zeros(n, dtype=torch.float64), (n - 1) / (2 * n)
    for loss in (losses.fourier, losses.brier):
        assert noisy(loss, perfect, limit - 0.01) < noisy(loss, ignorant, limit - 0.01)
        assert noisy(loss, perfect, limit + 0.01) > noisy(loss, ignorant, limit + 0.01)
    assert noisy(losses.mae, perfect, 2 * limit - 0.01) < noisy(losses.mae, ignorant, 2 * limit - 0.01)


def answer(rate, n, kind, **hyper):
    """The label of the smallest expected price when class 0 is true: from the loss that trains, between labels."""
    every = torch.full((n, n), -1e4, dtype=torch.float64).fill_diagonal_(0)
    price = torch.stack([losses.fourier(every, torch.full((n,), label), **hyper) for label in range(n)], 1)
    posterior = noise.transition_matrix(kind, rate, n)[0]
    close(order.risks(posterior.tolist(), sympy.Matrix(price)), (price @ posterior)[:, None])
    return (price @ posterior).argmin().item(), posterior.argmax().item()


@pytest.mark.parametrize("n", range(4, 13))
def test_the_cheapest_answer_outlasts_the_most_probable_one_under_ring_noise(n):
    limit = (n - 1) / n
    assert answer(limit - 0.005, n, "ring", symbol="sin")[0] == 0
    assert answer(limit + 0.005, n, "ring", symbol="sin")[0] != 0
    assert answer(0.66, n, "ring")[1] == 0
    assert answer(0.67, n, "ring")[1] != 0


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0, 2.0])
def test_ring_noise_on_four_classes(value):
    limit = (1 + 4**-value) / (1 + 2 * 4**-value)
    assert answer(limit - 0.005, 4, "ring", s=value)[0] == 0
    assert answer(limit + 0.005, 4, "ring", s=value)[0] != 0


@pytest.mark.parametrize("n", range(3, 13))
def test_on_a_line_the_cheapest_answer_is_the_median(n):
    """So much padding that the ring is a line: symmetric noise of one half moves the answer away from the end."""
    assert answer(0.49, n, "symmetric", symbol="sin", pad=20_000) == (0, 0)
    assert answer(0.51, n, "symmetric", symbol="sin", pad=20_000)[0] != 0


def test_an_order_can_overrule_the_majority():
    posterior = [0.0, 0.4, 0.3, 0.3]
    for value, best in ((0.4, 1), (0.6, 2)):
        assert array(order.risks(posterior, order.costs(derived(4, value)))).argmin() == best


@pytest.mark.parametrize("rate", [0.1, 0.6])
@pytest.mark.parametrize("n", range(3, 13))
def test_what_the_noisy_posterior_costs_on_clean_labels(n, rate):
    posterior = noise.transition_matrix("ring", rate, n)[0].clamp_min(1e-300)
    z, label = posterior.log(), torch.tensor(0)
    close(losses.brier(z, label), 1.5 * rate**2)
    alpha = (n + 1) / 12
    close(losses.fourier(z, label, symbol="sin") / alpha, 6 * rate**2 / (n + 1))


# --- the first step ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pad", [0, 5])
@pytest.mark.parametrize("n", SIZES)
def test_first_step_against_autograd(n, pad):
    for value, label in ((0.0, 0), (0.5, n - 1), (2.0, n // 2)):
        z = torch.zeros(n, dtype=torch.float64, requires_grad=True)
        losses.fourier(z, torch.tensor(label), s=value, pad=pad).backward()
        form = order.placed([(c,) for c in range(n)], (n + pad,), order=sympy.nsimplify(value))
        close(order.first_step(label, form).evalf(20), -z.grad[:, None])
        if not pad:
            close(-z.grad, 2 / n * spectral.quadratic_form(n, value)[:, label])


def test_first_step_raises_two_neighbours_of_ten_on_each_side():
    z = torch.zeros(10, dtype=torch.float64, requires_grad=True)
    losses.fourier(z, torch.tensor(5), symbol="sin").backward()
    column = [0.825, 0.375, 0.025, -0.225, -0.375, -0.425]
    close(-5 * z.grad, [column[abs(j - 5)] for j in range(10)])
