"""Smaller copies of a data set's images, and which of them the views of a sample are cut from.

    pyramid.json              of every level: its shorter side in px, what it loses (JPEG quality, chroma), its identity
    level-160/manifest.json   the level, a data set of its own: the same splits, shard for shard, sample for sample

A level's columns hold the sides of the originals. So the boxes of a sample's crops are drawn in its original, whichever
copy is read, and which one that is follows from the boxes alone: the same on every rank, before anything is fetched.
Images that are no larger than a level stand in it as they are.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from dist_ssl.core.draws import Draws, Floats
from dist_ssl.data.images.views import Crops
from dist_ssl.data.storage import manifest
from dist_ssl.data.storage.address import Address
from dist_ssl.data.storage.fetch import Fetcher
from dist_ssl.data.storage.manifest import Manifest, Split
from dist_ssl.errors import ConfigError, DataError

FORMAT = 1
NAME = "pyramid.json"
MAX_UPSAMPLE = 1.25
"""Less than what a published recipe does at full size: at 224 px it enlarges the smallest crops of a 500 x 375 image, a
fifth of it, by 1.33."""
LOOKED_AT = 512
"""Samples from which it is told which levels an epoch reads."""
FOLDER = "level-"
Ints = npt.NDArray[np.int64]


def folder_of(side: int) -> str:
    """Where the level of a side lies within the folder of the originals."""
    return f"{FOLDER}{side}"


def check_sides(sides: Sequence[int], key: str) -> None:
    """Raise ConfigError where these cannot be the sides of levels; `key` is what bears them."""
    text = f"{key}=[{','.join(map(str, sides))}]"
    if not sides:
        raise ConfigError(f"{text} names no level.", f"Write {key}=[160,256], say, or leave it out.")
    for side in sides:
        if isinstance(side, bool) or not isinstance(side, int) or side < 1:
            raise ConfigError(
                f"{text} is not possible: {side} is no side of an image, a whole number of px.",
                f"Write {key}=[160,256], say.",
            )
    right = sorted(set(sides))
    if list(sides) != right:
        raise ConfigError(
            f"{text} is not possible: levels are named once each, the smallest first.",
            f"Write {key}=[{','.join(map(str, right))}].",
        )


def write(folder: Path, originals: Manifest) -> None:
    """Note which whole levels lie in the folder of these originals."""
    levels = {}
    for path in folder.glob(f"{FOLDER}*/{manifest.NAME}"):
        found = manifest.read(folder, inside=f"{path.parent.name}/")
        if found.copied.get("of") == originals.identity and path.parent.name == folder_of(found.copied["side"]):
            levels[found.copied["side"]] = {**found.copied, "identity": found.identity}
    content = {"format": FORMAT, "of": originals.identity, "levels": [levels[side] for side in sorted(levels)]}
    manifest.write_json(folder / NAME, content)


def read(where: Address, originals: Manifest, get: Fetcher) -> dict[int, dict[str, Any]]:
    """How each level of these originals was made, by its side. Raises DataError where that does not fit."""
    path = where / NAME
    try:
        text = get.read(path)
    except FileNotFoundError:
        return {}
    try:
        content = json.loads(text)
        if content["format"] != FORMAT:
            raise DataError(f"{path} has format {content['format']}: this version reads {FORMAT}.", _remade(where))
        levels = {int(level["side"]): dict(level) for level in content["levels"]}
        identities = [str(level["identity"]) for level in levels.values()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is damaged: {error!r}.", _remade(where)) from error
    if identities and content["of"] != originals.identity:
        raise DataError(f"{path} is of other originals than {where / manifest.NAME}.", _remade(where))
    return levels


def attach(originals: Manifest, where: Address, sides: Sequence[int], get: Fetcher) -> Manifest:
    """The data set with these levels, its identity that of all of them together. Raises DataError."""
    try:
        known = read(where, originals, get)
    except DataError as error:
        if where.local:
            raise
        raise DataError(f"The levels of data.pyramid are not to be had: {error.problem}", error.remedy) from error
    lacking = [side for side in sides if side not in known]
    if lacking:
        there = f"it has {', '.join(map(str, sorted(known)))}" if known else "it has none"
        raise DataError(
            f"The data set in {where} has no level of {lacking[0]} px: {there}.",
            f"Make it: python shards/make.py out={where} pyramid=[{','.join(map(str, lacking))}]; or set data.pyramid.",
        )
    levels = [level(where, originals, side, str(known[side]["identity"]), get) for side in sides]
    identity = "+".join([originals.identity, *(found.identity for found in levels)])
    splits = {
        name: replace(split, levels=tuple(found.splits[name] for found in levels))
        for name, split in originals.splits.items()
        if len(split.samples)
    }
    return replace(originals, identity=identity, splits={**originals.splits, **splits})


def level(where: Address, originals: Manifest, side: int, identity: str, get: Fetcher) -> Manifest:
    """One level, known to be of these originals and of this identity. Raises DataError."""
    found = manifest.read(where, get, inside=f"{folder_of(side)}/")
    if found.identity != identity:
        raise DataError(f"{where / folder_of(side)} is not the level that {NAME} beside it lists.", _remade(where))
    splits = {}
    for name, split in originals.splits.items():
        if not len(split.samples):
            continue
        own = found.splits.get(name)
        if own is None or not _corresponds(own, split):
            raise DataError(f"The level of {side} px in {where} has other samples than the originals.", _remade(where))
        samples = replace(
            own.samples, keys=split.samples.keys, key_ends=split.samples.key_ends, labels=split.samples.labels
        )
        splits[name] = replace(own, samples=samples, side=side)
    return replace(found, splits=splits)


def _corresponds(own: Split, split: Split) -> bool:
    """Whether a level has the samples of its originals, shard for shard."""
    return (
        own.samples.widths is not None
        and np.array_equal(own.shard_sizes, split.shard_sizes)
        and np.array_equal(own.samples.key_ends, split.samples.key_ends)
        and np.array_equal(own.samples.keys, split.samples.keys)
    )


def _remade(where: Address) -> str:
    return f"Remove {NAME} and the level's folder from {where} and make the level again."


class Cropping(Protocol):
    """Draws the crops of images and says where they lie in one of known sides; as `Cutter`."""

    max_pixels: int

    def draw(self, draws: Draws, ids: Ints) -> list[Floats]:
        """Random numbers per view, [B, n] each."""
        ...

    def crops(self, sides: tuple[int, int], draws: Sequence[Floats]) -> Crops:
        """What the numbers mean for an image of these sides."""
        ...


@dataclass(frozen=True)
class Pyramid:
    """Chooses the level at which a sample is read: 0 is the original, 1 the smallest. `sides`: of levels 1, 2, ..., px.

    A crop is enlarged by up to `max_upsample` (1: not at all) rather than cut from the next larger copy.
    """

    sides: tuple[int, ...]
    widths: Ints
    heights: Ints
    max_upsample: float

    @classmethod
    def of(cls, split: Split, max_upsample: float) -> "Pyramid | None":
        """The pyramid of a split; None where it has no levels."""
        if not split.levels:
            return None
        widths, heights = split.levels[0].samples.widths, split.levels[0].samples.heights
        assert widths is not None
        assert heights is not None
        return cls(tuple(level.side for level in split.levels), widths, heights, max_upsample)

    def crops(self, number: int, cutter: Cropping, numbers: Sequence[Floats]) -> Crops | None:
        """What is cut from a sample; None where its original is unreadable, and so is the sample."""
        sides = int(self.widths[number]), int(self.heights[number])
        return cutter.crops(sides, numbers) if 0 < sides[0] * sides[1] <= cutter.max_pixels else None

    def level(self, crops: Crops | None) -> int:
        """The smallest level at which no crop is enlarged by more than may be, or that is no smaller than the original.

        The original where there is none.
        """
        if crops is None:
            return 0
        original = min(crops.width, crops.height)
        good = (
            place
            for place, side in enumerate(self.sides, 1)
            if side >= original or crops.enlarged(side) <= self.max_upsample
        )
        return next(good, 0)

    def expected(self, cutter: Cropping, draws: Draws) -> set[int]:
        """The levels at which more than a few samples of an epoch are read."""
        pixels = self.widths * self.heights
        known = np.flatnonzero((pixels > 0) & (pixels <= cutter.max_pixels))
        some = known[np.unique(np.linspace(0, max(0, len(known) - 1), LOOKED_AT).astype(np.int64))[: len(known)]]
        return set(self.levels(cutter, draws, some).values())

    def levels(self, cutter: Cropping, draws: Draws, ids: Ints) -> dict[int, int]:
        """The level at which each of these samples, [B], is read, by its number."""
        drawn, rows = cutter.draw(draws, ids), enumerate(ids.tolist())
        return {number: self.level(self.crops(number, cutter, [n[row] for n in drawn])) for row, number in rows}
