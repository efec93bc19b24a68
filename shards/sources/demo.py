"""The demo data set: ten classes of textured shapes, each image a pure function of (seed, split, index).

A class is a shape family together with a texture family, so a crop of any part of the surface still identifies it.
Everything else is nuisance with the same distribution for every class: colours and contrast polarity, background, pose,
size, texture scale and phase, distractors, occluders, light, blur and noise. Backgrounds are smooth and distractors are
plain, so the texture of the object is the only fine structure in an image. Images are drawn at twice the final side.

    python shards/make.py source=demo out=data/demo [train=6000] [val=2000] [shard_bytes=1MB]
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter
from rich.console import Console

from shards.archive import Sample
from shards.command_line import Bytes
from shards.drawing import TURN, Colour, Random, colour, jpeg, stream
from shards.image_source import ImageSource
from shards.pack import Contents, pack

Field = NDArray[Any]  # float32 [CANVAS, CANVAS]; scalars stay Python floats so that nothing is promoted to float64
Shape = Callable[[Field, Field], Field]
Texture = Callable[[Field, Field, Random], Field]

SIDE = 48
CANVAS = 2 * SIDE
STEPS = ((np.arange(CANVAS) + 0.5) / 2 - SIDE / 2).astype(np.float32)
GRID_X, GRID_Y = np.meshgrid(STEPS, STEPS)


def polygon(x: Field, y: Field, corners: int, depth: float = 0.0) -> Field:
    """Return the field of a regular polygon; for depth > 0, of a star whose edges fold inwards by that angle (rad)."""
    sector = TURN / corners
    angle = np.abs(np.mod(np.arctan2(y, x), sector) - sector / 2)
    value: Field = np.hypot(x, y) * np.cos(angle + depth) - (math.cos(sector / 2 + depth) + 0.06)
    return value


def heart(x: Field, y: Field) -> Field:
    """Return the field of a heart: two lobes joined to one point."""
    a, b = np.abs(x), y + 0.12
    lobe = np.hypot(a - 0.47, b - 0.33) - 0.5
    point = np.maximum(0.76 * a - 0.65 * b - 0.64, np.maximum(b - 0.42, a - 0.9))
    return np.minimum(lobe, point)


def cross(x: Field, y: Field) -> Field:
    """Return the field of a cross: two bars at a right angle."""
    a, b = np.abs(x), np.abs(y)
    return np.maximum(np.maximum(a, b) - 0.95, np.minimum(a, b) - 0.36)


# Functions of object coordinates (outer radius about 1) that are negative inside, with a slope near 1 at the edge.
SHAPES: dict[str, Shape] = {
    "disc": lambda x, y: np.hypot(x, y) - 0.92,
    "triangle": lambda x, y: polygon(x, y, 3),
    "square": lambda x, y: np.maximum(np.abs(x), np.abs(y)) - 0.78,
    "star": lambda x, y: polygon(x, y, 5, depth=0.5),
    "cross": cross,
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.68) - 0.28,
    "heart": heart,
    "crescent": lambda x, y: np.maximum(np.hypot(x, y) - 1.0, 0.68 - np.hypot(x - 0.52, y)),
    "leaf": lambda x, y: np.hypot(x, np.abs(y) + 0.6) - 1.18,
    "bow": lambda x, y: np.maximum(np.abs(x) - 0.9, 0.8 * (np.abs(y) - 0.75 * np.abs(x) - 0.12)),
}


def cell(x: Field) -> Field:
    """Return the distance 0..0.5 to the nearest half-integer."""
    return np.abs(np.mod(x, 1) - 0.5)


def bricks(x: Field, y: Field, _rng: Random) -> Field:
    """Return bricks: thin joints between rows, every other row shifted by half a brick."""
    row = y / 0.9
    shift = np.mod(np.floor(row), 2) / 2
    return 6 * (np.minimum(0.9 * cell(row), 1.8 * cell(x / 1.8 + shift)) - 0.14)


def blotches(x: Field, y: Field, rng: Random) -> Field:
    """Return irregular patches: five plane waves of one length and random directions."""
    total: Field = np.zeros_like(x)
    for angle, phase in (TURN * rng.random((5, 2))).tolist():
        total += np.sin(0.75 * TURN * (x * math.cos(angle) + y * math.sin(angle)) + phase)
    return total / 2


def lattice(x: Field, y: Field, wave: Callable[[Field], Field]) -> tuple[Field, Field, Field]:
    """Return one wave along each of three directions that are 60 degrees apart."""
    a, b = TURN * x, TURN * y
    return wave(a), wave(0.5 * a + 0.866 * b), wave(0.5 * a - 0.866 * b)


def dots(x: Field, y: Field, _rng: Random) -> Field:
    """Return round dots in a hexagonal packing."""
    first, second, third = lattice(x / 1.2, y / 1.2, np.cos)
    return (first + second + third) / 1.5 - 0.35


def wedges(x: Field, y: Field, _rng: Random) -> Field:
    """Return triangles of alternating sign."""
    first, second, third = lattice(x / 2.2, y / 2.2, np.sin)
    return 3 * first * second * third


# Functions of coordinates in periods, with values in about -1..1 whose sign is the pattern.
TEXTURES: dict[str, Texture] = {
    "stripes": lambda x, _y, _rng: np.sin(TURN * x),
    "dots": dots,
    "checkers": lambda x, y, _rng: 2 * np.sin(TURN * x / 1.5) * np.sin(TURN * y / 1.5),
    "rings": lambda x, y, rng: np.sin(TURN * (np.hypot(x, y) + rng.random())),
    "bricks": bricks,
    "spokes": lambda x, y, rng: np.sin(int(rng.integers(9, 14)) * np.arctan2(y, x) + TURN * rng.random()),
    "zigzags": lambda x, y, _rng: np.sin(TURN * (y + 1.2 * cell(x / 2))),
    "blotches": blotches,
    "nets": lambda x, y, _rng: 6 * (np.minimum(cell(x), cell(y)) - 0.16),
    "wedges": wedges,
}

FAMILIES: dict[str, tuple[str, str]] = {
    "striped disc": ("disc", "stripes"),
    "dotted triangle": ("triangle", "dots"),
    "checkered square": ("square", "checkers"),
    "ringed star": ("star", "rings"),
    "bricked cross": ("cross", "bricks"),
    "spoked ring": ("ring", "spokes"),
    "zigzag heart": ("heart", "zigzags"),
    "blotched crescent": ("crescent", "blotches"),
    "netted leaf": ("leaf", "nets"),
    "wedged bow": ("bow", "wedges"),
}
CLASSES: tuple[str, ...] = tuple(FAMILIES)


def turned(x: Field, y: Field, angle: float) -> tuple[Field, Field]:
    """Return the coordinates rotated by an angle in radians."""
    c, s = math.cos(angle), math.sin(angle)
    return c * x + s * y, c * y - s * x


def posed(rng: Random) -> tuple[Field, Field, float]:
    """Return object coordinates [CANVAS, CANVAS] under a random pose, and the object's radius in final pixels."""
    radius = SIDE / 2 * rng.uniform(0.68, 0.98)
    room = SIDE / 2 - 0.85 * radius
    x, y = ((grid - room * rng.uniform(-1, 1)) / radius for grid in (GRID_X, GRID_Y))
    lean, slope = rng.uniform(0, TURN), rng.uniform(0, 0.2)
    depth = 1 + slope * math.cos(lean) * x + slope * math.sin(lean) * y
    x, y = turned(x / depth, y / depth, rng.uniform(0, TURN))
    squash, shear = math.exp(rng.uniform(-0.2, 0.2)), rng.uniform(-0.2, 0.2)
    return (x + shear * y) * squash, y / squash, radius


def colour_pair(rng: Random) -> tuple[Colour, Colour]:
    """Return two colours whose luma differs by 0.35 to 0.7, in either order, so that the texture survives in grey."""
    middle, gap = 0.5 + rng.uniform(-0.15, 0.15), rng.uniform(0.35, 0.7)
    half = gap / 2 if rng.random() < 0.5 else -gap / 2
    return colour(rng, middle - half), colour(rng, middle + half)


def surface(rng: Random, label: int) -> tuple[Image.Image, Image.Image]:
    """Return the texture of a class in two colours, and the mask of its shape, both [CANVAS, CANVAS] in one pose."""
    shape, texture = FAMILIES[CLASSES[label]]
    x, y, radius = posed(rng)
    scale = radius / rng.uniform(6, 10)
    s, t = (scale * axis + rng.uniform(-0.75, 0.75) for axis in turned(x, y, rng.uniform(0, TURN)))
    front, back = (Image.new("RGB", (CANVAS, CANVAS), fill) for fill in colour_pair(rng))
    pattern = cover(TEXTURES[texture](s, t, rng), gain=2.0)
    return Image.composite(front, back, pattern), cover(-SHAPES[shape](x, y), gain=radius)


def cover(field: Field, gain: float) -> Image.Image:
    """Return a field [CANVAS, CANVAS] as an 8-bit mask: half at zero, full where field >= 1 / (2 gain)."""
    return Image.fromarray((127.5 + 255 * gain * field).clip(0, 255).astype(np.uint8))


def backdrop(rng: Random) -> Image.Image:
    """Return a smooth random colour field of two to four cells per side, with up to three plain distractors."""
    cells = int(rng.integers(2, 5))
    base = np.array(colour(rng, rng.uniform(0.25, 0.75)))
    values = base + rng.uniform(4, 24) * rng.standard_normal((cells, cells, 3))
    small = Image.fromarray(values.clip(0, 255).astype(np.uint8))
    image = small.resize((CANVAS, CANVAS), Image.Resampling.BICUBIC)
    for _ in range(rng.integers(0, 4)):
        blot(image, rng, rng.uniform(0.04, 0.12) * CANVAS, margin=-0.05)
    return image


def blot(image: Image.Image, rng: Random, radius: float, margin: float) -> None:
    """Draw a plain irregular polygon, radius in canvas pixels, centred margin (share of a side) or more inside."""
    corners = int(rng.integers(3, 9))
    angles = TURN * (np.arange(corners) + rng.uniform(0, 0.8, corners)) / corners
    reach = radius * rng.uniform(0.5, 1.2, corners)
    points = np.stack([reach * np.cos(angles), reach * np.sin(angles)], 1)
    points += rng.uniform(margin, 1 - margin, 2) * CANVAS
    ImageDraw.Draw(image).polygon(points.ravel().tolist(), fill=colour(rng, rng.uniform(0.1, 0.9)))


def bar(image: Image.Image, rng: Random) -> None:
    """Draw a plain bar right across the canvas."""
    x, y = (rng.uniform(0.2, 0.8, 2) * CANVAS).tolist()
    angle, width = rng.uniform(0, TURN), int(rng.integers(3, 9))
    dx, dy = 1.5 * CANVAS * math.cos(angle), 1.5 * CANVAS * math.sin(angle)
    fill = colour(rng, rng.uniform(0.1, 0.9))
    ImageDraw.Draw(image).line((x - dx, y - dy, x + dx, y + dy), fill=fill, width=width)


def occlude(image: Image.Image, rng: Random) -> None:
    """Cover part of the object with a bar or a patch, in half of the images."""
    chance = rng.random()
    if chance < 0.25:
        bar(image, rng)
    elif chance < 0.5:
        blot(image, rng, rng.uniform(0.08, 0.16) * CANVAS, margin=0.2)


def exposed(image: Image.Image, rng: Random) -> Image.Image:
    """Return the image [SIDE, SIDE] with a random gradient of light, sensor noise, and in 30 % of cases blur."""
    if rng.random() < 0.3:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 0.6)))
    angle, fall = rng.uniform(0, TURN), 2 / SIDE * rng.uniform(0, 0.25)
    slope_x, slope_y = fall * math.cos(angle), fall * math.sin(angle)
    light = rng.uniform(0.9, 1.08) + slope_x * GRID_X[::2, ::2] + slope_y * GRID_Y[::2, ::2]
    noise = rng.uniform(0, 8) * rng.standard_normal((SIDE, SIDE, 3), np.float32)
    return Image.fromarray((np.asarray(image) * light[..., None] + noise).clip(0, 255).astype(np.uint8))


def draw(seed: int, split: str, index: int) -> tuple[Image.Image, int]:
    """Return an RGB image [SIDE, SIDE] and its label index % 10; the same arguments always give the same pixels."""
    rng, label = stream(seed, split, index), index % len(CLASSES)
    image = backdrop(rng)
    texture, mask = surface(rng, label)
    image.paste(texture, mask=mask)
    occlude(image, rng)
    return exposed(image.reduce(2), rng), label


def sample(seed: int, split: str, index: int) -> Sample:
    """Return the image of `draw` as a sample with a JPEG file."""
    image, label = draw(seed, split, index)
    return Sample(f"demo-{split}-{index:08d}", "jpg", jpeg(image), label)


def samples(split: str, count: int, seed: int = 0) -> Iterator[tuple[str, bytes, int]]:
    """Yield count samples as (key, JPEG bytes, label 0..9) in index order."""
    for index in range(count):
        drawn = sample(seed, split, index)
        yield drawn.key, drawn.image, drawn.label


@dataclass(frozen=True)
class DemoOptions:
    """Options of the source: images per split, and the size at which a shard is closed."""

    train: int = 6000
    val: int = 2000
    shard_bytes: Bytes = Bytes(10**6)


def write(out: Path, options: DemoOptions, console: Console) -> None:
    """Draw and pack the data set, in the order of its indices. Raises DataError."""
    counts = {"train": options.train, "val": options.val}
    splits = {split: Contents(count, f"demo {split}", partial(sample, 0, split)) for split, count in counts.items()}
    pack(out, splits, shard_bytes=options.shard_bytes, threads=1, console=console)  # drawing holds the interpreter


SOURCES = {"demo": ImageSource(DemoOptions, write, drawn=True)}
