"""Lists the images of a folder tree: recognised by their extension, or, where that is unknown, by decoding them."""

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path, PurePosixPath

from dist_ssl.data.images.array_files import HEAD_BYTES, header_of, is_array
from dist_ssl.data.images.decode import decode
from dist_ssl.data.images.file_formats import ARRAYS, looks_like_image
from dist_ssl.data.images.unreadable import UnreadableError
from dist_ssl.data.storage.fields import MOST_IMAGE
from dist_ssl.errors import DataError
from dist_ssl.runtime.strange_files import NotRegularError, open_regular
from shards.archive import KINDS

RAW = (
    "3fr", "arw", "cr2", "cr3", "dcr", "dng", "erf", "iiq", "kdc", "mrw", "nef", "nrw", "orf", "pef", "raf", "rw2",
    "rwl", "sr2", "srf", "srw", "x3f",
)  # fmt: skip
"""Extensions of cameras' own files. Many are TIFFs whose first picture is a thumbnail."""
NOT_READ = (*RAW, "heic", "heif", "jxl", "psd", "svg", "exr", "hdr", "dcm", "nii", "mrc", "czi", "nd2")
"""Extensions of pictures in formats that are not read."""
MOST_WAYS = 1000
"""Ways by links to one folder: some folders that link to each other have more than can be followed."""
Ancestors = tuple[tuple[int, int], ...]
"""Device and inode of a folder and of all its ancestors, so that a link to an ancestor is not followed for ever."""


@dataclass(frozen=True, slots=True)
class Inner:
    """A folder to be listed: its path within the tree, itself and its ancestors, and whether a link leads there."""

    name: str
    above: Ancestors
    linked: bool


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

    def add(self, other: "Found") -> None:
        """Add the contents of another folder."""
        self.files += other.files
        self.folders += other.folders
        self.left_out += other.left_out
        self.unreadable += other.unreadable


def scan(root: Path, threads: int) -> Found:
    """Return all files below a folder; links are followed, and folders are listed in parallel.

    Raises DataError where links lead to one folder in more than MOST_WAYS ways.
    """
    found, ways = Found(), Counter[tuple[int, int]]()
    top = root.stat()
    level = [Inner("", ((top.st_dev, top.st_ino),), linked=False)]
    with ThreadPoolExecutor(threads) as pool:
        try:
            while level:
                listed, level = pool.map(lambda folder: listing(root, folder), level), []
                for part, inner in listed:
                    found.add(part)
                    check_ways(root, inner, ways)
                    level += inner
        finally:
            pool.shutdown(cancel_futures=True)
    return found


def check_ways(root: Path, folders: Sequence[Inner], ways: Counter[tuple[int, int]]) -> None:
    """Count the ways to folders that lead over links. Raises DataError where there are more than MOST_WAYS to one."""
    for folder in folders:
        ways[folder.above[-1]] += folder.linked
        if ways[folder.above[-1]] > MOST_WAYS:
            raise DataError(
                f"Links lead to {root / folder.name} in more than {MOST_WAYS} ways.",
                "Remove some: everything is packed once for every way to it.",
            )


def listing(root: Path, listed: Inner) -> tuple[Found, list[Inner]]:
    """Return the contents of one folder, and its sub-folders."""
    folder, above, inner = listed.name, listed.above, list[Inner]()
    found = Found(folders=[folder])
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
                linked = listed.linked or entry.is_symlink()
                inner += [Inner(name, (*above, own), linked)] if own not in above else []
            elif not os.access(entry.path, os.R_OK):
                found.unreadable.append(f"{name}: Permission denied")
            elif stat.st_size > MOST_IMAGE:
                found.unreadable.append(f"{name}: larger than an image can be ({MOST_IMAGE} bytes)")
            elif not is_image(entry):
                found.left_out[extension(name).lower()] += 1
            else:
                found.files.append(File(name, stat.st_size, stat.st_mtime_ns))
        except OSError as error:
            found.unreadable.append(f"{name}: {'broken link' if entry.is_symlink() else error.strerror}")
    return found, inner


def is_image(entry: os.DirEntry[str]) -> bool:
    """Return whether a file is packed: by its extension, or, if that is unknown, because it can be decoded.

    Of a camera's own file a decoder would find the thumbnail. A file of numpy is packed where its header is that of an
    image.
    """
    if not entry.is_file():
        return False
    kind = extension(entry.name).lower()
    if kind in (*KINDS, *RAW) and kind != ARRAYS:
        return kind in KINDS
    try:
        with BufferedReader(open_regular(Path(entry.path))) as opened:
            if kind == ARRAYS:  # which may hold anything
                return can_be_image(opened.read(HEAD_BYTES))
            return looks_like_image(opened.peek(16)) and can_be_decoded(opened.read(MOST_IMAGE))
    except NotRegularError:  # exchanged since it was listed
        return False


def can_be_image(head: bytes) -> bool:
    """Return whether a file of numpy holds an image, by its first HEAD_BYTES."""
    try:
        header_of(head)
    except UnreadableError:
        return False
    return True


def can_be_decoded(data: bytes) -> bool:
    """Return whether a file is an image that can be read."""
    if is_array(data):
        return can_be_image(data)
    try:
        decode(data, 1)
    except UnreadableError:
        return False
    return True


def extension(name: str) -> str:
    """Return the extension of a path: `JPG` for `a/b.c.JPG`; empty without one."""
    return PurePosixPath(name).suffix[1:]
