"""Existing WebDataset tars as a source: they are neither changed nor moved, only indexed by a manifest.

    python shards/make.py source=tars path=data/mine [train='train-*.tar'] [val='val-*.tar'] [image=jpg] [labels=false]
        [keys=auto|first|last] [channels=N]

`train` and `val` are patterns below `path`, with `*`, `?` and `{000..146}`. Without them, the words train, val (valid,
validation, dev, eval) and test in the names of the tars, or of their folders, tell the splits; `test` is held out where
nothing else is. Tars without such a word are `train` where no tar has the word, and otherwise left out and named. Tars
in sub-folders count where the folder has none, or where they have splits and the folder has no `train`. A sample's
image is its member `KEY.EXT` with the first EXT of jpg, jpeg, png, webp, bmp, tif, tiff, gif, ... that it has;
otherwise `KEY.ANYTHING.EXT`. With `image`, it is `KEY.image`. KEY ends before the first dot of a name, as webdataset
reads it (`keys=first`), or before the last (`keys=last`); by default before the last if most images, or labels,
would be lost otherwise, because names have dots of their own (`cam1.000001.jpg`), which is said. All tars together
decide that.

`path=https://host/folder` or `s3://bucket/folder` (`gs://`), with `out=FOLDER`, indexes tars elsewhere: each is fetched
once, or twice where names have dots and `keys=auto`, and only its index is kept. A web server does not list its files,
so `train='train-{000..146}.tar'` names them. Put the files of FOLDER beside the tars, and train with that `data.path`.

The text of `KEY.cls` is the sample's label. If the labels are 0, 1, ..., n - 1, these are the numbers of the classes;
else the sorted labels are numbered, and the manifest lists them. `labels=false` leaves them out.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import xxhash
from rich.console import Console
from rich.progress import Progress, TaskID

from dist_ssl.config.command import say
from dist_ssl.config.long_work import LongWork
from dist_ssl.data.storage import manifest
from dist_ssl.data.storage.address import Address
from dist_ssl.data.storage.fetch import Fetcher
from dist_ssl.data.storage.samples import joined
from dist_ssl.errors import ConfigError, DataError, plural, shortened
from dist_ssl.runtime.strange_files import open_regular
from shards import channels
from shards.archive import KINDS, index
from shards.command_line import ONE_PER_CORE, Threads, counted_kinds
from shards.dotted_names import lost_members
from shards.image_source import ImageSource
from shards.indexed_tars import IndexedTar, Tars, with_images
from shards.remote_tars import RemoteTars, Rules, names_of_splits, records
from shards.tar_files import DECOMPRESS, all_tars, compressed_tars, compression_of, tars_of_splits


@dataclass(frozen=True)
class TarOptions:
    """Options of the source.

    `train`, `val`: patterns of tars below `path`; `image`: extension of the members that are images; `labels`: take the
    labels of `.cls` members; `keys`: where keys end, before a name's first or last dot; `channels`: None: measured.
    """

    path: Address | Path
    train: str | None = None
    val: str | None = None
    image: str | None = None
    labels: bool = True
    keys: Literal["auto", "first", "last"] = "auto"
    channels: int | None = None
    threads: Threads = ONE_PER_CORE


def write(out: Path | None, options: TarOptions, console: Console) -> None:
    """Index the tars and write the manifest into `out`, by default beside them. Raises ConfigError, DataError."""
    where = options.path
    if out is None and isinstance(where, Address):
        raise ConfigError(
            f"path={where} needs out=..., a folder of this machine.",
            "Write out=data/index; copy its files to the tars.",
        )
    folder = out or Path(str(where))
    if isinstance(where, Path) and not where.is_dir():
        raise DataError(f"path={where} is not a folder.", "Set path to the folder of the tars.")
    if (folder / manifest.NAME).exists():
        raise DataError(f"{folder} has a manifest.json already.", "Remove it to index the tars again.")
    channels.check_option(options.channels)
    if isinstance(where, Address):
        fetcher = Fetcher()
        with records(folder) as part:
            names = names_of_splits(where, options.train, options.val, fetcher)
            tars = RemoteTars(where, fetcher, part)
            write_manifest(names, lambda last: remotely(tars, names, options, last, console), folder, options, console)
        return
    paths = tars_of_splits(where, options.train, options.val)
    write_manifest(paths, lambda last: read_all(paths, folder, options, console, last), folder, options, console)


def write_manifest(
    splits: Mapping[str, Sequence[object]],
    read: Callable[[bool], list[IndexedTar]],
    folder: Path,
    options: TarOptions,
    console: Console,
) -> None:
    """Write the manifest of the tars of every split. `read`: see `with_keys`; it reads them in this order."""
    left = iter(indexed := with_images(with_keys(read, options, console), options.channels))
    tars = {split: [next(left) for _ in own] for split, own in splits.items()}
    check(tars, folder, options, console)
    classes, numbered = with_numbers(tars)
    own = [(folder / tar.shard.name, tar.samples, tar.bands) for tar in indexed if isinstance(options.path, Path)]
    count = channels.of_tars(own, options.channels, options.threads, console)
    if not own and options.channels is None and any(tar.bands for tar in indexed):  # tars elsewhere are not read
        channels.say_assumed(console)
    folder.mkdir(parents=True, exist_ok=True)
    rows = {
        split: ([tar.shard for tar in own], joined([tar.samples for tar in own])) for split, own in numbered.items()
    }
    manifest.write(folder, rows, classes, channels=count)


def with_keys(read: Callable[[bool], list[IndexedTar]], options: TarOptions, console: Console) -> list[IndexedTar]:
    """Return the indexes of all tars by the rule for keys that `options.keys` says; prints which where it matters.

    `read`: function that returns the indexes, given whether keys end before the last dot. Raises DataError.
    """
    indexed = read(options.keys == "last")
    lost = lost_members(tar.dotted for tar in indexed)
    if options.keys != "auto" or not (lost.images or (lost.labels and options.labels)):
        return indexed
    images = lost.images + sum(tar.shard.samples for tar in indexed)
    what = f"{lost.images} of {plural(images, 'image')}" if lost.images else f"{plural(lost.labels, 'label')}"
    say(
        console,
        f"Names have dots of their own: by keys that end before the first dot, {what} would be lost. Keys end before "
        "the last dot (keys=first: before the first one all the same).",
    )
    return read(True)


def remotely(
    tars: RemoteTars, names: Mapping[str, Sequence[str]], options: TarOptions, last_dot: bool, console: Console
) -> list[IndexedTar]:
    """Return the indexes of tars elsewhere. Raises DataError."""
    files = [name for own in names.values() for name in own]
    rules = Rules(options.image, options.labels, last_dot)
    found = tars.indexes(files, rules, options.threads, console)
    return [IndexedTar.of(name, own) for name, own in zip(files, found, strict=True)]


def read_all(
    paths: Mapping[str, Sequence[Path]], folder: Path, options: TarOptions, console: Console, last_dot: bool
) -> list[IndexedTar]:
    """Return the indexes of all tars; `last_dot`: keys end before the last dot of a name. Raises DataError."""
    files = [path for own in paths.values() for path in own]
    with LongWork(console) as progress, ThreadPoolExecutor(options.threads) as pool:
        task = progress.add_task("bytes", total=sum(path.stat().st_size for path in files))
        return list(pool.map(lambda path: read(path, folder, options, last_dot, progress, task), files))


def with_numbers(tars: Tars) -> tuple[list[str], dict[str, list[IndexedTar]]]:
    """Return the names of the classes, none if the labels are their numbers already, and the tars with numbers."""
    names = {name for own in tars.values() for tar in own for name in tar.labels}
    numeric = all(name.isascii() and name.isdigit() for name in names)
    classes = sorted(names, key=int) if numeric else sorted(names)
    numbers = {name: number for number, name in enumerate(classes)}
    made = {split: [tar.numbered(numbers) for tar in own] for split, own in tars.items()}
    return ([] if classes == [str(number) for number in range(len(classes))] else classes), made


class Counted:
    """A file that advances a progress bar as it is read."""

    def __init__(self, path: Path, progress: Progress, task: TaskID) -> None:
        self.file, self.progress, self.task = open_regular(path), progress, task

    def read(self, size: int) -> bytes:
        """Return at most `size` bytes; empty at the end."""
        data = self.file.read(size)
        self.progress.advance(self.task, len(data))
        return data


def read(path: Path, folder: Path, options: TarOptions, last_dot: bool, progress: Progress, task: TaskID) -> IndexedTar:
    """Return the index of one tar, named relative to the folder of the manifest. Raises DataError."""
    try:
        if program := compression_of(path):
            raise DataError(f"{path} is compressed by {program}.", f"{DECOMPRESS}.")
        counted = Counted(path, progress, task)
        with counted.file:
            own = index(counted, str(path), options.image, labels=options.labels, last_dot=last_dot)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}.", "Fix that and run the same command again.") from error
    return IndexedTar.of(os.path.relpath(path, folder), own)


def check(tars: Tars, folder: Path, options: TarOptions, console: Console) -> None:
    """Print what may not be as intended. Raises DataError if a split has no images."""
    for split, own in tars.items():
        if not any(tar.shard.samples for tar in own):
            kinds = f".{options.image}" if options.image else ", ".join(f".{kind}" for kind in KINDS)
            raise DataError(
                f"No tar of {split} in {options.path} holds {kinds} members.",
                "Set image=EXT to the extension of its images"
                + ("; where names have dots of their own, with keys=last." if options.image else "."),
            )
    for line in (*notes(tars), *left_out(tars, folder, options)):
        say(console, line)


def left_out(tars: Tars, folder: Path, options: TarOptions) -> Iterator[str]:
    """Yield what of the tars' folder and of the tars is not used: other tars, members of other kinds, missing labels.

    `folder`: that of the manifest.
    """
    if isinstance(options.path, Path):
        yield from other_tars(tars, folder, options.path)
    kinds = sum((tar.others for own in tars.values() for tar in own), Counter[str]())
    if kinds:
        yield f"Left out, as neither images nor labels (.cls): {counted_kinds(kinds)}."
    open_ended = [tar.shard.name for own in tars.values() for tar in own if not tar.ended]
    if open_ended:
        yield (
            f"{plural(len(open_ended), 'tar lacks', 'tars lack')} the empty blocks at the end, members are whole: "
            f"{shortened(open_ended)}."
        )
    for split, own in tars.items():
        yield from unlabelled(split, own)


def other_tars(tars: Tars, folder: Path, place: Path) -> Iterator[str]:
    """Yield which tars of a folder are in no split. `folder`: that of the manifest."""
    names = {os.path.realpath(folder / tar.shard.name) for own in tars.values() for tar in own}
    others = [str(path.relative_to(place)) for path in all_tars(place) if os.path.realpath(path) not in names]
    if others:
        yield (
            f"{plural(len(others), 'tar is', 'tars are')} in no split (val=... or train=... takes "
            f"{'it' if len(others) == 1 else 'them'}): {shortened(others)}."
        )
    packed = [path.name for path in compressed_tars(place)]
    if packed:
        yield (
            f"{plural(len(packed), 'compressed tar is', 'compressed tars are')} left out: {shortened(packed)}. "
            f"{DECOMPRESS}."
        )


def unlabelled(split: str, tars: Sequence[IndexedTar]) -> Iterator[str]:
    """Yield which samples lack a label, where others have one."""
    total = sum(len(tar.samples) for tar in tars)
    keys = [tar.samples.key(int(n)) for tar in tars for n in np.flatnonzero(tar.samples.labels < 0)]
    if 0 < len(keys) < total:
        yield (
            f"{split}: {len(keys)} of {total} samples {'has' if len(keys) == 1 else 'have'} no label, so "
            f"there can be no probe: {shortened(keys)}. "
            "Add their .cls members, or leave all labels out: labels=false."
        )


def notes(tars: Tars) -> Iterator[str]:
    """Yield a line for everything unusual."""
    everything = [tar for own in tars.values() for tar in own]
    bare, several = sum(tar.bare for tar in everything), sum(tar.several for tar in everything)
    if bare:
        yield f"{plural(bare, 'sample has', 'samples have')} no image: left out."
    if several:
        yield (
            f"{plural(several, 'sample has', 'samples have')} several images: one was chosen (set image=EXT "
            "to choose another), "
            f"{plural(sum(tar.hidden for tar in everything), 'image is', 'images are')} not used. If these "
            "are samples of their own, with "
            "dots in their names: keys=last."
        )
    hashes = Counter(tar.shard.sha256 for tar in everything)
    for sha256 in (text for text, count in hashes.items() if count > 1):
        names = ", ".join(tar.shard.name for tar in everything if tar.shard.sha256 == sha256)
        yield f"Several tars have the same contents: {names}."
    for split, own in tars.items():
        texts = (tar.samples.key(number) for tar in own for number in range(len(tar.samples)))
        keys = np.array([xxhash.xxh3_64_intdigest(text.encode()) for text in texts], dtype=np.uint64)
        repeated = len(keys) - len(np.unique(keys))
        if repeated:
            yield (
                f"{split}: {plural(repeated, 'sample has', 'samples have')} the key of one in another tar; tar "
                "and key identify a sample."
            )


SOURCES = {"tars": ImageSource(TarOptions, write, in_place=True)}
