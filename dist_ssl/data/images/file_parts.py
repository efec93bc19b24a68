"""Bounds of the work that the parts of an image's file may cause beyond its pixels: all are numbers in its bytes.

Decoders take time for every segment, chunk, strip and tile of a file, however small it is, and memory for the whole of
a tile, however little of it is inside the image. Both are refused here, before they are spent, far above what ordinary
files hold: a PNG of 100 million pixels in libpng's chunks of 8 kB has some 40,000 of them.
"""

import io
import struct
from collections.abc import Iterator

from PIL import Image, ImageFile

from dist_ssl.config.bounds import MAX_PIXELS
from dist_ssl.data.images.file_formats import EXTENSIONS, kind_of
from dist_ssl.data.images.unreadable import TOO_LARGE, TOO_MANY_PARTS, UnreadableError

MOST_PARTS = 1 << 16
"""Segments of a JPEG, chunks of a PNG before its pixels, strips or tiles of a TIFF, and fractions in a tag of one."""
READS, BYTES_PER_READ, READS_PER_PIXEL = 1 << 19, 64, 4
"""How often PIL may read from a file, besides once for every so many bytes and so often for every pixel.

A chunk of a PNG takes about 4 reads. A run of a BMP, which may be as short as one pixel, takes 2.
"""
AREAS = 8
"""How many times the area of the image its tiles may have together: a TIFF may store 6 values of a pixel apart."""
TILE_WIDTH, TILE_LENGTH, IMAGE_WIDTH, IMAGE_LENGTH = 322, 323, 256, 257
LISTS = (273, 279, 324, 325)
"""Tags of a TIFF with a number for every strip or tile: where it is, and how long."""
FRACTIONS = (5, 10)
"""Types of tags whose values PIL makes objects of, each many times as large as its 8 bytes."""
INTEGERS = {1: "B", 3: "H", 4: "L", 6: "B", 8: "H", 9: "L", 16: "Q", 17: "Q"}
"""Types of tags that hold whole numbers, and how `struct` reads them. A negative number becomes a huge one."""
FURTHER = (0x8769, 0x8825, 0xA005)
"""Tags that lead to further tags, those of Exif, which PIL reads completely; they have no say in the pixels."""


class FileInPieces(io.BytesIO):
    """The bytes of a file, which may be read in a bounded number of pieces. Raises UnreadableError beyond it."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.left = READS + len(data) // BYTES_PER_READ

    def read(self, size: int | None = -1, /) -> bytes:
        """Return the next bytes."""
        self.left -= 1
        if self.left < 0:
            raise UnreadableError(TOO_MANY_PARTS)
        return super().read(size)


def check_tags(data: bytes, max_pixels: int) -> None:
    """Raise UnreadableError where a TIFF has too many strips or tiles, or too large ones; other files pass.

    The tags are read here, since PIL makes a list of all strips while it opens a file.
    """
    if kind_of(data) != EXTENSIONS["TIFF"]:
        return
    sides: dict[int, int] = {}
    most = MOST_PARTS * max(1, max_pixels // MAX_PIXELS)
    for tag, kind, count, value in _tags(data):
        held = kind in FRACTIONS and count <= len(data) // 8  # PIL leaves out what is larger than the file
        if count > (most if tag in LISTS else MOST_PARTS) and (tag in LISTS or held):
            raise UnreadableError(TOO_MANY_PARTS, f"{count} values of tag {tag}")
        sides[tag] = max(sides.get(tag, 0), value)
    width, length = sides.get(TILE_WIDTH, 0), sides.get(TILE_LENGTH, 0)
    if not width or not length:
        return
    columns, rows = -(-sides.get(IMAGE_WIDTH, 0) // width), -(-sides.get(IMAGE_LENGTH, 0) // length)
    pixels = sides.get(IMAGE_WIDTH, 0) * sides.get(IMAGE_LENGTH, 0)
    if width * length > max(max_pixels, 2 * pixels) or columns * rows * width * length > 4 * max_pixels:
        raise UnreadableError(TOO_LARGE, f"{columns * rows} tiles of {width} x {length}")


def _tags(tiff: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Yield the number, type, count and first value of the tags of a TIFF; values that are no whole numbers are 0."""
    order, big = ">" if tiff.startswith(b"MM") else "<", tiff[2:3] == b"\x2b"  # as PIL tells them apart
    head, entry, room = ("Q", "HHQ8s", 8) if big else ("H", "HHL4s", 4)
    try:
        (at,) = struct.unpack_from(order + ("Q" if big else "L"), tiff, 8 if big else 4)
        (count,) = struct.unpack_from(order + head, tiff, at)
    except (struct.error, OverflowError):
        return  # PIL finds the same damage
    if count > MOST_PARTS:
        raise UnreadableError(TOO_MANY_PARTS, f"{count} tags")
    start, size = at + struct.calcsize(order + head), struct.calcsize(order + entry)
    whole = tiff[start : start + count * size]
    for tag, kind, many, inside in struct.iter_unpack(order + entry, whole[: len(whole) // size * size]):
        yield tag, kind, many, _first(tiff, order, kind, many, inside, room)


def _first(tiff: bytes, order: str, kind: int, count: int, inside: bytes, room: int) -> int:
    """Return the first value of a tag. `inside`: the bytes in its entry, its values or, of more than `room`, where."""
    if kind not in INTEGERS or not count:
        return 0
    own = order + INTEGERS[kind]
    if count * struct.calcsize(own) <= room:
        return int(struct.unpack_from(own, inside)[0])
    (at,) = struct.unpack(order + ("Q" if room == 8 else "L"), inside)
    held = tiff[at : at + struct.calcsize(own)]
    return int(struct.unpack(own, held)[0]) if len(held) == struct.calcsize(own) else 0


def prepare_to_load(image: Image.Image, file: FileInPieces) -> None:
    """Let an opened image of `file` be loaded with work for its pixels. Raises UnreadableError."""
    pixels = image.width * image.height
    file.left += READS_PER_PIXEL * pixels
    if not isinstance(image, ImageFile.ImageFile):
        return
    areas = sum(
        (right - left) * (below - top)
        for left, top, right, below in (tile.extents for tile in image.tile if tile.extents)
    )
    if areas > AREAS * pixels:
        raise UnreadableError(TOO_MANY_PARTS, f"{len(image.tile)} tiles over each other")
    if image.format == "TIFF":
        tags = image.getexif()
        for tag in FURTHER:
            tags.pop(tag, None)
