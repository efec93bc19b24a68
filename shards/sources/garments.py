"""The garments: Fashion-MNIST's grey pictures, upright in random colours on clutter that our own code draws.

A label is the garment's. Everything else has the same distribution for every class: colours and polarity, clutter, a
turn of at most 20 degrees, size and place, light, noise, and an occluder over at most a quarter of the garment. Upright
things let rotation be a task. No garment is drawn twice, and those of `val` are from Fashion-MNIST's test set. An image
is a function of (seed, split, number, size); `size` changes the resolution alone.

    python shards/make.py source=garments out=data/garments [path=FOLDER] [train=20000] [val=2000] [size=64] [seed=0]
                          [shard_bytes=1MB] [threads=1]

`path`: folder of the four IDX files, by default that of Debian's package dataset-fashion-mnist. `size`: side in px, 32
to 64. Fashion-MNIST is by Zalando SE, under the MIT licence.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from dist_ssl.errors import ConfigError, DataError
from shards import idx
from shards.archive import Sample
from shards.clutter import Canvas, Grid, Plane, backdrop, paint, shape
from shards.command_line import Bytes, Threads
from shards.drawing import TURN, Random, colour, jpeg, stream
from shards.image_source import ImageSource
from shards.pack import Contents, pack

PACKAGE = "dataset-fashion-mnist"
FOLDER = Path("/usr/share/datasets/fashion-mnist")
REMEDY = (
    f"Install Debian's package {PACKAGE} (apt-get install {PACKAGE}), or draw from the folder that has its four files: "
    "python shards/make.py source=garments path=FOLDER out=data/garments"
)
FILES = {"train": "train", "val": "t10k"}
CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
SIDE = 28
"""Side of a garment's picture, px."""
SMALLEST, LARGEST = 32, 64
FAINT = 24
"""Grey value from which a pixel belongs to the garment."""
LEAN = math.radians(20)
MOST_HIDDEN = 0.25


@dataclass(frozen=True)
class Garments:
    """The garments of a split: `pictures` [N, 28, 28] uint8 on black, `labels` [N] 0..9."""

    pictures: NDArray[np.uint8]
    labels: NDArray[np.uint8]

    @cached_property
    def digest(self) -> str:
        """The hash of all pictures and labels, in hex."""
        return hashlib.sha256(self.pictures.tobytes() + self.labels.tobytes()).hexdigest()


def read(folder: Path, split: str) -> Garments:
    """Return the garments of split train or val. Raises DataError if a file is missing or damaged."""
    paths = [idx.find(folder, f"{FILES[split]}-{kind}-ubyte", REMEDY) for kind in ("images-idx3", "labels-idx1")]
    pictures, labels = idx.read(paths[0], 3, REMEDY), idx.read(paths[1], 1, REMEDY)
    if pictures.shape[1:] != (SIDE, SIDE):
        sides = " x ".join(map(str, pictures.shape[1:]))
        raise DataError(f"{paths[0]} has pictures of {sides} px, not {SIDE} x {SIDE}.", REMEDY)
    if len(pictures) != len(labels):
        raise DataError(f"{paths[0]} has {len(pictures)} pictures, and {paths[1]} {len(labels)} labels.", REMEDY)
    if len(labels) and labels.max() >= len(CLASSES):
        raise DataError(f"{paths[1]} has label {labels.max()}: labels are 0 to 9.", REMEDY)
    return Garments(pictures, labels)


def coloured(picture: NDArray[np.uint8], rng: Random) -> NDArray[np.float32]:
    """Return a garment [4, 28, 28]: RGB of a random colour map of its grey values, times its cover 0..1, and the cover.

    The map has three colours; its ends differ in luma by 0.3 to 0.65 in either order, so that the pattern of a garment
    survives in grey and its brightness says nothing.
    """
    middle, gap = 0.5 + rng.uniform(-0.15, 0.15), rng.uniform(0.3, 0.65) * (1 if rng.random() < 0.5 else -1)
    lights = (middle - gap / 2, middle + rng.uniform(-0.1, 0.1), middle + gap / 2)
    palette = np.array([colour(rng, light) for light in lights], np.float32).T
    grey, cover = unmixed(picture)
    level = grey * np.float32(2 / max(1, int(grey.max())))
    low = np.minimum(level.astype(np.intp), 1)
    shade = palette[:, low] + (level - low) * (palette[:, low + 1] - palette[:, low])
    return np.concatenate([shade * cover, cover[None]])


def unmixed(picture: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Return the grey values of a garment and its cover 0..1, both [28, 28].

    A pixel at the edge is a mixture of the brightest one beside it and of the black ground; one inside is whole.
    Specks on the ground, which are below FAINT, nearly vanish.
    """
    inside = filled(picture >= FAINT)
    whole, beside = ~greatest(~inside), greatest(picture)
    cover = np.where(whole, np.float32(1), picture / np.maximum(beside, 2 * FAINT).astype(np.float32))
    return np.where(whole, picture, beside), cover


def greatest(values: NDArray[Any]) -> NDArray[Any]:
    """Return the greatest value of each pixel and its eight neighbours."""
    rows = values.copy()
    rows[1:] = np.maximum(rows[1:], values[:-1])
    rows[:-1] = np.maximum(rows[:-1], values[1:])
    found = rows.copy()
    found[:, 1:] = np.maximum(found[:, 1:], rows[:, :-1])
    found[:, :-1] = np.maximum(found[:, :-1], rows[:, 1:])
    return found


def filled(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the mask with the gaps that it encloses from the left, the right, above and below: dark prints, say."""
    sides = [np.logical_or.accumulate(inside[:, ::step], axis=1)[:, ::step] for step in (1, -1)]
    ends = [np.logical_or.accumulate(inside[::step], axis=0)[::step] for step in (1, -1)]
    return sides[0] & sides[1] & ends[0] & ends[1]


def placed(garment: NDArray[np.float32], grid: Grid, rng: Random) -> NDArray[np.float32]:
    """Return the garment [4, size, size], turned by at most 20 degrees, 70 to 95 % as large as the image."""
    scale = rng.uniform(0.7, 0.95)
    x, y = rng.uniform(-0.1, 0.1, 2).tolist()
    u, v = grid.turned(x, y, rng.uniform(-LEAN, LEAN))
    last = SIDE + 1
    padded = np.pad(garment, ((0, 0), (1, 1), (1, 1)))
    column, row = ((axis * np.float32(SIDE / scale) + np.float32(last / 2)).clip(0, last) for axis in (u, v))
    left, top = (np.minimum(axis.astype(np.intp), last - 1) for axis in (column, row))
    right, down = column - left, row - top
    pixels, corner = padded.reshape(4, -1), top * (SIDE + 2) + left
    near, far, below, across = (pixels[:, corner + step] for step in (0, 1, SIDE + 2, SIDE + 3))
    upper, lower = near + right * (far - near), below + right * (across - below)
    found: NDArray[np.float32] = upper + down * (lower - upper)
    return found


def occlude(image: Canvas, garment: Plane, grid: Grid, rng: Random) -> None:
    """Paint a bar or a blob in 60 % of the images, unless it would hide over a quarter of the garment."""
    chance = rng.random()
    x, y = rng.uniform(-0.3, 0.3, 2).tolist()
    bar = chance < 0.3
    half = (rng.uniform(0.03, 0.09), 1.5) if bar else tuple(rng.uniform(0.08, 0.2, 2).tolist())
    cover, across = shape(grid, rng, x, y, *half)
    there = garment > 0.5
    hidden = np.count_nonzero(there & (cover > 0.5))
    if chance < 0.6 and hidden <= MOST_HIDDEN * np.count_nonzero(there):
        paint(image, cover, across, rng)


def exposed(image: Canvas, grid: Grid, rng: Random) -> Image.Image:
    """Return the image under a random gain and gradient of light, with sensor noise."""
    angle, fall = rng.uniform(0, TURN), rng.uniform(0, 0.5)
    slope_x, slope_y = np.float32(fall * math.cos(angle)), np.float32(fall * math.sin(angle))
    light = np.float32(rng.uniform(0.8, 1.15)) + slope_x * grid.x + slope_y * grid.y
    noise = (rng.random(image.shape, np.float32) - np.float32(0.5)) * np.float32(rng.uniform(0, 24))
    pixels = (image * light + noise).clip(0, 255).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))


def draw(picture: NDArray[np.uint8], grid: Grid, rng: Random) -> Image.Image:
    """Return an RGB image [size, size] of a garment [28, 28]."""
    image = backdrop(grid, rng)
    garment = placed(coloured(picture, rng), grid, rng)
    cover = garment[3]
    image += garment[:3] - cover * image
    occlude(image, cover, grid, rng)
    return exposed(image, grid, rng)


def chosen(total: int, count: int, seed: int, split: str) -> Sequence[int]:
    """Return the numbers of `count` of the `total` garments, in the order of their hashes."""
    keys = [hashlib.blake2b(f"{seed}/{split}/{number}".encode(), digest_size=8).digest() for number in range(total)]
    return sorted(range(total), key=keys.__getitem__)[:count]


@dataclass(frozen=True)
class GarmentOptions:
    """Options of the source: see the top of this file."""

    path: Path = FOLDER
    train: int = 20000
    val: int = 2000
    size: int = LARGEST
    seed: int = 0
    shard_bytes: Bytes = Bytes(10**6)
    threads: Threads = Threads(1)


def contents(garments: Garments, split: str, count: int, options: GarmentOptions) -> Contents:
    """Return the samples of a split. Raises ConfigError if there are fewer garments than `count`."""
    total = len(garments.labels)
    if count > total:
        raise ConfigError(f"{split}={count} is not possible: there are {total} garments.", f"Set {split}={total}.")
    order, grid, seed = chosen(total, count, options.seed, split), Grid(options.size), options.seed

    def sample(index: int) -> Sample:
        number = order[index]
        image = draw(garments.pictures[number], grid, stream(seed, f"garments/{split}", index))
        return Sample(f"garments-{split}-{index:08d}", "jpg", jpeg(image), int(garments.labels[number]))

    return Contents(count, f"garments {split} {seed} {options.size} {garments.digest}", sample)


def write(out: Path, options: GarmentOptions, console: Console) -> None:
    """Draw and pack the data set, in the order of its numbers. Raises ConfigError, DataError."""
    if not SMALLEST <= options.size <= LARGEST:
        rule = f"it must be {SMALLEST} to {LARGEST} px"
        raise ConfigError(f"size={options.size} is not possible: {rule}.", f"Set size={LARGEST}, for example.")
    counts = {"train": options.train, "val": options.val}
    splits = {split: contents(read(options.path, split), split, count, options) for split, count in counts.items()}
    made: dict[str, Any] = {"shard_bytes": options.shard_bytes, "threads": options.threads, "console": console}
    pack(out, splits, CLASSES, **made)


SOURCES = {"garments": ImageSource(GarmentOptions, write, drawn=True)}
