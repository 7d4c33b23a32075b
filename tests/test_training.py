"""One run: the same row bit for bit, one source of chance for each purpose, and bad input refused before any work."""

import json
import math
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchmetrics.functional.classification import multiclass_calibration_error

from lossbook import data, models, noise, training
from lossbook.training import (
    Config,
    augment,
    calibration,
    canonical_loss,
    derived_seed,
    make_loss,
    predict,
    prepare,
    train,
    train_together,
)

CPU = torch.device("cpu")
SMALL = dict(train_size=300, batch_size=64, epochs=2)


def comparable(row):
    """All of a row but its wall time, as text, in which NaN equals NaN."""
    return json.dumps({k: v for k, v in row.items() if k not in ("seconds", "images_per_second")}, sort_keys=True)


def batches(monkeypatch, **changes):
    """What the loss of a run is given: pairs of logits and labels, step by step."""
    seen = []

    def spy(config, num_classes):
        criterion = make_loss(config, num_classes)

        def record(logits, labels):
            seen.append((logits[0].detach().clone(), labels[0].clone()))
            return criterion(logits, labels)

        return record

    with monkeypatch.context() as patched:
        patched.setattr(training, "make_loss", spy)
        train(Config(**{**SMALL, "epochs": 1, **changes}), CPU)
    return seen


# --- calibration, tables, a transformer -----------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([0.1, 1.0, 5.0]), classes=st.integers(2, 12))
def test_calibration_against_torchmetrics(seed, scale, classes):
    source = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(200, classes, generator=source)
    labels = torch.randint(0, classes, (200,), generator=source)
    nll, error = calibration(logits, labels)
    assert nll == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)
    theirs = multiclass_calibration_error(torch.softmax(logits.double(), -1), labels, classes, n_bins=15)
    assert error == pytest.approx(theirs.item(), abs=1e-6)


def test_calibration_of_logits_that_are_not_finite():
    assert all(map(math.isnan, calibration(torch.tensor([[math.inf, 0.0]]), torch.tensor([0]))))


@pytest.mark.parametrize("dataset", data.TABLES)
def test_tables_train(dataset):
    row = train(Config(dataset=dataset, epochs=30, batch_size=16, validation_share=0.3), CPU)
    assert row["test_accuracy"] > 0.85 and 0 <= row["calibration_error"] < 0.3
    # cross-entropy is calibrated as it is
    assert row["nll"] == row["nll_rescaled"] and row["calibration_error"] == row["calibration_error_rescaled"]


def test_dropout_is_drawn_from_the_seed_of_the_run():
    """The same row twice, whatever was drawn elsewhere; and no dropout at the test."""
    config = Config(model="mlp_dropout", **SMALL)
    torch.manual_seed(1)
    one = comparable(train(config, CPU))
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert comparable(train(config, CPU)) == one and torch.equal(torch.get_rng_state(), before)
    network = models.create("mlp_dropout", (1, 8, 8), 10).eval()
    plain = models.create("mlp", (1, 8, 8), 10)
    images = torch.rand(5, 1, 8, 8)
    assert [layer.p for layer in network if isinstance(layer, nn.Dropout)] == [0.2, 0.5, 0.5, 0.5]
    assert torch.equal(network(images), plain(images)) and not torch.equal(network.train()(images), plain(images))


@pytest.mark.parametrize(("shape", "patches"), [((1, 8, 8), 16), ((1, 28, 28), 49), ((3, 32, 32), 64)])
def test_transformer(shape, patches):
    """The seed decides it, every parameter of it is trained, and grey images enter at the scale of coloured ones."""
    one, other = (models.create("vit", shape, 10, seed=3) for _ in range(2))
    images = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert 0.5 < one.conv_proj(images).std() < 2 and one.conv_proj(images)[0, 0].numel() == patches
    nn.functional.cross_entropy(one(images), torch.arange(4)).backward()
    assert one(images).shape == (4, 10) and all(p.grad is not None for p in one.parameters())


# --- the same configuration gives the same row ----------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        dict(loss="fourier", noise_kind="symmetric", noise_rate=0.4),
        dict(
            model="cnn_small", augment="shift_flip", image_noise="gaussian", image_level=0.2, optimiser="sgd", epochs=1
        ),
    ],
)
def test_same_row_bit_for_bit(changes):
    """Whatever the number of threads and the state of the global generator, which the run leaves as it was."""
    config = Config(**{**SMALL, **changes})
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        first = train(config, CPU)
        torch.manual_seed(12345)
        torch.set_num_threads(2)
        before = torch.get_rng_state()
        second = train(config, CPU)
        assert torch.equal(torch.get_rng_state(), before) and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert comparable(first) == comparable(second)
    assert first["status"] == "done" and first["hash"] == config.hash
    assert comparable(train(Config(**{**SMALL, **changes, "seed": 1}), CPU)) != comparable(first)


def test_one_source_of_chance_for_each_purpose(monkeypatch):
    """The rate of noise and the loss leave the initial weights, the order and the split as they are."""
    (logits, labels), *_ = batches(monkeypatch)
    (noisy_logits, noisy_labels), *_ = batches(monkeypatch, noise_kind="symmetric", noise_rate=0.4, loss="mae")
    assert torch.equal(logits, noisy_logits) and not torch.equal(labels, noisy_labels)
    (other_logits, _), *_ = batches(monkeypatch, seed=1)
    assert not torch.equal(logits, other_logits)
    assert len({derived_seed(purpose, seed) for purpose in ("order", "labels", "split") for seed in range(50)}) == 150


def test_noise_leaves_split_images_and_test_labels_alone():
    clean = prepare(Config(train_size=400), CPU)
    noisy = prepare(Config(train_size=400, noise_kind="symmetric", noise_rate=0.6), CPU)
    for field in ("images", "train", "validation", "clean", "test", "test_labels"):
        assert torch.equal(getattr(clean, field), getattr(noisy, field))
    assert torch.equal(noisy.test_labels, torch.from_numpy(data.load("digits").y_test).long())
    assert torch.equal(clean.labels, clean.clean) and not torch.equal(noisy.labels, noisy.clean)
    assert len(clean.validation) == 40 and len(clean.train) == 360
    assert len(torch.cat([clean.train, clean.validation]).unique()) == 400
    blurred = prepare(Config(train_size=400, image_noise="blur", image_level=1.0), CPU)
    assert torch.equal(blurred.test, clean.test) and not torch.equal(blurred.images, clean.images)
    # noise does not depend on what was drawn before
    torch.rand(7)
    again = prepare(Config(train_size=400, noise_kind="symmetric", noise_rate=0.6), CPU)
    assert torch.equal(again.labels, noisy.labels)


@pytest.mark.parametrize("kind", noise.IMAGE_KINDS)
def test_image_noise_differs_from_seed_to_seed_where_it_is_drawn(kind):
    one, other = (prepare(Config(image_noise=kind, image_level=0.5, panel=True, seed=seed), CPU) for seed in (0, 1))
    assert (one.images is other.images) == (kind in ("none", "blur"))
    for (damage, level), seen in one.panel.items():
        assert (
            (seen is other.panel[damage, level]) == torch.equal(seen, other.panel[damage, level]) == (damage == "blur")
        )
    assert one.test is other.test


def test_the_panel_is_the_test_images_at_its_own_levels():
    """Whatever the training images have, and each set with a generator of its own."""
    loaded, mean, std = data.load_with_statistics("digits")
    clean = data.to_tensor(loaded.x_test)
    split = prepare(Config(image_noise="blur", image_level=1.5, panel=True, seed=3), CPU)
    assert len(split.panel) == len(training.PANEL)
    for (kind, level), seen in split.panel.items():
        damaged = noise.corrupt_images(clean, kind, level, training.generator(f"panel {kind} {level}", 3))
        torch.testing.assert_close(seen, data.standardise(damaged, mean, std))


@pytest.mark.parametrize("kind", ["symmetric", "pair", "ring"])
def test_realised_noise_rate_is_binomial(kind):
    split = prepare(Config(noise_kind=kind, noise_rate=0.4, seed=3), CPU)
    n = len(split.labels)
    assert abs((split.labels != split.clean).double().mean() - 0.4) < 5 * math.sqrt(0.24 / n)


# --- what a row says ------------------------------------------------------------------------------------------


def test_row():
    config = Config(**SMALL, noise_kind="symmetric", noise_rate=0.4, panel=True)
    row = train(config, CPU)
    for curve in ("train_loss", "test_accuracy", "validation_accuracy", "memorised", "recovered"):
        assert len(row[f"{curve}_curve"]) == 2
    assert row["test_accuracy"] == row["test_accuracy_curve"][-1]
    assert row["best_test_accuracy"] == max(row["test_accuracy_curve"])
    assert row["images_per_second"] * row["seconds"] == pytest.approx(2 * 4 * 64)  # epochs, steps, a batch
    assert all(m + r <= 1 for m, r in zip(row["memorised_curve"], row["recovered_curve"], strict=True))
    assert len(row["panel_noise"]) == len(row["panel_accuracy"]) == len(training.PANEL)
    assert all(0 <= value <= 1 for value in row["panel_accuracy"])
    assert row["parameters"] == 64 * 256 + 256 + 2 * (256 * 256 + 256) + 256 * 10 + 10
    assert all(math.isnan(value) for value in train(Config(**SMALL), CPU)["memorised_curve"])


def test_training_learns():
    assert train(Config(epochs=4, batch_size=64), CPU)["test_accuracy"] > 0.85


def test_divergence_is_recorded():
    row = train(Config(**{**SMALL, "epochs": 5}, optimiser="sgd", learning_rate=1e25), CPU)
    assert row["status"] == "diverged" and not math.isfinite(row["train_loss_curve"][-1])
    assert len(row["train_loss_curve"]) < 5
    assert row["images_per_second"] * row["seconds"] == pytest.approx(len(row["train_loss_curve"]) * 4 * 64)
    # in its last step, after which no loss is taken
    row = train(Config(train_size=20, batch_size=18, epochs=1, optimiser="sgd", learning_rate=1e30), CPU)
    assert row["status"] == "diverged" and math.isfinite(row["train_loss_curve"][-1])


@pytest.mark.parametrize("hardware", [True, False])
def test_fast_mode_agrees_with_exact_mode(hardware, monkeypatch):
    """In bfloat16 up to rounding; where the processor has no instructions for it, to the last bit."""
    monkeypatch.setattr(training, "in_bfloat16", lambda mode, device: mode == "fast" and hardware)
    exact, fast = (train(Config(**SMALL, mode=mode), CPU)["train_loss_curve"] for mode in ("exact", "fast"))
    assert fast == pytest.approx(exact, rel=0.05) and (fast != exact) == hardware


# --- several networks as one stacked model --------------------------------------------------------------------


def together(**changes):
    """Runs that differ in all that may differ in a stack."""
    noises = (dict(), dict(noise_kind="symmetric", noise_rate=0.4), dict(image_noise="gaussian", image_level=0.3))
    wanted = ("fourier(placement='permuted')", "gce", "brier")
    return [
        Config(**{**SMALL, "panel": True, **noise, **changes}, loss=loss, seed=seed)
        for loss, noise in zip(wanted, noises, strict=True)
        for seed in (0, 1)
    ]


@pytest.mark.parametrize("changes", [dict(), dict(mode="fast"), dict(optimiser="sgd", learning_rate=0.05)])
def test_stacked_runs_give_the_rows_of_single_ones(changes):
    """Same seeds, same batches, same numbers within the rounding of sums; an accuracy may turn on single images."""
    configs = together(**changes)
    tolerance, images = (2e-2, 15) if changes.get("mode") == "fast" else (1e-5, 1)
    for one, row in zip(map(train, configs), train_together(configs), strict=True):
        assert one.keys() == row.keys()
        assert row["train_loss_curve"] == pytest.approx(one["train_loss_curve"], rel=tolerance)
        for name, size in (("test", 360), ("validation", 30)):
            curves = row[f"{name}_accuracy_curve"], one[f"{name}_accuracy_curve"]
            assert curves[0] == pytest.approx(curves[1], abs=images / size + 1e-6)
        assert row["memorised_curve"] == pytest.approx(one["memorised_curve"], abs=images / 100, nan_ok=True)
        assert row["panel_accuracy"] == pytest.approx(one["panel_accuracy"], abs=images / 360 + 1e-6)
        for name in ("hash", "loss", "seed", "realised_noise_rate", "parameters", "panel_noise", "status"):
            assert row[name] == one[name]
        assert "6 networks together" in row["device"] and "together" not in one["device"]


def test_a_stack_has_its_seconds_once():
    begin = time.perf_counter()
    rows = train_together([Config(**SMALL, seed=seed) for seed in range(8)], CPU)
    assert sum(row["seconds"] for row in rows) < time.perf_counter() - begin


def test_a_run_that_diverges_leaves_its_neighbours_alone(monkeypatch):
    configs = [Config(**SMALL, loss="cross_entropy", seed=0), Config(**SMALL, loss="brier", seed=0)]
    alone = train(configs[1])

    def poisoned(config, num_classes):
        criterion = make_loss(config, num_classes)
        return (lambda *given: criterion(*given) * math.nan) if config.loss == "cross_entropy" else criterion

    monkeypatch.setattr(training, "make_loss", poisoned)
    broken, whole = train_together(configs)
    assert broken["status"] == "diverged" and len(broken["train_loss_curve"]) == 1
    assert whole["status"] == "done" and whole["train_loss_curve"] == pytest.approx(alone["train_loss_curve"], rel=1e-5)


def test_what_cannot_be_stacked_is_refused():
    with pytest.raises(ValueError, match="one group"):
        train_together([Config(seed=0), Config(seed=1, epochs=3)])
    with pytest.raises(ValueError, match="one group"):
        train_together([Config(model="cnn_small", seed=seed) for seed in (0, 1)])
    with pytest.raises(ValueError, match="buffers"):
        models.Stack([models.create("cnn_small", (1, 8, 8), 10, seed) for seed in (0, 1)])


@pytest.mark.parametrize("model", ["cnn_small", "cnn8"])
def test_compiled_code_is_reused_across_seeds(model):
    """Networks of the same architecture with other weights are not compiled again, and compute the same."""
    compiled = []

    def count(graph, inputs):
        compiled.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    torch.compiler.reset()
    images = torch.randn(1, 4, 1, 8, 8)
    for seed in range(3):
        network = models.Stack([models.create(model, (1, 8, 8), 10, seed).eval()])
        compiled_forward = torch.compile(network.forward, dynamic=False, backend=count)
        torch.testing.assert_close(compiled_forward(images), network(images))
    assert len(compiled) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here: memory on the device cannot be watched")
@pytest.mark.parametrize("changes", [dict(), dict(model="cnn_small")])
def test_device_memory_is_given_back(changes):
    used = []
    for seed in range(3):
        train(Config(**{**SMALL, **changes, "mode": "fast", "seed": seed}), "cuda")
        used.append(torch.cuda.memory_allocated())
    assert used[1] == used[2]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here: the CUDA graph cannot be recorded")
def test_the_recorded_step_trains_as_the_cpu_does():
    config = Config(**SMALL, loss="fourier", noise_kind="symmetric", noise_rate=0.4)
    here, there = train(config, "cpu"), train(config, "cuda")
    assert there["train_loss_curve"] == pytest.approx(here["train_loss_curve"], rel=1e-3)


def test_airbench_recipe_trains():
    """Up-and-down learning rate, biases at their own, slow average, views, nothing held out."""
    config = Config(
        dataset="digits", model="cnn_small", optimiser="airbench", learning_rate=0.01, weight_decay=1e-3, batch_size=64,
        epochs=4, views=2, validation_share=0.0,
    )  # fmt: skip
    row = train(config)
    assert row["status"] == "done" and row["test_accuracy"] > 0.7
    assert math.isnan(row["validation_accuracy"])


def test_airbench_groups_its_biases():
    """Batch norm's biases alone learn at 64 times the rate; the whitening layer's is fixed after three tenths."""
    network = models.Stack([models.create("airbench", (3, 32, 32), 10)])
    config = Config(dataset="cifar10", model="airbench", optimiser="airbench", learning_rate=1.5, weight_decay=1e-3)
    weights, shifts, whitening = training._optimiser(config, network, torch.device("cpu")).param_groups
    assert {p.ndim for p in weights["params"]} == {2, 4} and len(weights["params"]) == 7
    assert len(shifts["params"]) == 6 and shifts["rate_factor"] * shifts["weight_decay"] == pytest.approx(1e-3)
    assert whitening["params"] == [network.member[0].bias] and whitening["until"] == 0.3
    trainable = sum(p.requires_grad for p in network.parameters())
    assert sum(len(group["params"]) for group in (weights, shifts, whitening)) == trainable


def test_a_group_learns_for_its_share_of_the_steps(monkeypatch):
    """In the half of the steps that a group is given its rate is the schedule's; then it is zero, and it rests."""
    rates, made = [], training._optimiser

    def half(*given):
        optimiser = made(*given)
        optimiser.param_groups[1]["until"] = 0.5
        return optimiser

    monkeypatch.setattr(training, "_optimiser", half)
    monkeypatch.setattr(training, "_set_rate", lambda group, rate: rates.append(rate) or group.update(lr=rate))
    config = Config(**SMALL, model="cnn_small", optimiser="airbench", learning_rate=0.01)
    train(config)
    weights, shifts = rates[::2], rates[1::2]
    assert len(weights) == 8 and all(weights)
    assert shifts == pytest.approx([64 * rate for rate in weights[:4]] + 4 * [0.0])


def test_airbench_network():
    """Its first layer whitens: patches of the images it saw come out uncorrelated, of variance one."""
    images = torch.randn(50, 3, 32, 32, generator=torch.Generator().manual_seed(0)).cumsum(-1)
    network = models.create("airbench", (3, 32, 32), 10, 0)
    network.whiten(images)
    out = network[0](images)[:, :12]
    covariance = torch.cov(out.permute(1, 0, 2, 3).flatten(1))
    torch.testing.assert_close(covariance, torch.eye(12), rtol=0, atol=0.02)
    assert torch.allclose(network[0](images)[:, 12:], -out)
    identity = network[2].weight[:24, :24]
    torch.testing.assert_close(
        nn.functional.conv2d(images.repeat(1, 8, 1, 1), identity, padding=1), images.repeat(1, 8, 1, 1)
    )
    assert network(images).shape == (50, 10) and not network[0].weight.requires_grad
    network.eval()
    torch.testing.assert_close(9 * network(images), nn.Sequential.forward(network, images))
    assert {layer.momentum for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)} == {0.4}


def test_resnet_begins_at_the_full_resolution_of_small_images():
    network, seen = models.create("resnet18", (3, 32, 32), 10).eval(), []
    network.layer1.register_forward_hook(lambda module, given, found: seen.append(given[0].shape))
    network(torch.zeros(1, 3, 32, 32))
    assert seen == [(1, 64, 32, 32)]


def test_threads_of_a_long_run(monkeypatch):
    """LOSSBOOK_THREADS is what torch computes with and what the row says; without it one; afterwards as before."""
    seen, prepared, before = [], training.prepare, torch.get_num_threads()
    monkeypatch.setattr(training, "prepare", lambda *args: seen.append(torch.get_num_threads()) or prepared(*args))
    for value, says in (("2", "2 threads"), ("", "1 thread")):
        monkeypatch.setenv("LOSSBOOK_THREADS", value)
        assert train(Config(**SMALL), "cpu")["device"].endswith(f", {says}")
    assert seen == [2, 1] and torch.get_num_threads() == before
    for wrong in ("0", "two", "-1", "1.5", "100000"):
        monkeypatch.setenv("LOSSBOOK_THREADS", wrong)
        with pytest.raises(ValueError, match=f"LOSSBOOK_THREADS={wrong!r} was given; allowed: a whole number from 1"):
            train(Config(**SMALL), "cpu")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_exact_products_are_float32_whatever_the_caller_allows(device):
    before = torch.get_float32_matmul_precision()
    try:
        for allowed in ("highest", "high", "medium"):
            torch.set_float32_matmul_precision(allowed)
            with training.arithmetic("exact", torch.device(device)):
                own = training._float32_products() if device == "cpu" else "highest"
                assert torch.get_float32_matmul_precision() == own
            assert torch.get_float32_matmul_precision() == allowed
    finally:
        torch.set_float32_matmul_precision(before)


# --- configurations and their hash ----------------------------------------------------------------------------


def test_hash_is_pinned():
    """A changed hash would orphan every row that is published."""
    assert Config().hash == "44136fa355b3678a"
    assert (
        Config(dataset="mnist", loss="fourier(s=2)", noise_kind="symmetric", noise_rate=0.4, seed=3).hash
        == "53fd37b0bfd0191d"
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("fourier", "fourier()"),
        ("fourier", "fourier(s=1)"),
        ("fourier(s=2)", " fourier( s = 2.0 )"),
        ("fourier(s=2, symbol='sin')", 'fourier(symbol="sin", s=2)'),
        ("gce(q=0.5)", "gce(q=5e-1)"),
        ("fourier(placement=[0,1,2,3,4,5,6,7,9,8])", "fourier(placement=(0,1,2,3,4,5,6,7,9,8))"),
    ],
)
def test_hash_does_not_depend_on_spelling(one, other):
    assert Config(loss=one).hash == Config(loss=other).hash


def test_a_permutation_that_is_named_is_taken():
    """Zero too, which is the default of the loss: where none is named each seed has its own."""
    classes = {
        (spec, seed): training.make_loss(Config(loss=f"fourier(placement='permuted'{spec})", seed=seed), 10).hyper
        for spec in ("", ", permutation_seed=0", ", permutation_seed=1")
        for seed in (0, 1)
    }
    for named in (0, 1):
        assert all(classes[f", permutation_seed={named}", seed]["permutation_seed"] == named for seed in (0, 1))
    assert classes["", 0] != classes["", 1]
    assert "permutation_seed" not in canonical_loss("fourier(permutation_seed=0)")


def test_runs_that_differ_in_their_loss_share_their_data(monkeypatch):
    prepared, prepare = [], training.prepare
    monkeypatch.setattr(training, "prepare", lambda *given: prepared.append(given) or prepare(*given))
    configs = [Config(**(SMALL | dict(loss=loss, seed=seed))) for loss in ("brier", "cross_entropy") for seed in (0, 1)]
    training.train_together(configs)
    assert len(prepared) == 2


def test_hash_depends_on_what_matters_alone():
    assert Config(noise_kind="symmetric", noise_rate=0).hash == Config(noise_kind="none", noise_rate=0.3).hash
    assert Config(image_noise="blur", image_level=0).hash == Config().hash
    assert Config(learning_rate=1).hash == Config(learning_rate=1.0).hash
    values = dict(dataset="mnist", model="cnn8", loss="brier", augment="shift_flip", optimiser="sgd", learning_rate=0.1)
    values |= dict(weight_decay=0.1, epochs=3, batch_size=32, train_size=200, mode="fast", panel=True, seed=1)
    values |= dict(validation_share=0.2, views=2)
    hashes = {Config(**{key: value}).hash for key, value in values.items()}
    assert len(hashes | {Config().hash}) == len(values) + 1


@settings(deadline=None, max_examples=50)
@given(s=st.floats(0, 10), q=st.floats(1e-6, 1))
def test_canonical_spelling_keeps_the_value(s, q):
    for name, key, value in (("fourier", "s", s), ("gce", "q", q)):
        canonical = canonical_loss(f"{name}({key}={value!r})")
        assert canonical_loss(canonical) == canonical
        hyper = training.losses.parse(canonical)[1]
        assert float(hyper.get(key, training.losses.lookup(name).defaults[key])) == value


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(dataset="mnits"), "mnist"),
        (dict(dataset=["mnist"]), "mnist"),
        (dict(model="resnet"), "resnet18"),
        (dict(model=["mlp"]), "mlp"),
        (dict(loss="furier"), "fourier"),
        (dict(loss="fourier(s=-1)"), "s=-1"),
        (dict(loss="fourier(z=1)"), "'z'"),
        (dict(loss="fourier(s=2"), "fourier(s=2"),
        (dict(loss=5), "5"),
        (dict(loss=["brier"]), "brier"),
        (dict(dataset="cifar100", loss="fourier(placement='hypercube')"), "hypercube"),
        (dict(noise_kind="symetric", noise_rate=0.1), "symmetric"),
        (dict(noise_rate=1.1), "noise_rate=1.1"),
        (dict(noise_rate=-0.1), "noise_rate=-0.1"),
        (dict(noise_rate="0.4"), "noise_rate='0.4'"),
        (dict(noise_rate=math.nan), "noise_rate=nan"),
        (dict(noise_kind="asymmetric", noise_rate=0.4, dataset="kmnist"), "kmnist"),
        (dict(image_noise="gauss", image_level=0.1), "gaussian"),
        (dict(dataset="wine", model="cnn_small"), "model='cnn_small'"),
        (dict(dataset="wine", image_noise="blur", image_level=1.0), "image_noise='blur'"),
        (dict(dataset="wine", noise_kind="asymmetric", noise_rate=0.4), "wine"),
        (dict(image_level=-1), "image_level=-1"),
        (dict(image_noise="salt_pepper", image_level=1.5), "image_level=1.5"),
        (dict(image_noise="blur", image_level=1e308), "[0, 1000]"),
        (dict(augment="flip"), "shift_flip"),
        (dict(optimiser="adm"), "adam"),
        (dict(views=3), "1, 2, 6"),
        (dict(validation_share=1), "validation_share=1"),
        (dict(validation_share=0.01, train_size=20, batch_size=18), "less than one of 20"),
        (dict(views=2.0), "views=2.0"),
        (dict(learning_rate=-1e-3), "learning_rate=-0.001"),
        (dict(learning_rate=math.inf), "learning_rate=inf"),
        (dict(weight_decay=None), "weight_decay=None"),
        (dict(epochs=0), "epochs=0"),
        (dict(epochs=1.5), "epochs=1.5"),
        (dict(epochs=True), "epochs=True"),
        (dict(batch_size=0), "batch_size=0"),
        (dict(train_size=-1), "train_size=-1"),
        (dict(mode="fastest"), "fast"),
        (dict(panel="no"), "panel='no'"),
        (dict(seed=-1), "seed=-1"),
        (dict(seed="0"), "seed='0'"),
    ],
)
def test_bad_configurations_are_refused(changes, said):
    """The message names what was given or the nearest that is allowed."""
    with pytest.raises(ValueError) as error:
        Config(**changes)
    assert said in str(error.value)


def test_placements_are_checked_for_the_classes_of_the_data_set():
    points = list(range(99, -1, -1))
    assert Config(dataset="cifar100", loss=f"fourier(placement={points})").loss.startswith("fourier(placement=")
    config = Config(dataset="iris", loss="fourier(placement=[0, 2, 5])", epochs=1, batch_size=16)
    row = train(config, CPU)
    assert row["status"] == "done" and row["nll_rescaled"] == row["nll"]  # proper: its factor is 1


@pytest.mark.parametrize("changes", [dict(train_size=1500), dict(train_size=100, batch_size=128)])
def test_more_images_than_there_are_is_refused(changes):
    with pytest.raises(ValueError, match=r"_size=\d+ was given"):
        train(Config(**changes), CPU)


# --- augmentation and permuted classes ------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "pixels"), [("shift_flip", 4), ("crop_flip", 2)])
def test_augmentation_is_a_shift_and_a_flip(kind, pixels):
    image = torch.arange(2 * 8 * 6, dtype=torch.float32).view(1, 2, 8, 6)
    padded = torch.nn.functional.pad(image, (pixels,) * 4, mode="reflect")[0]
    allowed = {}
    for dy in range(2 * pixels + 1):
        for dx in range(2 * pixels + 1):
            crop = padded[:, dy : dy + 8, dx : dx + 6]
            allowed[crop.numpy().tobytes()] = (dy, dx, False)
            allowed[crop.flip(-1).contiguous().numpy().tobytes()] = (dy, dx, True)
    images = image.repeat(4000, 1, 1, 1)
    out, sides = torch.empty_like(images), []
    random = torch.Generator().manual_seed(0)
    for epoch in (0, 1):
        augment(images, kind, epoch, random, out)
        seen = [allowed[one.contiguous().numpy().tobytes()] for one in out]
        assert set(seen) == set(allowed.values())
        sides.append(torch.tensor([flipped for *_, flipped in seen]))
    turned = (sides[0] != sides[1]).double().mean().item()
    assert turned == 1 if kind == "crop_flip" else 0.4 < turned < 0.6


def test_views_are_the_mirror_image_and_shifts():
    """A network that answers with the pixels: the class that the mean of the views makes largest."""
    images = torch.zeros(1, 3, 1, 3, 4)
    images[0, :, 0, 1] = torch.tensor([[5.0, 0, 0, 4], [5, 0, 3, 0], [0, 5, 0, 0]])

    class Middle(torch.nn.Module):
        def forward(self, batch):  # the row in the middle as four logits
            return batch[..., 0, 1, :]

    assert predict(Middle(), [images], "exact").argmax(-1).tolist() == [[0, 0, 1]]
    mirrored = images[0, :, 0, 1] + images[0, :, 0, 1].flip(-1)
    assert predict(Middle(), [images], "exact", 2).argmax(-1).tolist() == [mirrored.argmax(-1).tolist()]
    constant = images.clone()
    constant[:] = torch.tensor([1.0, 3.0, 2.0, 0.0])  # rows all alike: only shifts to the side count
    shifted = sum(torch.tensor(row) for row in ([1, 3, 2, 0], [1, 3, 2, 0], [3, 1, 3, 2], [3, 2, 0, 2])).double()
    assert predict(Middle(), [constant], "exact", 6)[0, 0].argmax() == (shifted + shifted.flip(0)).argmax()

    class First(torch.nn.Module):
        def forward(self, batch):
            return batch[..., 0, 0, :]

    image = torch.rand(1, 1, 1, 4, 5, generator=torch.Generator().manual_seed(0))
    padded = nn.functional.pad(image[0], (1, 1, 1, 1), mode="reflect")[0, 0]
    moved = [padded[0, :-2], padded[2, 2:]]  # up and to the left, down and to the right
    plain = [image[0, 0, 0, 0]] * 2 + moved
    mirrored = [image[0, 0, 0, 0].flip(0)] * 2 + [row.flip(0) for row in moved]
    torch.testing.assert_close(predict(First(), [image], "exact", 6)[0, 0], sum(plain + mirrored) / 8)


def test_each_seed_permutes_the_classes_anew():
    made = [make_loss(Config(loss="fourier(placement='permuted')", seed=seed), 10) for seed in range(5)]
    assert len({loss.hyper["permutation_seed"] for loss in made}) == 5
    logits = torch.randn(20, 10, generator=torch.Generator().manual_seed(0))
    assert len({loss(logits, torch.arange(20) % 10).sum().item() for loss in made}) == 5
    fixed = make_loss(Config(loss="fourier(placement='permuted', permutation_seed=3)", seed=1), 10)
    assert fixed.hyper["permutation_seed"] == 3


def test_a_row_names_the_commit_and_whether_the_library_was_changed_since(tmp_path, monkeypatch):
    package = tmp_path / "lossbook"
    shutil.copytree(Path(training.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(training, "__file__", str(package / "training.py"))

    def git(*arguments):
        who = ("-c", "user.name=nobody", "-c", "user.email=nobody")
        done = subprocess.run(["git", "-C", tmp_path, *who, *arguments], check=True, capture_output=True, text=True)
        return done.stdout.strip()

    def provenance():
        training._sources.cache_clear()
        training._provenance.cache_clear()
        return training.provenance(torch.device("cpu"))

    try:
        assert provenance()["commit"] == "unknown"
        git("init", "--quiet")
        git("add", ".")
        git("commit", "--quiet", "--message", "one")
        clean = provenance()
        assert clean["commit"] == git("rev-parse", "--short=12", "HEAD")
        (tmp_path / "README.md").write_text("beside the library")
        assert provenance() == clean
        (package / "tasks" / "new.py").write_text("x = 1")
        changed = provenance()
        assert changed["commit"] == clean["commit"] + "-dirty" and changed["sources"] != clean["sources"]
        training._provenance.cache_clear()
        (package / "tasks" / "new.py").write_text("x = 2")  # edited while it runs
        assert training.provenance(torch.device("cpu"))["sources"] == changed["sources"]
        monkeypatch.setenv("PATH", str(tmp_path))  # a machine without git
        assert provenance()["commit"] == "unknown"
    finally:
        training._sources.cache_clear()
        training._provenance.cache_clear()


# --- what is trained is what the row says -------------------------------------------------------------------------


def test_rates():
    rates = training._rates(Config(learning_rate=0.4), 10)
    assert rates == pytest.approx([0.2 * (1 + math.cos(math.pi * i / 10)) for i in range(10)])
    rates = training._rates(Config(model="cnn_small", optimiser="airbench", learning_rate=2.0), 100)
    assert rates[0] == pytest.approx(0.4) and rates[23] == max(rates) == pytest.approx(2.0)
    assert rates[-1] == pytest.approx(2.0 * (0.07 + 0.93 / 77)) and sorted(rates[23:], reverse=True) == rates[23:]


def test_a_run_takes_its_rates(recorded):
    seen = recorded(training, "_set_rate", lambda group, rate: rate)
    config = Config(**SMALL)
    train(config, CPU)
    assert seen == training._rates(config, 8)


@pytest.mark.parametrize(
    ("optimiser", "kind", "settings"),
    [
        ("adam", torch.optim.Adam, dict(decoupled_weight_decay=False)),
        ("sgd", torch.optim.SGD, dict(momentum=0.9, nesterov=False)),
        ("sgd_plain", torch.optim.SGD, dict(momentum=0.0)),
        ("airbench", torch.optim.SGD, dict(momentum=0.85, nesterov=True)),
    ],
)
def test_optimisers(optimiser, kind, settings):
    network = models.Stack([models.create("cnn_small", (1, 8, 8), 10)])
    made = training._optimiser(Config(model="cnn_small", optimiser=optimiser, weight_decay=0.01), network, CPU)
    assert type(made) is kind
    for group in made.param_groups:
        assert settings.items() <= group.items() and group["weight_decay"] * group["rate_factor"] == pytest.approx(0.01)


def test_the_slow_average_is_what_is_left(recorded):
    decays = recorded(training._Lookahead, "update", lambda average, decay: decay)
    train(Config(**SMALL, model="cnn_small", optimiser="airbench", learning_rate=0.01), CPU)  # eight steps
    assert decays == pytest.approx([0.95**5 * (4 / 8) ** 3, 1.0])
    network = torch.nn.Linear(1, 1)
    slow = training._Lookahead(network)
    before = network.weight.detach().clone()
    with torch.no_grad():
        network.weight += 1
    slow.update(0.75)
    torch.testing.assert_close(network.weight, before + 0.25)


def test_every_source_of_chance_takes_the_seed_of_the_run(recorded):
    asked = recorded(training, "derived_seed")
    for kept in (training._noisy_labels, training._images_of_a_seed, training._images_of_every_seed):
        kept.cache_clear()
    train(
        Config(
            **SMALL,
            model="mlp_dropout",
            noise_kind="symmetric",
            noise_rate=0.4,
            image_noise="gaussian",
            image_level=0.1,
            augment="shift_flip",
            seed=7,
        ),
        CPU,
    )
    purposes = {"subset", "split", "labels", "images", "dropout", "initialisation", "order", "augmentation"}
    assert {purpose for purpose, _ in asked} == purposes and {seed for _, seed in asked} == {7}


def test_each_epoch_has_an_order_of_its_own_and_its_loss_is_the_mean_of_its_batches(monkeypatch):
    seen = batches(monkeypatch, epochs=2)
    assert len(seen) == 8
    first, second = (torch.cat([labels for _, labels in part]) for part in (seen[:4], seen[4:]))
    assert not torch.equal(first, second)
    values = [nn.functional.cross_entropy(logits, labels) for logits, labels in seen]
    means = [torch.stack(part).mean().item() for part in (values[:4], values[4:])]
    assert train(Config(**SMALL), CPU)["train_loss_curve"] == pytest.approx(means, rel=1e-5)


def test_images_are_augmented_anew_in_each_epoch(recorded):
    epochs = recorded(training, "augment", lambda images, kind, epoch, *rest: epoch)
    train(Config(**SMALL, augment="shift_flip"), CPU)
    assert epochs == [0, 1]


def test_dropout_is_on_in_steps_and_off_in_every_evaluation(recorded):
    modes = recorded(models.Stack, "forward", lambda stack, *given: (torch.is_grad_enabled(), stack.training))
    train(Config(**SMALL, model="mlp_dropout"), CPU)
    assert set(modes) == {(True, True), (False, False)}


def test_wrong_labels_are_learnt_by_heart_and_validation_takes_the_labels_as_given():
    config = Config(train_size=200, batch_size=32, epochs=60, noise_kind="symmetric", noise_rate=0.4)
    row, split = train(config, CPU), prepare(config, CPU)
    assert row["memorised_curve"][-1] > 0.9 > 0.1 > row["recovered_curve"][-1]
    used = torch.cat([split.train, split.validation])
    assert row["realised_noise_rate"] == (split.labels != split.clean)[used].double().mean().item()
    # every label one further: a network that follows is right on validation and wrong on the test
    row = train(Config(epochs=10, noise_kind="pair", noise_rate=1.0), CPU)
    assert row["validation_accuracy"] > 0.8 > 0.1 > row["test_accuracy"]


def test_the_last_epoch_is_the_result(monkeypatch):
    """Where accuracy falls from epoch to epoch: no better one before is taken."""
    calls = []
    monkeypatch.setattr(
        training, "accuracy", lambda predicted, *rest: calls.append(1) or torch.full((len(predicted),), 1 / len(calls))
    )
    row = train(Config(**SMALL), CPU)
    for part in ("validation", "test"):
        assert row[f"{part}_accuracy"] == row[f"{part}_accuracy_curve"][-1] < row[f"{part}_accuracy_curve"][0]


def test_views_are_taken_in_the_final_accuracy(recorded):
    asked = recorded(training, "predict", lambda network, parts, mode, views=1: views)
    train(Config(**SMALL, views=2), CPU)
    assert asked[-1] == 2 and set(asked[:-1]) == {1}


def test_rescaled_calibration_is_that_of_logits_times_the_factor(recorded):
    given = recorded(training, "calibration")
    train(Config(**SMALL, loss="rooted_logistic(k=2)"), CPU)
    (plain, labels), (rescaled, _) = given
    torch.testing.assert_close(rescaled, plain * 1.5)
    assert torch.equal(labels, torch.from_numpy(data.load("digits").y_test).long())


def test_each_calibration_stands_in_its_column(monkeypatch):
    numbers = iter([(1.0, 0.1), (2.0, 0.2)])
    monkeypatch.setattr(training, "calibration", lambda *given: next(numbers))
    row = train(Config(**SMALL, loss="rooted_logistic(k=2)"), CPU)
    names = ("nll", "calibration_error", "nll_rescaled", "calibration_error_rescaled")
    assert [row[name] for name in names] == [1.0, 0.1, 2.0, 0.2]


def test_image_noise_reaches_the_network():
    one, other = (train(Config(**SMALL, image_noise="gaussian", image_level=level), CPU) for level in (0.0, 0.5))
    assert one["train_loss_curve"] != other["train_loss_curve"]


def test_a_group_shares_all_that_a_stack_does_once():
    own = dict(loss="brier", noise_kind="symmetric", noise_rate=0.2, image_noise="blur", image_level=1.0, seed=1)
    once = dict(
        dataset="mnist",
        model="mlp_dropout",
        optimiser="sgd",
        learning_rate=0.1,
        weight_decay=0.1,
        epochs=3,
        batch_size=32,
        train_size=200,
        mode="fast",
        validation_share=0.2,
        views=2,
        panel=True,
    )
    assert Config(**own).group == Config().group is not None
    for name, value in once.items():
        assert Config(**{name: value}).group != Config().group, name
    fields = {f for f in Config.__dataclass_fields__}
    assert own.keys() | once.keys() | {"augment"} == fields  # a field that is added has to be put somewhere
    assert Config(augment="shift_flip").group is None


def test_images_are_standardised_by_the_training_images_alone():
    for name in ("digits", "wine"):
        split = prepare(Config(dataset=name, batch_size=16), CPU)
        dims = (0, 2, 3) if name == "digits" else (0,)
        torch.testing.assert_close(
            split.images.mean(dims), torch.zeros_like(split.images.mean(dims)), atol=1e-5, rtol=0
        )
        torch.testing.assert_close(
            split.images.std(dims, correction=0), torch.ones_like(split.images.mean(dims)), atol=1e-4, rtol=0
        )


def test_whitening_is_of_training_images(monkeypatch):
    if not data.is_there("mnist"):
        pytest.skip("mnist is not there")

    class Seen(Exception):
        pass

    def seen(network, images):
        raise Seen(images)

    monkeypatch.setattr(models.Airbench, "whiten", seen)
    config = Config(dataset="mnist", model="airbench", optimiser="airbench", train_size=40, batch_size=16, epochs=1)
    with pytest.raises(Seen) as given:
        train(config, CPU)
    split = prepare(config, CPU)
    assert torch.equal(given.value.args[0], split.images[split.train])
