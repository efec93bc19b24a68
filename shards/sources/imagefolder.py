"""A folder of pictures as a source: the files are packed into tars byte for byte, without re-encoding.

    python shards/make.py source=imagefolder path=pictures out=data/mine [shard_bytes=256MB] [val=2%] [labels=true]

If the folder has `train/` and `val/`, these are the splits; otherwise `val` images are held out by the hash of their
paths. If all images are in sub-folders, and there are several of these, their sorted names are the classes. Images are
packed in the order of the hash of their paths, so that every tar mixes the classes. Hidden files and folders are left
out; links are followed.
"""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import xxhash
from rich.console import Console

from dist_ssl.data.images.decode import looks_like_image
from dist_ssl.errors import ConfigError, DataError, printable
from shards.archive import KINDS, META, Sample, spelt
from shards.command_line import Bytes, HeldOut, Threads, say, shortened
from shards.image_source import ImageSource
from shards.pack import THREADS, Contents, pack

VAL_NAMES = ("val", "valid", "validation")
HELD_OUT = HeldOut(share=0.02)
Ancestors = tuple[tuple[int, int], ...]
"""Device and inode of a folder and of all its ancestors, so that a link to an ancestor is not followed for ever."""


@dataclass(frozen=True)
class FolderOptions:
    """Options of the source.

    `val`: images held out, by default 2 % if there are labels; `labels`: whether folders are classes, by default if all
    images are in several sub-folders.
    """

    path: Path
    shard_bytes: Bytes = Bytes(256 * 10**6)
    val: HeldOut | None = None
    labels: bool | None = None
    threads: Threads = THREADS


@dataclass(frozen=True, slots=True)
class File:
    """An image file: its path within the split, its size in bytes, and its modification time in ns."""

    name: str
    size: int
    changed: int


@dataclass
class Found:
    """Contents of a folder tree.

    `files`: images; `folders`: all folders that were listed; `left_out`: number of other files by extension;
    `unreadable`: files and folders that cannot be read, with the reason.
    """

    files: list[File] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    unreadable: list[str] = field(default_factory=list)


def write(out: Path, options: FolderOptions, console: Console) -> None:
    """Pack the folder. Raises ConfigError, DataError."""
    if not options.path.is_dir():
        raise DataError(f"path={options.path} is not a folder.", "Set path to the folder of your pictures.")
    found = scan(options.path, options.threads)
    check(found, options.path, console)
    train, val, roots = split_of(found, options.path)
    if val and options.val is not None:
        raise ConfigError(f"{options.path} has its own val/, so val=... cannot be used.", "Leave val=... out.")
    classes = classes_of(train, options)
    if not val:
        held_out = options.val or (HELD_OUT if classes else HeldOut())
        count = held_out.of(len(train))
        train, val, roots = train[count:], train[:count], (roots[0], roots[0])
    report_empty(found, classes, roots[0], options.path, console)
    splits = {"train": contents(roots[0], train, classes), "val": contents(roots[1], val, classes)}
    names = [printable(name) for name in classes]
    pack(out, splits, names, shard_bytes=options.shard_bytes, threads=options.threads, console=console)


def scan(root: Path, threads: int) -> Found:
    """Return all files below a folder; links are followed, and folders are listed in parallel."""
    found = Found()
    top = root.stat()
    level: list[tuple[str, Ancestors]] = [("", ((top.st_dev, top.st_ino),))]
    with ThreadPoolExecutor(threads) as pool:
        while level:
            listed = list(pool.map(lambda entry: listing(root, *entry), level))
            for part, _ in listed:
                found.files += part.files
                found.folders += part.folders
                found.left_out += part.left_out
                found.unreadable += part.unreadable
            level = [below for _, inner in listed for below in inner]
    return found


def listing(root: Path, folder: str, above: Ancestors) -> tuple[Found, list[tuple[str, Ancestors]]]:
    """Return the contents of one folder, and its sub-folders with their ancestors."""
    found, inner = Found(folders=[folder]), []
    try:
        entries = list(os.scandir(root / folder))
    except OSError as error:
        return Found(unreadable=[f"{folder}/: {error.strerror}"]), []
    for entry in entries:
        if entry.name.startswith("."):
            continue
        name = f"{folder}/{entry.name}" if folder else entry.name
        try:
            stat = entry.stat()
            if entry.is_dir():
                own = (stat.st_dev, stat.st_ino)
                inner += [(name, (*above, own))] if own not in above else []
            elif extension(name).lower() not in KINDS or not entry.is_file():
                found.left_out[extension(name).lower()] += 1
            elif not os.access(entry.path, os.R_OK):
                found.unreadable.append(f"{name}: Permission denied")
            else:
                found.files.append(File(name, stat.st_size, stat.st_mtime_ns))
        except OSError as error:
            found.unreadable.append(f"{name}: {'broken link' if entry.is_symlink() else error.strerror}")
    return found, inner


def extension(name: str) -> str:
    """Return the extension of a path: `JPG` for `a/b.c.JPG`; empty without one."""
    return PurePosixPath(name).suffix[1:]


def check(found: Found, root: Path, console: Console) -> None:
    """Print what is left out. Raises DataError if anything is unreadable or there are no images."""
    if found.unreadable:
        raise DataError(
            f"{len(found.unreadable)} files or folders in {root} cannot be read:\n  "
            + shortened(sorted(found.unreadable), between="\n  "),
            "Make them readable, or remove them.",
        )
    if not found.files:
        kinds = ", ".join(KINDS)
        raise DataError(f"{root} holds no images.", f"Images are recognised by their extension, in any case: {kinds}.")
    if found.left_out:
        most = found.left_out.most_common(10)
        kinds = ", ".join(f"{n} {f'.{kind}' if kind else 'without extension'}" for kind, n in most)
        say(console, f"Left out, because the extension is not that of an image: {kinds}.")
    empty = sorted(file.name for file in found.files if not file.size)
    if empty:
        say(console, f"{len(empty)} files are empty; a run uses replacement samples for them: {shortened(empty)}.")


def split_of(found: Found, root: Path) -> tuple[list[File], list[File], tuple[Path, Path]]:
    """Return the files of train and of val, in the order of packing and named from their folders, and these folders.

    Raises DataError if some images belong to neither.
    """
    tops = {file.name.partition("/")[0] for file in found.files}
    val = next((name for name in VAL_NAMES if name in tops), None)
    flat = any("/" not in file.name for file in found.files)
    if flat or "train" not in tops or (val is None and tops != {"train"}):
        return ordered(found.files), [], (root, root)
    if tops - {"train", val}:
        raise DataError(
            f"{root} has train/ and {val}/ and, beside them, images in {', '.join(sorted(tops - {'train', val}))}.",
            "Move those away: they belong to neither split.",
        )
    return below(found.files, "train"), below(found.files, val), (root / "train", root / (val or "train"))


def below(files: Iterable[File], folder: str | None) -> list[File]:
    """Return the files of a folder, named relative to it, in the order of packing."""
    inside = f"{folder}/"
    return ordered(
        File(file.name.removeprefix(inside), file.size, file.changed) for file in files if file.name.startswith(inside)
    )


def ordered(files: Iterable[File]) -> list[File]:
    """Return the files in the order of packing, which is that of the hash of their names."""
    return sorted(files, key=lambda file: (xxhash.xxh3_64_intdigest(os.fsencode(file.name)), file.name))


def classes_of(files: Sequence[File], options: FolderOptions) -> list[str]:
    """Return the sorted names of the classes; none if folders are not labels. Raises DataError if labels=true fails."""
    loose = next((file.name for file in files if "/" not in file.name), None)
    tops = sorted({file.name.partition("/")[0] for file in files})
    if options.labels and loose is not None:
        raise DataError(
            f"labels=true, but {loose} lies in no folder of a class.", "Move it into one, or leave labels out."
        )
    if options.labels is False or loose is not None or (len(tops) < 2 and not options.labels):
        return []
    return tops


def report_empty(found: Found, classes: Sequence[str], root: Path, path: Path, console: Console) -> None:
    """Print which folders look like classes but have no images."""
    inside = "" if root == path else f"{root.name}/"
    folders = {name.removeprefix(inside) for name in found.folders if name.startswith(inside)}
    empty = sorted({name for name in folders if name and "/" not in name} - set(classes))
    if classes and empty:
        say(console, f"{len(empty)} folders hold no images and are not classes: {shortened(empty)}.")


def contents(root: Path, files: Sequence[File], classes: Sequence[str]) -> Contents:
    """Return the files as samples. Raises DataError if the class of a file is not in `classes`."""
    numbers = {name: number for number, name in enumerate(classes)}
    stamp = xxhash.xxh3_128(f"{root.resolve()} {sorted(numbers)}".encode("utf-8", "surrogateescape"))
    stems = Counter(stem(file.name) for file in files)
    for file in files:
        stamp.update(os.fsencode(f"{file.name} {file.size} {file.changed}\n"))
        top = file.name.partition("/")[0]
        if classes and top not in numbers:
            raise DataError(
                f"{root / file.name} is of class '{top}', which train/ does not have.",
                "Add a folder of that name to train/, or set labels=false.",
            )

    def sample(number: int) -> Sample:
        file = files[number]
        label = numbers.get(file.name.partition("/")[0], -1)
        alone = stems[stem(file.name)] == 1
        return Sample(key(file.name, alone), extension(file.name), read(root, file), label)

    return Contents(len(files), stamp.hexdigest(), sample)


def stem(name: str) -> str:
    """Return a path without its extension."""
    return name.removesuffix(PurePosixPath(name).suffix)


def key(name: str, alone: bool) -> str:
    """Return the key of a path: a dot in the base name is `%2E`, `%` is `%25`, a byte that is not valid UTF-8 `%XX`.

    If two files differ only in the extension (not `alone`), it is appended after `%`. The first character of a folder
    `__NAME__`, which webdataset would skip, is `%5F`.
    """
    folder, slash, base = stem(name).rpartition("/")
    folder, base = (text.replace("%", "%25") for text in (folder, base))
    folder = f"%5F{folder[1:]}" if META.match(folder) else folder
    return spelt(folder + slash + base.replace(".", "%2E") + ("" if alone else f"%{extension(name)}"))


def read(root: Path, file: File) -> bytes:
    """Return the bytes of a file. Raises DataError if it is unreadable or has changed since the folder was listed."""
    path = root / file.name
    try:
        with path.open("rb") as opened:
            data, changed = opened.read(), os.fstat(opened.fileno()).st_mtime_ns
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror}.", "Fix that and run the same command again."
        ) from error
    if (len(data), changed) != (file.size, file.changed):
        raise DataError(
            f"{path} has changed while the folder was packed.",
            "Leave the folder unchanged and run the same command again.",
        )
    if not looks_like_image(data) and not path.resolve().is_relative_to(root.resolve()):
        raise DataError(
            f"{path} is a link to {path.resolve()}, which lies elsewhere and is not an image.",
            "Remove the link: everything in the folder is copied into the shards.",
        )
    return data


SOURCES = {"imagefolder": ImageSource(FolderOptions, write)}
