"""The image sets: load, verify, fetch once, and turn into tensors.

A set is one file, `<root>/<name>.npz`, with the uint8 arrays `x_train y_train x_test y_test`; images are
NHW (grey) or NHWC (colour). `root` is the argument, else the environment variable `LOSSBOOK_DATA`, else
`data/` of the project. `digits` comes with scikit-learn and needs no file, nor do the tables, sets of numbers
in place of images.
"""

import functools
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch

from lossbook import PROJECT
from lossbook.checks import check_name, check_path

ARRAYS = ("x_train", "y_train", "x_test", "y_test")
CHUNK = 4096  # images worked on at a time, which bounds the memory of temporaries


class DataError(ValueError):
    """A data set that is damaged, or that is neither on disk nor to be had."""


@dataclass(frozen=True)
class Spec:
    """What a set must look like: the shape of an image (HW or HWC) or of a row, its counts and its class names."""

    image: tuple[int, ...]
    train: int
    test: int
    classes: tuple[str, ...]
    torchvision: str | None  # the class of torchvision.datasets that downloads it

    @property
    def input_shape(self) -> tuple[int, ...]:
        """`(channels, height, width)` of one image as a network sees it, `(features,)` of a table."""
        if len(self.image) == 1:
            return self.image
        height, width, *channels = self.image
        return (channels[0] if channels else 1, height, width)


_TEN = tuple("0123456789")
_CIFAR100 = tuple(
    """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus
    butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab
    crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard
    lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom
    oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
    possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake
    spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor
    train trout tulip turtle wardrobe whale willow_tree wolf woman worm""".split()
)
_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_FASHION = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
_KMNIST = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")

SETS = {
    "digits": Spec((8, 8), 1437, 360, _TEN, None),
    "mnist": Spec((28, 28), 60000, 10000, _TEN, "MNIST"),
    "fashion_mnist": Spec((28, 28), 60000, 10000, _FASHION, "FashionMNIST"),
    "cifar10": Spec((32, 32, 3), 50000, 10000, _CIFAR10, "CIFAR10"),
    "cifar100": Spec((32, 32, 3), 50000, 10000, _CIFAR100, "CIFAR100"),
    "kmnist": Spec((28, 28), 60000, 10000, _KMNIST, "KMNIST"),
}
NAMES = tuple(SETS)
# Tables that scikit-learn carries; float32 features.
TABLES = {
    "iris": Spec((4,), 100, 50, ("setosa", "versicolor", "virginica"), None),
    "wine": Spec((13,), 118, 60, ("class_0", "class_1", "class_2"), None),
    "breast_cancer": Spec((30,), 379, 190, ("malignant", "benign"), None),
}
ALL = (*SETS, *TABLES)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A loaded set: uint8 images `(n, height, width)` or `(n, height, width, 3)`, uint8 labels.

    A table has float32 rows `(n, features)` in place of images.
    """

    name: str
    x_train: numpy.ndarray
    y_train: numpy.ndarray
    x_test: numpy.ndarray
    y_test: numpy.ndarray

    @property
    def num_classes(self) -> int:
        return len(spec(self.name).classes)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """`(channels, height, width)` of one image as a network sees it, `(features,)` of a table."""
        return spec(self.name).input_shape


def data_root(root: str | os.PathLike | None = None) -> Path:
    """The folder of the sets: `root`, else `LOSSBOOK_DATA`, else `data/` of the project.

    A relative `LOSSBOOK_DATA` starts from the project, because each notebook runs in a folder of its own.
    """
    if root:
        return check_path("root", root)
    return PROJECT / check_path("LOSSBOOK_DATA", os.environ.get("LOSSBOOK_DATA") or "data")


def is_there(name: str) -> bool:
    """Whether a set can be loaded without a download."""
    return spec(name).torchvision is None or (data_root() / f"{name}.npz").is_file()


def spec(name: str) -> Spec:
    """What a set or table looks like, without loading it; ValueError with the nearest name for an unknown one."""
    check_name("data set", name, ALL)
    return SETS[name] if name in SETS else TABLES[name]


def load(name: str, root: str | os.PathLike | None = None) -> Dataset:
    """Load a set by name, downloading it first where its file is not there.

    `name` is one of `NAMES` or `TABLES`; `root` is explained in `data_root`. ValueError for an unknown name;
    DataError for a damaged file, and for a missing one that cannot be downloaded.
    """
    if spec(name).torchvision is None:
        arrays = _carried(name)
    else:
        path = data_root(root) / f"{name}.npz"
        arrays = _read(name, path) if path.is_file() else _download(name, path)
    return Dataset(name, **arrays)


@functools.lru_cache(maxsize=4)
def load_with_statistics(name: str) -> tuple[Dataset, Sequence[float] | numpy.ndarray, Sequence[float] | numpy.ndarray]:
    """A set, and mean and standard deviation of its training data, kept in memory.

    Of images those of each channel, as in `channel_statistics`; of a table those of each feature.
    """
    loaded = load(name)
    if name in TABLES:
        return loaded, loaded.x_train.mean(0), loaded.x_train.std(0)
    return loaded, *channel_statistics(loaded.x_train)


def _carried(name: str) -> dict[str, numpy.ndarray]:
    """A set that comes with scikit-learn: a table, or the digits, whose 17 grey levels are spread over 0 to 255."""
    import sklearn.datasets
    from sklearn.model_selection import train_test_split

    x, y = getattr(sklearn.datasets, f"load_{name}")(return_X_y=True)
    images = name == "digits"
    x = numpy.rint(x.reshape(-1, 8, 8) * (255 / 16)).astype(numpy.uint8) if images else x.astype(numpy.float32)
    x_train, x_test, y_train, y_test = train_test_split(
        x, y.astype(numpy.uint8), test_size=spec(name).test, stratify=y, random_state=0
    )
    return {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}


def _fault(spec: Spec, arrays: dict[str, numpy.ndarray]) -> str | None:
    """What is wrong with the arrays of a set, or None."""
    for part, count in (("train", spec.train), ("test", spec.test)):
        for key, shape in ((f"x_{part}", (count, *spec.image)), (f"y_{part}", (count,))):
            array = arrays[key]
            if array.dtype != numpy.uint8:
                return f"{key} has dtype {array.dtype}, expected uint8"
            if array.shape != shape:
                return f"{key} has shape {array.shape}, expected {shape}"
        if (highest := arrays[f"y_{part}"].max()) >= len(spec.classes):
            return f"y_{part} holds label {highest}, expected 0 to {len(spec.classes) - 1}"
    return None


def _read(name: str, path: Path) -> dict[str, numpy.ndarray]:
    try:
        # Opened here, because numpy.load given a path leaves the file open when it is no zip archive.
        with open(path, "rb") as handle, numpy.load(handle, allow_pickle=False) as file:
            missing = [key for key in ARRAYS if key not in file]
            arrays = {} if missing else {key: file[key] for key in ARRAYS}
        fault = f"it lacks {', '.join(missing)}" if missing else _fault(SETS[name], arrays)
    except PermissionError:
        raise
    except Exception as error:  # a damaged zip surfaces as any of a dozen types
        fault = f"it cannot be read ({type(error).__name__}: {error})"
    if fault:
        raise DataError(f"{path} is damaged: {fault}. Delete it and run `lossbook data {name}`.")
    return arrays


def _download(name: str, path: Path) -> dict[str, numpy.ndarray]:
    """Fetch a set through torchvision and write `path` atomically.

    torchvision checks the MD5 of every file before it opens it. That matters for CIFAR, whose archives hold
    pickles: none is read that is not, byte for byte, the published one. Our own file holds plain arrays.
    """
    import torchvision.datasets

    fetch = getattr(torchvision.datasets, SETS[name].torchvision)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Below the root, so that the move stays on one file system; the suffix keeps git from seeing what a
        # kill leaves behind.
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{name}-", suffix=".npz") as temporary:
            arrays = {}
            for part in ("train", "test"):
                images = fetch(temporary, train=part == "train", download=True)
                arrays[f"x_{part}"] = numpy.ascontiguousarray(images.data)
                arrays[f"y_{part}"] = numpy.asarray(images.targets, dtype=numpy.uint8)
            if fault := _fault(SETS[name], arrays):
                raise DataError(f"the download of {name} is not what it should be: {fault}. Try again later.")
            partial = Path(temporary) / path.name
            with open(partial, "wb") as file:
                numpy.savez_compressed(file, **arrays)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"{path.name} was not found in {path.parent.resolve()} and could not be downloaded ({error}). "
            f"Set LOSSBOOK_DATA to a folder that holds {path.name}, or put the file at {path.resolve()}; "
            "with a network connection it is downloaded there."
        ) from error
    return arrays


def channels_first(x: numpy.ndarray) -> torch.Tensor:
    """uint8 images NHW or NHWC as a uint8 tensor NCHW of its own memory, on the CPU."""
    if not isinstance(x, numpy.ndarray) or x.dtype != numpy.uint8:
        given = x.dtype if isinstance(x, numpy.ndarray) else type(x).__name__
        raise ValueError(f"images must be a uint8 NumPy array, got {given}")
    if x.ndim == 3:
        x = x[..., None]
    if x.ndim != 4 or x.shape[-1] not in (1, 3):
        raise ValueError(f"images must be (n, height, width) or (n, height, width, 1 or 3), got shape {x.shape}")
    return torch.tensor(x).permute(0, 3, 1, 2).contiguous()


def to_tensor(x: numpy.ndarray) -> torch.Tensor:
    """uint8 images NHW or NHWC as a float32 tensor NCHW with values in [0, 1], on the CPU."""
    return channels_first(x).float().div_(255)


def channel_statistics(x_train: numpy.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over all pixels of all images, in units of [0, 1].

    Both follow exactly from the histogram of the 256 values, so no floating-point copy is made:
    mean = sum_v p_v v and var = sum_v p_v (v - mean)^2. Images as in `to_tensor`.
    """
    if not isinstance(x_train, numpy.ndarray) or x_train.dtype != numpy.uint8 or x_train.ndim not in (3, 4):
        raise ValueError("channel statistics need a uint8 NumPy array (n, h, w) or (n, h, w, channels)")
    if not x_train.size:
        raise ValueError(f"channel statistics need at least one pixel, got shape {x_train.shape}")
    x = x_train if x_train.ndim == 4 else x_train[..., None]
    value = numpy.arange(256) / 255
    means, deviations = [], []
    for channel in range(x.shape[-1]):
        chunks = (x[start : start + CHUNK, ..., channel] for start in range(0, len(x), CHUNK))
        share = sum(numpy.bincount(chunk.ravel(), minlength=256) for chunk in chunks) / x[..., channel].size
        mean = share @ value
        means.append(float(mean))
        deviations.append(float(numpy.sqrt(share @ (value - mean) ** 2)))
    return tuple(means), tuple(deviations)


def standardise(images: numpy.ndarray | torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Images as float32 NCHW, with the mean of each channel subtracted and divided by its deviation.

    `images` is uint8 NHW or NHWC, or already a float tensor NCHW in [0, 1] (images with noise, say). `mean` and
    `std` are those of the training images, as `channel_statistics` gives them.
    """
    x = images if isinstance(images, torch.Tensor) else to_tensor(images)
    if x.ndim != 4 or not x.is_floating_point():
        raise ValueError(f"a tensor of images must be float and NCHW, got {x.dtype} of shape {tuple(x.shape)}")
    if not len(mean) == len(std) == x.shape[1]:
        raise ValueError(f"{x.shape[1]} channels need as many means and deviations, got {len(mean)}, {len(std)}")
    if not min(std) > 0:
        raise ValueError(f"standard deviations must be positive, got {std}: a channel is constant")
    mean, std = (torch.tensor(v, dtype=x.dtype, device=x.device).view(-1, 1, 1) for v in (mean, std))
    x = x - mean if x is images else x.sub_(mean)
    return x.div_(std)
