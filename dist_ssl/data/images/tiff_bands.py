"""TIFFs of many bands, as satellites and microscopes have them: [H, W, C] of 8 or 16 bits, or floats of 32.

PIL reads TIFFs as pictures, of four channels at most. Read here are those of more, and of several that are no colours:
in strips or tiles, band by band or pixel by pixel, plain, deflated, by LZW or PackBits, also as differences along rows.
Their numbers are checked before any memory is taken: a segment (`tiff_segments.py`) is expanded to the length that its
sides tell, and no further.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dist_ssl.config.bounds import MOST_CHANNELS, RGB
from dist_ssl.config.instantiate import SHOWN
from dist_ssl.data.images.deep_rows import Values
from dist_ssl.data.images.file_parts import TILE_LENGTH, TILE_WIDTH, check_tags
from dist_ssl.data.images.image_rules import RGBA
from dist_ssl.data.images.tiff_segments import NOT_READ, PLAIN, READ, expanded
from dist_ssl.data.images.tiff_tags import (
    BITS,
    CHANNELS,
    FORM,
    FORMS,
    IMAGE_LENGTH,
    IMAGE_WIDTH,
    PLACES,
    STARTS,
    tags_of,
    values_of,
)
from dist_ssl.data.images.unreadable import DAMAGED, TOO_LARGE, UNSUPPORTED, UnreadableError

TILE_VALUES = 1 << 24
"""Values of a tile that any image may have; a larger one has no more than AREAS times those of the image."""
ALL_VALUES = 1 << 27
"""Values that all tiles together may have, whatever the image; more are no more than AREAS times those of the image."""
AREAS = 4
BYTES = 10
"""Bytes of memory for each of `max_pixels` that reading a compressed image may take, whose file may be small."""
COMPRESSION, COLOURS, ROWS, PLANAR, PREDICTOR = 259, 262, 278, 284, 317
GREY, COLOURED = (0, 1), 2
"""Values of COLOURS: white or black is zero; red, green and blue."""
FLOATS = 3
"""Value of FORM."""
TYPES = {(8, 1): "u1", (16, 1): "u2", (32, 3): "f4"}
"""Types by bits and kind of number."""
SINGLE = {CHANNELS: 1, COMPRESSION: 1, PLANAR: 1, PREDICTOR: 1, FORM: 1, BITS: 1}
"""Tags with one number, or the same one for every band, and what holds where they are missing."""


def bands_in(data: bytes) -> int | None:
    """Return the number of bands of a TIFF that is no picture; None for a picture and for any other file.

    A picture has up to four channels, of which several are colours, or one and alpha. Raises UnreadableError where
    there are too many tags.
    """
    if not data.startswith(STARTS):
        return None
    found = {tag: value for tag, _, _, value in tags_of(data)}
    bands, grey = found.get(CHANNELS, 1), found.get(COLOURS) in GREY
    return bands if bands > RGBA or (grey and bands >= RGB) else None


def coloured(data: bytes) -> bool:
    """Return whether the first three bands of a TIFF are red, green and blue, so that it can be read as a picture."""
    return any(tag == COLOURS and value == COLOURED for tag, _, _, value in tags_of(data))


def floating(data: bytes) -> bool:
    """Return whether the values of a TIFF are of floating point."""
    return any(tag == FORM and value == FLOATS for tag, _, _, value in tags_of(data))


@dataclass(frozen=True)
class BandLayout:
    """How the values of an image lie in its file."""

    height: int
    width: int
    bands: int
    dtype: "np.dtype[Any]"
    rows: int
    """Rows of a strip or tile."""
    columns: int
    """Columns of a strip or tile."""
    tiled: bool
    apart: bool
    """Whether every band has segments of its own."""
    compression: int
    differences: bool
    """Whether values are stored as differences to those on their left."""
    segments: list[tuple[int, int]]
    """Place and length of every segment, bytes."""

    @property
    def number(self) -> int:
        """Return how many segments the image has, which may be more than the file names."""
        return -(-self.height // self.rows) * -(-self.width // self.columns) * (self.bands if self.apart else 1)

    @property
    def values(self) -> int:
        """Return the number of values of a segment."""
        return self.rows * self.columns * (1 if self.apart else self.bands)

    @property
    def row_bytes(self) -> int:
        """Return the bytes of a row of a segment."""
        return self.columns * (1 if self.apart else self.bands) * self.dtype.itemsize

    def stored_rows(self, top: int) -> int:
        """Return the rows that the segment from row `top` on has in the file: of a strip, those of the image."""
        return self.rows if self.tiled else min(self.rows, self.height - top)

    def needed(self, kept: int) -> int:
        """Return the bytes of memory that reading takes: all values, what is kept of them, a segment in three forms."""
        every, size = self.height * self.width * self.bands, self.dtype.itemsize
        return every * (size + kept) + 3 * self.values * size

    def places(self) -> Iterator[tuple[int, int, slice]]:
        """Yield the top, the left and the bands of every segment, in their order in the file."""
        of_bands = [slice(band, band + 1) for band in range(self.bands)] if self.apart else [slice(0, self.bands)]
        for own in of_bands:
            for top in range(0, self.height, self.rows):
                for left in range(0, self.width, self.columns):
                    yield top, left, own


def array_of_bands(data: bytes, max_pixels: int, kept: int = 1) -> Values:
    """Return the values of an image, [H, W, C], of which `kept` bytes each are kept. Raises UnreadableError."""
    check_tags(data, max_pixels)
    layout = layout_of(data, max_pixels)
    check_segments(layout, max_pixels)
    if layout.compression != PLAIN and layout.needed(kept) > BYTES * max_pixels:
        raise UnreadableError(TOO_LARGE, f"{layout.width} x {layout.height} of {layout.bands} compressed bands")
    found = np.empty((layout.height, layout.width, layout.bands), dtype=layout.dtype.newbyteorder("="))
    sizes = (layout.row_bytes * layout.stored_rows(top) for top, _, _ in layout.places())
    parts = expanded(data, layout.compression, zip(layout.segments, sizes, strict=False))
    for (top, left, bands), raw in zip(layout.places(), parts, strict=True):
        rows, columns = min(layout.rows, layout.height - top), min(layout.columns, layout.width - left)
        values = values_of_segment(raw, layout, (layout.stored_rows(top), layout.columns, bands.stop - bands.start))
        found[top : top + rows, left : left + columns, bands] = values[:rows, :columns]
    return found


def layout_of(data: bytes, max_pixels: int) -> BandLayout:
    """Return how the values lie in the file. Raises UnreadableError where they are not read, or are too many."""
    tags = values_of(
        data, {*SINGLE, IMAGE_WIDTH, IMAGE_LENGTH, ROWS, TILE_WIDTH, TILE_LENGTH, *PLACES, *PLACES.values()}
    )
    single = {}
    for tag, usual in SINGLE.items():
        values = {*tags.get(tag, [usual])}
        if len(values) != 1:
            raise UnreadableError(UNSUPPORTED, f"bands of different kinds: tag {tag} is {SHOWN.repr(sorted(values))}")
        single[tag] = values.pop()
    height, width, bands = tags.get(IMAGE_LENGTH, [0])[0], tags.get(IMAGE_WIDTH, [0])[0], single[CHANNELS]
    if not height * width * bands:
        raise UnreadableError(DAMAGED, "a TIFF without sides")
    if height * width > max_pixels or height * width * bands > RGBA * max_pixels or bands > MOST_CHANNELS:
        raise UnreadableError(TOO_LARGE, f"{width} x {height} of {bands} bands")
    compressed, form = single[COMPRESSION], single[PREDICTOR]
    kind = type_of(bands, single)
    tiled = TILE_WIDTH in tags
    starts = 324 if tiled else 273
    rows, columns = (
        (tags.get(TILE_LENGTH, [0])[0], tags[TILE_WIDTH][0]) if tiled else (tags.get(ROWS, [height])[0], width)
    )
    if not rows * columns:
        raise UnreadableError(DAMAGED, "a TIFF of segments without sides")
    return BandLayout(
        *(height, width, bands),
        np.dtype(kind).newbyteorder(">" if data.startswith(b"MM") else "<"),
        rows if tiled else min(rows, height),
        columns,
        tiled,
        apart=single[PLANAR] == 2,
        compression=compressed,
        differences=form == 2,
        segments=list(zip(tags.get(starts, []), tags.get(PLACES[starts], []), strict=False)),
    )


def type_of(bands: int, single: Mapping[int, int]) -> str:
    """Return the type of the values by the tags with one number. Raises UnreadableError where they are not read."""
    kind, compressed, form = TYPES.get((single[BITS], single[FORM])), single[COMPRESSION], single[PREDICTOR]
    if compressed not in READ:
        name = NOT_READ.get(compressed, f"compression {compressed}")
        raise UnreadableError(
            UNSUPPORTED, f"{bands} bands by {name}: {', '.join(dict.fromkeys(READ.values()))} are read"
        )
    if kind is None or form not in (1, 2) or (form == 2 and kind == "f4"):
        text = f"{bands} bands of {single[BITS]} bits{FORMS.get(single[FORM], '')}, predictor {form}"
        raise UnreadableError(UNSUPPORTED, f"{text}: 8 and 16 bits, predictor 2, and floats of 32 without are read")
    return kind


def check_segments(layout: BandLayout, max_pixels: int) -> None:
    """Raise UnreadableError where segments are missing, or hold far more values than the image has."""
    if len(layout.segments) < layout.number:
        raise UnreadableError(DAMAGED, f"{len(layout.segments)} segments of {layout.number}")
    own, every = AREAS * layout.height * layout.width * layout.bands, layout.number * layout.values
    if layout.values > max(TILE_VALUES, own) or every > min(max(ALL_VALUES, own), AREAS * RGBA * max_pixels):
        raise UnreadableError(TOO_LARGE, f"{layout.number} segments of {layout.columns} x {layout.rows}")


def values_of_segment(raw: bytes, layout: BandLayout, shape: tuple[int, int, int]) -> Values:
    """Return the values of a strip or tile in this shape, [rows, columns, bands]. `raw`: its bytes, expanded."""
    values: Values = np.frombuffer(raw, layout.dtype, count=int(np.prod(shape))).reshape(shape)
    if layout.differences:
        values = np.cumsum(values, axis=1, dtype=layout.dtype.newbyteorder("="))
    return values
