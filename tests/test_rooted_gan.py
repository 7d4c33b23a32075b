"""The style-based generator, its adversarial losses, FID, and the fine-tuning runs."""

import dataclasses

import numpy
import pytest
import scipy.linalg
import torch
import torch.nn.functional as F

from lossbook import data, style_gan, sweep
from lossbook.judges import expected_fid
from lossbook.tasks import rooted_gan, row
from lossbook.tasks.rooted_gan import HALF_LIFE, FineTuning, margin_loss, select

SMALL = dict(
    dataset="digits", model="style_small", learning_rate=2e-3, source="digits", classes="56789",
    pretraining_steps=8, steps=4, pieces=2, samples=60,
)  # fmt: skip


def random(seed=0):
    return torch.Generator().manual_seed(seed)


def test_modulated_convolution_is_a_convolution_of_its_own_for_each_image():
    torch.manual_seed(0)
    layer = style_gan.ModulatedConvolution(3, 5, latent=4).double()
    x, w = torch.randn(6, 3, 7, 7, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)
    for image, made, style in zip(x, layer(x, w), layer.style(w), strict=True):
        weight = layer.weight * layer.scale * style[None, :, None, None]
        weight = weight / (weight.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        torch.testing.assert_close(made, F.conv2d(image[None], weight, padding=1)[0], rtol=1e-10, atol=1e-10)


def test_demodulation_gives_unit_variance_whatever_the_style():
    torch.manual_seed(0)
    layer = style_gan.ModulatedConvolution(8, 6, latent=4)
    x, w = torch.randn(4, 8, 96, 96), 5 * torch.randn(4, 4)
    inside = layer(x, w).detach()[..., 1:-1, 1:-1]
    torch.testing.assert_close(inside.var((2, 3)), torch.ones(4, 6), rtol=0.1, atol=0)
    layer.demodulate = False
    assert layer(x, w).detach()[..., 1:-1, 1:-1].var((2, 3)).max() > 2


def test_a_layer_keeps_the_size_of_its_input_and_adds_noise():
    torch.manual_seed(0)
    layer = style_gan.Layer(8, 6, latent=4)
    x, w = torch.randn(2, 8, 64, 64), torch.randn(2, 4)
    torch.testing.assert_close(layer(x, w, random()).square().mean(), torch.tensor(1.0), rtol=0.15, atol=0)
    assert torch.equal(layer(x, w, random(1)), layer(x, w, random(2)))  # its strength begins at zero
    torch.nn.init.ones_(layer.strength)
    assert not torch.equal(layer(x, w, random(1)), layer(x, w, random(2)))
    assert torch.equal(layer(x, w, random(1)), layer(x, w, random(1)))


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32)])
def test_shapes_and_a_gradient_in_every_parameter(shape):
    generator, critic = style_gan.create("style_small", shape, seed=1)
    images = generator(torch.randn(4, generator.latent, generator=random()), random())
    assert images.shape == (4, *shape)
    critic(images).sum().backward()
    for name, parameter in (*generator.named_parameters(), *critic.named_parameters()):
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    again, _ = style_gan.create("style_small", shape, seed=1)
    assert all(torch.equal(one, other) for one, other in zip(generator.parameters(), again.parameters(), strict=True))


def test_spread_is_the_deviation_within_each_group():
    x = torch.randn(8, 3, 2, 2, generator=random())
    expected = [group.std(0, correction=0).mean() for group in x.split(4)]
    torch.testing.assert_close(style_gan.spread(x)[:, 0, 0, 0], torch.stack(expected).repeat_interleave(4))
    assert style_gan.spread(x[:1].expand(4, -1, -1, -1)).max() < 2e-4


def test_sizes_that_do_not_halve_are_refused():
    assert style_gan.resolutions(28) == [7, 14, 28] and style_gan.resolutions(32) == [4, 8, 16, 32]
    with pytest.raises(ValueError, match="allowed"):
        style_gan.resolutions(9)


def test_gradient_penalty_by_hand():
    class Quadratic(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a = torch.nn.Parameter(torch.tensor(3.0))

        def forward(self, x):
            return self.a / 2 * x.square().sum((1, 2, 3))  # its gradient in x is a x

    critic, x = Quadratic(), torch.randn(5, 1, 4, 4, generator=random())
    penalty = style_gan.gradient_penalty(critic, x)
    penalty.backward()
    mean = x.square().sum((1, 2, 3)).mean()
    torch.testing.assert_close(penalty, 9 * mean)
    torch.testing.assert_close(critic.a.grad, 6 * mean)


def test_the_average_generator_forgets_half_in_half_a_life():
    task = FineTuning(**SMALL, loss="logistic")
    networks = rooted_gan._pretrained(task, torch.device("cpu"))
    before = [p.clone() for p in networks.average.parameters()]
    changed = [p.detach() + 1 for p in before]
    with torch.no_grad():
        for parameter, value in zip(networks.generator.parameters(), changed, strict=True):
            parameter.copy_(value)
    for _ in range(HALF_LIFE):
        networks.average.update_parameters(networks.generator)
    for one, other in zip(before, networks.average.parameters(), strict=True):
        torch.testing.assert_close(other - one, torch.full_like(one, 0.5), rtol=1e-3, atol=1e-3)
    rooted_gan._pretrained.cache_clear()


@pytest.mark.parametrize("k", [1.0, 2.0, 3.0, 20.0])
def test_gradient_of_the_adversarial_loss(k):
    u = torch.linspace(-6, 6, 49, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(margin_loss(f"rooted_logistic(k={k})")(u).sum(), u)
    p = torch.sigmoid(u.detach())
    torch.testing.assert_close(gradient, -(p ** (-1 / k)) * (1 - p), rtol=1e-10, atol=1e-12)
    (logistic,) = torch.autograd.grad(margin_loss("logistic")(u).sum(), u)
    assert (gradient < logistic).all()  # steeper everywhere, so never less of a push than the logistic loss
    torch.testing.assert_close(margin_loss("rooted_logistic(k=1e9)")(u), margin_loss("logistic")(u))


def test_verdict_the_losses_part_only_where_the_critic_wins_outright():
    """At margin zero the rooted push is the logistic one times 2^{1/k}, a factor that Adam divides out; far off not."""
    u = torch.tensor([-5.0, 0.0, 3.0], dtype=torch.float64, requires_grad=True)
    (logistic,) = torch.autograd.grad(margin_loss("logistic")(u).sum(), u)
    for k, far in ((2, 12.2), (20, 1.28)):
        (ours,) = torch.autograd.grad(margin_loss(f"rooted_logistic(k={k})")(u).sum(), u)
        assert (ours / logistic).tolist() == pytest.approx([far, 2 ** (1 / k), 1], rel=0.03)


def test_the_power_as_written_overflows_where_ours_does_not():
    u = torch.tensor([-89.0, 1.0], requires_grad=True)
    written = (20 * (1 + torch.exp(-u)) ** (1 / 20)).sum()
    assert torch.isinf(written) and torch.autograd.grad(written, u)[0].isnan().any()
    for margin in (-89.0, -1e4):
        u = torch.tensor([margin, 1.0], requires_grad=True)
        ours = margin_loss("rooted_logistic(k=20)")(u).sum()
        assert torch.isfinite(ours) and torch.autograd.grad(ours, u)[0].isfinite().all()


def test_fid_is_the_distance_of_two_gaussians():
    judge = rooted_gan.Judge("digits", "56789", 150, torch.device("cpu"))
    images = select("digits", "train", "01234")[:150]
    real = select("digits", "test", "56789")[:150]
    one, other = (judge.features(x).numpy() for x in (images, real))
    covariances = numpy.cov(one.T), numpy.cov(other.T)
    # of a product without full rank: the root of its eigenvalues, which cannot be negative
    root = numpy.sqrt(numpy.clip(scipy.linalg.eigvals(covariances[0] @ covariances[1]).real, 0, None)).sum()
    shift = ((one.mean(0) - other.mean(0)) ** 2).sum()
    expected = shift + numpy.trace(covariances[0]) + numpy.trace(covariances[1]) - 2 * root
    assert judge.fid("test", images) == pytest.approx(expected, rel=1e-3)
    assert judge.fid("test", real) == pytest.approx(0, abs=1e-2)
    assert judge.fid("test", images) > 3 * judge.floor > 0


def test_bias_of_fid_against_samples_of_one_gaussian():
    d, n, m = 8, 1500, 500
    assert expected_fid(torch.eye(d), n, n) == pytest.approx((2 * d + d * (d + 1) / 2) / n)
    spread = torch.logspace(-1, 1, d, dtype=torch.float64)
    values, source = [], random()
    for _ in range(60):
        one, other = (torch.randn(size, d, generator=source, dtype=torch.float64) * spread.sqrt() for size in (n, m))
        a, b = torch.cov(one.T), torch.cov(other.T)
        root = torch.linalg.eigvals(a @ b).sqrt().real.sum()
        values.append(((one.mean(0) - other.mean(0)) ** 2).sum() + a.trace() + b.trace() - 2 * root)
    values = torch.stack(values)
    error = values.std() / len(values) ** 0.5
    assert abs(values.mean() - expected_fid(torch.diag(spread), n, m)) < 4 * error
    assert expected_fid(torch.diag(spread), n, m) > 5 * error  # the test can tell it from zero


def test_parts_are_disjoint_and_held_out_classes_are_not_seen():
    train, validation = (select("digits", part) for part in ("train", "validation"))
    both = sorted(image.tobytes() for image in torch.cat([train, validation]).numpy())
    assert both == sorted(image.tobytes() for image in data.load("digits").x_train)
    assert len(select("digits", "train", "56789")) + len(select("digits", "train", "56789", without=True)) == len(train)
    images, labels = rooted_gan._part("digits", "test")
    assert torch.equal(select("digits", "test", "8"), images[labels == 8])
    assert torch.equal(select("digits", "test", "8", without=True), images[labels != 8])


def test_bytes_and_back():
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(rooted_gan.to_bytes(rooted_gan.to_signed(images)), images)
    assert rooted_gan.to_bytes(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]


def test_same_configuration_same_row_and_one_checkpoint_for_all_losses():
    tasks = [FineTuning(**SMALL, loss=loss) for loss in ("logistic", "rooted_logistic(k=2)", "logistic")]
    rows = [row(task) for task in tasks]
    rooted_gan._pretrained.cache_clear()
    rows.append(row(tasks[1]))
    numpy.testing.assert_equal({**rows[2], "seconds": 0}, {**rows[0], "seconds": 0})
    numpy.testing.assert_equal({**rows[3], "seconds": 0}, {**rows[1], "seconds": 0})
    numpy.testing.assert_equal(rows[0]["pictures_before"], rows[1]["pictures_before"])
    assert rows[0]["fid_before"] == rows[1]["fid_before"] and rows[0]["fid"] != rows[1]["fid"]
    assert rows[0]["hash"] != rows[1]["hash"]
    free = row(dataclasses.replace(tasks[0], gamma=0.0))
    assert free["fid_before"] == rows[0]["fid_before"]
    assert rows[0]["step_curve"] == [0, 2, 4] and len(rows[0]["fid_curve"]) == 3
    assert rows[0]["validation_score"] == -rows[0]["validation_fid"] < 0


def test_divergence_is_recorded():
    found = row(FineTuning(**{**SMALL, "learning_rate": 1e30}, loss="rooted_logistic(k=2)"))
    assert found["status"] == "diverged"
    assert numpy.isnan(found["fid"]) and numpy.isnan(found["validation_score"]) and numpy.isfinite(found["fid_before"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(loss="rooted_logistic(k=0)"), "k=0"),
        (dict(loss="brier"), "loss of a margin"),
        (dict(classes=""), "allowed"),
        (dict(classes="x"), "class"),
        (dict(source="mnist"), "allowed"),
        (dict(source="mnist", classes=""), "images of mnist"),
        (dict(batch_size=10), "multiples of 4"),
        (dict(model="styl"), "Did you mean 'style'"),
        (dict(pieces=5), "pieces"),
    ],
)
def test_bad_input_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        FineTuning(**{**SMALL, "loss": "logistic", **change})


def test_profiles_give_every_loss_the_same_runs():
    for profile in sweep.PROFILES:
        for dataset, model in rooted_gan.PAPER if profile == "paper" else [rooted_gan.DEFAULT]:
            grid = rooted_gan.runs(profile, dataset, model).grid
            bare = {
                loss: {dataclasses.replace(task, loss="logistic") for task in grid if task.loss == loss}
                for loss in {task.loss for task in grid}
            }
            assert len(bare) > 1 and len({frozenset(tasks) for tasks in bare.values()}) == 1
    with pytest.raises(ValueError, match="dataset"):
        sweep.plan("rooted_gan", "quick", dataset="kmnist")


def test_smoke_profile_runs_and_resumes(tmp_path):
    plan = sweep.plan("rooted_gan", "smoke", out=tmp_path)
    rows = sweep.run(plan, workers=1)
    assert len(rows) == len(plan.grid) == 4 and set(rows["status"]) == {"done"}
    assert rows.groupby("seed")["fid_before"].nunique().tolist() == [1, 1]
    shape = data.SETS["digits"].image
    assert len(rows["pictures"][0]) == rooted_gan.PICTURES * shape[0] * shape[1]
    assert sweep.missing(plan, plan.grid) == []
