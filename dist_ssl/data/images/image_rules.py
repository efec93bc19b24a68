"""How pixels of any kind become channels of 8 or 16 bits: the range of deep ones, what shows through transparent ones.

A data set has as many channels as its manifest says. Of a picture these are one (its luma), three (RGB) or four (RGB
and alpha); arrays (`array_files.py`) have as many as they have.

Cameras and microscopes write 10, 12 or 14 bits into files of 16, which look black where 65,535 is taken for white. What
is transparent has a colour too, which no viewer shows: two files that look the same may differ there in every pixel.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from dist_ssl.config.bounds import MAX_PIXELS, RGB
from dist_ssl.data.images.deep_rows import FULL, Values, deep_rows
from dist_ssl.data.images.unreadable import UNSUPPORTED, UnreadableError

Pixels = npt.NDArray[Any]
"""Pixels of uint8 or, where the rules say so, uint16."""
White = float | tuple[float, ...] | None
"""The value that is white in deep pixels, or that of each channel."""
BAND_PIXELS = 1 << 18
"""Pixels that are converted to RGB at a time, so that a large picture is not held three times."""
WHITER = 257
"""A number of 16 bits for each one of 8: 255 becomes 65,535."""
GREY, RGBA = 1, 4
OF_PICTURES = (GREY, RGB, RGBA)
"""Numbers of channels that a picture can be read as."""
BITS: dict[int, np.dtype[Any]] = {8: np.dtype(np.uint8), 16: np.dtype(np.uint16)}
"""Types of pixels by their number of bits; the largest number is white."""
LUMA = (19595, 38470, 7471)
"""Weights of ITU-R 601 in units of 1 / 65,536, whose sum is 1, so that the luma of a grey pixel is its value."""


@dataclass(frozen=True)
class ImageRules:
    """How the bytes of an image become pixels; results depend on it.

    `max_pixels`: images of more pixels are unreadable. `range`: the value that is white in pixels of more than 8 bits
    and in those of floating point; None: 65,535 for pixels of 16 bits, and others have no range; of arrays and TIFFs of
    bands also one for each channel. `alpha`: what shows
    through where an image is transparent, or `drop`: its hidden colours. `channels`: number of channels; `bits`: of
    every number of a pixel.
    """

    max_pixels: int = MAX_PIXELS
    range: White = None
    alpha: Literal["white", "black", "drop"] = "white"
    channels: int = RGB
    bits: Literal[8, 16] = 8

    @property
    def dtype(self) -> "np.dtype[Any]":
        """Return the type of the numbers of pixels."""
        return BITS[self.bits]


RULES = ImageRules()


def counted(channels: int) -> str:
    """Return a number of channels in words."""
    return "1 channel" if channels == 1 else f"{channels} channels"


def is_white(white: White, channels: int) -> bool:
    """Return whether a range is none, a possible white, or one for each channel."""
    own = white if isinstance(white, tuple) else (white,) * channels
    return len(own) == channels and all(one is None or 0 < one < math.inf for one in own)


def white_in_words(white: White) -> str:
    """Return the value that is white as the key `data.range` has it: `4095`, `[4095,10000]`."""
    if isinstance(white, tuple):
        return f"[{','.join(f'{one:g}' for one in white)}]"
    return "null" if white is None else f"{white:g}"


def to_channels(image: Image.Image, data: bytes, rules: ImageRules) -> Pixels:
    """Return the pixels of a loaded image as channels [h, w, C]. `data`: its bytes. Raises UnreadableError."""
    width, height = image.size
    check_picture(rules)
    rows = _rows(image, data, rules)
    pixels = np.empty((height, width, rules.channels), dtype=rules.dtype)
    for top, below in bands_of(height, width):
        pixels[top:below] = of_picture(rows(top, below), rules)
    return pixels


def bands_of(height: int, width: int) -> Iterator[tuple[int, int]]:
    """Yield the first row of each band of a picture, and the one after its last."""
    rows = max(1, BAND_PIXELS // width)
    for top in range(0, height, rows):
        yield top, min(top + rows, height)


def check_picture(rules: ImageRules) -> None:
    """Raise UnreadableError where no picture has the channels, or the whites, of the rules."""
    if isinstance(rules.range, tuple):
        raise UnreadableError(
            UNSUPPORTED, "a picture, and data.range names a white for each channel of arrays or bands"
        )
    if rules.channels not in OF_PICTURES:
        raise UnreadableError(UNSUPPORTED, f"a picture of 1, 3 or 4 channels, not {rules.channels}")


def of_picture(pixels: Pixels, rules: ImageRules) -> Pixels:
    """Return RGB or RGBA, [h, w, 3 or 4] of 8 bits or those of the rules, as the channels of the rules, [h, w, C]."""
    if rules.bits == 16 and pixels.dtype == np.uint8:
        pixels = pixels * np.uint16(WHITER)
    if rules.channels == RGBA:
        opaque = np.full((*pixels.shape[:2], RGBA - pixels.shape[2]), white_number(pixels.dtype), dtype=pixels.dtype)
        return np.concatenate([pixels, opaque], axis=2)
    colours = _over(pixels, rules)
    if rules.channels == RGB:
        return colours
    red, green, blue = (weight * colours[..., at].astype(np.uint32) for at, weight in enumerate(LUMA))
    grey: Pixels = ((red + green + blue + (1 << 15)) >> 16).astype(pixels.dtype)
    return grey[..., None]


def in_colours(pixels: Pixels) -> Pixels:
    """Return pixels [h, w, C] as RGB for people: the first three channels, of fewer the first as grey."""
    if pixels.dtype != np.uint8:
        pixels = (pixels // WHITER).astype(np.uint8)
    if pixels.shape[2] == RGB:
        return pixels
    shown = pixels[..., :RGB] if pixels.shape[2] > RGB else np.repeat(pixels[..., :1], RGB, axis=2)
    return np.ascontiguousarray(shown)


def _rows(image: Image.Image, data: bytes, rules: ImageRules) -> Callable[[int, int], Pixels]:
    """Return a function of two numbers of rows: the pixels from one to before the other, [h, w, 3 or 4]."""
    assert not isinstance(rules.range, tuple), "no picture has a white for each channel"
    deep = deep_rows(image, data, rules.range, rules.bits)
    if deep is not None:
        white = FULL if rules.range is None else rules.range
        return lambda top, below: _scaled(deep(top, below), white, rules.bits)
    seen = rules.channels == RGBA or rules.alpha != "drop"
    mode = "RGBA" if seen and image.has_transparency_data else "RGB"
    if "transparency" in image.info:  # PIL converts such a palette by all of its pixels
        whole = np.asarray(image.convert(mode))
        return lambda top, below: whole[top:below]
    return lambda top, below: np.asarray(image.crop((0, top, image.width, below)).convert(mode))


def _scaled(deep: Values, white: float, bits: int) -> Pixels:
    """Return values [h, w, 1 to 4], of which `white` is the largest and NaN is 0, as bits; gray becomes three colours.

    The second or fourth is alpha, of which 65,535 is opaque whatever is white: no camera measures it.
    """
    if deep.shape[2] in (2, 4) and white != FULL:
        parts = (_scaled(deep[..., :-1], white, bits), _scaled(deep[..., -1:], FULL, bits)[..., :1])
        return np.concatenate(parts, axis=2)
    pixels = to_bits(deep, white, bits)
    if pixels.shape[2] > 2:
        return pixels
    return np.concatenate([np.repeat(pixels[..., :1], 3, axis=2), pixels[..., 1:]], axis=2)


def white_number(dtype: "np.dtype[Any]") -> int:
    """Return the number that is white in pixels of this type."""
    return int(np.iinfo(dtype).max)


def to_bits(deep: Values, white: float | Sequence[float], bits: int) -> Pixels:
    """Return values as integers of `bits` bits: `white`, or that of each channel, becomes the largest one, NaN 0.

    `deep`: of any shape, the channels last.
    """
    largest, whites = white_number(BITS[bits]), np.asarray(white)
    if np.issubdtype(deep.dtype, np.integer) and (whites == np.floor(whites)).all():
        most = whites.astype(np.int64)
        found = (np.clip(deep, 0, most).astype(np.int64) * largest + most // 2) // most
    else:
        found = np.rint(np.nan_to_num(np.clip(deep / whites, 0, 1)) * largest)
    pixels: Pixels = found.astype(BITS[bits])
    return pixels


def _over(pixels: Pixels, rules: ImageRules) -> Pixels:
    """Return pixels [h, w, 3 or 4] over the background of the rules, [h, w, 3]."""
    if pixels.shape[2] == 3:
        return pixels
    wide, most = (np.uint16, 255) if pixels.dtype == np.uint8 else (np.uint32, FULL)  # most squared fits
    colours, alpha = pixels[..., :3], pixels[..., 3:].astype(wide)
    if rules.alpha == "drop":
        return colours
    mixed = colours * alpha + (most if rules.alpha == "white" else 0) * (most - alpha) + most // 2
    found: Pixels = (mixed // most).astype(pixels.dtype)
    return found
