"""From the bytes of an image to uint8 RGB pixels, upright, at the smallest libjpeg scale that is asked for.

JPEGs are decoded by libjpeg-turbo (simplejpeg), everything else by PIL: PNG, WebP, GIF, TIFF, BMP and a few more, the
first picture of several. What the camera noted as the picture's orientation is applied, alpha is left out, 16-bit gray
is scaled to 8 bits. A sample that cannot be decoded whole is a fact about the sample, named by a reason; its place in
the batch stays. A JPEG is readable where libjpeg has nothing to guess at: a cut one is damaged even where a decoder
would fill up with gray. Where nothing but a few spare bytes is wrong, it is readable.
"""

import io
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import simplejpeg
import torch
from PIL import Image
from torch.nn.functional import interpolate

Pixels = npt.NDArray[np.uint8]
Box = tuple[int, int, int, int]
MAX_PIXELS = 100_000_000
Image.init()
FORMATS = tuple({"JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "JPEG2000", "AVIF"} & Image.OPEN.keys())
"""What PIL may try; other formats of its are rare, and some run programs."""
SCALES = (8, 4, 2, 1)
ORIENTATION = 0x0112
EMPTY, NO_IMAGE, DAMAGED = "empty", "not an image", "damaged image"
TOO_LARGE, NO_RANGE = "too many pixels", "pixels without a range"
FORMAT, CMYK, TURNED, SAMPLING = "format", "cmyk", "orientation", "sampling"
SLOW = (FORMAT, CMYK, TURNED, SAMPLING)
"""Why an image took longer than a plain JPEG."""
Image.MAX_IMAGE_PIXELS = None  # `max_pixels` stands in its place


class UnreadableError(Exception):
    """This sample's bytes are not an image. `reason`: why, in a few words that are the same for all such samples."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


@dataclass(frozen=True)
class Decoded:
    """[h, w, 3] pixels, and why they did not come the fast way: one of SLOW, or nothing.

    `sides`: width and height of the whole picture, upright, px, at whatever scale it was decoded.
    """

    pixels: Pixels
    slow: str
    sides: tuple[int, int]


def decode(data: bytes, least: int, max_pixels: int = MAX_PIXELS) -> Decoded:
    """An image whose sides are at least `least` px where the original's are. Raises UnreadableError.

    The bytes are readable or not whatever `least` is. More than `max_pixels` are not decoded at all.
    """
    if not data:
        raise UnreadableError(EMPTY)
    if data[:3] == b"\xff\xd8\xff":
        return _jpeg(data, least, max_pixels)
    return _other(data, max_pixels, FORMAT)


def resize(pixels: Pixels, box: Box, size: int) -> Pixels:
    """A box (left, top, right, bottom) at size x size, [size, size, 3]: bilinear, antialiased.

    A copy of the box, in the strides of channels_last, is what torch resizes fastest, and without threads of its own.
    """
    left, top, right, bottom = box
    return resize_whole(np.ascontiguousarray(pixels[top:bottom, left:right]), size, size)


def resize_whole(pixels: Pixels, width: int, height: int) -> Pixels:
    """Contiguous pixels at width x height, [height, width, 3]: bilinear, antialiased."""
    x = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)
    found: Pixels = interpolate(x, (height, width), mode="bilinear", antialias=True)[0].permute(1, 2, 0).numpy()
    return found


def _jpeg(data: bytes, least: int, max_pixels: int) -> Decoded:
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:  # sampling factors that are rare, or half a header: PIL knows which
        return _other(data, max_pixels, SAMPLING)
    _check_size(width, height, max_pixels)
    scale = next((s for s in SCALES if min(width, height) >= s * least), 1)
    sides = {"min_height": -(-height // scale), "min_width": -(-width // scale)}
    if space in ("CMYK", "YCCK"):
        inks = Image.fromarray(255 - _decode_jpeg(data, "CMYK", sides), "CMYK")
        pixels, slow = np.array(inks.convert("RGB")), CMYK
    else:
        pixels, slow = _decode_jpeg(data, "RGB", sides), ""
    orientation = _orientation(partial(_exif, data))
    whole = (height, width) if orientation >= 5 else (width, height)
    return Decoded(_upright(pixels, orientation), TURNED if orientation > 1 else slow, whole)


def _decode_jpeg(data: bytes, space: str, sides: dict[str, int]) -> Pixels:
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(data, space, **sides)
    except ValueError as error:
        if "extraneous bytes" not in str(error):
            raise UnreadableError(DAMAGED, str(error)) from error
        pixels = simplejpeg.decode_jpeg(data, space, **sides, strict=False)
    return pixels


def _other(data: bytes, max_pixels: int, slow: str) -> Decoded:
    """By PIL. Its decoders answer damage with errors of many kinds; all are facts about the bytes."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(*image.size, max_pixels)
            image.load()
            pixels = _upright(_rgb(image), _orientation(image.getexif))
            return Decoded(pixels, slow, (pixels.shape[1], pixels.shape[0]))
    except (UnreadableError, MemoryError):
        raise
    except Exception as error:
        begins_like_one = any(accept and accept(data[:16]) for _, accept in map(Image.OPEN.__getitem__, FORMATS))
        reason = DAMAGED if begins_like_one else NO_IMAGE
        raise UnreadableError(reason, f"{type(error).__name__}: {error}") from error


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise UnreadableError(TOO_LARGE, f"{width} x {height}")


def _rgb(image: Image.Image) -> Pixels:
    """[h, w, 3] of any mode."""
    if image.mode in ("I", "F"):
        raise UnreadableError(NO_RANGE, image.mode)
    if image.mode.startswith("I;16"):
        deep = np.asarray(image).astype(np.uint32)
        return np.repeat(((deep * 255 + 32767) // 65535).astype(np.uint8)[..., None], 3, axis=2)
    return np.array(image.convert("RGB"))


def _exif(jpeg: bytes) -> Image.Exif:
    """The Exif segment, if there is one before the picture begins."""
    found, at = Image.Exif(), 2
    while jpeg[at : at + 1] == b"\xff" and jpeg[at + 1] not in (0xC0, 0xC1, 0xC2, 0xDA):
        end = at + 2 + int.from_bytes(jpeg[at + 2 : at + 4])
        if jpeg[at + 1] == 0xE1 and jpeg[at + 4 : at + 10] == b"Exif\0\0":
            found.load(jpeg[at + 4 : end])
            break
        at = end
    return found


def _orientation(read: Callable[[], Image.Exif]) -> int:
    """1 to 8. An Exif segment that makes no sense says nothing about the picture."""
    try:
        found = read().get(ORIENTATION, 1)
    except (OSError, ValueError, SyntaxError, TypeError, IndexError, KeyError, struct.error):
        return 1
    return int(found) if found in range(1, 9) else 1


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """The picture as its orientation says that it is to be looked at."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)
