"""Pyramids: smaller copies of a data set's images in subfolders of its folder; the originals are not changed.

    python shards/make.py out=data/mine pyramid=[160,256] [quality=90] [range=4095] [alpha=drop]

A level has the same shards and samples as the originals, with every image resized to the same shorter side: upright
RGB, resized with antialiasing, as JPEG with chroma at half the resolution. The original bytes are kept for an image
that is not larger than the level, that cannot be decoded, or whose copy would take more bytes. Labels are not repeated.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import PIL
import simplejpeg
import torch
from PIL import Image
from rich.console import Console

from dist_ssl.config.bounds import RGB
from dist_ssl.config.command import say
from dist_ssl.data.images.decode import decode
from dist_ssl.data.images.file_formats import kind_of
from dist_ssl.data.images.image_rules import RULES, ImageRules, counted
from dist_ssl.data.images.resize import resize_whole
from dist_ssl.data.images.unreadable import UnreadableError
from dist_ssl.data.storage import manifest, pyramid
from dist_ssl.data.storage.manifest import Manifest, Split
from dist_ssl.data.storage.read import Reader
from dist_ssl.errors import DataError
from shards import depth
from shards.archive import Sample
from shards.command_line import ONE_PER_CORE, Quality, Sides, Threads
from shards.pack import Contents, pack

CHROMA = "4:2:0"
MOST = 65500
"""Longest side of a JPEG, px."""
UNKNOWN = "bin"
"""Extension of a file that is no image."""
OVER = 2
"""Smallest shorter side at which an image is decoded, in sides of the level; from there it is resized antialiased."""


@dataclass(frozen=True)
class LevelOptions:
    """Options of a pyramid.

    `pyramid`: shorter sides of the levels, px; `quality`: JPEG quality; `range`, `alpha`: as the keys data.range and
    data.alpha of the run; `range` by default that of make.py's command for the pictures.
    """

    pyramid: Sides
    quality: Quality = Quality(90)
    range: float | None = None
    alpha: Literal["white", "black", "drop"] = "white"
    threads: Threads = ONE_PER_CORE


def write(folder: Path, options: LevelOptions, console: Console) -> None:
    """Write the levels that are missing. Raises DataError."""
    originals = manifest.read(folder)
    if originals.channels != RGB:
        raise DataError(
            f"pyramid=... makes JPEGs, which are RGB: the images in {folder} have {counted(originals.channels)}.",
            "Leave it out.",
        )
    pixels = {"range": options.range or white_of(originals), "alpha": options.alpha}
    for side in options.pyramid:
        copied = {"side": side, "quality": int(options.quality), "chroma": CHROMA, **pixels, "of": originals.identity}
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


def white_of(originals: Manifest) -> float | None:
    """Return the value that should be white in copies of these pictures; None: that of all 16 bits."""
    white = depth.together(depth.found_range(split) for split in originals.splits.values()).white
    return None if white is None else float(white)


def made(folder: Path, copied: Mapping[str, Any]) -> bool:
    """Return whether the level exists already. Raises DataError if it exists with other settings."""
    inside = pyramid.folder_of(copied["side"])
    if not (folder / inside).exists():
        return False
    found = {"alpha": "drop", **manifest.read(folder, inside=f"{inside}/").copied}  # as before there was the key
    differs = [key for key, value in copied.items() if found.get(key) != value]
    if differs:
        key = differs[0]
        what = "of other originals" if key == "of" else f"made with {key}={found.get(key)}, not {copied[key]}"
        raise DataError(f"{folder / inside} exists already and is {what}.", "Remove it to make it again.")
    return True


def contents(split: Split, copied: Mapping[str, Any]) -> Contents:
    """Return the smaller copies of a split's samples, divided into shards like the originals."""
    reader = Reader(split)
    rules = ImageRules(range=copied["range"], alpha=copied["alpha"])

    def sample(number: int) -> Sample:
        data, sides = smaller(reader.read(number), copied["side"], copied["quality"], rules)
        return Sample(split.samples.key(number), kind_of(data) or UNKNOWN, data, sides=sides)

    versions = (PIL.__version__, simplejpeg.__version__, torch.__version__)
    stamp = f"{split.name} {sorted(copied.items())} {versions}"
    return Contents(len(split.samples), stamp, sample, split.ends.tolist())


def smaller(data: bytes, side: int, quality: int, rules: ImageRules = RULES) -> tuple[bytes, tuple[int, int]]:
    """Return an image file resized to a shorter side of `side` px, and the original's width and height, px.

    The file is unchanged if no smaller copy is possible. Width and height are 0 if it cannot be decoded.
    """
    try:
        image = decode(data, OVER * side, rules)
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
