"""Packing of samples into tars: written to `OUT.part`, which is renamed to OUT when complete and resumed after a kill.

A tar is written under a temporary name, synced to disk, renamed, and then recorded: its contents, its sha256, and a
stamp of everything that the samples depend on. A tar whose record does not match is written again, so the result is the
same as that of an uninterrupted run.
"""

import fcntl
import hashlib
import json
import os
import stat
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from dist_ssl.config.bounds import RGB
from dist_ssl.config.command import say
from dist_ssl.config.long_work import LongWork
from dist_ssl.data.storage import manifest
from dist_ssl.data.storage.samples import Samples, columns, joined
from dist_ssl.errors import DataError, plural
from dist_ssl.runtime import jsonl
from dist_ssl.runtime.files import hidden_beside, write_atomically
from dist_ssl.runtime.own_cores import own_cores
from dist_ssl.runtime.strange_files import NotRegularError, read_regular, sha256_of
from shards.archive import Sample, Writer
from shards.command_line import Threads

VERSION = 1
"""Version of the packing; tars of another packing version are rewritten."""
LOCK = ".lock"
"""File in OUT.part that the process which writes there holds locked."""
MOST_RECORD = 1 << 30
"""Bytes of the record of a tar, at most: some 60 for a sample."""
NOT_A_RECORD = (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError, OverflowError)
"""Errors of reading a record that is missing, is no regular file, or does not say what one says."""
THREADS = Threads(min(32, 4 * own_cores()))
"""Default number of threads that read images: more than cores, because they mostly wait for the disk."""


@dataclass(frozen=True)
class Contents:
    """The samples of a split, in the order in which they are packed.

    `count`: their number; `stamp`: a text that changes whenever any of them does; `ends`: number of samples up to the
    end of each tar, None if a tar ends when it has `shard_bytes`.
    """

    count: int
    stamp: str
    sample: Callable[[int], Sample]
    """Function that returns the sample of a number 0 .. count - 1; called from several threads. Raises DataError."""
    ends: Sequence[int] | None = None


@dataclass(frozen=True)
class Made:
    """A complete tar: its row of the manifest and its samples."""

    shard: manifest.Shard
    samples: Samples


def pack(
    out: Path,
    splits: Mapping[str, Contents],
    classes: Sequence[str] = (),
    *,
    copied: Mapping[str, Any] | None = None,
    channels: int = RGB,
    shard_bytes: int,
    threads: int,
    console: Console,
) -> None:
    """Write a data set into a new folder; splits without samples are left out. `copied`, `channels`: see `Manifest`.

    Raises DataError.
    """
    if out.exists():
        raise DataError(f"{out} exists already.", "Choose another folder, or remove it first.")
    part = out.with_name(f"{out.name}.part")
    try:
        part.mkdir(parents=True, exist_ok=True)
        check_ours(part)
        with locked(part), ThreadPoolExecutor(threads) as pool, LongWork(console) as progress:
            packers = [
                Packer(part, name, contents, shard_bytes, pool, progress)
                for name, contents in splits.items()
                if contents.count
            ]
            resume(part, packers, console)
            rows = {packer.name: packer.run(depth=2 * threads) for packer in packers}
            manifest.write(part, rows, classes, copied, channels)
            records = sorted(part.glob("*.record"), reverse=True)  # after a kill here, the first tars keep theirs
            for path in (*records, part / LOCK):
                path.unlink()
            part.rename(out)
    except OSError as error:
        raise DataError(
            f"{part} cannot be written: {error}.",
            "Fix that and run the same command again: it continues where it stopped.",
        ) from error


def check_ours(part: Path) -> None:
    """Raise DataError if a folder is not an unfinished data set of this user: packing would remove what it contains.

    Its owner could exchange the whole tars that are kept, and everything that is written.
    """
    state = part.lstat()
    if stat.S_ISLNK(state.st_mode):
        raise DataError(f"{part} is a link: files are removed where it leads.", "Remove it, or choose another out=...")
    if state.st_uid != os.geteuid():
        raise DataError(f"{part} belongs to another user, who could change the shards.", "Choose another out=...")
    names = {path.name for path in part.iterdir()}
    if names and not names & {LOCK, manifest.NAME}:
        raise DataError(
            f"{part} exists already and is not an unfinished data set: it contains {min(names)}.",
            "Move it away, or choose another out=...",
        )


@contextmanager
def locked(part: Path) -> Iterator[None]:
    """Keep other processes from writing to a folder; a killed process releases the lock too. Raises DataError."""
    no_link = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # it may lead to any file
    with os.fdopen(os.open(part / LOCK, no_link, 0o666), "wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(
                f"{part} is being written by another process.", "Wait for it to end, or choose another out=..."
            ) from error
        yield


def resume(part: Path, packers: Sequence["Packer"], console: Console) -> None:
    """Keep the complete tars of an earlier attempt and remove all other files."""
    kept = {LOCK}
    for packer in packers:
        packer.keep()
        kept |= {name for made in packer.made for name in (made.shard.name, f"{made.shard.name}.record")}
    others = [path for path in part.iterdir() if path.name not in kept]
    for path in others:
        path.unlink()
    whole = sum(len(packer.made) for packer in packers)
    if whole or others:
        say(
            console,
            f"Resuming in {part}: {plural(whole, 'whole shard')} kept, {plural(len(others), 'other file')} removed.",
        )


class Packer:
    """Writer of the tars `NAME-000000.tar`, ... of one split. `made`: the complete ones, in order."""

    def __init__(
        self,
        part: Path,
        name: str,
        contents: Contents,
        shard_bytes: int,
        pool: ThreadPoolExecutor,
        progress: Progress,
    ) -> None:
        self.part, self.name, self.contents, self.shard_bytes = part, name, contents, shard_bytes
        self.pool, self.progress = pool, progress
        text = f"{VERSION} {shard_bytes} {contents.count} {contents.stamp}"
        self.stamp = hashlib.sha256(text.encode()).hexdigest()
        self.made: list[Made] = []

    @property
    def done(self) -> int:
        """Number of samples in complete tars."""
        return sum(made.shard.samples for made in self.made)

    def tar(self, number: int) -> Path:
        """Return the path of a tar."""
        return self.part / f"{self.name}-{number:06d}.tar"

    def keep(self) -> None:
        """Take over the complete tars of an earlier attempt, up to the first one that is missing or does not match."""
        paths = [self.tar(n) for n in range(len(list(self.part.glob(f"{self.name}-*.tar.record"))))]
        for path, sha256 in zip(paths, self.pool.map(hash_of, paths), strict=True):
            made = self._recorded(path)
            if made is None or made.shard.sha256 != sha256:
                break
            self.made.append(made)

    def _recorded(self, path: Path) -> Made | None:
        """Return what the record of a tar says; None if it is missing or of other samples."""
        try:
            content = jsonl.parsed(read_regular(record_of(path), MOST_RECORD))
            if (content["stamp"], content["first"]) != (self.stamp, self.done):
                return None
            made = Made(manifest.Shard(**content["shard"]), columns(content["rows"]))
        except NOT_A_RECORD:  # empty after a power failure, say
            return None
        return made if made.shard.name == path.name else None

    def run(self, depth: int) -> tuple[list[manifest.Shard], Samples]:
        """Write the missing tars, with up to `depth` samples prefetched; return the manifest's rows of all tars."""
        task = self.progress.add_task(f"{self.name:5s}", total=self.contents.count, completed=self.done)
        samples = self._prefetch(depth)
        sample = next(samples, None)
        tars = count() if self.contents.ends is None else range(len(self.contents.ends))
        for number in islice(tars, len(self.made), None):
            if sample is None and self.contents.ends is None:
                break
            writer = Writer(hidden_beside(self.tar(number)))  # nobody else can have made a link of this name
            while sample is not None and not self._full(writer, number):
                writer.add(sample)
                self.progress.advance(task)
                sample = next(samples, None)
            self._finish(writer, number)
        return [made.shard for made in self.made], joined([made.samples for made in self.made])

    def _full(self, writer: Writer, number: int) -> bool:
        """Return whether the tar of this number is complete."""
        if self.contents.ends is None:
            return writer.content >= self.shard_bytes
        return self.done + len(writer.rows) == self.contents.ends[number]

    def _prefetch(self, depth: int) -> Iterator[Sample]:
        """Yield the missing samples in order, up to `depth` of them read in advance by the threads."""
        waiting: deque[Future[Sample]] = deque()
        for number in range(self.done, self.contents.count):
            waiting.append(self.pool.submit(self.contents.sample, number))
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _finish(self, writer: Writer, number: int) -> None:
        """Sync a tar to disk, rename it to its final name, and write its record."""
        path = self.tar(number)
        shard = writer.close(path.name)
        writer.path.replace(path)
        content = {"stamp": self.stamp, "first": self.done, "shard": asdict(shard), "rows": writer.rows}
        write_atomically(record_of(path), json.dumps(content))
        self.made.append(Made(shard, columns(writer.rows)))


def record_of(tar: Path) -> Path:
    """Return the path of the record that marks a tar as complete."""
    return tar.with_name(f"{tar.name}.record")


def hash_of(path: Path) -> str:
    """Return the sha256 of a file, in hex; empty if it is missing or is no regular file."""
    try:
        return sha256_of(path)
    except (FileNotFoundError, NotRegularError):
        return ""
