"""Images that a command reads one after the other by their number: a split of shards, or the pictures of a folder."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import xxhash

from dist_ssl.data.storage import manifest
from dist_ssl.data.storage.address import Address
from dist_ssl.data.storage.read import Reader
from dist_ssl.data.storage.reader_options import Access
from dist_ssl.errors import ConfigError, DataError, nearest
from shards.command_line import counted_kinds, shortened
from shards.folder_scan import scan


@dataclass(frozen=True)
class ImageCollection:
    """Images with the numbers 0 .. count - 1.

    `identity`: a hash of what they are; `origin`: where they are, and what is left out there, for people; `key`: the
    name of one, from its number; `read`: its encoded bytes, called by several threads. Reading raises DataError.
    """

    identity: str
    origin: str
    count: int
    key: Callable[[int], str]
    read: Callable[[int], bytes]


def collection(path: str, split: str | None, threads: int, cache_bytes: int) -> ImageCollection:
    """Return the images of shards, in a folder or elsewhere, or of a folder of pictures. Raises ConfigError, DataError.

    `split`: name of a split of the shards, None where there is one only; `cache_bytes`: bound of the local copies of
    remote shards.
    """
    address = Address.parse(path)
    if not address.local or (address.path / manifest.NAME).is_file():
        return of_shards(address, split, cache_bytes)
    if split is not None:
        raise ConfigError(
            f"{path} holds no shards: it has no splits.", f"Leave split={split} out, or name a sub-folder."
        )
    return of_folder(address.path, threads)


def of_shards(address: Address, split: str | None, cache_bytes: int) -> ImageCollection:
    """Return the images of a split, in the order of the shards. Raises ConfigError, DataError."""
    access = Access.to(address, "auto", cache_bytes)
    found = manifest.read(address, access.fetcher)
    if split is None and len(found.splits) > 1:
        names = ", ".join(found.splits)
        raise ConfigError(
            f"{address.shown} has several splits: {names}.", f"Name one: split={next(iter(found.splits))}"
        )
    own = found.split(split or next(iter(found.splits)))
    access.check(own, 1, 1)
    reader = Reader(own, access)
    reader.expect(range(len(own.shards)))
    origin = f"split '{own.name}' of {address.shown}"
    return ImageCollection(f"{found.identity}/{own.name}", origin, len(own.samples), own.samples.key, reader.read)


def of_folder(folder: Path, threads: int) -> ImageCollection:
    """Return the pictures of a folder and its sub-folders, in the order of their paths, which are their keys.

    Raises DataError where there are none.
    """
    if not folder.is_dir():
        beside = [path.name for path in folder.parent.glob("*") if path.is_dir()] if folder.parent.is_dir() else []
        raise DataError(
            f"There is no folder {folder}.", nearest(folder.name, beside) if beside else "Correct its name."
        )
    found = scan(folder, threads)
    files = sorted(found.files, key=lambda file: file.name)
    if found.unreadable:
        raise DataError(
            f"{len(found.unreadable)} files or folders in {folder} cannot be read: {shortened(found.unreadable)}.",
            "Change their permissions, or move them out of the folder.",
        )
    if not files:
        raise DataError(f"No image is in {folder}.", "Name a folder of pictures, or one of shards.")
    stamps = "\n".join(f"{file.name} {file.size} {file.changed}" for file in files)
    identity = xxhash.xxh3_128_hexdigest(stamps.encode(errors="surrogateescape"))

    def read(number: int) -> bytes:
        path = folder / files[number].name
        try:
            return path.read_bytes()
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}.", "Start again once it can be read.") from error

    def key(number: int) -> str:
        return files[number].name.encode(errors="surrogateescape").decode(errors="backslashreplace")

    others = f" (left out, because they are no images: {counted_kinds(found.left_out)})" if found.left_out else ""
    return ImageCollection(identity, f"{folder}{others}", len(files), key, read)
