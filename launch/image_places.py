"""Where a command finds images: shards, on this machine or elsewhere, or a folder of pictures."""

from pathlib import Path

from rich.console import Console

from dist_ssl.config.bounds import RGB
from dist_ssl.config.byte_sizes import parse_bytes
from dist_ssl.data.images.image_rules import OF_PICTURES
from dist_ssl.data.storage import manifest
from dist_ssl.data.storage.address import Address
from dist_ssl.data.storage.manifest import Manifest
from dist_ssl.data.storage.reader_options import Access
from dist_ssl.errors import DataError
from shards.arrays_beside_pictures import without_arrays
from shards.command_line import parse_path
from shards.folder_scan import Found, scan
from shards.sources.imagefolder import check


def shards_at(path: str) -> Address | None:
    """Return the address of shards, None for a folder of pictures. Raises ConfigError, DataError where neither is."""
    address = Address.parse(path)
    if not address.local:
        return address
    folder = parse_path(str(address.path), "data.path")
    if (folder / manifest.NAME).is_file():
        return Address.parse(str(folder))
    if not folder.is_dir():
        raise DataError(f"data.path={path} is no folder.", "Set it to a folder of pictures, or of shards.")
    return None


def open_shards(address: Address, cache: str | None, cache_bytes: str, sharers: int = 1) -> tuple[Manifest, Access]:
    """Return the manifest of shards, and how they are accessed. Raises ConfigError, DataError.

    `cache`, `cache_bytes`: as the keys of `data`; `sharers`: processes of this machine that share the cache.
    """
    access = Access.to(address, cache, parse_bytes(cache_bytes, "data.cache_bytes"), sharers=sharers)
    return manifest.read(address, access.fetcher), access


def scanned(path: str, threads: int, console: Console, channels: int = RGB) -> tuple[Path, Found]:
    """Return a folder of pictures, and what is in it. Prints what is left out. Raises DataError.

    `channels`: those of the encoder. Where no picture has as many, arrays are the images, however few they are.
    """
    folder = parse_path(path, "data.path")
    found = without_arrays(scan(folder, threads), None if channels in OF_PICTURES else channels, console)
    check(found, folder, console)
    return folder, found
