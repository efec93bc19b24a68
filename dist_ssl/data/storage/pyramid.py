"""The pyramid: smaller copies (levels) of a data set's images, and the choice of the level a sample is read at.

    pyramid.json              for every level: its shorter side in px, its encoding (JPEG quality, chroma), its identity
    level-160/manifest.json   the level, a data set of its own with the same splits, shards and samples, in order

A level's columns hold the sides of the originals. So the boxes of a sample's crops are drawn in its original whichever
copy is read, and the level follows from the boxes alone: it is the same on every rank and known before any fetch.
Images that are no larger than a level are stored in it unchanged.
"""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dist_ssl.core.draws import Draws, Floats, Ints
from dist_ssl.data.images.image_rules import RULES, ImageRules
from dist_ssl.data.images.views import Crops, ViewCutter
from dist_ssl.data.storage import fields, manifest
from dist_ssl.data.storage.address import Address
from dist_ssl.data.storage.fetch import Fetcher
from dist_ssl.data.storage.manifest import Manifest, Split
from dist_ssl.data.storage.node_columns import NodeColumns
from dist_ssl.data.storage.samples import Numbers, blocks
from dist_ssl.errors import ConfigError, DataError
from dist_ssl.runtime import jsonl

FORMAT = 1
NAME = "pyramid.json"
MAX_UPSAMPLE = 1.25
"""Default bound on the enlargement of a crop. It is less than what a published recipe does at full size: at 224 px that
enlarges the smallest crops of a 500 x 375 image, a fifth of its area, by 1.33."""
LOOKED_AT = 512
"""Number of samples from which the levels that an epoch reads are predicted."""
FOLDER = "level-"
READ_BY = ("range", "alpha")
"""Rules of images that the pixels of a level depend on."""


def folder_of(side: int) -> str:
    """Return the name of a level's folder, within the folder of the originals. `side`: its shorter side, px."""
    return f"{FOLDER}{side}"


def check_sides(sides: Sequence[int], key: str) -> None:
    """Raise ConfigError unless these are ascending whole numbers of px from 1; `key`: the config key, for messages."""
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
    """Write pyramid.json: the complete levels that exist in the folder of these originals."""
    levels = {}
    for path in folder.glob(f"{FOLDER}*/{manifest.NAME}"):
        found = manifest.read(folder, inside=f"{path.parent.name}/")
        if found.copied.get("of") == originals.identity and path.parent.name == folder_of(found.copied["side"]):
            levels[found.copied["side"]] = {**found.copied, "identity": found.identity}
    content = {"format": FORMAT, "of": originals.identity, "levels": [levels[side] for side in sorted(levels)]}
    manifest.write_json(folder / NAME, content)


def read(where: Address, originals: Manifest, get: Fetcher) -> dict[int, dict[str, Any]]:
    """Return the entry of pyramid.json for each level, by its side in px; empty where a local folder has no such file.

    Raises DataError where the file is damaged or belongs to other originals, or a server does not have it.
    """
    path = where / NAME
    try:
        text = get.read(path, fields.MOST_BYTES)
    except FileNotFoundError:
        return {}
    try:
        content = jsonl.parsed(text, fields.MOST_VALUES)
        if content["format"] != FORMAT:
            raise DataError(f"{path} has format {content['format']}: this version reads {FORMAT}.", _remade(where))
        of, levels = fields.digest(content, "of", "xxh3"), _levels(content["levels"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is damaged: {error!r}.", _remade(where)) from error
    if levels and of != originals.identity:
        raise DataError(f"{path} is of other originals than {where / manifest.NAME}.", _remade(where))
    return levels


def _levels(entries: object) -> dict[int, dict[str, Any]]:
    """Return the entries by the side of their level, px. Raises ValueError, KeyError where one is of no level."""
    if not isinstance(entries, list):
        raise ValueError(f"levels is {entries!r:.60}, which is no list")
    levels: dict[int, dict[str, Any]] = {}
    for entry in entries:
        found = fields.level(entry)
        fields.digest(found, "identity", "xxh3")
        if found["side"] in levels:
            raise ValueError(f"the level of {found['side']} px is there twice")
        levels[found["side"]] = found
    return levels


def attach(
    originals: Manifest,
    where: Address,
    sides: Sequence[int],
    get: Fetcher,
    rules: ImageRules | None = None,
    node: NodeColumns | None = None,
) -> Manifest:
    """Return the data set with these levels attached and an identity that covers them all.

    `rules`: those of a run, by which the levels must have been made; `node`: see `manifest.read`. Raises DataError.
    """
    try:
        known = read(where, originals, get)
    except DataError as error:
        if where.local:
            raise
        raise DataError(f"The levels of data.pyramid are not available: {error.problem}", error.remedy) from error
    lacking = [side for side in sides if side not in known]
    if lacking:
        there = f"it has {', '.join(map(str, sorted(known)))}" if known else "it has none"
        raise DataError(
            f"The data set in {where} has no level of {lacking[0]} px: {there}.",
            f"Make it: {_command(where, lacking, rules or RULES)}; or set data.pyramid.",
        )
    if rules:
        for side in sides:
            check_rules(known[side], rules, where)
    levels = [level(where, originals, side, str(known[side]["identity"]), get, node) for side in sides]
    identity = "+".join([originals.identity, *(found.identity for found in levels)])
    splits = {
        name: replace(split, levels=tuple(found.splits[name] for found in levels))
        for name, split in originals.splits.items()
        if len(split.samples)
    }
    return replace(originals, identity=identity, splits={**originals.splits, **splits})


def check_rules(made: Mapping[str, Any], rules: ImageRules, where: Address) -> None:
    """Raise DataError where a level was made of other pixels than a run would read. `made`: its entry."""
    found = {"range": made.get("range"), "alpha": made.get("alpha", "drop")}  # as levels were made without these keys
    for key, value in found.items():
        own = getattr(rules, key)
        if value != own:
            raise DataError(
                f"The level of {made['side']} px in {where} was made with {key}={_text(value)}, and the run has "
                f"data.{key}={_text(own)}.",
                f"Set data.{key}={_text(value)}, or remove the level and make it again: "
                f"{_command(where, [made['side']], rules)}",
            )


def _command(where: Address, sides: Sequence[int], rules: ImageRules) -> str:
    """Return the command that makes levels of the pixels that a run with these rules reads."""
    given = [f"{key}={_text(getattr(rules, key))}" for key in READ_BY if getattr(rules, key) != getattr(RULES, key)]
    return " ".join(
        ["python shards/make.py", f"out={shlex.quote(str(where))}", f"pyramid=[{','.join(map(str, sides))}]", *given]
    )


def _text(value: float | str | None) -> str:
    """Return a value as on a command line."""
    if isinstance(value, str):
        return value
    return "null" if value is None else repr(int(value) if value == int(value) else value)


def level(
    where: Address, originals: Manifest, side: int, identity: str, get: Fetcher, node: NodeColumns | None = None
) -> Manifest:
    """Return one level. Raises DataError where it has another identity or other samples than the originals."""
    found = manifest.read(where, get, inside=f"{folder_of(side)}/", node=node)
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
    """Return whether a level has the samples of its originals, shard for shard."""
    return (
        own.samples.widths is not None
        and np.array_equal(own.shard_sizes, split.shard_sizes)
        and own.samples.has_keys_of(split.samples)
    )


def _remade(where: Address) -> str:
    return f"Remove {NAME} and the level's folder from {where} and make the level again."


@dataclass(frozen=True)
class Pyramid:
    """The choice of the level at which a sample is read: 0 is the original, 1 the smallest copy.

    `sides`: shorter sides of the levels 1, 2, ..., px; `widths`, `heights`: sides of the originals, [N], px. A crop may
    be enlarged by up to `max_upsample` (1: not at all) before a larger copy is read.
    """

    sides: tuple[int, ...]
    widths: Numbers
    heights: Numbers
    max_upsample: float

    @classmethod
    def of(cls, split: Split, max_upsample: float) -> "Pyramid | None":
        """Return the pyramid of a split; None where it has no levels."""
        if not split.levels:
            return None
        widths, heights = split.levels[0].samples.widths, split.levels[0].samples.heights
        assert widths is not None
        assert heights is not None
        return cls(tuple(level.side for level in split.levels), widths, heights, max_upsample)

    def crops(self, number: int, cutter: ViewCutter, numbers: Sequence[Floats]) -> Crops | None:
        """Return the crops of a sample; None where its original is unreadable, which makes the sample unreadable."""
        sides = int(self.widths[number]), int(self.heights[number])
        return cutter.crops(sides, numbers) if 0 < sides[0] * sides[1] <= cutter.rules.max_pixels else None

    def level(self, crops: Crops | None) -> int:
        """Return the smallest level that is as large as the original or enlarges no crop by more than `max_upsample`.

        0, the original, where there is none, and for None.
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

    def expected(self, cutter: ViewCutter, draws: Draws) -> set[int]:
        """Return the levels at which more than a few samples of an epoch are read, from a subset of the samples."""
        count = sum(len(own) for own in self._known(cutter.rules.max_pixels))
        places, before = np.unique(np.linspace(0, max(0, count - 1), LOOKED_AT).astype(np.int64))[:count], 0
        some = [np.empty(0, dtype=np.int64)]
        for own in self._known(cutter.rules.max_pixels):
            some.append(own[places[(places >= before) & (places < before + len(own))] - before])
            before += len(own)
        return set(self.levels(cutter, draws, np.concatenate(some)).values())

    def _known(self, most: int) -> Iterator[Ints]:
        """Yield the numbers of the samples whose original has 1 to `most` pixels, block by block."""
        first = 0
        for widths, heights in zip(blocks(self.widths), blocks(self.heights), strict=True):
            pixels = widths * heights
            yield first + np.flatnonzero((pixels > 0) & (pixels <= most))
            first += len(pixels)

    def levels(
        self, cutter: ViewCutter, draws: Draws, ids: Ints, views: int | None = None, draw_ids: Ints | None = None
    ) -> dict[int, int]:
        """Return the level at which each of these samples, [B], is read, by its number.

        `views`: number of views that are cut, the first ones; None: all. `draw_ids`: numbers that key the random
        numbers, [B]; None: those of the samples.
        """
        drawn = cutter.draw(draws, ids if draw_ids is None else draw_ids)[:views]
        rows = enumerate(ids.tolist())
        return {number: self.level(self.crops(number, cutter, [n[row] for n in drawn])) for row, number in rows}
