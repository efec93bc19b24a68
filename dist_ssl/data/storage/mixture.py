"""A mixture: several data sets whose training splits are read as one split, each with a share of the samples.

    data.path=[a,s3://bucket/b,c] data.weights=[2,1,1]

The samples of the mixture are those of all sources, numbered source by source in the order of `data.path`; so are the
shards. So a sample has a number of its own whatever its source, and everything that works by number (draws, ledger,
quarantine, memories) needs to know nothing of sources. Labels of different sources mean different classes: a mixture
has none. Held-out splits are those of the first source that has the one in `data.val`, and go with its training split.

The order is in data/order/mixed_order.py. A mixture's identity is a hash of the identities and weights of its sources.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
import xxhash

from dist_ssl.config.instantiate import SHOWN, fit
from dist_ssl.core.draws import Ints
from dist_ssl.data.images.image_rules import counted
from dist_ssl.data.storage.address import Address
from dist_ssl.data.storage.manifest import Manifest, Split
from dist_ssl.data.storage.samples import side_by_side
from dist_ssl.errors import ConfigError, DataError, nearest

MOST_WEIGHT = 1 << 40
"""Bound of the sum of the weights, as whole numbers."""
MOST_SOURCES = 100
MOST_SHOWN = 8
"""Items of a list that a message shows."""
EXAMPLE = "data.path=[data/a,data/b] data.weights=[3,1]"


@dataclass(frozen=True)
class Source:
    """One of the data sets of a mixture. `shards`, `samples`: numbers of those of its training split."""

    folder: Address
    shards: int
    samples: int
    weight: int


@dataclass(frozen=True)
class MixedSplit(Split):
    """The training split of a mixture: shards and samples of all sources, one source after the other."""

    sources: tuple[Source, ...] = ()

    @property
    def weights(self) -> list[int]:
        """Return the weight of each source."""
        return [source.weight for source in self.sources]

    @property
    def sizes_of_sources(self) -> list[Ints]:
        """Return the number of samples per shard, [shards] for each source."""
        return np.split(self.shard_sizes, np.cumsum([source.shards for source in self.sources])[:-1])

    @property
    def runs(self) -> list[tuple[Address, range]]:
        """See `Split`."""
        ends = self._ends.tolist()
        return [
            (source.folder, range(end - source.shards, end)) for source, end in zip(self.sources, ends, strict=True)
        ]

    @cached_property
    def _ends(self) -> Ints:
        """Return the number of shards up to the end of each source, [sources]."""
        return np.cumsum([source.shards for source in self.sources], dtype=np.int64)

    def source_of(self, number: int) -> int:
        """Return the number of the source, from 0, that a sample belongs to."""
        return int(np.searchsorted(np.cumsum([source.samples for source in self.sources]), number, side="right"))

    def folder_of(self, shard: int) -> Address:
        """See `Split`."""
        return self.sources[int(np.searchsorted(self._ends, shard, side="right"))].folder


def places(path: Any, weights: Any) -> list[Address]:
    """Return the addresses that data.path names, one for each source. Raises ConfigError, also for wrong weights."""
    if isinstance(path, str):
        if weights is not None:
            raise ConfigError(
                f"data.weights={_text(weights)} is not possible with a single data.path.",
                f"Leave it out, or name several places: {EXAMPLE}",
            )
        return [Address.parse(path)]
    if not isinstance(path, list | tuple):
        fit(path, str, "data.path")
    if not all(isinstance(one, str) for one in path):
        raise ConfigError(
            f"data.path={_text(_without_logins(path))} is not possible: every place is a text.",
            f"Write {EXAMPLE}; put a name that looks like a number in quotes.",
        )
    found = [Address.parse(one) for one in path[: MOST_SOURCES + 1]]
    if not 2 <= len(found) <= MOST_SOURCES:
        raise ConfigError(
            f"data.path={_text(list(map(str, found)))} is a list of {len(path)}.",
            f"Name from 2 to {MOST_SOURCES} places, or one without brackets.",
        )
    if twice := {str(one) for one in found if [str(other) for other in found].count(str(one)) > 1}:
        raise _twice(*sorted(twice)[:1] * 2)
    if weights is not None:
        whole_weights(weights, len(found))
    return found


def whole_weights(weights: Any, count: int) -> list[int]:
    """Return the smallest whole numbers in the ratio of `count` weights. Raises ConfigError where they are not that."""
    if not isinstance(weights, list | tuple) or len(weights) != count:
        raise ConfigError(
            f"data.weights={_text(weights)} is not possible: data.path names {count} places, each with a weight.",
            f"Write {EXAMPLE}, or leave it out: every sample is then used once in an epoch.",
        )
    for weight in weights:
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not number or not 0 < weight < MOST_WEIGHT:  # NaN too
            raise ConfigError(
                f"data.weights={_text(weights)} is not possible: {SHOWN.repr(weight)} is no number above 0.",
                "Leave out a place that is not to be read.",
            )
    exact = [Fraction(repr(weight)) for weight in weights]
    common = math.lcm(*(one.denominator for one in exact))
    whole = [int(one * common) for one in exact]
    whole = [one // math.gcd(*whole) for one in whole]
    if sum(whole) >= MOST_WEIGHT:
        raise ConfigError(
            f"data.weights={_text(weights)} is not possible: the shares have too many digits to be exact.",
            "Round them to six digits, say.",
        )
    return whole


def mix(found: Sequence[tuple[Address, Manifest]], weights: Any, train: str, val: str | None) -> Manifest:
    """Return the data set of several sources. `weights`: None for each source as often as it has samples.

    `train`, `val`: the splits that are trained on, and held out, as the config names them. Raises DataError.
    """
    parts = [_trained(where, manifest, train) for where, manifest in found]
    identities = [manifest.identity for _, manifest in found]
    for number, identity in enumerate(identities):
        if (first := identities.index(identity)) < number:
            raise _twice(str(found[first][0]), str(found[number][0]))
    check_channels(found)
    whole = [len(part.samples) for part in parts] if weights is None else whole_weights(weights, len(found))
    sources = tuple(
        Source(where, len(part.shards), len(part.samples), weight)
        for (where, _), part, weight in zip(found, parts, whole, strict=True)
    )
    union = _union(parts, sources)
    holding = (n for n, (_, manifest) in enumerate(found) if _holds(manifest, val))
    companion = next(holding, 0)
    others = {name: split for name, split in found[companion][1].splits.items() if name != train}
    identity = xxhash.xxh3_128_hexdigest(json.dumps([identities, whole]).encode())
    return Manifest(
        identity,
        {**others, train: union},
        found[companion][1].classes,
        companion=parts[companion],
        channels=found[0][1].channels,
    )


def check_channels(found: Sequence[tuple[Address, Manifest]]) -> None:
    """Raise DataError where the images of two sources have different numbers of channels."""
    first, own = found[0]
    for where, other in found[1:]:
        if other.channels != own.channels:
            raise DataError(
                f"The images in {first} have {counted(own.channels)}, those in {where} {other.channels}.",
                "Mix data sets of as many channels; shards/make.py with channels=1 or 4 reads pictures so.",
            )


def _holds(manifest: Manifest, name: str | None) -> bool:
    """Return whether a data set has samples in a split."""
    return name is not None and name in manifest.splits and len(manifest.splits[name].samples) > 0


def _trained(where: Address, manifest: Manifest, name: str) -> Split:
    if name not in manifest.splits:
        raise DataError(f"The data set in {where} has no split '{name}'.", nearest(name, manifest.splits))
    return manifest.split(name)


def _union(parts: Sequence[Split], sources: tuple[Source, ...]) -> MixedSplit:
    """Return the splits as one, with the levels that all of them have."""
    samples = side_by_side([part.samples for part in parts])
    shards = tuple(shard for part in parts for shard in part.shards)
    levels = tuple(_union(same, sources) for same in zip(*(part.levels for part in parts), strict=True))
    return MixedSplit(parts[0].folder, parts[0].name, shards, samples, parts[0].side, levels, sources)


def _twice(first: str, second: str) -> ConfigError:
    names = first if first == second else f"{first} and {second}"
    return ConfigError(f"data.path names the same data twice: {names}.", "Name it once, with a larger weight.")


def _without_logins(path: Sequence[Any]) -> list[Any]:
    """Return the first places of a list, addresses without their credentials. Raises ConfigError."""
    return [str(Address.parse(one)) if isinstance(one, str) else one for one in path[:MOST_SHOWN]]


def _text(value: Any) -> str:
    """Return a value as on a command line, shortened where it is long."""
    shown = (
        f"[{','.join(map(SHOWN.repr, value[:MOST_SHOWN]))}]" if isinstance(value, list | tuple) else SHOWN.repr(value)
    )
    return shown.replace("'", "")
