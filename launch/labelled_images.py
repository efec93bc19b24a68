"""Labelled images for a DataLoader: of a folder of pictures whose sub-folders are classes, or of shards.

Everything in here can be pickled: the worker processes of a DataLoader open their own files and connections.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from torch import Tensor
from torch.utils.data import Dataset

from dist_ssl.config.bounds import RGB
from dist_ssl.data.images.decode import decode
from dist_ssl.data.images.image_rules import ImageRules
from dist_ssl.data.images.unreadable import UnreadableError
from dist_ssl.data.storage.address import Address
from dist_ssl.data.storage.manifest import Manifest
from dist_ssl.data.storage.read import Reader
from dist_ssl.errors import ConfigError, DataError
from launch.image_places import open_shards, scanned, shards_at
from shards.command_line import HeldOut, Threads
from shards.folder_scan import File
from shards.sources import imagefolder

View = Callable[[Tensor], Tensor]
"""A function that makes a view [C, S, S] of an image, pixels [C, h, w] uint8."""
Item = tuple[Tensor, int] | int | DataError
"""A view and its label; the number of an undecodable image; why one cannot be read, as no worker can raise that."""
HELD_OUT = HeldOut(share=0.2)
MOST_CLASSES = 1 << 15
"""Classes that a data set of fewer samples may have: it may be a part of a larger one and keep its numbers."""


class EncodedImages(Protocol):
    """Encoded images and their labels, by number."""

    def __len__(self) -> int: ...

    def __call__(self, number: int) -> tuple[bytes, int]:
        """Return the bytes and the label of an image. Raises DataError."""
        ...


@dataclass(frozen=True)
class FolderSamples:
    """Pictures of a folder. `labels`: of the classes, which are the first parts of the pictures' names."""

    root: Path
    files: Sequence[File]
    labels: Mapping[str, int]

    def __len__(self) -> int:
        return len(self.files)

    def __call__(self, number: int) -> tuple[bytes, int]:
        """See `EncodedImages`."""
        file = self.files[number]
        return imagefolder.read(self.root, file), self.labels[class_of(file)]


@dataclass(frozen=True)
class ShardSamples:
    """Samples of a split of shards."""

    reader: Reader
    labels: npt.NDArray[np.integer[Any]]

    def __len__(self) -> int:
        return len(self.labels)

    def __call__(self, number: int) -> tuple[bytes, int]:
        """See `EncodedImages`."""
        return self.reader.read(number), int(self.labels[number])


@dataclass(frozen=True)
class LabelledImages(Dataset[Item]):
    """Views of images, and their labels."""

    samples: EncodedImages
    rules: ImageRules
    view: View

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, number: int) -> Item:
        try:
            data, label = self.samples(number)
            pixels = decode(data, self.rules.max_pixels, self.rules).pixels  # as large as it is
        except UnreadableError:
            return number
        except DataError as error:
            return error
        return self.view(torch.from_numpy(pixels).permute(2, 0, 1)), label


@dataclass(frozen=True)
class LabelledSplits:
    """Images to train on, images that are held out, and the names of the classes in the order of their labels."""

    train: EncodedImages
    val: EncodedImages
    classes: list[str]


def labelled_splits(
    path: str,
    held_out: HeldOut | None,
    cache: str | None,
    cache_bytes: str,
    console: Console,
    channels: int = RGB,
) -> LabelledSplits:
    """Return the labelled images of a folder of pictures, or of shards. Raises ConfigError, DataError.

    `held_out`: how many pictures are held out where a folder has no split of its own, by default a fifth; `cache`,
    `cache_bytes`: where remote shards are kept; `channels`: those of the encoder.
    """
    address = shards_at(path)
    if address is None:
        found = of_folder(path, held_out, console, channels)
    elif held_out is None:
        found = of_shards(address, cache, cache_bytes)
    else:
        raise ConfigError("val=... has no effect on shards, which have a split of that name.", "Leave it out.")
    if len(found.classes) < 2:
        place = Address.parse(path).shown  # without credentials
        raise DataError(f"data.path={place} has one class only: {found.classes[0]}.", "Add images of another class.")
    return found


def of_shards(address: Address, cache: str | None, cache_bytes: str) -> LabelledSplits:
    """Return the splits `train` and `val` of shards. Raises ConfigError, DataError."""
    found, access = open_shards(address, cache, cache_bytes)

    def samples(name: str) -> ShardSamples:
        split = found.split(name)
        if not len(split.samples) or not split.labelled:
            raise DataError(f"Not every sample of split '{name}' has a label.", "Name labelled images: data.path=...")
        access.check(split, 1, 1)
        return ShardSamples(Reader(split, access), split.samples.labels)

    return LabelledSplits(samples("train"), samples("val"), class_names(found))


def class_names(found: Manifest) -> list[str]:
    """Return the names of the classes in the order of their labels; where there are none, their numbers.

    Raises DataError where a label is beyond the classes, or beyond what a data set of this size can need.
    """
    labels = [split.samples.labels for split in found.splits.values()]
    last = max(int(own.max(initial=-1)) for own in labels)
    room = max(MOST_CLASSES, sum(len(own) for own in labels))
    if len(found.classes) > room:
        raise DataError(f"The data set names {len(found.classes)} classes, and has fewer images.", "Make it again.")
    most = len(found.classes) or room
    if last >= most:
        raise DataError(
            f"The data set has the label {last}: its labels are 0 to {most - 1} at most.", "Number its classes anew."
        )
    return list(found.classes) or [str(number) for number in range(last + 1)]


def of_folder(path: str, held_out: HeldOut | None, console: Console, channels: int = RGB) -> LabelledSplits:
    """Return the pictures of a folder; its sub-folders are classes, within `train/` and `val/` if it has these.

    Prints what is left out. Raises ConfigError, DataError.
    """
    folder, found = scanned(path, Threads(8), console, channels)
    train, val, roots = imagefolder.split_of(found, folder, console)
    if val and held_out is not None:
        raise ConfigError(f"{folder} has a split of its own for testing, {roots[1].name}/.", "Leave val=... out.")
    if not val:
        count = (held_out or HELD_OUT).of(len(train))
        train, val, roots = train[count:], train[:count], (roots[0], roots[0])
    if not val:
        raise ConfigError("val=0 leaves no picture to test on.", "Hold some out: val=20%, say.")
    for root, file in ((root, file) for root, files in zip(roots, (train, val), strict=True) for file in files):
        if "/" not in file.name:
            raise DataError(f"{root / file.name} lies in no folder of a class.", "Move it into one.")
    classes = sorted({class_of(file) for file in train})
    if others := sorted({class_of(file) for file in val} - {*classes}):
        raise DataError(f"No picture of class '{others[0]}' is there to train on.", "Add some, or hold fewer out.")
    labels = {name: label for label, name in enumerate(classes)}
    return LabelledSplits(FolderSamples(roots[0], train, labels), FolderSamples(roots[1], val, labels), classes)


def class_of(file: File) -> str:
    """Return the class of a picture: the first folder of its path."""
    return file.name.partition("/")[0]
