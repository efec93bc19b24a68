"""The view of an image for evaluation: the shorter side resized to a fixed length, then the centre cut out.

This is Resize and CenterCrop of torchvision, with its rounding: nothing is drawn, and nothing is squeezed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dist_ssl.core.draws import Draws, Floats, Ints
from dist_ssl.data.images.decode import decode
from dist_ssl.data.images.image_rules import RULES, ImageRules, Pixels
from dist_ssl.data.images.resize import resize_whole
from dist_ssl.data.images.views import Crops, centre_box

LONGEST = (1 / 8, 8)
"""Aspect ratios up to which an image is resized whole; of a longer one only the middle is, which bounds the memory."""


class CentreCrop:
    """A `ViewCutter` of one view without random numbers.

    `resize`: length of the image's shorter side, px; `crop`: side of the view, at most `resize`, px.
    """

    def __init__(self, resize: int, crop: int, rules: ImageRules = RULES) -> None:
        assert 0 < crop <= resize, "a larger crop would need pixels from outside of the image"
        self.resize, self.crop, self.rules = resize, crop, rules

    def side(self, slot: int) -> int:
        """See `ViewCutter`; there is one view."""
        return self.crop

    def draw(self, draws: Draws, ids: Ints) -> list[Floats]:
        """Return empty arrays of random numbers, [B, 0]: none are needed."""
        return [np.empty((len(ids), 0), dtype=np.float32)]

    def cut(self, data: bytes, draws: Sequence[Floats], out: Sequence[Pixels]) -> str:
        """See `ViewCutter`."""
        return cut_centre(data, self.resize, self.rules, out[0])

    def crops(self, sides: tuple[int, int], draws: Sequence[Floats]) -> Crops:
        """See `ViewCutter`."""
        box = centred(*sides, round(min(sides) * self.crop / self.resize))
        return CentreOf(*sides, [box], [self.crop], self.rules, self.resize)


@dataclass(frozen=True)
class CentreOf(Crops):
    """The centre of one image, to be cut from any copy of it. `resize`: length of the copy's shorter side, px."""

    resize: int = 0

    def enlarged(self, side: int) -> float:
        """Return the factor by which a copy whose shorter side is `side` px is enlarged."""
        return self.resize / side

    def cut(self, data: bytes, out: Sequence[Pixels]) -> str:
        """See `Crops`."""
        return cut_centre(data, self.resize, self.rules, out[0])


def cut_centre(data: bytes, resize: int, rules: ImageRules, out: Pixels) -> str:
    """Decode an image, or any copy of it, and write its view into `out` [crop, crop, C].

    `resize`: length of the shorter side before the centre is cut, px. Returns the reason if decoding was slow, else an
    empty string. Raises UnreadableError.
    """
    image = decode(data, resize, rules)
    write_centre(image.pixels, resize, out)
    return image.slow


def write_centre(whole: Pixels, resize: int, out: Pixels) -> None:
    """Write the view of an image, pixels [h, w, C], into `out` [crop, crop, C]; `resize`: see `cut_centre`."""
    left, top, right, bottom = centre_box(whole.shape[1], whole.shape[0], LONGEST)
    pixels = np.ascontiguousarray(whole[top:bottom, left:right])
    height, width, _ = pixels.shape
    shorter = min(width, height)
    across, down = int(resize * width / shorter), int(resize * height / shorter)
    left, top, right, bottom = centred(across, down, len(out))
    out[:] = resize_whole(pixels, across, down)[top:bottom, left:right]


def centred(width: int, height: int, side: int) -> tuple[int, int, int, int]:
    """Return the square of `side` px in the middle of an image, as left, top, right and bottom."""
    left, top = round((width - side) / 2), round((height - side) / 2)
    return left, top, left + side, top + side
