"""The classification data sets of torchvision as sources, by name.

    python shards/make.py source=cifar10 path=downloads out=data/cifar10 [download=true] [shard_bytes=64MB]

Image files are packed byte for byte, without re-encoding; arrays of pixels become PNG files, which is lossless. The
splits are those of the data set; images without a class get no label.
"""

import inspect
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import xxhash
from PIL import Image
from rich.console import Console

from dist_ssl.data.storage.fields import MOST_IMAGE
from dist_ssl.errors import DataError
from dist_ssl.runtime.strange_files import read_regular
from shards.archive import Sample
from shards.command_line import Bytes, Threads
from shards.image_source import ImageSource
from shards.pack import THREADS, Contents, pack

BOTH = {"train": {"train": True}, "val": {"train": False}}
TEST = {"train": {"split": "train"}, "val": {"split": "test"}}
THREE = {"train": {"split": "train"}, "val": {"split": "val"}, "test": {"split": "test"}}
SETS: dict[str, tuple[str, Mapping[str, Mapping[str, Any]]]] = {
    "cifar10": ("CIFAR10", BOTH),
    "cifar100": ("CIFAR100", BOTH),
    "mnist": ("MNIST", BOTH),
    "fashionmnist": ("FashionMNIST", BOTH),
    "kmnist": ("KMNIST", BOTH),
    "usps": ("USPS", BOTH),
    "svhn": ("SVHN", {**TEST, "extra": {"split": "extra"}}),
    "stl10": ("STL10", {"unlabeled": {"split": "unlabeled"}, **TEST}),
    "gtsrb": ("GTSRB", TEST),
    "food101": ("Food101", TEST),
    "flowers102": ("Flowers102", THREE),
    "dtd": ("DTD", THREE),
    "fgvcaircraft": ("FGVCAircraft", THREE),
    "stanfordcars": ("StanfordCars", TEST),
    "imagenette": ("Imagenette", {"train": {"split": "train"}, "val": {"split": "val"}}),
    "country211": (
        "Country211",
        {"train": {"split": "train"}, "val": {"split": "valid"}, "test": {"split": "test"}},
    ),
    "places365": ("Places365", {"train": {"split": "train-standard"}, "val": {"split": "val"}}),
}
"""For each source, the class in torchvision.datasets, and its constructor arguments for each of our splits."""


@dataclass(frozen=True)
class VisionOptions:
    """Options of the source. `path`: torchvision's root folder of the data set; `download`: download it there first."""

    path: Path
    download: bool = False
    shard_bytes: Bytes = Bytes(64 * 10**6)
    threads: Threads = THREADS


@dataclass(frozen=True)
class Encoded:
    """An image file; `kind`: its extension, without the dot."""

    kind: str
    data: bytes


def write(name: str, out: Path, options: VisionOptions, console: Console) -> None:
    """Pack a data set of torchvision. Raises DataError if it is missing."""
    found = {split: opened(name, split, options) for split in SETS[name][1]}
    classes = [str(c) for c in getattr(found["train"], "classes", [])]
    splits = {split: contents(f"{name}-{split}", data, options.path) for split, data in found.items()}
    pack(out, splits, classes, shard_bytes=options.shard_bytes, threads=options.threads, console=console)


def opened(name: str, split: str, options: VisionOptions) -> Any:
    """Return torchvision's data set of a split. Raises DataError."""
    from torchvision import datasets

    kind, splits = SETS[name]
    make: Callable[..., Any] = getattr(datasets, kind)
    more: dict[str, Any] = {"loader": encoded} if "loader" in inspect.signature(make).parameters else {}
    if options.download:
        options.path.mkdir(parents=True, exist_ok=True)
    try:
        return make(options.path, download=options.download, **splits[split], **more)
    except (RuntimeError, OSError, ValueError, EOFError) as error:
        raise DataError(
            f"torchvision cannot open {kind} ({split}) in {options.path}: {error}",
            "Set path to the folder that contains it, or add download=true on a machine with internet access.",
        ) from error


def encoded(path: str | Path) -> Encoded:
    """Return a file without decoding it; torchvision calls this as its `loader`."""
    return Encoded(Path(path).suffix[1:], read_regular(Path(path), MOST_IMAGE))


def contents(prefix: str, data: Any, path: Path) -> Contents:
    """Return a data set's samples, in the order of the hash of their keys."""
    keys = [f"{prefix}-{number:08d}" for number in range(len(data))]
    order = sorted(range(len(data)), key=lambda n: xxhash.xxh3_64_intdigest(keys[n].encode()))

    def sample(number: int) -> Sample:
        try:
            image, label = data[order[number]]
        except (OSError, ValueError) as error:  # ValueError: larger than an image can be
            raise DataError(
                f"torchvision cannot read {keys[order[number]]}: {error}.", "Download the data set again."
            ) from error
        if not isinstance(image, Encoded):
            image = png(image)
        return Sample(keys[order[number]], image.kind, image.data, int(label))

    return Contents(len(data), f"{path.resolve()} {prefix}", sample)


def png(image: Image.Image) -> Encoded:
    """Return an image as a PNG file, which is lossless."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return Encoded("png", file.getvalue())


SOURCES = {name: ImageSource(VisionOptions, partial(write, name)) for name in SETS}
