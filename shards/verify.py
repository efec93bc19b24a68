"""The command that verifies a data set: it reads everything and prints a table of what is damaged.

Examples:

    python shards/verify.py data/mine
    python shards/verify.py data/mine decode=false       # hashes and headers alone
    python shards/verify.py data/mine rows=1000          # a longer table than of 100 rows; threads=4: of this command

Every tar, those of pyramid levels included, is hashed and its headers are compared with the manifest; every image is
decoded as in a run, unless decode=false.

Exit codes: 0 whole; 1 something is damaged; 2 there is no data set; 130 interrupted.
"""

import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Column, Table
from rich.text import Text

from dist_ssl.config.bounds import RGB
from dist_ssl.config.command import run_command, say
from dist_ssl.config.long_work import LongWork
from dist_ssl.data.images.array_files import lacks_range
from dist_ssl.data.images.decode import decode
from dist_ssl.data.images.deep_rows import FULL
from dist_ssl.data.images.image_rules import ImageRules
from dist_ssl.data.images.unreadable import UnreadableError
from dist_ssl.data.storage import manifest, pyramid
from dist_ssl.data.storage.address import Address
from dist_ssl.data.storage.fetch import Fetcher
from dist_ssl.data.storage.samples import Samples
from dist_ssl.errors import DataError, plural, printable
from dist_ssl.runtime.files import write_for_owner_alone
from dist_ssl.runtime.strange_files import open_regular
from shards import depth
from shards.archive import UNLABELLED, Index, index
from shards.command_line import ONE_PER_CORE, Threads, fill, folder_and_pairs
from shards.folder_facts import measure_shards
from shards.picture_rules import lines, of_the_statistics
from shards.sources.tars import Counted

CHUNK = 64
"""Number of images that a thread decodes at a time."""


@dataclass(frozen=True)
class VerifyOptions:
    """Options of the command. `decode`: decode every image; `rows`: rows of the table, at most."""

    decode: bool = True
    rows: int = 100
    threads: Threads = ONE_PER_CORE


@dataclass(frozen=True, order=True)
class Damage:
    """Damage of a tar, or of the sample with a key (empty: the whole tar)."""

    shard: str
    key: str
    reason: str


@dataclass(frozen=True)
class Tar:
    """A tar of the manifest; `numbers`: the positions of its samples in the split."""

    path: Path
    shard: manifest.Shard
    samples: Samples
    numbers: range

    @property
    def copies(self) -> bool:
        """True for the tar of a level, whose images are smaller copies without labels."""
        return self.samples.widths is not None

    @property
    def read(self) -> list[int]:
        """Samples that a run reads from the tar: from a level, only those whose originals can be decoded."""
        widths = self.samples.widths
        return [number for number in self.numbers if widths is None or widths[number]]


def verify(folder: Path, options: VerifyOptions, console: Console) -> list[Damage]:
    """Return all damage of a data set, sorted by tar and key. Raises DataError if its manifest cannot be read."""
    originals = manifest.read(folder)
    splits = list(originals.splits.values())
    wrong: list[Damage] = []
    for side, identity in levels_of(folder, originals, wrong).items():
        try:
            splits += pyramid.level(Address(str(folder)), originals, side, identity, Fetcher()).splits.values()
        except DataError as error:
            wrong.append(Damage(pyramid.folder_of(side), "", error.problem))
    tars = [tar for split in splits for tar in tars_of(folder, split)]
    with LongWork(console) as progress, ThreadPoolExecutor(options.threads) as pool:
        task = progress.add_task("bytes ", total=sum(tar.shard.bytes for tar in tars))
        wrong += [
            damage
            for own in pool.map(lambda tar: checked(tar, originals.classes, progress, task), tars)
            for damage in own
        ]
        if options.decode:
            rules = ImageRules(range=None if originals.channels == RGB else FULL, channels=originals.channels)
            known = {(damage.shard, damage.key) for damage in wrong}
            chunks = [(tar, part) for tar in tars if tar.path.is_file() for part in parts(tar.read)]
            task = progress.add_task("images", total=sum(len(part) for _, part in chunks))
            for found in pool.map(lambda chunk: decoded(chunk[0], chunk[1], rules, progress, task), chunks):
                wrong += [damage for damage in found if (damage.shard, damage.key) not in known]
    return sorted(wrong)


def levels_of(folder: Path, originals: manifest.Manifest, wrong: list[Damage]) -> dict[int, str]:
    """Return the identity of every listed level by its side; damage of the list itself is appended to `wrong`."""
    try:
        known = pyramid.read(Address(str(folder)), originals, Fetcher())
    except DataError as error:
        wrong.append(Damage(pyramid.NAME, "", error.problem))
        return {}
    return {side: str(level["identity"]) for side, level in known.items()}


def tars_of(folder: Path, split: manifest.Split) -> Iterator[Tar]:
    """Yield the tars of a split."""
    first = 0
    for shard in split.shards:
        yield Tar(folder / shard.name, shard, split.samples, range(first, first + shard.samples))
        first += shard.samples


def parts(numbers: Sequence[int]) -> Iterator[Sequence[int]]:
    """Yield the numbers in parts of CHUNK."""
    yield from (numbers[start : start + CHUNK] for start in range(0, len(numbers), CHUNK))


def checked(tar: Tar, classes: Sequence[str], progress: Progress, task: TaskID) -> list[Damage]:
    """Return the damage of a tar's bytes and headers."""
    name = tar.shard.name
    if not tar.path.is_file():
        return [Damage(name, "", "the tar is missing")]
    dots = any("." in tar.samples.key(number).rpartition("/")[2] for number in tar.numbers)
    labelled = bool((tar.samples.labels[tar.numbers.start : tar.numbers.stop] >= 0).any())
    try:
        counted = Counted(tar.path, progress, task)
        with counted.file:
            own = index(counted, "the tar", labels=labelled, last_dot=dots)
    except (DataError, OSError) as error:
        return [Damage(name, "", error.problem if isinstance(error, DataError) else f"cannot be read: {error}")]
    changed = own.sha256 != tar.shard.sha256
    whole = [Damage(name, "", "its sha256 differs from the manifest's: the tar has changed")] if changed else []
    return whole + list(differences(tar, own, classes, changed))


def differences(tar: Tar, own: Index, classes: Sequence[str], changed: bool) -> Iterator[Damage]:
    """Yield the differences between a tar's headers and the manifest. `changed`: the tar is not the indexed one.

    `classes`: names of the labels. Our own tars hold numbers, those of others may hold the names.
    """
    samples, known = tar.samples, set()
    for number in tar.numbers:
        key, offset, size = samples.key(number), int(samples.offsets[number]), int(samples.sizes[number])
        known.add(key)
        label, found = own.labels.get(key, UNLABELLED), own.members.get(offset)
        expected = -1 if tar.copies else int(samples.labels[number])
        named = classes[expected] if 0 <= expected < len(classes) else ""
        if found != (key, size):
            there = f"'{found[0]}' with {found[1]} bytes" if found else "no member"
            yield Damage(
                tar.shard.name, key, f"at byte {offset} is {there}, the manifest says {size} bytes of this key"
            )
        elif label not in (str(expected), named):
            yield Damage(tar.shard.name, key, f"label is {label}, the manifest says {expected}")
    for key, *_ in own.rows if changed else []:
        if key not in known:
            yield Damage(tar.shard.name, key, "is not in the manifest")


def decoded(tar: Tar, numbers: Sequence[int], rules: ImageRules, progress: Progress, task: TaskID) -> list[Damage]:
    """Return the damage of those of a tar's samples whose images cannot be decoded by the rules."""
    wrong = []
    with open_regular(tar.path) as file:
        for number in numbers:
            size = int(tar.samples.sizes[number])
            try:
                data = os.pread(file.fileno(), size, int(tar.samples.offsets[number]))
                if len(data) < size:
                    raise UnreadableError("the tar ends before this image")
                decode(data, 1, replace(rules, range=FULL) if lacks_range(data) else rules)
            except (UnreadableError, OSError) as error:
                wrong.append(Damage(tar.shard.name, tar.samples.key(number), str(error)))
            progress.advance(task)
    return wrong


def report(found: Sequence[Damage], rows: int, console: Console) -> None:
    """Print at most `rows` rows of damage, and the number of damaged samples of the worst tars."""
    table = Table(*(Column(name, overflow="fold") for name in ("shard", "key", "reason")))
    for damage in found[:rows]:
        table.add_row(*(Text(printable(text)) for text in (damage.shard, damage.key or "(whole tar)", damage.reason)))
    console.print(table)
    if len(found) > rows:
        say(console, f"... and {plural(len(found) - rows, 'more row', 'more rows')} (rows={len(found)} shows them).")
    for shard, count in Counter(damage.shard for damage in found).most_common(10):
        say(console, f"{shard}: {count} damaged")


def run(arguments: list[str], console: Console) -> int:
    """Verify one folder; return 1 if it is damaged, else 0. Raises UserError."""
    folder, given = folder_and_pairs(arguments, "python shards/verify.py data/mine")
    options = fill(VerifyOptions, given, "This command")
    found = verify(folder, options, console)
    if found:
        report(found, options.rows, console)
        return 1
    whole = manifest.read(folder)
    ranges = depth.ranges_of(folder, whole)
    white = depth.together(ranges.values()).white
    if whole.channels != RGB:
        facts = measure_shards(whole, options.threads, ranges=ranges.values())
        white = depth.white_for(facts.deepest, facts.floats)
        for line in lines(of_the_statistics(facts)):
            say(console, line)
    depth.say_ranges(ranges, white, console)
    how = "every image was decoded" if options.decode else "images were not decoded"
    say(console, f"{folder} is whole: {how}.")
    return 0


def main(arguments: list[str]) -> int:
    """Run the command line; return the exit code."""
    write_for_owner_alone()
    return run_command(run, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
