"""Images that a command reads one after the other by their number: a split of shards, or the pictures of a folder."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import xxhash
from rich.console import Console

from dist_ssl.config.bounds import RGB
from dist_ssl.data.storage.address import Address
from dist_ssl.data.storage.read import Reader
from dist_ssl.errors import ConfigError, plural, printable
from launch.image_places import open_shards, scanned, shards_at
from shards.sources import imagefolder


@dataclass(frozen=True)
class ImageCollection:
    """Images with the numbers 0 .. count - 1.

    `identity`: a hash of what they are; `origin`: where they are, for people; `key`: the name of one, from its number;
    `read`: its encoded bytes, called by several threads. Reading raises DataError.
    """

    identity: str
    origin: str
    count: int
    key: Callable[[int], str]
    read: Callable[[int], bytes]
    expect: Callable[[Iterable[range]], None] = lambda _: None
    """Function that takes the runs of numbers that will be read, in their order, to fetch them ahead."""


@dataclass(frozen=True)
class ImagePlace:
    """Where images are: the keys of the command, with credentials.

    `sharers`: processes that share the cache; `channels`: those of the encoder.
    """

    path: str
    split: str | None
    cache: str | None
    cache_bytes: str
    sharers: int
    threads: int
    channels: int = RGB


def collection(place: ImagePlace, console: Console) -> ImageCollection:
    """Return the images of shards, or of a folder of pictures. Prints what is left out. Raises ConfigError, DataError.

    `place.split`: name of a split of the shards, None where there is one only.
    """
    address = shards_at(place.path)
    if address is not None:
        return of_shards(address, place)
    if place.split is not None:
        raise ConfigError(
            f"{place.path} holds no shards: it has no splits.", "Leave split=... out, or name a sub-folder."
        )
    return of_folder(place, console)


def of_shards(address: Address, place: ImagePlace) -> ImageCollection:
    """Return the images of a split, in the order of the shards. Raises ConfigError, DataError."""
    found, access = open_shards(address, place.cache, place.cache_bytes, place.sharers)
    names = ", ".join(found.splits)
    if place.split is None and len(found.splits) != 1:
        remedy = f"Name one: split={next(iter(found.splits))}" if names else "Make the shards again."
        raise ConfigError(f"{address.shown} has {plural(len(found.splits), 'split')}: {names or 'none'}.", remedy)
    own = found.split(place.split or next(iter(found.splits)))
    access.check(own, 1, 1)
    reader = Reader(own, access)

    def expect(runs: Iterable[range]) -> None:
        ends = [(own.shard_of(run[0]), own.shard_of(run[-1])) for run in runs]
        reader.expect(dict.fromkeys(shard for first, last in ends for shard in range(first, last + 1)))

    origin = f"split '{own.name}' of {address.shown}"
    identity = f"{found.identity}/{own.name}"
    return ImageCollection(identity, origin, len(own.samples), own.samples.key, reader.read, expect)


def of_folder(place: ImagePlace, console: Console) -> ImageCollection:
    """Return the pictures of a folder and its sub-folders, in the order of their paths, which are their keys.

    Prints what is left out. Raises DataError where there are none.
    """
    folder, found = scanned(place.path, place.threads, console, place.channels)
    files = sorted(found.files, key=lambda file: file.name)
    stamps = "\n".join(f"{file.name} {file.size} {file.changed}" for file in files)
    identity = xxhash.xxh3_128_hexdigest(stamps.encode(errors="surrogateescape"))

    def key(number: int) -> str:
        return printable(files[number].name)

    def read(number: int) -> bytes:
        return imagefolder.read(folder, files[number])

    return ImageCollection(identity, str(folder), len(files), key, read)
