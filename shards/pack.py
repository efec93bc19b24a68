"""Write samples as tars into `OUT.part`, which becomes OUT once it is whole; what a kill leaves of it is gone on with.

A tar is written beside, made to last, renamed, and then recorded: what it holds, its sha256, and a stamp of all that
the samples depend on. A tar whose record does not fit is written again, so the result is that of one undisturbed run.
"""

import fcntl
import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dist_ssl.data.storage import manifest
from dist_ssl.errors import DataError
from shards.archive import Sample, Writer
from shards.command_line import Threads, say

VERSION = 1
"""Of how samples become tars; a tar of another version is not gone on with."""
LOCK = ".lock"
THREADS = Threads(min(32, 4 * (os.cpu_count() or 1)))
"""That read images, where the user does not say: they wait for the disk more than they work."""


@dataclass(frozen=True)
class Contents:
    """The samples of a split, in the order of their tars. `stamp`: changes whenever any of them does.

    `ends`: how many samples there are up to the end of each tar, where not the bytes in it say when it ends.
    """

    count: int
    stamp: str
    sample: Callable[[int], Sample]
    """The sample of a number 0 .. count - 1; called from several threads. Raises DataError."""
    ends: Sequence[int] | None = None


@dataclass(frozen=True)
class Made:
    """A tar that is whole: its row of the manifest and its samples."""

    shard: manifest.Shard
    samples: manifest.Samples


def pack(
    out: Path,
    splits: Mapping[str, Contents],
    classes: Sequence[str] = (),
    *,
    copied: Mapping[str, Any] | None = None,
    shard_bytes: int,
    threads: int,
    console: Console,
) -> None:
    """Write a data set into a new folder; splits without samples are left out. `copied`: see `Manifest`.

    Raises DataError.
    """
    if out.exists():
        raise DataError(f"{out} exists already.", "Choose another folder, or remove it first.")
    part = out.with_name(f"{out.name}.part")
    try:
        part.mkdir(parents=True, exist_ok=True)
        check_ours(part)
        with locked(part), ThreadPoolExecutor(threads) as pool, bar(console) as progress:
            packers = [
                Packer(part, name, contents, shard_bytes, pool, progress)
                for name, contents in splits.items()
                if contents.count
            ]
            go_on(part, packers, console)
            rows = {packer.name: packer.run(depth=2 * threads) for packer in packers}
            manifest.write(part, rows, classes, copied)
            for path in (*sorted(part.glob("*.record"), reverse=True), part / LOCK):  # those left are the first tars
                path.unlink()
            part.rename(out)
    except OSError as error:
        raise DataError(
            f"{part} cannot be written: {error}.", "Mend that and give the same command again: it goes on."
        ) from error


def check_ours(part: Path) -> None:
    """Raise DataError where a folder holds files that no maker left there: it would remove them."""
    names = {path.name for path in part.iterdir()}
    if names and not names & {LOCK, manifest.NAME}:
        raise DataError(
            f"{part} exists already and is no data set in the making: it holds {min(names)}.",
            "Move it away, or choose another out.",
        )


@contextmanager
def locked(part: Path) -> Iterator[None]:
    """Keep other makers out of a folder; the lock goes with the process, however it ends. Raises DataError."""
    with (part / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(
                f"{part} is being written by another process.", "Wait for it, or choose another out."
            ) from error
        yield


def bar(console: Console) -> Progress:
    """A progress bar that is gone when it ends."""
    shown = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*shown, console=console, transient=True, disable=not console.is_terminal)


def go_on(part: Path, packers: Sequence["Packer"], console: Console) -> None:
    """Keep the tars that are whole and remove everything else."""
    kept = {LOCK}
    for packer in packers:
        packer.keep()
        kept |= {name for made in packer.made for name in (made.shard.name, f"{made.shard.name}.record")}
    others = [path for path in part.iterdir() if path.name not in kept]
    for path in others:
        path.unlink()
    whole = sum(len(packer.made) for packer in packers)
    if whole or others:
        say(console, f"Going on in {part}: {whole} whole shards kept, {len(others)} other files removed.")


class Packer:
    """Writes the tars `NAME-000000.tar`, ... of one split. `made`: those that are whole, in order."""

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
        """Samples in whole tars."""
        return sum(made.shard.samples for made in self.made)

    def tar(self, number: int) -> Path:
        """Where a tar lies."""
        return self.part / f"{self.name}-{number:06d}.tar"

    def keep(self) -> None:
        """Find the tars of an earlier attempt that are whole, from the first one on without a gap."""
        paths = [self.tar(n) for n in range(len(list(self.part.glob(f"{self.name}-*.tar.record"))))]
        for path, sha256 in zip(paths, self.pool.map(hash_of, paths), strict=True):
            made = self._recorded(path)
            if made is None or made.shard.sha256 != sha256:
                break
            self.made.append(made)

    def _recorded(self, path: Path) -> Made | None:
        """What the record of a tar says, where it is one of these samples'."""
        try:
            content = json.loads(record_of(path).read_text())
        except (FileNotFoundError, ValueError):  # a machine that lost its power may leave an empty file
            return None
        if (content["stamp"], content["first"]) != (self.stamp, self.done):
            return None
        return Made(manifest.Shard(**content["shard"]), manifest.columns(content["rows"]))

    def run(self, depth: int) -> tuple[list[manifest.Shard], manifest.Samples]:
        """Write the tars that are missing, with `depth` samples read ahead; the manifest's rows of all."""
        task = self.progress.add_task(f"{self.name:5s}", total=self.contents.count, completed=self.done)
        samples = self._ahead(depth)
        sample = next(samples, None)
        tars = count() if self.contents.ends is None else range(len(self.contents.ends))
        for number in islice(tars, len(self.made), None):
            if sample is None and self.contents.ends is None:
                break
            beside = self.part / f".{self.tar(number).name}"
            writer = Writer(beside)
            while sample is not None and not self._full(writer, number):
                writer.add(sample)
                self.progress.advance(task)
                sample = next(samples, None)
            self._finish(writer, number)
        return [made.shard for made in self.made], manifest.joined([made.samples for made in self.made])

    def _full(self, writer: Writer, number: int) -> bool:
        """Whether the tar of this number ends here."""
        if self.contents.ends is None:
            return writer.content >= self.shard_bytes
        return self.done + len(writer.rows) == self.contents.ends[number]

    def _ahead(self, depth: int) -> Iterator[Sample]:
        """The samples that are missing, in order, each read by a thread before it is asked for."""
        waiting: deque[Future[Sample]] = deque()
        for number in range(self.done, self.contents.count):
            waiting.append(self.pool.submit(self.contents.sample, number))
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _finish(self, writer: Writer, number: int) -> None:
        """Make a tar last, announce it, record it."""
        path = self.tar(number)
        shard = writer.close(path.name)
        writer.path.replace(path)
        content = {"stamp": self.stamp, "first": self.done, "shard": asdict(shard), "rows": writer.rows}
        beside = record_of(path).with_suffix(".record.new")
        beside.write_text(json.dumps(content))
        beside.replace(record_of(path))
        self.made.append(Made(shard, manifest.columns(writer.rows)))


def record_of(tar: Path) -> Path:
    """Where it is written that a tar is whole."""
    return tar.with_name(f"{tar.name}.record")


def hash_of(path: Path) -> str:
    """The sha256 of a file; empty where there is none."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
