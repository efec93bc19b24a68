"""WebDataset tars that exist already: they stay as they are and where they are, and get a manifest.

    python shards/make.py source=tars path=data/mine [train='train-*.tar'] [val='val-*.tar'] [image=jpg]

`train` and `val` are patterns below `path`, with `*`, `?` and `{000..146}`. Without them `train*.tar` and `val*.tar`
are the splits, or all tars are `train`. A sample's image is the member `KEY.EXT` with an EXT of jpg, jpeg, png, webp,
bmp, tif, tiff, gif, the first of these that there is; where there is none, `KEY.ANYTHING.EXT`; or KEY and `image`.
"""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import braceexpand
import numpy as np
import xxhash
from rich.console import Console
from rich.progress import Progress, TaskID

from dist_ssl.data.storage import manifest
from dist_ssl.errors import DataError
from shards.archive import KINDS, index
from shards.command_line import Threads, say
from shards.image_source import ImageSource
from shards.pack import bar


@dataclass(frozen=True)
class TarOptions:
    """`train`, `val`: patterns of the tars below `path`; `image`: what follows the key in an image's name."""

    path: Path
    train: str | None = None
    val: str | None = None
    image: str | None = None
    threads: Threads = Threads(os.cpu_count() or 1)


def write(out: Path | None, options: TarOptions, console: Console) -> None:
    """Index the tars and write the manifest into `out`, by default beside them. Raises DataError."""
    folder = out or options.path
    if not options.path.is_dir():
        raise DataError(f"path={options.path} is no folder.", "Name the folder that the tars lie in.")
    if (folder / manifest.NAME).exists():
        raise DataError(f"{folder} has a manifest.json already.", "Remove it to index the tars again.")
    paths = found(options)
    files = [path for own in paths.values() for path in own]
    with bar(console) as progress, ThreadPoolExecutor(options.threads) as pool:
        task = progress.add_task("bytes", total=sum(path.stat().st_size for path in files))
        indexed = pool.map(lambda path: read(path, folder, options.image, progress, task), files)
        tars = {split: [next(indexed) for _ in own] for split, own in paths.items()}
    check(tars, options, console)
    folder.mkdir(parents=True, exist_ok=True)
    rows = {
        split: ([tar.shard for tar in own], manifest.joined([tar.samples for tar in own]))
        for split, own in tars.items()
    }
    manifest.write(folder, rows)


def found(options: TarOptions) -> dict[str, list[Path]]:
    """The tars of every split, in the order of their names. Raises DataError."""
    patterns = {"train": options.train, "val": options.val}
    if options.train is None:
        patterns["val"] = options.val or ("val*.tar" if any(options.path.glob("val*.tar")) else None)
        val = set(matches(options.path, patterns["val"])) if patterns["val"] else set()
        named = any(options.path.glob("train*.tar"))
        tars = [path for path in matches(options.path, "train*.tar" if named else "*.tar") if path not in val]
    else:
        tars = matches(options.path, options.train)
    splits = {"train": tars, "val": matches(options.path, patterns["val"]) if patterns["val"] else []}
    twice = set(splits["train"]) & set(splits["val"])
    if twice:
        raise DataError(f"{min(twice)} is in train and in val.", "Write patterns that no tar fits both of.")
    if not tars:
        raise DataError(f"{options.path} holds no tars (*.tar).", "Name them with train='images-*.tar', say.")
    return {split: paths for split, paths in splits.items() if paths}


def matches(folder: Path, pattern: str) -> list[Path]:
    """The tars that fit a pattern. Raises DataError where a part of it fits none."""
    paths: set[Path] = set()
    for part in braceexpand.braceexpand(pattern):
        own = {path for path in folder.glob(part) if path.is_file()}
        if not own:
            raise DataError(
                f"No tar in {folder} fits {part}.", "Correct the pattern, or fetch the tar that is missing."
            )
        paths |= own
    return sorted(paths)


class Counted:
    """A file that moves a progress bar as it is read."""

    def __init__(self, path: Path, progress: Progress, task: TaskID) -> None:
        self.file, self.progress, self.task = path.open("rb"), progress, task

    def read(self, size: int) -> bytes:
        """At most `size` bytes."""
        data = self.file.read(size)
        self.progress.advance(self.task, len(data))
        return data


@dataclass(frozen=True)
class Indexed:
    """One tar as the manifest has it, and how many of its samples have several images or none."""

    shard: manifest.Shard
    samples: manifest.Samples
    several: int
    bare: int


def read(path: Path, folder: Path, image: str | None, progress: Progress, task: TaskID) -> Indexed:
    """The index of one tar, named from the folder of the manifest. Raises DataError."""
    counted = Counted(path, progress, task)
    try:
        with counted.file:
            own = index(counted, str(path), image)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}.", "Mend that and give the same command again.") from error
    shard = manifest.Shard(os.path.relpath(path, folder), len(own.rows), own.bytes, own.sha256)
    return Indexed(shard, manifest.columns(own.rows), own.several, own.bare)


Tars = Mapping[str, Sequence[Indexed]]
"""Of every split."""


def check(tars: Tars, options: TarOptions, console: Console) -> None:
    """Say what may not be as it was meant. Raises DataError where a split has no images."""
    for split, own in tars.items():
        if not any(tar.shard.samples for tar in own):
            wanted = f".{options.image}" if options.image else "images, of " + ", ".join(KINDS)
            raise DataError(f"No tar of {split} in {options.path} holds {wanted}.", "Set image=EXT to what they hold.")
    for line in notes(tars):
        say(console, line)


def notes(tars: Tars) -> Iterator[str]:
    """What is unusual, a line each."""
    everything = [tar for own in tars.values() for tar in own]
    bare, several = sum(tar.bare for tar in everything), sum(tar.several for tar in everything)
    if bare:
        yield f"{bare} samples have no image: left out."
    if several:
        yield f"{several} samples have several images: one was chosen (image=EXT says which)."
    hashes = Counter(tar.shard.sha256 for tar in everything)
    for sha256 in (text for text, count in hashes.items() if count > 1):
        names = ", ".join(tar.shard.name for tar in everything if tar.shard.sha256 == sha256)
        yield f"The same tar lies there more than once: {names}."
    for split, own in tars.items():
        texts = (tar.samples.key(number) for tar in own for number in range(len(tar.samples)))
        keys = np.array([xxhash.xxh3_64_intdigest(text.encode()) for text in texts], dtype=np.uint64)
        repeated = len(keys) - len(np.unique(keys))
        if repeated:
            yield f"{split}: {repeated} samples have the key of one in another tar; a sample is told by tar and key."


SOURCES = {"tars": ImageSource(TarOptions, write, in_place=True)}
