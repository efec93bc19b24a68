"""Cut an encoded image into views of 8 or 16 bits: crops on the CPU, from one decode for all views of the image.

`Augmentation` says how one view is augmented: its crop is drawn and cut here, its colours, blur and flips are done on
the device (`photometric.py`). Crops follow torchvision's RandomResizedCrop: an area and an aspect ratio are drawn up to
ten times until the box fits, otherwise the centre is taken; resizing is bilinear with antialias.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

from dist_ssl.config.bounds import RGB
from dist_ssl.config.validation import at_least, positive, require, shares
from dist_ssl.core.draws import Draws, Floats, Ints, Purpose
from dist_ssl.data.images.decode import Box, decode
from dist_ssl.data.images.image_rules import RULES, ImageRules, Pixels
from dist_ssl.data.images.resize import cut_views
from dist_ssl.errors import ConfigError, nearest

TRIES = 10
CROP_DRAWS = 2 * TRIES + 2


@dataclass(frozen=True)
class Augmentation:
    """How one view is augmented. `*_p`: probability of an effect, 0 to 1; the other values: its strength."""

    crop_min: float
    """Smallest share of the image's area in a crop, above 0."""
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
    """Smallest standard deviation of the Gaussian blur, px of the view."""
    blur_max: float = 2.0
    solarize_p: float = 0.0
    invert_p: float = 0.0
    """Probability of inverting all channels (x -> 1 - x)."""
    flip_p: float = 0.5
    turn_p: float = 0.0
    """Probability of a rotation by one, two or three quarter turns."""
    local: bool = False
    """True: used for the local (smaller) views; False: for the global ones."""

    def at(self, magnitude: float, scale: float = 1.0, fixed: Collection[str] = ()) -> "Augmentation":
        """Return the augmentation at a strength of 0 to 1, where 1 is as published, for views `scale` times as large.

        A lower strength means weaker jitter, larger crops and rarer effects, but for those named in `fixed` (keys of
        SCALED). The blur is scaled with the views, so that it is the same share of the image.
        """
        if magnitude == 1 and scale == 1:
            return self
        s = magnitude
        weaker = {
            "crop_min": 1 - s * (1 - self.crop_min),
            "crop_max": 1 - s * (1 - self.crop_max),
            "blur_max": self.blur_min + s * (self.blur_max - self.blur_min),
        }
        named = [key for name, keys in SCALED.items() if name not in fixed for key in keys]
        found = self if s == 1 else replace(self, **{key: weaker.get(key, s * getattr(self, key)) for key in named})
        return replace(found, blur_min=scale * found.blur_min, blur_max=scale * found.blur_max)

    def of_channels(self, channels: int) -> "Augmentation":
        """Return the augmentation for this number of channels; without saturation, hue and gray unless it is 3."""
        return self if channels == RGB else replace(self, saturation=0.0, hue=0.0, gray_p=0.0)


OF_COLOURS = ("saturation", "hue", "gray_p")
"""Fields of what needs red, green and blue; all else changes every channel by itself."""
SCALED: dict[str, tuple[str, ...]] = {
    "crop": ("crop_min", "crop_max"),
    "brightness": ("brightness",),
    "contrast": ("contrast",),
    "saturation": ("saturation",),
    "hue": ("hue",),
    "gray": ("gray_p",),
    "blur": ("blur_max",),
    "solarize": ("solarize_p",),
    "invert": ("invert_p",),
    "turn": ("turn_p",),
}
"""The augmentations whose strength follows the magnitude of an epoch, and their fields."""


def check_fixed(names: Collection[str]) -> None:
    """Raise ConfigError where one of these is no augmentation that follows the magnitude."""
    for name in names:
        if name not in SCALED:
            raise ConfigError(f"schedule.fixed names '{name}', whose strength never changes.", nearest(name, SCALED))


def checked(recipe: Augmentation, place: str) -> Augmentation:
    """Return the recipe; `place`: its config node, for messages. Raises ConfigError if a number is out of range."""
    r = recipe
    require(place, "more than 0 and at most 1", lambda value: 0 < value <= 1, crop_min=r.crop_min, crop_max=r.crop_max)
    require(place, f"at least crop_min={r.crop_min:g}", lambda value: value >= r.crop_min, crop_max=r.crop_max)
    positive(place, aspect=r.aspect[0])
    require(place, f"at least the first, {r.aspect[0]:g}", lambda value: value >= r.aspect[0], aspect=r.aspect[1])
    at_least(place, 0, brightness=r.brightness, contrast=r.contrast, saturation=r.saturation)
    require(place, "from 0 to 0.5", lambda value: 0 <= value <= 0.5, hue=r.hue)
    positive(place, blur_min=r.blur_min)
    require(place, f"at least blur_min={r.blur_min:g}", lambda value: value >= r.blur_min, blur_max=r.blur_max)
    shares(place, **{key: value for key, value in vars(r).items() if key.endswith("_p")})
    return recipe


def crop_box(width: int, height: int, recipe: Augmentation, draws: Floats) -> Box:
    """Return a random crop (left, top, right, bottom) in px of the image. `draws`: `CROP_DRAWS` uniform numbers."""
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
    """Return the largest centred box whose aspect ratio lies within the bounds (smallest, largest)."""
    w, h = width, height
    if width / height < aspect[0]:
        h = round(width / aspect[0])
    elif width / height > aspect[1]:
        w = round(height * aspect[1])
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def of_views(recipes: Sequence[Augmentation], views: int, local_views: int) -> list[Augmentation]:
    """Return the recipe of every view, global views before local ones; each kind cycles through its own recipes.

    Raises ConfigError if a kind has views but no recipe.
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
    """Return the side, px, at which an image must be decoded so that no crop is enlarged more than at full size.

    `size`: side of the views, px.
    """
    narrowest = [r.crop_min * min(r.aspect[0], 1 / r.aspect[1]) for r in recipes]
    return math.ceil(size / math.sqrt(min(narrowest)))


@dataclass(frozen=True)
class Crops:
    """The crops of one image, as boxes in px of its original of `width` x `height` px, one per view.

    They can be cut from the original or from any smaller copy. `sizes`: side of every view, px.
    """

    width: int
    height: int
    boxes: Sequence[Box]
    sizes: Sequence[int]
    rules: ImageRules = RULES

    @cached_property
    def tightest(self) -> tuple[int, int]:
        """Return the output size and the shorter box side of the most magnified view, px."""
        shorter = [min(right - left, bottom - top) for left, top, right, bottom in self.boxes]
        return max(zip(self.sizes, shorter, strict=True), key=lambda pair: pair[0] / pair[1])

    def enlarged(self, side: int) -> float:
        """Return the largest factor by which a crop is enlarged if cut from a copy whose shorter side is `side` px."""
        size, box = self.tightest
        return size * min(self.width, self.height) / (side * box)

    def placed(self, width: int, height: int) -> list[Box]:
        """Return the boxes in px of a copy of width x height: each edge at the nearest pixel, sides at least 1 px."""

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
        """Decode the image, or any copy of it, and write every view into its [side, side, C] buffer.

        It is decoded no smaller than the boxes need. Returns the reason if decoding was slow, else an empty string.
        Raises UnreadableError.
        """
        size, side = self.tightest
        least = -(-size * min(self.width, self.height) // side)
        image = decode(data, least, self.rules)
        height, width, _ = image.pixels.shape
        cut_views(image.pixels, self.placed(width, height), out)
        return image.slow


class ViewCutter(Protocol):
    """Draws the crops of images and cuts their views: `Cutter` (random crops) and `CentreCrop` (for evaluation)."""

    rules: ImageRules
    """How bytes become pixels."""

    def side(self, slot: int) -> int:
        """Return the side of the view in this slot, px."""
        ...

    def draw(self, draws: Draws, ids: Ints) -> list[Floats]:
        """Return the random numbers of every view, [B, n] each, for the samples `ids` [B]."""
        ...

    def cut(self, data: bytes, draws: Sequence[Floats], out: Sequence[Pixels]) -> str:
        """Decode an image and write its views into their [side, side, C] buffers.

        `draws`: one row of each of `draw`, or of the first ones, where only those views are cut.
        Returns the reason if decoding was slow (one of `decode.SLOW`), else an empty string. Raises UnreadableError.
        """
        ...

    def crops(self, sides: tuple[int, int], draws: Sequence[Floats]) -> Crops:
        """Return the crops of an image of this width and height, to be cut from it or from a smaller copy.

        `draws`: as for `cut`.
        """
        ...


class ViewSlots(Protocol):
    """Names the slots whose draws the views of every sample have; it can be pickled."""

    def __call__(self, draws: Draws, ids: Ints) -> Ints:
        """Return the slots of the views of the samples `ids` [B]: [V, B], or [V, 1] where all have the same."""
        ...


class Cutter:
    """A `ViewCutter` of random crops. `recipes`: one per view; `size`: side of all views, px, or of each of them.

    `rules`: how bytes become pixels; `slots`: those of the views; None: 0, 1, ...
    """

    def __init__(
        self,
        recipes: Sequence[Augmentation],
        size: int | Sequence[int],
        rules: ImageRules = RULES,
        slots: ViewSlots | None = None,
    ) -> None:
        self.sizes = [size] * len(recipes) if isinstance(size, int) else list(size)
        self.recipes, self.rules, self.slots = recipes, rules, slots
        self.needed = max(smallest_crop_scale([r], side) for r, side in zip(recipes, self.sizes, strict=True))

    def side(self, slot: int) -> int:
        """See `ViewCutter`."""
        return self.sizes[slot]

    def draw(self, draws: Draws, ids: Ints) -> list[Floats]:
        """Return the random numbers of every view's crop, [B, CROP_DRAWS] each."""
        slots = range(len(self.recipes)) if self.slots is None else self.slots(draws, ids)
        return list(draws.of_slots({Purpose.CROP: CROP_DRAWS}, ids, slots)[Purpose.CROP])

    def cut(self, data: bytes, draws: Sequence[Floats], out: Sequence[Pixels]) -> str:
        """See `ViewCutter`; the image is decoded once, and boxes are drawn in px of the decoded image."""
        image = decode(data, self.needed, self.rules)
        height, width, _ = image.pixels.shape
        boxes = [crop_box(width, height, recipe, numbers) for recipe, numbers in zip(self.recipes, draws, strict=False)]
        cut_views(image.pixels, boxes, out)
        return image.slow

    def crops(self, sides: tuple[int, int], draws: Sequence[Floats]) -> Crops:
        """See `ViewCutter`."""
        boxes = [crop_box(*sides, recipe, numbers) for recipe, numbers in zip(self.recipes, draws, strict=False)]
        return Crops(*sides, boxes, self.sizes[: len(boxes)], self.rules)
