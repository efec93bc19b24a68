"""Read a whole data set again and say what is damaged: a table of tar, key and reason.

    python shards/verify.py data/mine [decode=false] [rows=100]

Every tar, of the levels of a pyramid too, is hashed and its own headers are compared with the manifest; every image is
decoded as a run would, unless decode=false. The exit code is 1 where there is damage, and 2 where there is no data set.
"""

import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Column, Table
from rich.text import Text

from dist_ssl.data.images.decode import UnreadableError, decode
from dist_ssl.data.storage import manifest, pyramid
from dist_ssl.data.storage.address import Address
from dist_ssl.data.storage.fetch import Fetcher
from dist_ssl.errors import DataError
from shards.archive import Index, index
from shards.command_line import Threads, command, fill, folder_and_pairs, printable, say
from shards.pack import bar
from shards.sources.tars import Counted

CHUNK = 64
"""Images that a thread decodes at a time."""


@dataclass(frozen=True)
class VerifyOptions:
    """`decode`: decode every image; `rows`: of the table, at most."""

    decode: bool = True
    rows: int = 100
    threads: Threads = Threads(os.cpu_count() or 1)


@dataclass(frozen=True, order=True)
class Damage:
    """What is wrong with a tar, or with the sample of a key (empty: the whole tar)."""

    shard: str
    key: str
    reason: str


@dataclass(frozen=True)
class Tar:
    """A tar of the manifest, and the numbers of its samples within the split."""

    path: Path
    shard: manifest.Shard
    samples: manifest.Samples
    numbers: range

    @property
    def copies(self) -> bool:
        """Its images are smaller copies, without labels."""
        return self.samples.widths is not None

    @property
    def read(self) -> list[int]:
        """The samples that a run reads from it: of a level not those whose originals cannot be decoded."""
        widths = self.samples.widths
        return [number for number in self.numbers if widths is None or widths[number]]


def verify(folder: Path, options: VerifyOptions, console: Console) -> list[Damage]:
    """All damage of a data set, by tar and key. Raises DataError where there is no manifest that can be read."""
    originals = manifest.read(folder)
    splits = list(originals.splits.values())
    wrong: list[Damage] = []
    for side, identity in levels_of(folder, originals, wrong).items():
        try:
            splits += pyramid.level(Address(str(folder)), originals, side, identity, Fetcher()).splits.values()
        except DataError as error:
            wrong.append(Damage(pyramid.folder_of(side), "", error.problem))
    tars = [tar for split in splits for tar in tars_of(folder, split)]
    with bar(console) as progress, ThreadPoolExecutor(options.threads) as pool:
        task = progress.add_task("bytes ", total=sum(tar.shard.bytes for tar in tars))
        wrong += [damage for own in pool.map(lambda tar: checked(tar, progress, task), tars) for damage in own]
        if options.decode:
            known = {(damage.shard, damage.key) for damage in wrong}
            chunks = [(tar, part) for tar in tars if tar.path.is_file() for part in parts(tar.read)]
            task = progress.add_task("images", total=sum(len(part) for _, part in chunks))
            for found in pool.map(lambda chunk: decoded(chunk[0], chunk[1], progress, task), chunks):
                wrong += [damage for damage in found if (damage.shard, damage.key) not in known]
    return sorted(wrong)


def levels_of(folder: Path, originals: manifest.Manifest, wrong: list[Damage]) -> dict[int, str]:
    """The identity of every level that should be there, by its side; `wrong` takes what is wrong with the list."""
    try:
        known = pyramid.read(Address(str(folder)), originals, Fetcher())
    except DataError as error:
        wrong.append(Damage(pyramid.NAME, "", error.problem))
        return {}
    return {side: str(level["identity"]) for side, level in known.items()}


def tars_of(folder: Path, split: manifest.Split) -> Iterator[Tar]:
    """The tars of a split."""
    first = 0
    for shard in split.shards:
        yield Tar(folder / shard.name, shard, split.samples, range(first, first + shard.samples))
        first += shard.samples


def parts(numbers: Sequence[int]) -> Iterator[Sequence[int]]:
    """Runs of CHUNK numbers."""
    yield from (numbers[start : start + CHUNK] for start in range(0, len(numbers), CHUNK))


def checked(tar: Tar, progress: Progress, task: TaskID) -> list[Damage]:
    """What is wrong with a tar's bytes and headers."""
    name = tar.shard.name
    if not tar.path.is_file():
        return [Damage(name, "", "the tar is missing")]
    try:
        counted = Counted(tar.path, progress, task)
        with counted.file:
            own = index(counted, "the tar")
    except (DataError, OSError) as error:
        return [Damage(name, "", error.problem if isinstance(error, DataError) else f"cannot be read: {error}")]
    changed = own.sha256 != tar.shard.sha256
    whole = [Damage(name, "", "its sha256 is not the manifest's: it has changed")] if changed else []
    return whole + list(differences(tar, own, changed))


def differences(tar: Tar, own: Index, changed: bool) -> Iterator[Damage]:
    """Where the tar's headers are not what the manifest says. `changed`: it is not the tar that was indexed."""
    samples, known = tar.samples, set()
    for number in tar.numbers:
        key, offset, size = samples.key(number), int(samples.offsets[number]), int(samples.sizes[number])
        known.add(key)
        label, found = own.labels.get(key, -1), own.members.get(offset)
        expected = -1 if tar.copies else samples.labels[number]
        if found != (key, size):
            there = f"'{found[0]}' of {found[1]} bytes" if found else "no member"
            yield Damage(tar.shard.name, key, f"at byte {offset} lies {there}, not {size} bytes of it")
        elif label != expected:
            yield Damage(tar.shard.name, key, f"label is {label}, the manifest says {expected}")
    for key, *_ in own.rows if changed else []:
        if key not in known:
            yield Damage(tar.shard.name, key, "is not in the manifest")


def decoded(tar: Tar, numbers: Sequence[int], progress: Progress, task: TaskID) -> list[Damage]:
    """Which of a tar's images cannot be decoded."""
    wrong = []
    with tar.path.open("rb", buffering=0) as file:
        for number in numbers:
            size = int(tar.samples.sizes[number])
            try:
                data = os.pread(file.fileno(), size, int(tar.samples.offsets[number]))
                if len(data) < size:
                    raise UnreadableError("the tar ends before it")
                decode(data, 1)
            except (UnreadableError, OSError) as error:
                wrong.append(Damage(tar.shard.name, tar.samples.key(number), str(error)))
            progress.advance(task)
    return wrong


def report(found: Sequence[Damage], rows: int, console: Console) -> None:
    """Print the damage and how often each kind of it occurs."""
    table = Table(*(Column(name, overflow="fold") for name in ("shard", "key", "reason")))
    for damage in found[:rows]:
        table.add_row(*(Text(printable(text)) for text in (damage.shard, damage.key or "(whole tar)", damage.reason)))
    console.print(table)
    if len(found) > rows:
        say(console, f"... and {len(found) - rows} more rows (rows={len(found)} shows them).")
    for shard, count in Counter(damage.shard for damage in found).most_common(10):
        say(console, f"{shard}: {count} damaged")


def run(words: list[str], console: Console) -> int:
    """Verify one folder; 1 where it is damaged. Raises UserError."""
    folder, given = folder_and_pairs(words, "python shards/verify.py data/mine")
    options = fill(VerifyOptions, given, "verify.py")
    found = verify(folder, options, console)
    if found:
        report(found, options.rows, console)
        return 1
    how = "every image was decoded" if options.decode else "images were not decoded"
    say(console, f"{folder} is whole: {how}.")
    return 0


if __name__ == "__main__":
    sys.exit(command(run, sys.argv[1:]))
