"""Lists the images of a folder tree: recognised by their extension, or, where that is unknown, by decoding them."""

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from dist_ssl.data.images.decode import decode, looks_like_image
from dist_ssl.data.images.unreadable import UnreadableError
from dist_ssl.data.storage.fields import MOST_IMAGE
from shards.archive import KINDS

Ancestors = tuple[tuple[int, int], ...]
"""Device and inode of a folder and of all its ancestors, so that a link to an ancestor is not followed for ever."""


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
    """Return whether a file is packed: by its extension, or, if that is unknown, because it can be decoded."""
    if not entry.is_file():
        return False
    if extension(entry.name).lower() in KINDS:
        return True
    path = Path(entry.path)
    with path.open("rb") as opened:
        if not looks_like_image(opened.read(16)):
            return False
    try:
        decode(path.read_bytes(), 1)
    except UnreadableError:
        return False
    return True


def extension(name: str) -> str:
    """Return the extension of a path: `JPG` for `a/b.c.JPG`; empty without one."""
    return PurePosixPath(name).suffix[1:]
