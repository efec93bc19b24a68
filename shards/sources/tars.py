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

from dist_ssl.data import manifest
from dist_ssl.errors import DataError
from shards.archive import KINDS, Index, index
from shards.pack import bar
from shards.source import Source


@dataclass(frozen=True)
class Options:
    """`train`, `val`: patterns of the tars below `path`; `image`: what follows the key in an image's name."""

    path: Path
    train: str | None = None
    val: str | None = None
    image: str | None = None
    threads: int = os.cpu_count() or 1


def write(out: Path | None, options: Options, console: Console) -> None:
    """Index the tars and write the manifest into `out`, by default beside them. Raises DataError."""
    folder = out or options.path
    if not options.path.is_dir():
        raise DataError(f"path={options.path} is no folder.", "Name the folder that the tars lie in.")
    if (folder / manifest.NAME).exists():
        raise DataError(f"{folder} has a manifest.json already.", "Remove it to index the tars again.")
    tars = found(options)
    files = [path for paths in tars.values() for path in paths]
    with bar(console) as progress, ThreadPoolExecutor(options.threads) as pool:
        task = progress.add_task("bytes", total=sum(path.stat().st_size for path in files))
        indices = dict(zip(files, pool.map(lambda path: read(path, options.image, progress, task), files), strict=True))
    tell(tars, indices, options, console)
    splits = {split: rows(paths, indices, folder) for split, paths in tars.items()}
    folder.mkdir(parents=True, exist_ok=True)
    manifest.write(folder, splits)


def found(options: Options) -> dict[str, list[Path]]:
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


def read(path: Path, image: str | None, progress: Progress, task: TaskID) -> Index:
    """The index of one tar. Raises DataError."""
    counted = Counted(path, progress, task)
    try:
        with counted.file:
            return index(counted, str(path), image)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}.", "Mend that and give the same command again.") from error


def rows(
    paths: Sequence[Path], indices: Mapping[Path, Index], folder: Path
) -> tuple[list[manifest.Shard], manifest.Samples]:
    """The manifest's rows of one split. Shards are named from the folder of the manifest."""
    shards = [
        manifest.Shard(os.path.relpath(path, folder), len(own.rows), own.bytes, own.sha256)
        for path in paths
        for own in [indices[path]]
    ]
    return shards, manifest.joined([manifest.columns(indices[path].rows) for path in paths])


def tell(tars: Mapping[str, Sequence[Path]], indices: Mapping[Path, Index], options: Options, console: Console) -> None:
    """Say what may not be as it was meant. Raises DataError where a split has no images."""
    for split, paths in tars.items():
        if not any(indices[path].rows for path in paths):
            wanted = f".{options.image}" if options.image else "images, of " + ", ".join(KINDS)
            raise DataError(
                f"The tars of {split} in {options.path} hold no {wanted}.", "Set image=EXT to what they hold."
            )
    for line in notes(tars, indices):
        console.print(line, highlight=False, markup=False)


def notes(tars: Mapping[str, Sequence[Path]], indices: Mapping[Path, Index]) -> Iterator[str]:
    """What is unusual, a line each."""
    bare, several = (sum(getattr(own, name) for own in indices.values()) for name in ("bare", "several"))
    if bare:
        yield f"{bare} samples have no image: left out."
    if several:
        yield f"{several} samples have several images: one was chosen (image=EXT says which)."
    hashes = Counter(index_.sha256 for index_ in indices.values())
    for sha256 in (text for text, count in hashes.items() if count > 1):
        yield "The same tar lies there twice: " + ", ".join(
            str(p) for p, own in indices.items() if own.sha256 == sha256
        )
    for split, own in tars.items():
        keys = [xxhash.xxh3_64_intdigest(row[0].encode()) for path in own for row in indices[path].rows]
        repeated = len(keys) - len(np.unique(np.array(keys, dtype=np.uint64)))
        if repeated:
            yield f"{split}: {repeated} samples have the key of one in another tar; a sample is told by tar and key."


SOURCES = {"tars": Source(Options, write, in_place=True)}
