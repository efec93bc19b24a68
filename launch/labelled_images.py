"""Labelled images for a DataLoader: of a folder of pictures whose sub-folders are classes, or of shards."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor
from torch.utils.data import Dataset

from dist_ssl.data.images.decode import decode
from dist_ssl.data.images.image_rules import ImageRules
from dist_ssl.data.images.unreadable import UnreadableError
from dist_ssl.data.storage import manifest
from dist_ssl.data.storage.address import Address
from dist_ssl.data.storage.read import Reader
from dist_ssl.data.storage.reader_options import Access
from dist_ssl.errors import DataError
from shards.command_line import HeldOut
from shards.sources import imagefolder

View = Callable[[Tensor], Tensor]
"""A function that makes a view [3, S, S] of an image, pixels [3, h, w] uint8."""
Item = tuple[Tensor, int] | DataError | None
"""A view and its label; None where the image cannot be decoded; why it cannot be read, as no worker can raise that."""
CACHE_BYTES = 50 * 10**9
"""Bound of the local copies of remote shards."""
MOST_CLASSES = 1 << 15
"""Classes that a data set of fewer samples may have: it may be a part of a larger one and keep its numbers."""


@dataclass(frozen=True)
class LabelledImages(Dataset[Item]):
    """Images with labels. `sample`: bytes and label of one of the `count` images, by its number; raises DataError."""

    count: int
    sample: Callable[[int], tuple[bytes, int]]
    rules: ImageRules
    view: View

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> Item:
        try:
            data, label = self.sample(number)
            pixels = decode(data, self.rules.max_pixels, self.rules).pixels  # as large as it is
        except UnreadableError:
            return None
        except DataError as error:
            return error
        return self.view(torch.from_numpy(pixels).permute(2, 0, 1)), label


@dataclass(frozen=True)
class LabelledSplits:
    """Images to train on, images to test on, and the names of the classes in the order of their labels."""

    train: LabelledImages
    val: LabelledImages
    classes: list[str]


def of_shards(address: Address, rules: ImageRules, train: View, val: View) -> LabelledSplits:
    """Return the splits `train` and `val` of shards. Raises DataError."""
    access = Access.to(address, "auto", CACHE_BYTES)
    found = manifest.read(address, access.fetcher)

    def images(name: str, view: View) -> LabelledImages:
        split = found.split(name)
        if not split.labelled:
            raise DataError(f"Not every sample of split '{name}' has a label.", "Name labelled images: data.path=...")
        access.check(split, 1, 1)
        reader, labels = Reader(split, access), split.samples.labels
        return LabelledImages(len(labels), lambda number: (reader.read(number), int(labels[number])), rules, view)

    return LabelledSplits(images("train", train), images("val", val), class_names(found))


def class_names(found: manifest.Manifest) -> list[str]:
    """Return the names of the classes in the order of their labels; where there are none, their numbers.

    Raises DataError where a label is beyond the classes, or beyond what a data set of this size can need.
    """
    labels = [split.samples.labels for split in found.splits.values()]
    last = max(int(own.max(initial=-1)) for own in labels)
    most = len(found.classes) or max(MOST_CLASSES, sum(len(own) for own in labels))
    if last >= most:
        raise DataError(
            f"The data set has the label {last}: its labels are 0 to {most - 1} at most.", "Number its classes anew."
        )
    return list(found.classes) or [str(number) for number in range(last + 1)]


def of_folder(
    folder: Path, held_out: HeldOut, rules: ImageRules, train: View, val: View, console: Console
) -> LabelledSplits:
    """Return the pictures of a folder; its sub-folders are classes, within `train/` and `val/` if it has these.

    `held_out`: how many test otherwise. Prints what is left out. Raises ConfigError, DataError.
    """
    found = imagefolder.find(imagefolder.FolderOptions(folder, labels=True), console)
    if found.roots[0] == found.roots[1]:
        images = [*found.val, *found.train]
        count = held_out.of(len(images))
        found = replace(found, train=images[count:], val=images[:count])

    def images_of(name: str, view: View) -> LabelledImages:
        contents = found.splits()[name]
        if not contents.count:
            raise DataError(f"No picture of {folder} is left for '{name}'.", "Hold out another number: val=20%, say.")

        def sample(number: int) -> tuple[bytes, int]:
            one = contents.sample(number)
            return one.image, one.label

        return LabelledImages(contents.count, sample, rules, view)

    return LabelledSplits(images_of("train", train), images_of("val", val), found.classes)


def labelled_splits(
    path: str, held_out: HeldOut, rules: ImageRules, train: View, val: View, console: Console
) -> LabelledSplits:
    """Return the labelled images of a folder of pictures or of shards; see there. Raises ConfigError, DataError."""
    address = Address.parse(path)
    if not address.local or (address.path / manifest.NAME).is_file():
        return of_shards(address, rules, train, val)
    return of_folder(address.path, held_out, rules, train, val, console)
