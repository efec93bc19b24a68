"""Indexes of tars on a web server or in an object store: each is streamed and hashed, and nothing of it is kept.

A transfer that breaks off goes on at the byte that it had reached. Each finished tar has a record in `OUT.part`, so the
same command continues with the next one after a kill; a tar whose size has changed is read again.
"""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import braceexpand
from rich.console import Console
from rich.progress import Progress, TaskID

from dist_ssl.config.command import say
from dist_ssl.config.long_work import LongWork
from dist_ssl.data.storage.address import Address
from dist_ssl.data.storage.fetch import Fetcher
from dist_ssl.data.storage.object_store import Store
from dist_ssl.errors import ConfigError, DataError, plural
from dist_ssl.runtime import jsonl
from dist_ssl.runtime.files import write_atomically
from dist_ssl.runtime.strange_files import read_regular
from shards.archive import Index, index
from shards.dotted_names import DottedNames
from shards.pack import LOCK, MOST_RECORD, NOT_A_RECORD, check_ours, locked
from shards.split_names import split_of_tar
from shards.tar_files import divided

VERSION = 3
"""Version of the records; those of another one are made again."""


@dataclass(frozen=True)
class Rules:
    """Rules by which a tar is indexed; `archive.index` says what they mean."""

    image: str | None
    labels: bool
    last_dot: bool


def names_of_splits(folder: Address, train: str | None, val: str | None, fetcher: Fetcher) -> dict[str, list[str]]:
    """Return the names of the tars of every split, sorted. `train`, `val`: patterns.

    A web server does not list its files, so there the patterns name them. Raises ConfigError, DataError.
    """
    source = fetcher.source(folder)
    if isinstance(source, Store):
        words = {name: split_of_tar(name) for name in source.names(folder) if name.endswith(".tar")}
        chosen = fitting(folder, list(words), train) if train else None
        splits = divided(words, chosen, fitting(folder, list(words), val) if val else [])
    else:
        splits = divided({}, named(folder, train or "", "train"), named(folder, val, "val") if val else [])
    if not splits["train"]:
        raise DataError(f"{folder} holds no tars to train on (*.tar).", "Correct path=..., or name them: train=...")
    return {split: names for split, names in splits.items() if names}


def named(folder: Address, pattern: str, split: str) -> list[str]:
    """Return the names that a pattern without wildcards stands for. Raises ConfigError for any other pattern."""
    if not pattern or any(character in pattern for character in "*?["):
        raise ConfigError(
            f"{folder} is on a server that does not list its files, so {split}={pattern or '...'} cannot be searched.",
            f"Name the tars: {split}='{split}-{{000..146}}.tar', for example.",
        )
    return sorted(set(braceexpand.braceexpand(pattern)))


def fitting(folder: Address, names: Sequence[str], pattern: str) -> list[str]:
    """Return the names that fit a pattern, sorted. Raises DataError where an alternative in braces fits none."""
    found: set[str] = set()
    for part in braceexpand.braceexpand(pattern):
        own = {name for name in names if fnmatch(name, part)}
        if not own:
            raise DataError(f"No tar in {folder} fits {part}.", "Correct the pattern.")
        found |= own
    return sorted(found)


class Streamed:
    """The bytes of a file behind an address, read in order. `size`: in bytes."""

    def __init__(self, chunks: Iterator[bytes], progress: Progress, task: TaskID) -> None:
        self.chunks, self.progress, self.task, self.held = chunks, progress, task, b""

    def read(self, size: int) -> bytes:
        """Return at most `size` bytes; empty at the end. Raises DataError where the server is gone."""
        if not self.held:
            self.held = next(self.chunks, b"")
            self.progress.advance(self.task, len(self.held))
        data, self.held = self.held[:size], self.held[size:]
        return data


class RemoteTars:
    """The tars of a folder behind an address. `part`: folder of the records of those that were read."""

    def __init__(self, folder: Address, fetcher: Fetcher, part: Path) -> None:
        self.folder, self.fetcher, self.part = folder, fetcher, part

    def indexes(self, names: Sequence[str], rules: Rules, threads: int, console: Console) -> list[Index]:
        """Return the indexes of the tars, in order; those with a record are not fetched. Raises DataError."""
        sizes = [self.fetcher.size(self.folder / name) for name in names]
        known = [self._recorded(name, size, rules) for name, size in zip(names, sizes, strict=True)]
        if done := sum(one is not None for one in known):
            say(console, f"Resuming in {self.part}: {done} of {plural(len(names), 'tar')} indexed already.")
        with LongWork(console) as progress, ThreadPoolExecutor(threads) as pool:
            left = (size or 0 for size, one in zip(sizes, known, strict=True) if one is None)
            task = progress.add_task("bytes", total=sum(left))

            def read(number: int) -> Index:
                return known[number] or self._read(names[number], sizes[number], rules, progress, task)

            return list(pool.map(read, range(len(names))))

    def _read(self, name: str, size: int | None, rules: Rules, progress: Progress, task: TaskID) -> Index:
        """Return the index of a tar, which is fetched and recorded."""
        address = self.folder / name
        if size is None:  # a body that was cut would look complete
            raise DataError(
                f"{address}: its server does not say how long it is.", "Download the tars, and index those."
            )
        stream = Streamed(self.fetcher.stream(address, 0, size), progress, task)
        found = index(stream, str(address), rules.image, labels=rules.labels, last_dot=rules.last_dot)
        text = json.dumps({"stamp": self._stamp(name, size, rules), "index": plain(found)})
        write_atomically(self._record(name, rules), text, sync=True)
        return found

    def _recorded(self, name: str, size: int | None, rules: Rules) -> Index | None:
        """Return what the record of a tar says; None if there is none, or one of other bytes or rules."""
        try:
            record = jsonl.parsed(read_regular(self._record(name, rules), MOST_RECORD))
            return restored(record["index"]) if record["stamp"] == self._stamp(name, size, rules) else None
        except NOT_A_RECORD:
            return None

    def _record(self, name: str, rules: Rules) -> Path:
        """Return the path of the record by these rules: where the first ones do not fit, those of both are needed."""
        return self.part / f"{hashlib.sha256(f'{rules} {name}'.encode()).hexdigest()}.index"

    def _stamp(self, name: str, size: int | None, rules: Rules) -> str:
        return f"{VERSION} {self.folder / name} {size} {rules}"


def plain(found: Index) -> dict[str, Any]:
    """Return an index as plain values, without what a manifest does not need."""
    return {**vars(found), "members": {}, "labels": {}, "others": dict(found.others), "dotted": found.dotted.plain()}


def restored(values: dict[str, Any]) -> Index:
    """Return the index that `plain` has made plain values of. Raises TypeError, KeyError, ValueError for any others."""
    rows = [(str(key), *(int(number) for number in numbers)) for key, *numbers in values["rows"]]
    names, others = tuple(map(str, values["names"])), Counter({str(k): int(v) for k, v in values["others"].items()})
    dotted = DottedNames.restored(values["dotted"])
    own = {
        "rows": rows,
        "names": names,
        "others": others,
        "dotted": dotted,
        "arrays": tuple(map(int, values["arrays"])),
    }
    return Index(**{**values, **own})


@contextmanager
def records(out: Path) -> Iterator[Path]:
    """Make the folder of the records, in which no other process writes; it is removed when all is done.

    Raises DataError where files cannot be written, or a store does not answer.
    """
    part = out.with_name(f"{out.name}.part")
    try:
        part.mkdir(parents=True, exist_ok=True)
        check_ours(part)
        with locked(part):
            yield part
            with suppress(OSError):  # the manifest is written
                clear(part)
    except OSError as error:
        raise DataError(
            f"The index for {out} cannot be made: {error}.",
            "Fix that and run the same command again: it continues where it stopped.",
        ) from error
    with suppress(OSError):  # behind the lock: of an open file that is removed, NFS keeps one of another name
        if {path.name for path in part.iterdir()} == {LOCK}:
            shutil.rmtree(part)


def clear(part: Path) -> None:
    """Remove the records, and what a kill left of one that was being written. Others' files stay."""
    for path in part.glob("*.index*"):
        path.unlink(missing_ok=True)
