"""Decode the bytes of an image to upright pixels, mostly RGB of 8 bits, at the smallest sufficient libjpeg scale.

JPEGs are decoded by libjpeg-turbo (simplejpeg), everything else by PIL: PNG, WebP, GIF, TIFF, BMP and a few more; of
files with several pictures, the first. Arrays of numpy and TIFFs of bands are read by `array_files.py`. The Exif
orientation is applied; `ImageRules` say what shows through where an image is transparent, and which value of deep
pixels is white. Whether a sample can be decoded completely depends on its bytes alone: if not, it is unreadable for a
named reason, and a replacement sample takes its place in the batch. The rule: what a decoder must guess at is damage,
and what it may ignore is not. A truncated JPEG is damaged, even where a decoder would fill the rest with gray. Extra
bytes, metadata of any size, and parameters that a sequential JPEG does not use make nothing unreadable. A file that is
whole and whose kind of pixels is not read (64 bits, say, or a JPEG of 12) is unsupported, which is counted apart from
damage.

What one image may cost is bounded by numbers that stand in its bytes, not by time, so that the same images are readable
on every machine: its pixels, for a progressive JPEG its pixels times its scans, since each scan goes over all of them,
the pixels of a TIFF's tiles, and the number of parts that a file has (`file_parts`): segments, chunks, strips, tiles.
"""

import re
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import takewhile

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from dist_ssl.data.images import portable_maps
from dist_ssl.data.images.array_files import array_pixels, is_array, largest_of, read_as_array
from dist_ssl.data.images.deep_rows import FULL, deep_rows
from dist_ssl.data.images.file_formats import FORMATS, looks_like_image
from dist_ssl.data.images.file_parts import FileInPieces, check_tags, prepare_to_load, refuse_other_tags
from dist_ssl.data.images.image_rules import (
    RULES,
    ImageRules,
    Pixels,
    bands_of,
    check_picture,
    of_picture,
    to_channels,
)
from dist_ssl.data.images.jpeg_segments import APP1, SCAN, segments, with_range_of_scans
from dist_ssl.data.images.pixel_bound import INKS, check_size, times_of
from dist_ssl.data.images.tiff_bands import bands_in
from dist_ssl.data.images.tiff_tags import MOST_PARTS, pixels_of_tiff
from dist_ssl.data.images.unreadable import (
    DAMAGED,
    EMPTY,
    NO_IMAGE,
    TOO_MANY_PARTS,
    TOO_MANY_SCANS,
    UNSUPPORTED,
    UnreadableError,
)

Box = tuple[int, int, int, int]
SCANS = 20
"""Scans that a JPEG of `max_pixels` may have; a smaller one may have more. Encoders write about 10."""
START_OF_SCAN = b"\xff\xda"
NOT_READ = re.compile("Unsupported (JPEG data precision|JPEG process|color conversion)")
"""Errors of libjpeg for a JPEG that may be whole, but has 12 bits, or is of a kind that it was built without."""
SMALL_TEXT = 1 << 10
"""Bytes of a text chunk of a PNG that is read, for its orientation; compressed text may be a thousand times as long."""
SCALES = (8, 4, 2, 1)
ORIENTATION = 0x0112
JPEG = b"\xff\xd8\xff"
PNG = b"\x89PNG\r\n\x1a\n"
PLAIN = (b"P1", b"P2", b"P3")
"""First bytes of PPM files that are written as text."""
COMMENT = re.compile(rb"#[^\r\n]*[\r\n]?")
TEXT_CHUNKS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
"""Chunks of a PNG that have no say in the pixels that are read, and whose size PIL bounds."""
FORMAT, CMYK, TURNED, SAMPLING, SCANS_CORRECTED = "format", "cmyk", "orientation", "sampling", "scan header"
SLOW = (FORMAT, CMYK, TURNED, SAMPLING, SCANS_CORRECTED)
"""Reasons why decoding an image took longer than for a plain JPEG."""
portable_maps.register()
Image.MAX_IMAGE_PIXELS = None  # `max_pixels` is checked instead


@dataclass(frozen=True)
class Decoded:
    """A decoded image: `pixels` [h, w, C] of the rules' bits, and `slow`: why decoding was slow, one of `SLOW`, or an
    empty string.

    `sides`: width and height of the upright original in px, independent of the scale at which it was decoded.
    """

    pixels: Pixels
    slow: str
    sides: tuple[int, int]


def decode(data: bytes, least: int, rules: ImageRules = RULES) -> Decoded:
    """Decode an image; both sides are at least `least` px if the original's are. Raises UnreadableError.

    Whether the bytes are readable does not depend on `least`.
    """
    if not data:
        raise UnreadableError(EMPTY)
    if data.startswith(JPEG):
        return _jpeg(data, least, rules)
    if read_as_array(data, rules):
        pixels = array_pixels(data, rules)
        return Decoded(pixels, "", (pixels.shape[1], pixels.shape[0]))
    return _other(data, rules, FORMAT)


def _jpeg(data: bytes, least: int, rules: ImageRules) -> Decoded:
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:  # rare sampling factors or a truncated header: PIL finds out which
        return _other(data, rules, SAMPLING)
    check_picture(rules)
    inks = space in ("CMYK", "YCCK")
    check_size(width, height, rules, INKS if inks else 1)
    _check_scans(data, width * height, rules.max_pixels)
    given, data = data, with_range_of_scans(data)
    scale = next((s for s in SCALES if min(width, height) >= s * least), 1)
    sides = {"min_height": -(-height // scale), "min_width": -(-width // scale)}
    if inks:
        pixels, slow = _without_inks(_decode_jpeg(data, "CMYK", sides)), CMYK
    else:
        pixels = _decode_jpeg(data, "RGB", sides)
        slow = "" if data is given else SCANS_CORRECTED
    orientation = _orientation(partial(_exif, data))
    whole = (height, width) if orientation >= 5 else (width, height)
    slow = slow or (TURNED if orientation > 1 else "")
    return Decoded(_upright(of_picture(pixels, rules), orientation), slow, whole)


def _decode_jpeg(data: bytes, space: str, sides: dict[str, int]) -> Pixels:
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(data, space, **sides)
    except ValueError as error:
        if "extraneous bytes" not in str(error):
            raise UnreadableError(UNSUPPORTED if NOT_READ.match(str(error)) else DAMAGED, str(error)) from error
        pixels = simplejpeg.decode_jpeg(data, space, **sides, strict=False)
    return pixels


def _without_inks(inverted: Pixels) -> Pixels:
    """Return the inks of a JPEG, [h, w, 4], which has them the other way round, as RGB. Changes `inverted`."""
    inks = np.subtract(255, inverted, out=inverted)
    return np.array(Image.fromarray(inks, "CMYK").convert("RGB"))


def _other(data: bytes, rules: ImageRules, slow: str) -> Decoded:
    """Decode by PIL. Its decoders raise many kinds of errors for damaged bytes; all mean an unreadable sample."""
    data = _without_text(data) if data.startswith(PNG) else _without_comments(data)
    try:
        with _loaded(data, rules) as image:
            pixels, orientation = to_channels(image, data, rules), _orientation(image.getexif)
        del image  # before they are turned: a large picture is large
        pixels = _upright(pixels, orientation)
        return Decoded(pixels, slow, (pixels.shape[1], pixels.shape[0]))
    except (UnreadableError, MemoryError):
        raise
    except UnidentifiedImageError as error:  # a whole TIFF of a kind that PIL does not know is the common case
        if kind := pixels_of_tiff(data):
            raise UnreadableError(UNSUPPORTED, kind) from error
        raise UnreadableError(DAMAGED if looks_like_image(data) else NO_IMAGE) from error
    except Exception as error:
        reason = DAMAGED if looks_like_image(data) else NO_IMAGE
        raise UnreadableError(reason, f"{type(error).__name__}: {error}") from error


@contextmanager
def _loaded(data: bytes, rules: ImageRules) -> Iterator[Image.Image]:
    """Load an image by PIL for this context. Raises UnreadableError where that would cost too much."""
    refuse_other_tags(data)
    check_tags(data, rules.max_pixels)
    file = FileInPieces(data)
    with Image.open(file, formats=FORMATS) as image:
        check_size(*image.size, rules, times_of(image, rules))
        if data.startswith(JPEG):  # also where PIL calls it MPO, a file of several
            _check_scans(data, image.width * image.height, rules.max_pixels)
        prepare_to_load(image, file)
        image.load()
        yield image


def _without_text(png: bytes) -> bytes:
    """Return a PNG without large or damaged chunks of text or of a colour profile; unchanged if there are none.

    Raises UnreadableError where there are too many chunks before those of the pixels.
    """
    kept, at, left = [PNG], len(PNG), MOST_PARTS
    while at + 12 <= len(png):
        left -= 1
        if left < 0:
            raise UnreadableError(TOO_MANY_PARTS)
        size, kind = int.from_bytes(png[at : at + 4]), png[at + 4 : at + 8]
        if kind == b"IDAT":
            kept.append(png[at:])
            break
        if kind not in TEXT_CHUNKS or (size <= SMALL_TEXT and _is_sound(png[at : at + 12 + size])):
            kept.append(png[at : at + 12 + size])
        at += 12 + size
    made = b"".join(kept)
    return made if len(made) < len(png) and at + 12 <= len(png) else png


def _is_sound(chunk: bytes) -> bool:
    """Return whether the check sum of a chunk of a PNG is right."""
    return zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:])


def _without_comments(data: bytes) -> bytes:
    """Return a PPM that is written as text without its comments: PIL copies the rest for each. Others are unchanged."""
    return data[:3] + COMMENT.sub(b"", data[3:]) if data.startswith(PLAIN) else data


def largest_value(data: bytes) -> int | None:
    """Return the largest value of an image of 16 bits, without alpha; None for others, and where it cannot be read.

    Of an array of floating point it is rounded up.
    """
    if not data or data.startswith(JPEG) or (data.startswith(PNG) and data[24:25] != b"\x10"):
        return None
    rules = ImageRules(range=FULL)
    try:
        if is_array(data) or bands_in(data) is not None:
            return largest_of(data, rules.max_pixels)
        with _loaded(_without_comments(data), rules) as image:
            known = image.mode not in ("I", "F") or image.format == "PPM"
            deep = deep_rows(image, data, FULL) if known else None
            if deep is None:
                return None
            bands = (deep(*rows) for rows in bands_of(image.height, image.width))
            return int(max((band[..., :-1] if band.shape[2] in (2, 4) else band).max() for band in bands))
    except MemoryError:
        raise
    except Exception:  # of many kinds, see `_other`; a run counts such a sample
        return None


def _check_scans(jpeg: bytes, pixels: int, max_pixels: int) -> None:
    """Raise UnreadableError where a JPEG's scans take more work than those of a whole image of `max_pixels`."""

    def too_many(scans: int) -> bool:
        return scans > SCANS and scans * pixels > SCANS * max_pixels

    if too_many(jpeg.count(START_OF_SCAN)) and too_many(scans := sum(kind == SCAN for kind, *_ in segments(jpeg))):
        raise UnreadableError(TOO_MANY_SCANS, f"{scans} of {pixels} pixels")


def _exif(jpeg: bytes) -> Image.Exif:
    """Return the Exif segment of a JPEG; empty if there is none before the picture data."""
    found = Image.Exif()
    for kind, start, end in takewhile(lambda segment: segment[0] != SCAN, segments(jpeg)):
        if kind == APP1 and jpeg[start : start + 6] == b"Exif\0\0":
            found.load(jpeg[start:end])
            break
    return found


def _orientation(read: Callable[[], Image.Exif]) -> int:
    """Return the Exif orientation, 1 to 8; 1 (upright) if the Exif segment is missing or invalid."""
    try:
        found = read().get(ORIENTATION, 1)
    except (OSError, ValueError, SyntaxError, TypeError, IndexError, KeyError, struct.error):
        return 1
    return int(found) if found in range(1, 9) else 1


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """Turn and mirror the pixels [h, w, C] as the Exif orientation (1 to 8) requires; the result is contiguous."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)
