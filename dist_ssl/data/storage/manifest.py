"""What shards exist: a folder of WebDataset tars and the manifest that says where every sample lies in them.

    manifest.json                 format; per split its shards: name, samples, bytes, sha256; names of classes, if known
    train.samples.safetensors     columns over the split's samples in shard order: offset and size of the image's bytes
                                  within its tar, label (-1: none), and the keys, joined, with the end of each

A sample's number is its place in these columns. The hash of manifest.json, which holds the hash of the columns, is
the data's identity. Smaller copies of the images are data sets like this one, in folders within (pyramid.py).
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy
import xxhash

from dist_ssl.data.storage.address import Address
from dist_ssl.data.storage.fetch import Fetcher, unreadable
from dist_ssl.errors import DataError, nearest

FORMAT = 1
NAME = "manifest.json"
Row = tuple[str, *tuple[int, ...]]
"""Of one sample: its key, and its numbers in the order of `columns`."""


@dataclass(frozen=True)
class Shard:
    """One tar: its file name, samples, size in bytes and sha256."""

    name: str
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Samples:
    """Columns over the samples of a split, int64 each: where the image's bytes lie, and its label (-1: none).

    `widths`, `heights`: where these are smaller copies, of the whole originals, upright, px; 0 where one of them cannot
    be decoded.
    """

    offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    keys: npt.NDArray[np.uint8]
    """All keys, joined, UTF-8."""
    key_ends: npt.NDArray[np.int64]
    widths: npt.NDArray[np.int64] | None = None
    heights: npt.NDArray[np.int64] | None = None

    @property
    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """All columns that there are, by name."""
        return {name: values for name, values in vars(self).items() if values is not None}

    def __len__(self) -> int:
        return len(self.offsets)

    def key(self, number: int) -> str:
        """The key of one sample."""
        start = int(self.key_ends[number - 1]) if number else 0
        return bytes(self.keys[start : int(self.key_ends[number])]).decode()


def columns(rows: Sequence[Row]) -> Samples:
    """Samples of rows (key, offset, size, label), of copies with (..., width, height) of the original."""
    encoded = [row[0].encode() for row in rows]
    numbers = np.array([row[1:] for row in rows], dtype=np.int64).reshape(len(rows), -1 if rows else 3)
    names = ("offsets", "sizes", "labels", "widths", "heights")
    return Samples(
        **{name: column.copy() for name, column in zip(names, numbers.T, strict=False)},
        keys=np.frombuffer(b"".join(encoded), dtype=np.uint8),
        key_ends=np.cumsum([len(key) for key in encoded], dtype=np.int64),
    )


def joined(parts: Sequence[Samples]) -> Samples:
    """The samples of several runs of samples, one after the other."""
    parts = [part for part in parts if len(part)]
    if not parts:
        return columns([])
    starts = np.cumsum([0, *(len(part.keys) for part in parts[:-1])])
    ends = [part.key_ends + start for part, start in zip(parts, starts, strict=True)]
    same = {name: np.concatenate([part.columns[name] for part in parts]) for name in parts[0].columns}
    return Samples(**{**same, "key_ends": np.concatenate(ends)})


@dataclass(frozen=True)
class Split:
    """One part of a data set (train, val): its shards in order and its samples.

    `levels`: smaller copies of it, shard for shard and sample for sample, the smallest first; `side`: if this is one,
    the shorter side of its images, px.
    """

    folder: Address
    name: str
    shards: tuple[Shard, ...]
    samples: Samples
    side: int = 0
    levels: "tuple[Split, ...]" = ()

    @property
    def shard_sizes(self) -> npt.NDArray[np.int64]:
        """Samples per shard."""
        return np.array([shard.samples for shard in self.shards], dtype=np.int64)

    @cached_property
    def labelled(self) -> bool:
        """Every sample has a label."""
        return bool((self.samples.labels >= 0).all())

    def address(self, shard: int) -> Address:
        """Where a shard lies."""
        return self.folder / self.shards[shard].name

    def path(self, shard: int) -> Path:
        """Where a shard of a folder on this machine lies."""
        return self.address(shard).path

    def shard_of(self, number: int) -> int:
        """The number of the shard in which a sample lies."""
        return int(np.searchsorted(self.ends, number, side="right"))

    @cached_property
    def ends(self) -> npt.NDArray[np.int64]:
        """The number behind the last sample of each shard."""
        return np.cumsum(self.shard_sizes)

    def check(self) -> None:
        """Raise DataError where a shard on this machine is missing or has another size than the manifest says.

        Asks the file system about each of them: once, where a run is submitted, is often enough.
        """
        for level in self.levels:
            level.check()
        for number, shard in enumerate(self.shards):
            check_shard(self.path(number), shard)


@dataclass(frozen=True)
class Manifest:
    """A data set: its identity, its splits, and the names of its classes in the order of their labels, if known.

    `copied`: how it was made, where it is a smaller copy of another one.
    """

    identity: str
    splits: Mapping[str, Split]
    classes: tuple[str, ...] = ()
    copied: Mapping[str, Any] = field(default_factory=dict)

    def split(self, name: str) -> Split:
        """One split. Raises DataError where there is none, or it is empty."""
        if name not in self.splits:
            raise DataError(f"The data set has no split '{name}'.", nearest(name, self.splits))
        split = self.splits[name]
        if not len(split.samples):
            raise DataError(f"Split '{name}' in {split.folder} has no samples.", "Make its shards again.")
        return split


def check_shard(path: Path, shard: Shard) -> None:
    """Raise DataError where a tar is missing, may not be looked at, or has another size than the manifest says."""
    try:
        size = path.stat().st_size if path.is_file() else None
    except OSError as error:
        raise unreadable(path, error) from error
    if size is None:
        raise DataError(f"Shard {path} is missing; the manifest lists it.", "Put it back, or make the shards again.")
    if size != shard.bytes:
        raise size_differs(path, size, shard)


def size_differs(where: object, size: object, shard: Shard) -> DataError:
    """For a tar whose size is not the manifest's."""
    return DataError(
        f"Shard {where} has {size} bytes; the manifest says {shard.bytes}.",
        "The tar has changed since it was indexed: put the old one back, or make the shards again.",
    )


def write(
    folder: Path,
    splits: Mapping[str, tuple[list[Shard], Samples]],
    classes: Sequence[str] = (),
    copied: Mapping[str, Any] | None = None,
) -> None:
    """Write the manifest of a data set whose tars lie in the folder; manifest.json comes last. See `Manifest`."""
    content: dict[str, Any] = {"format": FORMAT, "splits": {}}
    content |= {"classes": list(classes)} if classes else {}
    content |= {"copied": dict(copied)} if copied else {}
    for name, (shards, samples) in splits.items():
        file = f"{name}.samples.safetensors"
        data = safetensors.numpy.save(samples.columns)
        _write_lasting(folder / file, data)
        hashed = xxhash.xxh3_128_hexdigest(data)
        content["splits"][name] = {"shards": [asdict(s) for s in shards], "samples": file, "samples_xxh3": hashed}
    write_json(folder / NAME, content)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file that is whole or not there."""
    part = path.with_name(f".{path.name}")
    _write_lasting(part, (json.dumps(content, indent=1) + "\n").encode())
    part.replace(path)


def _write_lasting(path: Path, data: bytes) -> None:
    """Write a file and have it on disk: a machine may lose its power at once."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def read(folder: Path | Address, fetcher: Fetcher | None = None, inside: str = "") -> Manifest:
    """Read a data set's manifest. Raises DataError where there is none or it does not fit.

    `inside`: a folder within (`level-160/`), for the data set that lies there; its shards are named from `folder`.
    """
    where = folder if isinstance(folder, Address) else Address(str(folder))
    path, get = where / f"{inside}{NAME}", fetcher or Fetcher()
    try:
        text = get.read(path)
    except FileNotFoundError as error:
        what = f"has no {inside}{NAME}" if where.path.is_dir() else "does not exist"
        raise DataError(
            f"The shard folder {folder} {what}.",
            "Make shards with `python shards/make.py source=... out=...`, or set data.path to a folder that has them.",
        ) from error
    try:
        content = json.loads(text)
        if content["format"] != FORMAT:
            raise DataError(
                f"{path} has format {content['format']}: this version reads {FORMAT}.", "Make the shards again."
            )
        splits = {name: _split(where, name, entry, get, inside) for name, entry in content["splits"].items()}
        classes = tuple(str(name) for name in content.get("classes", ()))
        copied = dict(content.get("copied", {}))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is damaged: {error!r}.", "Make the shards again.") from error
    return Manifest(xxhash.xxh3_128_hexdigest(text), splits, classes, copied)


def _split(folder: Address, name: str, entry: dict[str, Any], get: Fetcher, inside: str) -> Split:
    shards = tuple(Shard(**{**shard, "name": inside + shard["name"]}) for shard in entry["shards"])
    file = folder / (inside + entry["samples"])
    try:
        data = get.read(file)
        samples = Samples(**safetensors.numpy.load(data))
    except (OSError, safetensors.SafetensorError) as error:
        raise DataError(f"{file} cannot be read: {error}.", "Make the shards again.") from error
    if xxhash.xxh3_128_hexdigest(data) != entry["samples_xxh3"] or len(samples) != sum(s.samples for s in shards):
        raise DataError(f"{file} does not fit {NAME} beside it.", "Make the shards again.")
    return Split(folder, name, shards, samples)
