"""Tars at one place and their manifest at another, `data.manifest`: for a server that cannot be written to.

The manifest is one that `shards/make.py source=tars path=ADDRESS out=FOLDER` has made, so its tars are named from their
address. It is read on this file system; the tars are where `data.path` says.
"""

from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from dist_ssl.data.storage import manifest
from dist_ssl.data.storage.address import Address
from dist_ssl.data.storage.manifest import Manifest
from dist_ssl.data.storage.reader_options import Access
from dist_ssl.errors import ConfigError


def check(folder: str, path: Any, pyramid: Any) -> None:
    """Raise ConfigError where a manifest cannot be apart from the data: of several sources, or one with levels.

    `path`, `pyramid`: values of the keys of `data`.
    """
    if isinstance(path, list | tuple):
        raise ConfigError(
            f"data.manifest={folder} is not possible with several places in data.path.",
            "Put each manifest beside its tars, or train on one place.",
        )
    if pyramid is not None:
        raise ConfigError(
            f"data.manifest={folder} is not possible with data.pyramid: levels lie beside the manifest of their tars.",
            "Leave one of them out.",
        )
    if not Address.parse(folder).local:
        raise ConfigError(
            f"data.manifest={folder} is an address: the manifest is read from a folder of this file system.",
            "Name the folder that shards/make.py has written: data.manifest=data/index, say.",
        )


def read(folder: str, where: Address, access: Access) -> Manifest:
    """Return the data set whose manifest is in `folder` and whose tars are at `where`. Raises UserError."""
    found = manifest.read(Address.parse(folder), access.fetcher, node=access.columns)
    for split in found.splits.values():
        for shard in split.shards:
            parts = PurePosixPath(shard.name).parts
            if ".." in parts or shard.name.startswith("/"):
                raise ConfigError(
                    f"The manifest in {folder} names its tars from there, {shard.name}: they are not below data.path.",
                    f"Leave data.manifest out, and set data.path={folder}.",
                )
    return replace(found, splits={name: replace(split, folder=where) for name, split in found.splits.items()})
