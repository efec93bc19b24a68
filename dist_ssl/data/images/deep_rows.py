"""Values of more than 8 bits of a picture, some rows at a time, so that a large picture is not held twice.

PIL has no colours of 16 bits: it keeps the upper byte of each, or the lower one where bytes are said to have the other
order. So such a picture is decoded twice.
"""

import io
import re
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from dist_ssl.data.images.file_parts import FileInPieces, prepare_to_load
from dist_ssl.data.images.unreadable import NO_RANGE, UNSUPPORTED, UnreadableError

Values = npt.NDArray[Any]
Rows = Callable[[int, int], Values]
"""The values of the rows from one number to before another, [h, w, 1 to 4]."""
FULL = 65535
REVERSED = {"16B": "16L", "16L": "16B", "16N": "16B" if sys.byteorder == "little" else "16L"}
"""PIL's names of the orders of two bytes (big, little, the machine's), and the other order of each."""
ORDER = re.compile("(16[BLN])")


def deep_rows(image: Image.Image, data: bytes, white: float | None, bits: int = 8) -> Rows | None:
    """Return the rows of a loaded image of more than 8 bits; None where PIL's own conversion is right.

    `white`: the value that is white; where it is known, pixels of 32 bits or floating point are read too. Colours of 16
    bits are read where it is, or where `bits` of every number are kept. `data`: the image's bytes, empty for one that
    PIL has made. Raises UnreadableError where these are read in no way.
    """
    if image.mode.startswith("I;16"):
        return lambda top, below: rows_of(image, top, below).astype(np.uint16)[..., None]
    if image.mode == "I" and image.format == "PPM":
        return _gray_map(image, data, white)
    if image.mode in ("I", "F"):
        if white is None:
            raise UnreadableError(NO_RANGE, image.mode)
        return lambda top, below: rows_of(image, top, below)[..., None]
    lower = _lower_bytes(data, str(image.format)) if data and (white is not None or bits > 8) else None
    if lower is None:
        return None
    return lambda top, below: (rows_of(image, top, below).astype(np.uint16) << 8) | rows_of(lower, top, below)


def rows_of(image: Image.Image, top: int, below: int) -> Values:
    """Return the rows from `top` to before `below` of an image as PIL has them, [h, w] or [h, w, C]."""
    return np.asarray(image.crop((0, top, image.width, below)))


def has_two_bytes(image: Image.Image) -> bool:
    """Return whether an image that has not been loaded has numbers of two bytes in its file."""
    return any(ORDER.search(str(tile.args)) for tile in getattr(image, "tile", []))


def _gray_map(image: Image.Image, data: bytes, white: float | None) -> Rows:
    """Return the rows of a portable graymap of 16 bits.

    Such a file names its own white, and PIL scales the values so that it is 65,535. Only where the file names no less
    than that, a range says more.
    """
    if white is None:
        return lambda top, below: rows_of(image, top, below).astype(np.uint16)[..., None]
    with Image.open(io.BytesIO(data), formats=["PPM"]) as again:
        scaled = next(iter(getattr(again, "tile", []))).codec_name != "raw"
    share = white / FULL
    if scaled:
        return lambda top, below: rows_of(image, top, below).astype(np.uint16)[..., None] * share
    return lambda top, below: rows_of(image, top, below).astype(np.uint16)[..., None]


def _lower_bytes(data: bytes, kind: str) -> Image.Image | None:
    """Return an image of the lower bytes of colours of 16 bits, of which PIL reads the upper ones; None for others."""
    file = FileInPieces(data)
    with Image.open(file, formats=[kind]) as image:
        if not has_two_bytes(image):
            return None
        tiles = list(getattr(image, "tile", []))
        image.tile = [tile._replace(args=_reversed(tile.args)) for tile in tiles]
        prepare_to_load(image, file)
        try:
            image.load()
        except ValueError as error:  # PIL knows this kind in one order only
            raise UnreadableError(UNSUPPORTED, f"{tiles[0].args}, whose lower bytes cannot be read") from error
        return image


def _reversed(arguments: Any) -> Any:
    """Return the arguments of a decoder of PIL, of which the first names the order of bytes, with the other order."""
    if isinstance(arguments, tuple):
        return (_reversed(arguments[0]), *arguments[1:])
    return "".join(REVERSED.get(part, part) for part in ORDER.split(arguments))
