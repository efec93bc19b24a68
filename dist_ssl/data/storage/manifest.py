"""The manifest of a data set: lists the WebDataset tars of a folder and the position of every sample in them.

    manifest.json                 format; per split its shards: name, samples, bytes, sha256; names of classes; channels
    train.samples.safetensors     columns over the split's samples in shard order: offset and size of the image's bytes
                                  within its tar, label (-1: none), and all keys concatenated, with the end of each

A sample's number is its index in these columns. The hash of manifest.json, which contains the hash of the columns, is
the data's identity. Smaller copies of the images are data sets of the same form, in subfolders (pyramid.py).
"""

import json
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

from dist_ssl.config.bounds import MOST_CHANNELS, RGB
from dist_ssl.data.storage import fields
from dist_ssl.data.storage.address import Address
from dist_ssl.data.storage.fetch import Fetcher, unreadable
from dist_ssl.data.storage.node_columns import NodeColumns
from dist_ssl.data.storage.samples import Samples
from dist_ssl.errors import DataError, nearest
from dist_ssl.runtime import jsonl
from dist_ssl.runtime.files import write_atomically

FORMAT = 1
NAME = "manifest.json"


@dataclass(frozen=True)
class Shard:
    """One tar: its file name, number of samples, size in bytes and sha256."""

    name: str
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Split:
    """One part of a data set (train, val): its shards in order and its samples.

    `levels`: smaller copies with the same shards and samples in the same order, the smallest first; `side`: shorter
    side of the images in px if this is such a copy, otherwise 0.
    """

    folder: Address
    name: str
    shards: tuple[Shard, ...]
    samples: Samples
    side: int = 0
    levels: "tuple[Split, ...]" = ()

    @property
    def shard_sizes(self) -> npt.NDArray[np.int64]:
        """Return the number of samples per shard, [shards]."""
        return np.array([shard.samples for shard in self.shards], dtype=np.int64)

    @cached_property
    def labelled(self) -> bool:
        """Return whether every sample has a label."""
        return bool(self.samples.labels.min(initial=0) >= 0)

    @property
    def runs(self) -> "list[tuple[Address, range]]":
        """Return the folders of the shards, and which shards each of them has: here one folder for all."""
        return [(self.folder, range(len(self.shards)))]

    def folder_of(self, shard: int) -> Address:
        """Return the folder of a shard."""
        return self.folder

    def address(self, shard: int) -> Address:
        """Return the address of a shard."""
        return self.folder_of(shard) / self.shards[shard].name

    def path(self, shard: int) -> Path:
        """Return the path of a shard in a local folder."""
        return self.address(shard).path

    def shard_of(self, number: int) -> int:
        """Return the number of the shard that holds a sample."""
        return int(np.searchsorted(self.ends, number, side="right"))

    @cached_property
    def ends(self) -> npt.NDArray[np.int64]:
        """Return the number behind each shard's last sample, [shards]: the cumulative sum of `shard_sizes`."""
        return np.cumsum(self.shard_sizes)

    def check(self, shards: range | None = None) -> None:
        """Raise DataError where a shard (one of these) of a local folder is missing or has another size.

        Queries the file system for every shard, so call it only once, when a run is submitted.
        """
        for level in self.levels:
            level.check(shards)
        for number in range(len(self.shards)) if shards is None else shards:
            check_shard(self.path(number), self.shards[number])


@dataclass(frozen=True)
class Manifest:
    """A data set: its identity, its splits, and the names of its classes in the order of their labels, if known.

    `copied`: parameters of its creation if it is a smaller copy of another data set, otherwise empty. `companion`: in a
    mixture, the training split whose labels the other splits share; otherwise None. `channels`: of every image.
    """

    identity: str
    splits: Mapping[str, Split]
    classes: tuple[str, ...] = ()
    copied: Mapping[str, Any] = field(default_factory=dict)
    companion: Split | None = None
    channels: int = RGB

    def split(self, name: str) -> Split:
        """Return a split. Raises DataError where it does not exist or is empty."""
        if name not in self.splits:
            raise DataError(f"The data set has no split '{name}'.", nearest(name, self.splits))
        split = self.splits[name]
        if not len(split.samples):
            raise DataError(f"Split '{name}' in {split.folder} has no samples.", "Make its shards again.")
        return split


def check_shard(path: Path, shard: Shard) -> None:
    """Raise DataError where a tar is missing or not accessible, or its size differs from the manifest's."""
    try:
        size = path.stat().st_size if path.is_file() else None
    except OSError as error:
        raise unreadable(path, error) from error
    if size is None:
        raise DataError(f"Shard {path} is missing; the manifest lists it.", "Put it back, or make the shards again.")
    if size != shard.bytes:
        raise size_differs(path, size, shard)


def size_differs(where: object, size: object, shard: Shard) -> DataError:
    """Return the error for a tar whose size differs from the manifest's."""
    return DataError(f"Shard {where} has {size} bytes; the manifest says {shard.bytes}.", fields.CHANGED)


def write(
    folder: Path,
    splits: Mapping[str, tuple[list[Shard], Samples]],
    classes: Sequence[str] = (),
    copied: Mapping[str, Any] | None = None,
    channels: int = RGB,
) -> None:
    """Write the manifest of a data set whose tars are in the folder; manifest.json is written last. See `Manifest`."""
    content: dict[str, Any] = {"format": FORMAT, "splits": {}}
    content |= {"classes": list(classes)} if classes else {}
    content |= {"copied": dict(copied)} if copied else {}
    content |= {"channels": channels} if channels != RGB else {}
    for name, (shards, samples) in splits.items():
        _check_written(folder, name, samples)
        file = f"{name}.samples.safetensors"
        data = safetensors.numpy.save(samples.columns)
        write_atomically(folder / file, data, sync=True)
        hashed = xxhash.xxh3_128_hexdigest(data)
        content["splits"][name] = {"shards": [asdict(s) for s in shards], "samples": file, "samples_xxh3": hashed}
    write_json(folder / NAME, content)


def _check_written(folder: Path, name: str, samples: Samples) -> None:
    """Raise DataError where a split has a name or keys that `read` refuses."""
    try:
        fields.split_name(name)
        fields.check_lengths(np.asarray(samples.sizes), samples.key_ends)
    except ValueError as error:
        raise DataError(f"{folder} cannot hold this data: {error}.", "Change that in the source.") from error


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file atomically; it is on disk before it takes its name."""
    write_atomically(path, json.dumps(content, indent=1) + "\n", sync=True)


def read(
    folder: Path | Address, fetcher: Fetcher | None = None, inside: str = "", node: NodeColumns | None = None
) -> Manifest:
    """Read a data set's manifest. Raises DataError where it is missing, damaged or does not match its columns.

    `inside`: subfolder of the data set, like `level-160/`; the names of its shards are then relative to `folder`.
    `node`: where the columns of large splits are kept for all processes of this node; None: in memory.
    """
    where = folder if isinstance(folder, Address) else Address(str(folder))
    path, get = where / f"{inside}{NAME}", fetcher or Fetcher()
    try:
        text = get.read(path, fields.MOST_BYTES)
    except FileNotFoundError as error:
        what = f"has no {inside}{NAME}" if where.path.is_dir() else "does not exist"
        raise DataError(
            f"The shard folder {folder} {what}.",
            "Make shards with `python shards/make.py source=... out=...`, or set data.path to a folder that has them.",
        ) from error
    try:
        content = jsonl.parsed(text, fields.MOST_VALUES)
        if content["format"] != FORMAT:
            raise DataError(
                f"{path} has format {content['format']}: this version reads {FORMAT}.", "Make the shards again."
            )
        splits = {
            fields.split_name(name): _split(where, name, entry, get, inside, node)
            for name, entry in content["splits"].items()
        }
        classes = fields.names(content, "classes")
        copied = fields.level(content["copied"]) if content.get("copied", {}) != {} else {}
        channels = fields.whole({"channels": RGB, **content}, "channels", 1, MOST_CHANNELS)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is damaged: {error!r}.", "Make the shards again.") from error
    return Manifest(xxhash.xxh3_128_hexdigest(text), splits, classes, copied, channels=channels)


def _split(
    folder: Address, name: str, entry: dict[str, Any], get: Fetcher, inside: str, node: NodeColumns | None
) -> Split:
    shards = tuple(_shard(shard, inside, folder) for shard in entry["shards"])
    file = folder / (inside + fields.place(entry, "samples"))
    hashed = fields.digest(entry, "samples_xxh3", "xxh3")
    if node and (found := node.samples(file, hashed, [(s.samples, s.bytes) for s in shards], get)):
        return Split(folder, name, shards, found)
    try:
        data = get.read(file, fields.most_column_bytes(sum(shard.samples for shard in shards)))
        samples = Samples(**safetensors.numpy.load(data))
    except (OSError, safetensors.SafetensorError, TypeError) as error:
        raise DataError(f"{file} cannot be read: {error}.", "Make the shards again.") from error
    if xxhash.xxh3_128_hexdigest(data) != hashed or len(samples) != sum(s.samples for s in shards):
        raise DataError(f"{file} does not fit {NAME} beside it.", "Make the shards again.")
    try:
        fields.check_columns(samples.columns, [s.samples for s in shards], [s.bytes for s in shards])
    except ValueError as error:
        raise DataError(f"{file} is damaged: {error}.", "Make the shards again.") from error
    return Split(folder, name, shards, samples)


def _shard(entry: Mapping[str, Any], inside: str, folder: Address) -> Shard:
    name = inside + fields.place(entry, "name", outside=not inside and folder.local)
    return Shard(
        name, fields.whole(entry, "samples"), fields.whole(entry, "bytes"), fields.digest(entry, "sha256", "sha256")
    )
