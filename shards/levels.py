"""A pyramid: smaller copies of the images of a data set, in folders within its own, which stays as it is.

    python shards/make.py out=data/mine pyramid=[160,256] [quality=90]

A level has the shards and the samples of its originals, with the shorter side of every image at so many px: upright
RGB, resized with antialias, as JPEG with chroma at half the resolution. An image that is no larger, that cannot be
decoded, or whose copy would take more bytes, stands there with the bytes that it has. Labels are not repeated.
"""

import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL
import simplejpeg
import torch
from PIL import Image
from rich.console import Console

from dist_ssl.data.images.decode import UnreadableError, decode, resize_whole
from dist_ssl.data.storage import manifest, pyramid
from dist_ssl.data.storage.manifest import Split
from dist_ssl.data.storage.read import Reader
from dist_ssl.errors import DataError
from shards.archive import Sample
from shards.command_line import Quality, Sides, Threads, say
from shards.pack import Contents, pack

CHROMA = "4:2:0"
MOST = 65500
"""Longest side of a JPEG, px."""
OVER = 2
"""The least that is decoded of an image, in sides of the level: the rest of the way is antialiased."""
KINDS = {b"\xff\xd8\xff": "jpg", b"\x89PNG": "png", b"GIF8": "gif", b"BM": "bmp", b"II*\0": "tif", b"MM\0*": "tif"}
"""How image files begin, and the extension of their members."""


@dataclass(frozen=True)
class LevelOptions:
    """`pyramid`: shorter sides of the levels, px; `quality`: of their JPEGs."""

    pyramid: Sides
    quality: Quality = Quality(90)
    threads: Threads = Threads(os.cpu_count() or 1)


def write(folder: Path, options: LevelOptions, console: Console) -> None:
    """Write the levels that are missing. Raises DataError."""
    originals = manifest.read(folder)
    for side in options.pyramid:
        copied = {"side": side, "quality": int(options.quality), "chroma": CHROMA, "of": originals.identity}
        if not made(folder, copied):
            say(console, f"Making the level of {side} px in {folder}.")
            splits = {name: contents(split, copied) for name, split in originals.splits.items() if len(split.samples)}
            pack(
                folder / pyramid.folder_of(side),
                splits,
                originals.classes,
                copied=copied,
                shard_bytes=0,
                threads=options.threads,
                console=console,
            )
    pyramid.write(folder, originals)


def made(folder: Path, copied: Mapping[str, Any]) -> bool:
    """Whether the level is there already. Raises DataError where another one is."""
    inside = pyramid.folder_of(copied["side"])
    if not (folder / inside).exists():
        return False
    found = manifest.read(folder, inside=f"{inside}/").copied
    differs = [key for key, value in copied.items() if found.get(key) != value]
    if differs:
        key = differs[0]
        what = "of other originals" if key == "of" else f"made with {key}={found.get(key)}, not {copied[key]}"
        raise DataError(f"{folder / inside} exists already and is {what}.", "Remove it to make it again.")
    return True


def contents(split: Split, copied: Mapping[str, Any]) -> Contents:
    """The smaller copies of a split's samples, in shards of the same samples."""
    reader = Reader(split)

    def sample(number: int) -> Sample:
        data, sides = smaller(reader.read(number), copied["side"], copied["quality"])
        return Sample(split.samples.key(number), kind_of(data), data, sides=sides)

    versions = (PIL.__version__, simplejpeg.__version__, torch.__version__)
    stamp = f"{split.name} {sorted(copied.items())} {versions}"
    return Contents(len(split.samples), stamp, sample, split.ends.tolist())


def smaller(data: bytes, side: int, quality: int) -> tuple[bytes, tuple[int, int]]:
    """An image with its shorter side at `side` px, or as it is; and the original's width and height, px.

    Both are 0 where it cannot be decoded.
    """
    try:
        image = decode(data, OVER * side)
    except UnreadableError:
        return data, (0, 0)
    least = min(image.sides)
    width, height = (max(1, (2 * own * side + least) // (2 * least)) for own in image.sides)
    if least <= side or max(width, height) > MOST:
        return data, image.sides
    file = io.BytesIO()
    pixels = resize_whole(image.pixels, width, height)
    Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling=CHROMA, optimize=True)
    copy = file.getvalue()
    return (copy if len(copy) < len(data) else data), image.sides


def kind_of(data: bytes) -> str:
    """The extension of an image file's name by its first bytes; `bin` of what begins like none."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    return next((kind for begin, kind in KINDS.items() if data.startswith(begin)), "bin")
