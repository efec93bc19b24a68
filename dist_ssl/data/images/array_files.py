"""Images as arrays in files of numpy (`.npy`): [H, W] or [H, W, C] of uint8, uint16 or float32, channels last.

The header is matched as a text, never evaluated, and nothing is unpickled: a file of objects is refused by its type.
The header must fit the length of the file before any memory is taken, so a header that lies costs nothing. TIFFs of
bands (`tiff_bands.py`) become pixels as these do.
"""

import math
import re
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from dist_ssl.config.bounds import MOST_CHANNELS
from dist_ssl.data.images.deep_rows import FULL, Values
from dist_ssl.data.images.file_formats import ARRAY
from dist_ssl.data.images.image_rules import OF_PICTURES, WHITER, ImageRules, Pixels, bands_of, to_bits
from dist_ssl.data.images.tiff_bands import array_of_bands, bands_in, floating
from dist_ssl.data.images.unreadable import DAMAGED, NO_RANGE, TOO_LARGE, UNSUPPORTED, UnreadableError

MOST_HEADER = 4096
"""Bytes of a header, at most; numpy writes 128."""
HEAD_BYTES = MOST_HEADER + 12
"""Bytes from the start of a file that tell what it holds."""
HEADER = re.compile(
    rb"\{'descr': '([^']{1,8})', 'fortran_order': (True|False), 'shape': \(((?:\d{1,9}, ?){0,4}(?:\d{1,9})?)\),? ?\}\s*"
)
TYPES: dict[str, np.dtype[Any]] = {name: np.dtype(name) for name in ("|u1", "<u2", ">u2", "<f4", ">f4")}
"""Types of pixels that are read, by their names in a header; those of floating point have no range of their own."""


@dataclass(frozen=True)
class ArrayHeader:
    """The header of a file: its array is [height, width, channels] of `dtype`, from byte `start` on."""

    height: int
    width: int
    channels: int
    dtype: np.dtype[Any]
    by_columns: bool
    """Whether the first index changes fastest, as in Fortran."""
    start: int

    @property
    def size(self) -> int:
        """Return the bytes that the file must have."""
        return self.start + self.height * self.width * self.channels * self.dtype.itemsize


def is_array(data: bytes) -> bool:
    """Return whether the first bytes are those of a file of numpy."""
    return data.startswith(ARRAY)


def header_of(head: bytes) -> ArrayHeader:
    """Return the header of an image. `head`: the file, or its first HEAD_BYTES. Raises UnreadableError."""
    wide = head[6:7] != b"\x01"
    start = 12 if wide else 10
    if len(head) < start or head[6] > 3:
        raise UnreadableError(DAMAGED, "an array without a header")
    (length,) = struct.unpack("<I" if wide else "<H", head[8:start])
    found = HEADER.fullmatch(head[start : start + length]) if length <= MOST_HEADER else None
    if found is None or len(head) < start + length:
        raise UnreadableError(DAMAGED, "an array whose header cannot be read")
    kind, shape = found[1].decode("latin-1"), [int(side) for side in found[3].split(b",") if side.strip()]
    dtype = TYPES.get(kind)
    if dtype is None:
        raise UnreadableError(UNSUPPORTED, f"an array of type {kind}: uint8, uint16 and float32 are read")
    height, width, channels = [*shape, 1][:3] if len(shape) in (2, 3) else (0, 0, 0)
    if not 0 < channels <= min(MOST_CHANNELS, max(height, 1)) or not height * width:
        raise UnreadableError(
            UNSUPPORTED,
            f"an array of shape {shape}: an image is [H, W] or [H, W, C], C at most {MOST_CHANNELS} and no more than H",
        )
    return ArrayHeader(height, width, channels, dtype, found[2] == b"True", start + length)


def array_of(data: bytes, max_pixels: int) -> Values:
    """Return the values of an image, [H, W, C], in the memory of the file. Raises UnreadableError."""
    head = header_of(data)
    if head.height * head.width > max_pixels:
        raise UnreadableError(TOO_LARGE, f"{head.width} x {head.height}")
    if len(data) < head.size:
        raise UnreadableError(DAMAGED, f"an array of {head.size} bytes in {len(data)}")
    shape = (head.height, head.width, head.channels)
    flat = np.frombuffer(data, head.dtype, count=head.height * head.width * head.channels, offset=head.start)
    return flat.reshape(shape, order="F" if head.by_columns else "C")


def read_as_array(data: bytes, rules: ImageRules) -> bool:
    """Return whether a file is read as an array: one of numpy, or a TIFF of bands that is not asked for as a picture.

    Raises UnreadableError.
    """
    if is_array(data):
        return True
    bands = bands_in(data)
    return bands is not None and (bands == rules.channels or rules.channels not in OF_PICTURES)


def array_pixels(data: bytes, rules: ImageRules) -> Pixels:
    """Return the pixels of an image, [H, W, `rules.channels`]. Raises UnreadableError."""
    values = (
        array_of(data, rules.max_pixels)
        if is_array(data)
        else array_of_bands(data, rules.max_pixels, rules.dtype.itemsize)
    )
    height, width, channels = values.shape
    if channels != rules.channels:
        raise UnreadableError(UNSUPPORTED, f"{channels} channels, not {rules.channels}")
    if values.dtype == np.uint8:
        return np.require(values, requirements=["C", "W"]) if rules.bits == 8 else values * np.uint16(WHITER)
    if rules.range is None and values.dtype.kind == "f":
        raise UnreadableError(NO_RANGE, str(values.dtype))
    white = FULL if rules.range is None else rules.range
    pixels = np.empty(values.shape, dtype=rules.dtype)
    for top, below in bands_of(height, width * channels):
        pixels[top:below] = to_bits(values[top:below], white, rules.bits)
    return pixels


def lacks_range(data: bytes) -> bool:
    """Return whether a file is an array or a TIFF of bands of floating point, which `range` alone makes readable."""
    try:
        return header_of(data).dtype.kind == "f" if is_array(data) else bands_in(data) is not None and floating(data)
    except UnreadableError:
        return False


def largest_of(data: bytes, max_pixels: int) -> int | None:
    """Return the largest value of an image of more than 8 bits, rounded up; None of 8 bits. Raises UnreadableError."""
    values = array_of(data, max_pixels) if is_array(data) else array_of_bands(data, max_pixels)
    if values.dtype == np.uint8:
        return None
    largest = 0.0
    for top, below in bands_of(len(values), values[0].size):
        band = values[top:below]
        largest = max(largest, float(np.max(band, initial=0, where=np.isfinite(band))))
    return math.ceil(largest)
