"""A tar of a data set as its manifest lists it, with what is unusual about it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dist_ssl.data.images.file_formats import ARRAYS
from dist_ssl.data.storage import manifest
from dist_ssl.data.storage.samples import Row, Samples, columns
from shards.archive import Index
from shards.arrays_beside_pictures import count_as_images
from shards.dotted_names import DottedNames


@dataclass(frozen=True)
class IndexedTar:
    """One tar as the manifest lists it. `names`: those that its labels number; for the others see `archive.Index`."""

    shard: manifest.Shard
    samples: Samples
    names: tuple[str, ...]
    several: int
    bare: int
    hidden: int
    dotted: DottedNames
    others: Counter[str]
    ended: bool
    bands: bool
    arrays: tuple[int, ...]

    @classmethod
    def of(cls, name: str, own: Index) -> "IndexedTar":
        """Return a tar of this name as the manifest lists it."""
        shard = manifest.Shard(name, len(own.rows), own.bytes, own.sha256)
        counts, marks = (own.several, own.bare, own.hidden), (own.ended, own.bands)
        samples = columns(own.rows)
        return cls(shard, samples, own.names, *counts, own.dotted, own.others, *marks, arrays=own.arrays)

    @property
    def labels(self) -> set[str]:
        """The names of the labels that its samples have."""
        return {self.names[number] for number in np.unique(self.samples.labels).tolist() if number >= 0}

    def numbered(self, numbers: Mapping[str, int]) -> "IndexedTar":
        """Return the same with labels that are the numbers of their names."""
        own = (numbers.get(name, -1) for name in self.names)
        table = np.array([*own, -1], dtype=np.int64)  # the last one is that of -1
        return replace(self, samples=replace(self.samples, labels=table[self.samples.labels]))

    def without_arrays(self) -> "IndexedTar":
        """Return the same where arrays are no images: samples that have nothing else are left out, and counted."""
        if not self.arrays:
            return self
        own, kept = self.samples, np.delete(np.arange(len(self.samples)), self.arrays).tolist()
        rows: list[Row] = [(own.key(n), int(own.offsets[n]), int(own.sizes[n]), int(own.labels[n])) for n in kept]
        shard, others = replace(self.shard, samples=len(rows)), self.others + Counter({ARRAYS: len(self.arrays)})
        bare = self.bare + len(self.arrays)
        return replace(self, shard=shard, samples=columns(rows), others=others, bare=bare, arrays=())


Tars = Mapping[str, Sequence[IndexedTar]]
"""Indexed tars by the name of their split."""


def with_images(tars: Sequence[IndexedTar], channels: int | None) -> list[IndexedTar]:
    """Return the tars, without the arrays where these are no images; all tars together decide that."""
    arrays = sum(len(tar.arrays) for tar in tars)
    pictures = sum(len(tar.samples) for tar in tars) - arrays
    return list(tars) if count_as_images(arrays, pictures, channels) else [tar.without_arrays() for tar in tars]
