"""From an encoded image to uint8 crops: geometry on the CPU, decoded once for all its views.

`Recipe` says how one view is augmented; its crop half is drawn and cut here, its colour half on the device
(`photometric.py`). Crops follow torchvision's RandomResizedCrop: an area and an aspect ratio are drawn up to ten
times until the box fits, else the centre; resizing is bilinear with antialias.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from dist_ssl.config.validation import at_least, positive, require, shares
from dist_ssl.core.draws import Draws, Floats, Purpose
from dist_ssl.data.images.decode import MAX_PIXELS, Box, decode
from dist_ssl.data.images.resize import cut_views
from dist_ssl.errors import ConfigError

TRIES = 10
CROP_DRAWS = 2 * TRIES + 2
Ints = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Augmentation:
    """How one view is augmented. Probabilities 0 to 1; `*_p` is how often, the rest how strongly."""

    crop_min: float
    """Smallest share of the image's area in a crop."""
    crop_max: float = 1.0
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    """Largest shift of the hue, in turns, 0 to 0.5."""
    jitter_p: float = 0.0
    gray_p: float = 0.0
    blur_p: float = 0.0
    blur_min: float = 0.1
    """Standard deviation of the Gaussian, px of the view."""
    blur_max: float = 2.0
    solarize_p: float = 0.0
    invert_p: float = 0.0
    """Light for dark in all channels."""
    flip_p: float = 0.5
    turn_p: float = 0.0
    """By one, two or three quarter turns."""
    local: bool = False
    """For the local views, the smaller ones, and not for the global ones."""

    def at(self, magnitude: float) -> "Augmentation":
        """The recipe at a strength of 0 to 1; 1 is as published. Jitter and crops grow milder, effects rarer."""
        if magnitude == 1:
            return self
        s = magnitude
        return replace(
            self,
            crop_min=1 - s * (1 - self.crop_min),
            crop_max=1 - s * (1 - self.crop_max),
            brightness=s * self.brightness,
            contrast=s * self.contrast,
            saturation=s * self.saturation,
            hue=s * self.hue,
            gray_p=s * self.gray_p,
            blur_max=self.blur_min + s * (self.blur_max - self.blur_min),
            solarize_p=s * self.solarize_p,
            invert_p=s * self.invert_p,
            turn_p=s * self.turn_p,
        )


def checked(recipe: Augmentation, place: str) -> Augmentation:
    """The recipe, whose keys `place` holds. Raises ConfigError where a number is outside its range."""
    r = recipe
    require(place, "more than 0 and at most 1", lambda value: 0 < value <= 1, crop_min=r.crop_min, crop_max=r.crop_max)
    require(place, f"at least crop_min={r.crop_min:g}", lambda value: value >= r.crop_min, crop_max=r.crop_max)
    positive(place, aspect=r.aspect[0])
    require(place, f"at least the first, {r.aspect[0]:g}", lambda value: value >= r.aspect[0], aspect=r.aspect[1])
    at_least(place, 0, brightness=r.brightness, contrast=r.contrast, saturation=r.saturation)
    require(place, "0 to 0.5", lambda value: 0 <= value <= 0.5, hue=r.hue)
    positive(place, blur_min=r.blur_min)
    require(place, f"at least blur_min={r.blur_min:g}", lambda value: value >= r.blur_min, blur_max=r.blur_max)
    shares(place, **{key: value for key, value in vars(r).items() if key.endswith("_p")})
    return recipe


def crop_box(width: int, height: int, recipe: Augmentation, draws: Floats) -> Box:
    """(left, top, right, bottom) in px of the image, from CROP_DRAWS uniform numbers."""
    low, high = math.log(recipe.aspect[0]), math.log(recipe.aspect[1])
    *tried, across, down = draws.tolist()
    for share, turn in zip(tried[:TRIES], tried[TRIES:], strict=True):
        area = width * height * (recipe.crop_min + share * (recipe.crop_max - recipe.crop_min))
        ratio = math.exp(low + turn * (high - low))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left = math.floor(across * (width - w + 1))
            top = math.floor(down * (height - h + 1))
            return left, top, left + w, top + h
    return centre_box(width, height, recipe.aspect)


def centre_box(width: int, height: int, aspect: tuple[float, float]) -> Box:
    """The largest centred box whose aspect ratio lies within the bounds."""
    w, h = width, height
    if width / height < aspect[0]:
        h = round(width / aspect[0])
    elif width / height > aspect[1]:
        w = round(height * aspect[1])
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def of_views(recipes: Sequence[Augmentation], views: int, local_views: int) -> list[Augmentation]:
    """The recipe of every view: global views, then local ones, each kind takes turns at its own recipes.

    Raises ConfigError where there is none for a kind.
    """
    found: list[Augmentation] = []
    for local, count in ((False, views), (True, local_views)):
        own = [recipe for recipe in recipes if recipe.local is local]
        if count and not own:
            kind = "local" if local else "global"
            raise ConfigError(
                f"No part of views is for the {count} {kind} views of an image.",
                "Use views=demo_crops, say, or add a part with local: true." if local else "Add one without local.",
            )
        found += [own[slot % len(own)] for slot in range(count)]
    return found


def smallest_crop_scale(recipes: Sequence[Augmentation], size: int) -> int:
    """Side, px, that a decoded image must keep so that no crop is upsampled more than the original forces."""
    narrowest = [r.crop_min * min(r.aspect[0], 1 / r.aspect[1]) for r in recipes]
    return math.ceil(size / math.sqrt(min(narrowest)))


@dataclass(frozen=True)
class Crops:
    """What is cut from an image that is `width` x `height` px where it is whole: boxes in px of that, one per view.

    `sizes`: side of every view, px; `max_pixels`: larger images are unreadable.
    """

    width: int
    height: int
    boxes: Sequence[Box]
    sizes: Sequence[int]
    max_pixels: int = MAX_PIXELS

    @cached_property
    def tightest(self) -> tuple[int, int]:
        """Of the view that shows the least for its size: its side, and the shorter side of its box."""
        shorter = [min(right - left, bottom - top) for left, top, right, bottom in self.boxes]
        return max(zip(self.sizes, shorter, strict=True), key=lambda pair: pair[0] / pair[1])

    def enlarged(self, side: int) -> float:
        """How many times the most enlarged crop grows where it is cut from a copy of the shorter side `side`, px."""
        size, box = self.tightest
        return size * min(self.width, self.height) / (side * box)

    def placed(self, width: int, height: int) -> list[Box]:
        """The boxes in a copy of width x height: each edge at the nearest of its pixels."""

        def nearest(at: int, side: int, whole: int) -> int:
            return (2 * at * side + whole) // (2 * whole)

        found = []
        for left, top, right, bottom in self.boxes:
            x, y = nearest(left, width, self.width), nearest(top, height, self.height)
            x, y = min(x, width - 1), min(y, height - 1)
            end_x, end_y = nearest(right, width, self.width), nearest(bottom, height, self.height)
            found.append((x, y, max(end_x, x + 1), max(end_y, y + 1)))
        return found

    def cut(self, data: bytes, out: Sequence[Pixels]) -> str:
        """Decode the image, or any copy of it, and write every view into its [side, side, 3] buffer.

        Decoded no smaller than the boxes need. Why that was slow, if it was. Raises UnreadableError.
        """
        size, side = self.tightest
        least = -(-size * min(self.width, self.height) // side)
        image = decode(data, least, self.max_pixels)
        height, width, _ = image.pixels.shape
        cut_views(image.pixels, self.placed(width, height), out)
        return image.slow


class Cutter:
    """Cuts all views of an image. `recipes`: one per view; `size`: side of all views, px, or of each of them.

    Images of more than `max_pixels` are unreadable.
    """

    def __init__(
        self, recipes: Sequence[Augmentation], size: int | Sequence[int], max_pixels: int = MAX_PIXELS
    ) -> None:
        self.sizes = [size] * len(recipes) if isinstance(size, int) else list(size)
        self.recipes, self.max_pixels = recipes, max_pixels
        self.needed = max(smallest_crop_scale([r], side) for r, side in zip(recipes, self.sizes, strict=True))

    def side(self, slot: int) -> int:
        """Side of the view in this slot, px."""
        return self.sizes[slot]

    def draw(self, draws: Draws, ids: Ints) -> list[Floats]:
        """The random numbers of every view's crops, [B, CROP_DRAWS] each."""
        return list(draws.of_slots({Purpose.CROP: CROP_DRAWS}, ids, range(len(self.recipes)))[Purpose.CROP])

    def cut(self, data: bytes, draws: Sequence[Floats], out: Sequence[Pixels]) -> str:
        """Decode once and write every view into its [side, side, 3] buffer; why that was slow, if it was.

        Boxes are drawn in the decoded image, so that they lie on its pixels. Raises UnreadableError.
        """
        image = decode(data, self.needed, self.max_pixels)
        height, width, _ = image.pixels.shape
        boxes = [crop_box(width, height, recipe, numbers) for recipe, numbers in zip(self.recipes, draws, strict=True)]
        cut_views(image.pixels, boxes, out)
        return image.slow

    def crops(self, sides: tuple[int, int], draws: Sequence[Floats]) -> Crops:
        """What `draws` mean for an image of these sides, at whatever size it will be read."""
        boxes = [crop_box(*sides, recipe, numbers) for recipe, numbers in zip(self.recipes, draws, strict=True)]
        return Crops(*sides, boxes, self.sizes, self.max_pixels)


class Whole:
    """Shows the whole image, squeezed to size x size: what probes look at. One view, nothing random."""

    def __init__(self, size: int, max_pixels: int = MAX_PIXELS) -> None:
        self.size, self.max_pixels = size, max_pixels

    def side(self, slot: int) -> int:
        """Side of the one view, px."""
        return self.size

    def draw(self, draws: Draws, ids: Ints) -> list[Floats]:
        """No numbers are needed."""
        return [np.empty((len(ids), 0), dtype=np.float32)]

    def cut(self, data: bytes, draws: Sequence[Floats], out: Sequence[Pixels]) -> str:
        """Decode and resize into the one buffer; why that was slow, if it was. Raises UnreadableError."""
        image = decode(data, self.size, self.max_pixels)
        height, width, _ = image.pixels.shape
        cut_views(image.pixels, [(0, 0, width, height)], out)
        return image.slow

    def crops(self, sides: tuple[int, int], draws: Sequence[Floats]) -> Crops:
        """All of an image of these sides."""
        return Crops(*sides, [(0, 0, *sides)], [self.size], self.max_pixels)
