"""Warns of deep pictures that would train nearly black, such as 12 bits in files of 16.

A file of 16 bits does not say how many of them its camera fills. Where a sample of a data set's pictures has no value
in the upper half of the range, the highest value that was found tells the number of bits, and the key of a run to set.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console

from dist_ssl.config.bounds import RGB
from dist_ssl.config.command import say
from dist_ssl.core.draws import Draws, Purpose
from dist_ssl.data.images.array_files import lacks_range
from dist_ssl.data.images.decode import largest_value
from dist_ssl.data.images.deep_rows import FULL
from dist_ssl.data.images.image_rules import ImageRules
from dist_ssl.data.storage.manifest import Manifest, Split
from dist_ssl.data.storage.read import Reader

LOOKED_AT = 200
"""Pictures of each split that are looked at, at most."""


class FoundRange(NamedTuple):
    """How many pictures were looked at, how many of them have 16 bits or floats, and the largest value of those.

    `floats`: whether some are of floating point, which cannot be read without a range.
    """

    looked: int
    deep: int
    largest: int
    floats: bool

    @property
    def white(self) -> int | None:
        """Return the range that a run should set; None where it needs none."""
        return white_for(self.largest, self.floats)


def found_range(split: Split) -> FoundRange:
    """Return the range of a sample of a split's pictures."""
    numbers = Draws(0).order(Purpose.PROBE, np.arange(len(split.samples), dtype=np.int64))[:LOOKED_AT]
    with Reader(split) as reader:
        looks = [range_of(reader.read(int(number))) for number in numbers]
    deep = [value for value, _ in looks if value is not None]
    return FoundRange(len(numbers), len(deep), max(deep, default=0), any(floats for _, floats in looks))


def range_of(data: bytes) -> tuple[int | None, bool]:
    """Return the largest value of an image of 16 bits or floats, and whether it cannot be read without a range."""
    value = largest_value(data)
    return value, value is not None and lacks_range(data)


def rules_of(split: Split, channels: int) -> ImageRules:
    """Return how the bytes of a split's images become pixels for people: deep ones as bright as `warn` advises."""
    found = found_range(split)
    if channels == RGB and not found.floats:
        return ImageRules(range=found.white)
    return ImageRules(range=(white_of(found.largest) or FULL) if found.deep else None, channels=channels)


def white_for(largest: int, floats: bool) -> int | None:
    """Return the range that a run should set for pictures of this largest value: of floats always, else `white_of`.

    None where there is none: floats without a value above 0 are black in any range.
    """
    return white_of(largest) or (FULL if floats and largest > 0 else None)


def white_of(largest: int) -> int | None:
    """Return the white of as many bits as a largest value needs; None where that is the whole range of 16, or 0."""
    return None if largest <= 0 or 2 * largest > FULL else 2 ** int(largest).bit_length() - 1


def ranges_of(folder: Path, data: Manifest) -> dict[str, FoundRange]:
    """Return the range of every split that has deep pictures; none where some shards do not lie in the folder."""
    if not all((folder / shard.name).is_file() for split in data.splits.values() for shard in split.shards):
        return {}
    found = {name: found_range(split) for name, split in data.splits.items()}
    return {name: one for name, one in found.items() if one.deep}


def together(ranges: Iterable[FoundRange]) -> FoundRange:
    """Return the range of several splits: a run has one for all of its pictures."""
    looked, deep, largest, floats = zip(*ranges, (0, 0, 0, False), strict=True)
    return FoundRange(sum(looked), sum(deep), max(largest), any(floats))


def say_ranges(ranges: Mapping[str, FoundRange], white: int | None, console: Console) -> None:
    """Print the range of each split's deep pictures. `white`: that a run should set, None: it need not set any."""
    for name, (looked, deep, largest, floats) in ranges.items():
        kind = "16 bits or floating point" if floats else "16 bits"
        text = (
            f"{name}: {deep} of {looked} pictures that were looked at {'has' if deep == 1 else 'have'} {kind}, "
            f"with values up to {largest}"
        )
        if floats and largest <= 0:
            say(console, f"{text}: all of them would be black.")
        elif white is None:
            say(console, f"{text}.")
        elif floats:
            say(console, f"{text}. Floating point has no range of its own: set data.range={white} in the run.")
        else:
            bright = largest * 255 // FULL
            say(console, f"{text}: {bright} of 255 would be their brightest pixel. Set data.range={white} in the run.")
