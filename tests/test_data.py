"""Loading, verifying, fetching and standardising the image sets."""

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.datasets
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from lossbook import data

PROJECT = Path(__file__).resolve().parent.parent
REAL = PROJECT / (os.environ.get("LOSSBOOK_DATA") or "../shared/datasets")


def real(name):
    if not (REAL / f"{name}.npz").is_file():
        pytest.skip(f"{name}.npz is not in {REAL}; set LOSSBOOK_DATA to the folder that holds it")
    return data.load(name, REAL)


def arrays_of(dataset):
    return {key: getattr(dataset, key) for key in data.ARRAYS}


@pytest.fixture
def small(monkeypatch):
    """Every set keeps the shape of its images but shrinks to 40 training and 20 test images."""
    for name, spec in data.SETS.items():
        monkeypatch.setitem(data.SETS, name, dataclasses.replace(spec, train=40, test=20))


def random_arrays(name):
    spec, rng = data.SETS[name], np.random.default_rng(0)
    return {
        "x_train": rng.integers(0, 256, (spec.train, *spec.image), dtype=np.uint8),
        "y_train": rng.integers(0, len(spec.classes), spec.train, dtype=np.uint8),
        "x_test": rng.integers(0, 256, (spec.test, *spec.image), dtype=np.uint8),
        "y_test": rng.integers(0, len(spec.classes), spec.test, dtype=np.uint8),
    }


# --- the embedded set -------------------------------------------------------------------------------------


def test_digits_needs_no_file_and_is_split_the_same_every_time(tmp_path):
    first, second = data.load("digits", tmp_path), data.load("digits")
    assert not list(tmp_path.iterdir())
    assert first.x_train.shape == (1437, 8, 8) and first.x_test.shape == (360, 8, 8)
    assert first.input_shape == (1, 8, 8) and first.num_classes == 10
    assert first.x_train.max() == 255 and first.x_train.min() == 0
    for key in data.ARRAYS:
        assert getattr(first, key).dtype == np.uint8
        np.testing.assert_array_equal(getattr(first, key), getattr(second, key))


def test_digits_split_is_stratified_and_a_partition_of_the_source():
    from sklearn.datasets import load_digits

    digits, source = data.load("digits"), load_digits()
    whole = np.bincount(source.target)
    np.testing.assert_allclose(np.bincount(digits.y_test), whole * 360 / 1797, atol=1)
    joined = np.concatenate([digits.x_train, digits.x_test]).reshape(-1, 64)
    labels = np.concatenate([digits.y_train, digits.y_test])
    expected = np.rint(source.data * 255 / 16)
    both = (
        np.column_stack([joined, labels]).astype(int),
        np.column_stack([expected, source.target]).astype(int),
    )
    assert sorted(map(tuple, both[0])) == sorted(map(tuple, both[1]))


# --- names and folders ------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong, near", [("mnsit", "mnist"), ("cifar-10", "cifar10"), ("FashionMNIST", None)])
def test_unknown_name_is_refused_with_the_nearest(wrong, near):
    with pytest.raises(ValueError, match=f"unknown data set '{wrong}'.*allowed: digits") as caught:
        data.load(wrong)
    assert near is None or f"Did you mean '{near}'?" in str(caught.value)


def test_a_package_without_its_project_takes_the_working_directory(tmp_path):
    """It never reads or writes among the installed packages."""
    installed, there = tmp_path / "site-packages", tmp_path / "there"
    shutil.copytree(PROJECT / "lossbook", installed / "lossbook", ignore=shutil.ignore_patterns("__pycache__"))
    there.mkdir()
    code = "from lossbook import claims, data, results; print(results.RUNS, data.data_root(), claims.PATH, sep='\\n')"
    environment = {**os.environ, "PYTHONPATH": str(installed), "LOSSBOOK_DATA": ""}
    ran = subprocess.run([sys.executable, "-c", code], cwd=there, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == [str(there / "data" / part) for part in ("runs", "", "claims.csv")]


def test_root_is_the_argument_then_the_variable_then_the_project(monkeypatch, tmp_path):
    monkeypatch.setenv("LOSSBOOK_DATA", str(tmp_path / "variable"))
    assert data.data_root(tmp_path / "argument") == tmp_path / "argument"
    assert data.data_root() == tmp_path / "variable"
    monkeypatch.setenv("LOSSBOOK_DATA", "elsewhere/sets")
    monkeypatch.chdir(tmp_path)
    assert data.data_root() == PROJECT / "elsewhere/sets"  # whatever folder a notebook runs in
    for unset in ("", None):
        monkeypatch.delenv("LOSSBOOK_DATA") if unset is None else monkeypatch.setenv("LOSSBOOK_DATA", unset)
        assert data.data_root() == PROJECT / "data"


@pytest.mark.parametrize("name", [name for name in data.NAMES if name != "digits"])
def test_a_file_is_loaded_from_the_variable(small, monkeypatch, tmp_path, name):
    arrays = random_arrays(name)
    np.savez(tmp_path / f"{name}.npz", **arrays)
    monkeypatch.setenv("LOSSBOOK_DATA", str(tmp_path))
    dataset = data.load(name)
    for key in data.ARRAYS:
        np.testing.assert_array_equal(getattr(dataset, key), arrays[key])
    assert dataset.input_shape == ((3, 32, 32) if "cifar" in name else (1, 28, 28))
    assert dataset.num_classes == (100 if name == "cifar100" else 10)
    with pytest.raises(dataclasses.FrozenInstanceError):
        dataset.name = "other"


def test_import_stays_light():
    code = (
        "import sys, lossbook.data, lossbook.noise; "
        "print([m for m in ('torchvision', 'sklearn', 'sympy', 'IPython') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- damaged files ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sound():
    """A spec and arrays that satisfy it: real digits, under the name of mnist."""
    digits = data.load("digits")
    spec = dataclasses.replace(data.SETS["digits"], train=50, test=20, torchvision="MNIST")
    counts = {"train": 50, "test": 20}
    arrays = {key: array[: counts[key[2:]]] for key, array in arrays_of(digits).items()}
    return spec, arrays


def expect_damage(path, spec, match):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(data.SETS, "mnist", spec)
        with pytest.raises(data.DataError, match=match) as caught:
            data.load("mnist", path.parent)
    assert str(path) in str(caught.value), "the file is named"
    assert "Delete it and run `lossbook data mnist`" in str(caught.value), "the cure is named"


@pytest.mark.parametrize(
    "change, match",
    [
        (lambda a: a.pop("y_test"), "lacks y_test"),
        (lambda a: a.update(x_train=a["x_train"].astype(np.float32)), "x_train has dtype float32"),
        (lambda a: a.update(y_test=a["y_test"].astype(np.int64)), "y_test has dtype int64"),
        (
            lambda a: a.update(x_test=a["x_test"][:-1]),
            r"x_test has shape \(19, 8, 8\), expected \(20, 8, 8\)",
        ),
        (lambda a: a.update(y_train=a["y_train"][:, None]), r"y_train has shape \(50, 1\)"),
        (lambda a: a.update(x_train=a["x_train"].reshape(50, 4, 16)), r"x_train has shape \(50, 4, 16\)"),
        (lambda a: a.update(y_train=np.full(50, 10, np.uint8)), "y_train holds label 10, expected 0 to 9"),
        (lambda a: a.update(y_test=np.array([None] * 20)), "cannot be read.*allow_pickle"),
    ],
)
def test_wrong_arrays_are_refused(tmp_path, sound, change, match):
    spec, arrays = sound[0], dict(sound[1])
    change(arrays)
    np.savez(tmp_path / "mnist.npz", **arrays)
    expect_damage(tmp_path / "mnist.npz", spec, match)


@pytest.mark.parametrize("content", [b"", b"not a zip file", b"PK\x03\x04 but no more", b"\x80\x04N."])
def test_something_else_is_refused(tmp_path, sound, content):
    (tmp_path / "mnist.npz").write_bytes(content)
    expect_damage(tmp_path / "mnist.npz", sound[0], "cannot be read")


def test_a_single_array_is_refused(tmp_path, sound):
    with open(tmp_path / "mnist.npz", "wb") as file:
        np.save(file, sound[1]["x_train"])
    expect_damage(tmp_path / "mnist.npz", sound[0], "damaged")


@settings(deadline=None, max_examples=60)
@given(draw=st.data(), save=st.sampled_from([np.savez, np.savez_compressed]))
def test_a_truncated_file_is_refused(tmp_path_factory, sound, draw, save):
    path = tmp_path_factory.mktemp("truncated") / "mnist.npz"
    save(path, **sound[1])
    whole = path.read_bytes()
    path.write_bytes(whole[: draw.draw(st.integers(0, len(whole) - 1))])
    expect_damage(path, sound[0], "cannot be read")


@settings(deadline=None, max_examples=100)
@given(draw=st.data(), save=st.sampled_from([np.savez, np.savez_compressed]))
def test_a_changed_byte_is_refused_or_harmless(tmp_path_factory, sound, draw, save):
    """No single changed byte can alter the arrays unnoticed: what is loaded is what was saved, or nothing."""
    path = tmp_path_factory.mktemp("changed") / "mnist.npz"
    save(path, **sound[1])
    content = bytearray(path.read_bytes())
    content[draw.draw(st.integers(0, len(content) - 1))] ^= draw.draw(st.integers(1, 255))
    path.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(data.SETS, "mnist", sound[0])
        try:
            loaded = arrays_of(data.load("mnist", path.parent))
        except data.DataError as error:
            assert str(path) in str(error)
        else:
            for key, array in sound[1].items():
                np.testing.assert_array_equal(loaded[key], array)


# --- the download -----------------------------------------------------------------------------------------


def fake_torchvision(monkeypatch, name, arrays):
    """Stands in for the network: a torchvision class that holds ``arrays`` as the real one would."""

    class Fake:
        def __init__(self, root, train, download):
            assert download and Path(root).is_dir()
            (Path(root) / "archive").write_bytes(b"what torchvision leaves behind")
            part = "train" if train else "test"
            self.data, self.targets = arrays[f"x_{part}"], arrays[f"y_{part}"]
            if "cifar" in name:
                self.targets = self.targets.tolist()
            else:
                self.data, self.targets = torch.tensor(self.data), torch.tensor(self.targets).long()

    monkeypatch.setattr(torchvision.datasets, data.SETS[name].torchvision, Fake)


def no_network(monkeypatch, error):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(torchvision.datasets, "MNIST", fail)


@pytest.mark.parametrize("name", [name for name in data.NAMES if name != "digits"])
def test_a_missing_set_is_downloaded_once(small, monkeypatch, tmp_path, name):
    root = tmp_path / "not" / "there" / "yet"
    arrays = random_arrays(name)
    with monkeypatch.context() as patch:
        fake_torchvision(patch, name, arrays)
        fetched = data.load(name, root)
    assert [path.name for path in root.iterdir()] == [f"{name}.npz"], "nothing temporary is left"
    again = data.load(name, root)  # the fake is gone, so this comes from the file
    for key in data.ARRAYS:
        np.testing.assert_array_equal(getattr(fetched, key), arrays[key])
        np.testing.assert_array_equal(getattr(again, key), arrays[key])


def test_the_real_mnist_class_is_understood(small, monkeypatch, tmp_path):
    """Only the transfer is replaced: torchvision itself parses the idx files."""
    arrays = random_arrays("mnist")

    def transfer(self):
        raw = Path(self.raw_folder)
        raw.mkdir(parents=True, exist_ok=True)
        for part, prefix in (("train", "train"), ("test", "t10k")):
            for key, kind in ((f"x_{part}", "images-idx3"), (f"y_{part}", "labels-idx1")):
                array = arrays[key]
                header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
                (raw / f"{prefix}-{kind}-ubyte").write_bytes(header + array.tobytes())

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", transfer)
    fetched = data.load("mnist", tmp_path)
    for key in data.ARRAYS:
        np.testing.assert_array_equal(getattr(fetched, key), arrays[key])


def test_class_names_are_those_of_torchvision():
    for name, spec in data.SETS.items():
        assert len(set(spec.classes)) == len(spec.classes) == (100 if name == "cifar100" else 10)
        if spec.torchvision:
            assert hasattr(torchvision.datasets, spec.torchvision)
    assert list(data.SETS["fashion_mnist"].classes) == torchvision.datasets.FashionMNIST.classes
    assert list(data.SETS["kmnist"].classes) == torchvision.datasets.KMNIST.classes
    for name in ("cifar10", "cifar100"):
        assert list(data.SETS[name].classes) == sorted(data.SETS[name].classes)


@pytest.mark.parametrize("error", [RuntimeError("Error downloading train-images"), OSError("no route to host")])
def test_without_a_network_the_error_says_what_to_do(monkeypatch, tmp_path, error):
    no_network(monkeypatch, error)
    with pytest.raises(data.DataError) as caught:
        data.load("mnist", tmp_path)
    message = str(caught.value)
    for part in ("mnist.npz", str(tmp_path), str(tmp_path / "mnist.npz"), "LOSSBOOK_DATA", str(error)):
        assert part in message
    assert not list(tmp_path.iterdir())


def test_a_download_of_the_wrong_shape_is_not_kept(small, monkeypatch, tmp_path):
    arrays = random_arrays("mnist")
    fake_torchvision(monkeypatch, "mnist", arrays | {"x_test": arrays["x_test"][:, :27]})
    with pytest.raises(data.DataError, match=r"x_test has shape \(20, 27, 28\), expected \(20, 28, 28\)"):
        data.load("mnist", tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error, raised", [(OSError(28, "No space left"), data.DataError), (KeyboardInterrupt,) * 2])
@pytest.mark.parametrize("step", ["save", "fsync", "replace"])
def test_a_failure_while_writing_leaves_no_file(small, monkeypatch, tmp_path, step, error, raised):
    fake_torchvision(monkeypatch, "mnist", random_arrays("mnist"))

    def fail(*args, **kwargs):
        if step == "save":
            args[0].write(b"PK half an archive")
        raise error

    target = {"save": (np, "savez_compressed"), "fsync": (os, "fsync"), "replace": (os, "replace")}[step]
    with monkeypatch.context() as patch:
        patch.setattr(*target, fail)
        with pytest.raises(raised):
            data.load("mnist", tmp_path)
    assert not list(tmp_path.iterdir())
    data.load("mnist", tmp_path)  # and the next attempt succeeds
    assert (tmp_path / "mnist.npz").is_file()


def test_a_kill_while_writing_leaves_no_set_behind(tmp_path):
    """A killed process cleans nothing up: what it leaves must not pass for the set, nor show up in git."""
    code = f"""
import os, numpy as np, torchvision.datasets
from lossbook import data
class Fake:
    def __init__(self, root, train, download):
        n = data.SETS["mnist"].train if train else data.SETS["mnist"].test
        self.data, self.targets = np.zeros((n, 28, 28), np.uint8), [0] * n
torchvision.datasets.MNIST = Fake
def die(file, **arrays):
    file.write(b"PK half an archive"); file.flush(); os._exit(9)
np.savez_compressed = die
data.load("mnist", {str(tmp_path)!r})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 9, done.stderr
    left = list(tmp_path.iterdir())
    assert len(left) == 1 and left[0].is_dir() and left[0].suffix == ".npz"  # git ignores data/*.npz


# --- tensors and statistics -------------------------------------------------------------------------------

image_batches = npst.arrays(
    np.uint8,
    st.one_of(
        st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(1, 6)),
        st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(1, 6), st.sampled_from([1, 3])),
    ),
)


@settings(deadline=None)
@given(images=image_batches, chunk=st.integers(1, 6))
def test_channel_statistics_are_those_of_a_float64_copy(images, chunk):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "CHUNK", chunk)
        mean, std = data.channel_statistics(images)
    x = (images if images.ndim == 4 else images[..., None]).astype(np.float64) / 255
    np.testing.assert_allclose(mean, x.mean((0, 1, 2)), atol=1e-12)
    np.testing.assert_allclose(std, x.std((0, 1, 2)), atol=1e-8)  # the reference itself cancels near zero
    assert all(isinstance(value, float) for value in (*mean, *std))


@settings(deadline=None)
@given(images=image_batches)
def test_to_tensor_moves_channels_first_and_loses_nothing(images):
    x = data.to_tensor(images)
    assert x.dtype == torch.float32 and x.is_contiguous() and 0 <= x.min() and x.max() <= 1
    back = (x * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(back if images.ndim == 4 else back[..., 0], images)


@settings(deadline=None)
@given(seed=st.integers(0, 2**32 - 1), channels=st.sampled_from([1, 3]))
def test_standardised_images_have_mean_zero_and_deviation_one(seed, channels):
    images = np.random.default_rng(seed).integers(0, 256, (7, 5, 6, channels), dtype=np.uint8)
    x = data.standardise(images, *data.channel_statistics(images)).double()
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(channels).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(x.std((0, 2, 3), correction=0), torch.ones(channels).double(), atol=1e-6, rtol=0)


def test_test_images_take_the_statistics_of_the_training_images():
    digits = data.load("digits")
    mean, std = data.channel_statistics(digits.x_train)
    x = data.to_tensor(digits.x_test)
    kept = x.clone()
    from_array, from_tensor = data.standardise(digits.x_test, mean, std), data.standardise(x, mean, std)
    torch.testing.assert_close(from_array, (x - mean[0]) / std[0])
    assert torch.equal(from_array, from_tensor)
    assert torch.equal(x, kept), "a tensor that is passed in stays as it was"
    assert from_array.mean().abs() > 1e-4, "the test images keep their own mean"


def test_bad_images_are_refused():
    images = np.zeros((2, 4, 4), np.uint8)
    with pytest.raises(ValueError, match="uint8"):
        data.to_tensor(images.astype(float))
    with pytest.raises(ValueError, match="got list"):
        data.to_tensor([[0]])
    with pytest.raises(ValueError, match=r"got shape \(2, 3, 4, 4\)"):
        data.to_tensor(np.zeros((2, 3, 4, 4), np.uint8))
    with pytest.raises(ValueError, match="at least one pixel"):
        data.channel_statistics(images[:0])
    with pytest.raises(ValueError, match="a channel is constant"):
        data.standardise(images, (0.5,), (0.0,))
    with pytest.raises(ValueError, match="1 channels need"):
        data.standardise(images, (0.5, 0.5, 0.5), (1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match="float and NCHW"):
        data.standardise(torch.zeros(2, 4, 4), (0.5,), (1.0,))


# --- the real sets ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, mean, std",
    [
        ("mnist", [0.1307], [0.3081]),
        ("fashion_mnist", [0.2860], [0.3530]),
        ("cifar10", [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]),
    ],
)
def test_real_sets_have_the_known_pixel_statistics(name, mean, std):
    dataset = real(name)
    found = data.channel_statistics(dataset.x_train)
    np.testing.assert_allclose(found[0], mean, atol=5.1e-5)
    np.testing.assert_allclose(found[1], std, atol=5.1e-5)
    counts = np.bincount(dataset.y_test, minlength=10)
    assert counts.min() > 0 and (name == "mnist" or (counts == 1000).all())
