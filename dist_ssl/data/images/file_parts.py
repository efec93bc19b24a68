"""Bounds of the work that the parts of an image's file may cause beyond its pixels: all are numbers in its bytes.

Decoders take time for every segment, chunk, strip and tile of a file, however small it is, and memory for the whole of
a tile, however little of it is inside the image. Both are refused here, before they are spent, far above what ordinary
files hold: a PNG of 100 million pixels in libpng's chunks of 8 kB has some 40,000 of them.
"""

import io

from PIL import Image, ImageFile

from dist_ssl.config.bounds import MAX_PIXELS
from dist_ssl.data.images.file_formats import EXTENSIONS, kind_of
from dist_ssl.data.images.tiff_tags import IMAGE_LENGTH, IMAGE_WIDTH, LISTS, MOST_PARTS, NOT_OF_PIL, tags_of
from dist_ssl.data.images.unreadable import TOO_LARGE, TOO_MANY_PARTS, UNSUPPORTED, UnreadableError

READS, BYTES_PER_READ, READS_PER_PIXEL = 1 << 19, 64, 4
"""How often PIL may read from a file, besides once for every so many bytes and so often for every pixel.

A chunk of a PNG takes about 4 reads. A run of a BMP, which may be as short as one pixel, takes 2.
"""
AREAS = 8
"""How many times the area of the image its tiles may have together: a TIFF may store 6 values of a pixel apart."""
TILE_WIDTH, TILE_LENGTH = 322, 323
FRACTIONS = (5, 10)
"""Types of tags whose values PIL makes objects of, each many times as large as its 8 bytes."""
FURTHER = (0x8769, 0x8825, 0xA005)
"""Tags that lead to further tags, those of Exif, which PIL reads completely; they have no say in the pixels."""


def refuse_other_tags(data: bytes) -> None:
    """Raise UnreadableError for a TIFF in which PIL would read other tags than those that are checked here."""
    if data.startswith(NOT_OF_PIL):
        raise UnreadableError(UNSUPPORTED, "a picture in a BigTIFF whose numbers begin with their highest byte")


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
    for tag, kind, count, value in tags_of(data):
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
