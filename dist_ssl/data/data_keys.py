"""The keys of the `data` config node, and what is built from them: shard access, manifest, loader."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch

from dist_ssl.config.bounds import MAX_PIXELS
from dist_ssl.config.byte_sizes import parse_bytes, show_bytes
from dist_ssl.config.percentage import Share
from dist_ssl.data.images.deep_rows import FULL
from dist_ssl.data.images.image_rules import ImageRules, White, counted, white_in_words
from dist_ssl.data.loader.load import AHEAD_BYTES, Loader, SampleLoader
from dist_ssl.data.loader.loader_process import LoaderProcess
from dist_ssl.data.storage import manifest, mixture, pyramid, tars_elsewhere
from dist_ssl.data.storage.address import Address
from dist_ssl.data.storage.manifest import Manifest, Split
from dist_ssl.data.storage.read import Reader
from dist_ssl.data.storage.reader_options import CACHE_BYTES, Access
from dist_ssl.errors import ConfigError, DataError, plural


@dataclass(frozen=True)
class Data:
    """The keys of the `data` config node.

    Paths, weights, sizes in bytes and pyramid levels are typed loosely: their own checks give better messages than a
    type check.
    """

    path: Any
    train: str
    mean: tuple[float, ...]
    """Mean of every channel, for values in [0, 1]: a run sees images of as many channels as it has entries."""
    std: tuple[float, ...]
    max_bad: Share
    val: str | None = None
    source: str | None = None
    identity: str | None = None
    cache: str | None = None
    cache_bytes: Any = CACHE_BYTES
    allow_pipe: bool = False
    verify: bool = True
    max_pixels: int = MAX_PIXELS
    range: White = None
    alpha: Literal["white", "black", "drop"] = "white"
    bits: Literal[8, 16] = 8
    ahead_bytes: Any = show_bytes(AHEAD_BYTES)
    max_upsample: float = pyramid.MAX_UPSAMPLE
    pyramid: list[Any] | None = None
    weights: Any = None
    manifest: str | None = None
    loader_process: Literal["auto", True, False] = "auto"

    def access(self, sharers: int) -> Access:
        """Return how `sharers` ranks of a node access the shards, after checking all keys. Raises ConfigError."""
        if self.max_pixels < 1:
            raise ConfigError(
                f"data.max_pixels={self.max_pixels} is not possible: it must be at least 1.", "Leave it out."
            )
        check_range(self.range, len(self.mean))
        if not self.max_upsample >= 1:
            raise ConfigError(
                f"data.max_upsample={self.max_upsample:g} is not possible: it must be at least 1.",
                "Set data.max_upsample=1 (crops are never enlarged), or leave it out.",
            )
        if len(self.mean) != len(self.std) or not self.mean:
            raise ConfigError(
                f"data.mean={list(self.mean)} and data.std={list(self.std)} are not possible: each has one number for "
                "every channel of the images.",
                "Give both as many numbers as the images have channels.",
            )
        if min(self.std) <= 0:
            raise ConfigError(
                f"data.std={list(self.std)} is not possible: pixels are divided by it, so it must be more than 0.",
                "Set data.std=[0.229,0.224,0.225], say.",
            )
        if self.manifest is not None:
            tars_elsewhere.check(self.manifest, self.path, self.pyramid)
        if self.pyramid is not None:
            pyramid.check_sides(self.pyramid, "data.pyramid")
            if self.bits != 8:  # levels are JPEGs
                raise ConfigError(
                    f"data.bits={self.bits} is not possible with data.pyramid={list(self.pyramid)}: the smaller copies "
                    "have 8 bits.",
                    "Leave one of them out.",
                )
        parse_bytes(self.ahead_bytes, "data.ahead_bytes")
        size = parse_bytes(self.cache_bytes, "data.cache_bytes")
        first, *more = mixture.places(self.path, self.weights)
        return Access.to(first, self.cache, size, self.allow_pipe, sharers, more)

    @property
    def rules(self) -> ImageRules:
        """Return how the bytes of an image become pixels."""
        return ImageRules(self.max_pixels, self.range, self.alpha, len(self.mean), self.bits)

    def open(self, access: Access) -> Manifest:
        """Read the manifests of the data set, or of all sources of a mixture, and attach the configured levels.

        Raises DataError where one cannot be read, or `identity`, the one that the run started with, is another.
        """
        places = mixture.places(self.path, self.weights)
        each = [(where, self._open(where, access)) for where in places]
        found = each[0][1] if len(each) == 1 else mixture.mix(each, self.weights, self.train, self.val)
        if self.identity not in (None, found.identity):
            raise DataError(
                f"The data in {' and '.join(map(str, places))} is not the run's: the hash of its manifest is "
                f"{found.identity}, not {self.identity}.",
                "Set data.path to the shards that the run started with, or start a new run.",
            )
        if found.channels != len(self.mean):
            raise ConfigError(
                f"data.mean={list(self.mean)} has {plural(len(self.mean), 'number')}: the images in "
                f"{' and '.join(map(str, places))} have {counted(found.channels)}.",
                f"Set data.mean and data.std to {plural(found.channels, 'number')} each. `python "
                "shards/verify.py FOLDER` prints those of a local data set.",
            )
        return found

    def _open(self, where: Address, access: Access) -> Manifest:
        """Read the manifest of a data set and attach the configured levels. Raises DataError."""
        if self.manifest is not None:
            return tars_elsewhere.read(self.manifest, where, access)
        found = manifest.read(where, access.fetcher, node=access.columns)
        if self.pyramid is None:
            return found
        return pyramid.attach(found, where, self.pyramid, access.fetcher, self.rules, access.columns)

    def process(self, device: torch.device) -> LoaderProcess | None:
        """Return a loader process for a rank on this device; None where samples are loaded in the rank's process."""
        gpu = device.type == "cuda"
        return (
            LoaderProcess(pin=gpu) if self.loader_process is True or (self.loader_process == "auto" and gpu) else None
        )

    def loader(
        self,
        split: Split,
        access: Access,
        threads: int,
        process: LoaderProcess | None = None,
        *,
        scattered: bool = False,
    ) -> SampleLoader:
        """Return a loader for the samples of a split, which runs in `process` if there is one.

        `threads`: decode threads; `scattered`: few samples of many shards will be read.
        """
        ahead_bytes = parse_bytes(self.ahead_bytes, "data.ahead_bytes")
        loader = Loader(Reader(split, access, scattered=scattered), threads, ahead_bytes, self.max_upsample)
        return process.serve(loader) if process else loader


def check_range(white: White, channels: int) -> None:
    """Raise ConfigError where `data.range` is no possible white, or names another number of them than of channels."""
    own = white if isinstance(white, tuple) else () if white is None else (white,)
    if not all(0 < one < math.inf for one in own):
        raise ConfigError(
            f"data.range={white_in_words(white)} is not possible: it is the value that is white, more than 0.",
            f"Set data.range=4095 for 12 bits, say, or leave it out ({FULL} for 16 bits).",
        )
    if isinstance(white, tuple) and len(white) != channels:
        raise ConfigError(
            f"data.range={white_in_words(white)} is of {counted(len(white))}, and the images have {counted(channels)}.",
            "Name the white of each channel, or one for all of them.",
        )
