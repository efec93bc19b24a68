"""A folder of pictures as a source: the files are packed into tars byte for byte, without re-encoding.

    python shards/make.py source=imagefolder path=pictures out=data/mine [shard_bytes=256MB] [val=500] [labels=true]
        [channels=N]

If the folder, or the only one in it, has `train/` and `val/` (or training, validation, test, eval, dev, in any case,
with a year or without one: `val2017`), these are the splits; otherwise `val` images are held out by the hash of their
paths. If all images are in sub-folders, and there are several of these, their sorted names are the classes. Images are
packed in the order of the hash of their paths, so that every tar mixes the classes. A file is an image by its
extension, or, if that is unknown, because it can be decoded. Hidden files and folders are left out; links are followed.
Pictures are RGB, or with `channels=1` grey and with `channels=4` RGBA; arrays of numpy (`.npy`, [H, W] or [H, W, C])
and TIFFs of bands have the channels that they have.
"""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path, PurePosixPath

import xxhash
from rich.console import Console

from dist_ssl.config.command import say
from dist_ssl.data.images.file_formats import kind_of, surely_image
from dist_ssl.errors import ConfigError, DataError, plural, printable, shortened
from dist_ssl.runtime.strange_files import open_regular
from shards import channels
from shards.archive import KINDS, META, Sample, spelt
from shards.arrays_beside_pictures import without_arrays
from shards.command_line import Bytes, HeldOut, Threads, counted_kinds
from shards.folder_scan import NOT_READ, File, Found, can_be_decoded, extension, scan
from shards.image_source import ImageSource
from shards.pack import THREADS, Contents, pack
from shards.split_names import TRAIN_NAMES, VAL_NAMES, check_inner_splits, folder_of_splits, named_like

HELD_OUT = HeldOut(share=0.02)
LEAST_HELD_OUT = 50
"""Labelled images that are held out at least, up to a fifth of all: of fewer an accuracy says little."""


@dataclass(frozen=True)
class FolderOptions:
    """Options of the source.

    `val`: images held out, by default those of `held_out_of`; `labels`: whether folders are classes, by default if all
    images are in several sub-folders; `channels`: of the images, by default measured.
    """

    path: Path
    shard_bytes: Bytes = Bytes(256 * 10**6)
    val: HeldOut | None = None
    labels: bool | None = None
    channels: int | None = None
    threads: Threads = THREADS


@dataclass(frozen=True)
class Pictures:
    """The images of a folder, in the order of packing: `train` and `val` with the folders that their names start from.

    `classes`: sorted names, none if folders are not labels; `channels`: of every image.
    """

    train: list[File]
    val: list[File]
    roots: tuple[Path, Path]
    classes: list[str]
    channels: int

    def splits(self) -> dict[str, Contents]:
        """Return the samples of both splits. Raises DataError if the class of a file is not in `classes`."""
        return {
            "train": contents(self.roots[0], self.train, self.classes),
            "val": contents(self.roots[1], self.val, self.classes),
        }


def write(out: Path, options: FolderOptions, console: Console) -> None:
    """Pack the folder. Raises ConfigError, DataError."""
    pack_pictures(out, find(options, console), options, console)


def pack_pictures(out: Path, found: Pictures, options: FolderOptions, console: Console) -> None:
    """Pack the images that were found. Raises DataError."""
    names = [printable(name) for name in found.classes]
    size, threads = options.shard_bytes, options.threads
    own = found.channels
    pack(out, found.splits(), names, channels=own, shard_bytes=size, threads=threads, console=console)


def find(options: FolderOptions, console: Console) -> Pictures:
    """Return the images of the folder, and print what is left out. Raises ConfigError, DataError."""
    if not options.path.is_dir():
        raise DataError(f"path={options.path} is not a folder.", "Set path to the folder of your pictures.")
    found = without_arrays(scan(options.path, options.threads), options.channels, console)
    check(found, options.path, console)
    all_used = options.val == HeldOut() or options.labels is False
    train, val, roots = split_of(found, options.path, console, all_used)
    if val and options.val is not None:
        raise ConfigError(
            f"{options.path} has its own {roots[1].name}/, so val=... cannot be used.", "Leave val=... out."
        )
    classes = classes_of(train, options)
    if not val:
        count = options.val.of(len(train)) if options.val else held_out_of(len(train)) if classes else 0
        train, val, roots = train[count:], train[:count], (roots[0], roots[0])
    report_empty(found, classes, roots[0], options.path, console)
    paths = [root / file.name for root, files in zip(roots, (train, val), strict=True) for file in files]
    own = channels.of_files(paths, options.channels, options.threads, console)
    return Pictures(train, val, roots, classes, own)


def check(found: Found, root: Path, console: Console) -> None:
    """Print what is left out. Raises DataError if anything is unreadable or there are no images."""
    if found.unreadable:
        raise DataError(
            f"{plural(len(found.unreadable), 'file or folder', 'files or folders')} in {root} cannot be read:\n  "
            + shortened(sorted(found.unreadable), between="\n  "),
            "Make them readable, or remove them.",
        )
    if not found.files:
        kinds = ", ".join(KINDS)
        raise DataError(f"{root} holds no images.", f"Images are recognised by their extension, in any case: {kinds}.")
    if found.left_out:
        pictures = sorted(kind for kind in found.left_out if kind in NOT_READ)
        hint = f" Pictures of a kind that is not read (.{', .'.join(pictures)}) can be converted, to PNG say."
        kinds = counted_kinds(found.left_out)
        say(console, f"Left out, because they are no images: {kinds}.{hint if pictures else ''}")
    empty = sorted(file.name for file in found.files if not file.size)
    if empty:
        say(console, f"Empty files, which count as images that cannot be read: {shortened(empty)} ({len(empty)}).")


def split_of(
    found: Found, root: Path, console: Console, all_used: bool | None = None
) -> tuple[list[File], list[File], tuple[Path, Path]]:
    """Return the files of train and of val, in the order of packing and named from their folders, and these folders.

    `all_used`: folders of splits that lie inside several others are used like any others, which is said; None where no
    option could ask for it. Raises DataError if some images belong to neither.
    """
    inside = folder_of_splits([file.name for file in found.files])
    tops = {name.removeprefix(inside).partition("/")[0] for name in (file.name for file in found.files)}
    train = named_like(TRAIN_NAMES, tops)
    held = named_like(VAL_NAMES, tops)
    rest = sorted(tops - {*train[:1], *held})
    if not train or (rest and not held):  # trains may be a class beside cars
        if inner := check_inner_splits([file.name for file in found.files], root, all_used=all_used):
            say(
                console,
                f"Folders of splits inside others are no splits here, all their pictures are used: {shortened(inner)}.",
            )
        return ordered(found.files), [], (root, root)
    if rest or len(train) > 1:
        besides = f" and {held[0]}/" if held else ""
        raise DataError(
            f"{root / inside} has {train[0]}/{besides} and, beside them, images in {', '.join(rest or train[1:])}.",
            "Move those away: they belong to neither split.",
        )
    if held:
        unused = f"; not used: {', '.join(held[1:])}" if held[1:] else ""
        say(console, f"{train[0]}/ is trained on, {held[0]}/ is held out{unused}.")
    val = held[0] if held else train[0]
    return (
        below(found.files, inside + train[0]),
        below(found.files, inside + val) if held else [],
        (root / inside / train[0], root / inside / val),
    )


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
            f"labels=true, but {loose} lies in no folder of a class.", "Move it into one, or leave labels=true out."
        )
    if options.labels is False or loose is not None or (len(tops) < 2 and not options.labels):
        return []
    return tops


def held_out_of(total: int) -> int:
    """Return how many of `total` labelled images are held out by default: 2 %, at least `LEAST_HELD_OUT` or a fifth."""
    return max(HELD_OUT.of(total), min(LEAST_HELD_OUT, total // 5))


def report_empty(found: Found, classes: Sequence[str], root: Path, path: Path, console: Console) -> None:
    """Print which folders look like classes but have no images."""
    inside = "" if root == path else f"{root.name}/"
    folders = {name.removeprefix(inside) for name in found.folders if name.startswith(inside)}
    empty = sorted({name for name in folders if name and "/" not in name} - set(classes))
    if classes and empty:
        many = plural(len(empty), "folder holds no images and is no class", "folders hold no images and are no classes")
        say(console, f"{many}: {shortened(empty)}.")


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
        data, own = read(root, file), extension(file.name)
        kind = own if own.lower() in KINDS else kind_of(data)  # an unknown one could be that of a label
        return Sample(key(file.name, alone), kind, data, label)

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
        with BufferedReader(open_regular(path)) as opened:
            data, changed = opened.read(file.size + 1), os.fstat(opened.fileno()).st_mtime_ns
            elsewhere = None if surely_image(data) else leads_out(opened.fileno(), path, root)
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror}.", "Fix that and run the same command again."
        ) from error
    if (len(data), changed) != (file.size, file.changed):
        raise DataError(
            f"{path} has changed since the folder was listed.",
            "Leave the folder unchanged and run the same command again.",
        )
    if elsewhere and not can_be_decoded(data):
        raise DataError(
            f"{path} is a link to {elsewhere}, which lies elsewhere and is not an image.",
            "Remove the link: everything in the folder is copied into the shards.",
        )
    return data


def leads_out(descriptor: int, path: Path, root: Path) -> Path | None:
    """Return where an open file lies, if that is not below the folder; a link may have been exchanged since."""
    own = Path(f"/proc/self/fd/{descriptor}")
    place = own.readlink() if own.is_symlink() else path.resolve()  # no system but Linux has the former
    return None if place.is_relative_to(root.resolve()) else place


SOURCES = {"imagefolder": ImageSource(FolderOptions, write)}
