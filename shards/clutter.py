"""Clutter of drawn images: a smooth field of colours under plain and striped boxes and ellipses.

Coordinates are shares of an image's side, so the size of the image changes its resolution alone. Arrays are float32
throughout and use exactly rounded operations only, so that every machine draws the same pixels.
"""

import math

import numpy as np
from numpy.typing import NDArray

from shards.drawing import TURN, Random, colour

Plane = NDArray[np.float32]  # [size, size]
Canvas = NDArray[np.float32]  # [3, size, size], 0..255


class Grid:
    """The pixel centres of an image: `x` and `y` from -0.5 to 0.5, and `size`, the side in px."""

    def __init__(self, size: int) -> None:
        steps = ((np.arange(size) + 0.5) / size - 0.5).astype(np.float32)
        self.size = size
        self.x, self.y = steps[None, :], steps[:, None]

    def turned(self, x: float, y: float, angle: float) -> tuple[Plane, Plane]:
        """Return the coordinates [size, size] of axes at (x, y) that are turned by an angle in radians."""
        c, s = np.float32(math.cos(angle)), np.float32(math.sin(angle))
        right, down = self.x - np.float32(x), self.y - np.float32(y)
        return c * right + s * down, c * down - s * right


def backdrop(grid: Grid, rng: Random) -> Canvas:
    """Return clutter: a smooth field of colours under six to twelve plain or striped shapes."""
    cells = int(rng.integers(2, 5))
    base = solid(rng, rng.uniform(0.25, 0.75))
    corners = base + rng.uniform(-50, 50, (3, cells + 1, cells + 1)).astype(np.float32)
    image = smooth(corners, grid.size)
    for _ in range(rng.integers(6, 13)):
        reach = rng.uniform(0.05, 0.22, 2).tolist()
        x, y = rng.uniform(-0.55, 0.55, 2).tolist()
        paint(image, *shape(grid, rng, x, y, *reach), rng)
    return image


def solid(rng: Random, light: float) -> Canvas:
    """Return a random colour of luma near light (0..1) as [3, 1, 1]."""
    return np.array(colour(rng, light), np.float32)[:, None, None]


def smooth(corners: Canvas, size: int) -> Canvas:
    """Return values [3, cells + 1, cells + 1] at the corners of square cells, interpolated to [3, size, size]."""
    cells = corners.shape[1] - 1
    place = ((np.arange(size) + 0.5) * (cells / size)).astype(np.float32)
    low = place.astype(np.intp)
    part = place - low
    rows = corners[:, low] + part[:, None] * (corners[:, low + 1] - corners[:, low])
    image: Canvas = rows[:, :, low] + part * (rows[:, :, low + 1] - rows[:, :, low])
    return image


def shape(grid: Grid, rng: Random, x: float, y: float, wide: float, high: float) -> tuple[Plane, Plane]:
    """Return the cover 0..1 of a randomly turned box or ellipse of these half axes, and the coordinate across it."""
    u, v = grid.turned(x, y, rng.uniform(0, TURN))
    across, along = u * np.float32(1 / wide), v * np.float32(1 / high)
    field = np.maximum(np.abs(across), np.abs(along)) if rng.random() < 0.5 else across * across + along * along
    sharp = np.float32(grid.size * min(wide, high))
    return ((1 - field) * sharp + np.float32(0.5)).clip(0, 1), u


def paint(image: Canvas, cover: Plane, across: Plane, rng: Random) -> None:
    """Paint a shape over the image, in one colour or, in 40 % of cases, in stripes of two."""
    fill, second = solid(rng, rng.uniform(0.1, 0.9)), solid(rng, rng.uniform(0.1, 0.9))
    if rng.random() < 0.4:
        wave = across * np.float32(rng.uniform(8, 16))
        stripe = (np.abs(wave - np.floor(wave) - np.float32(0.5)) * 6 - 1).clip(0, 1)
        fill = fill + stripe * (second - fill)
    image += cover * (fill - image)
