"""The rule of decoding as a table: what a decoder must guess at is damage, and what it may ignore is not.

Each row is a file that people have, and what becomes of it: the pixels of a sound file, or a reason and its detail.
"""

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from dist_ssl.data.images.decode import SCANS_CORRECTED, decode
from dist_ssl.data.images.image_rules import ImageRules
from dist_ssl.data.images.unreadable import UnreadableError

SIDES = (48, 40)
PIXELS = np.random.default_rng(3).integers(0, 256, (SIDES[1], SIDES[0], 3), dtype=np.uint8)
ALL, NONE = b"\0\x3f\0", b"\0\0\0"
SCAN = b"\xff\xda"


def encoded(kind: str, image: Image.Image | None = None, **options: object) -> bytes:
    """A picture of noise as a file."""
    file = io.BytesIO()
    (image or Image.fromarray(PIXELS)).save(file, kind, **options)
    return file.getvalue()


JPEG, PNG, TIFF = encoded("JPEG"), encoded("PNG"), encoded("TIFF")
TURNED = Image.Exif()
TURNED[0x0112] = 6
WHOLE = {
    "jpeg": JPEG,
    "progressive jpeg": encoded("JPEG", progressive=True),
    "cmyk jpeg": encoded("JPEG", Image.fromarray(PIXELS).convert("CMYK")),
    "png": PNG,
    "webp": encoded("WEBP"),
    "lossless webp": encoded("WEBP", lossless=True),
    "gif": encoded("GIF"),
    "tiff": TIFF,
    "lzw tiff": encoded("TIFF", compression="tiff_lzw"),
    "deflated tiff": encoded("TIFF", compression="tiff_adobe_deflate"),
    "bmp": encoded("BMP"),
    "ppm": encoded("PPM"),
    "jp2": encoded("JPEG2000"),
    "avif": encoded("AVIF"),
}


def with_ranges(jpeg: bytes, value: bytes) -> bytes:
    """The same with another range in the headers of all scans."""
    at = -1
    while (at := jpeg.find(SCAN, at + 1)) >= 0:
        end = at + 2 + int.from_bytes(jpeg[at + 2 : at + 4])
        jpeg = jpeg[: end - 3] + value + jpeg[end:]
    return jpeg


def in_scans_of_one_channel(jpeg: bytes) -> bytes:
    """A gray JPEG as one of three channels, each in a scan of its own, which some cameras write."""
    frame, scan = jpeg.index(b"\xff\xc0"), jpeg.index(SCAN)
    channel = jpeg[frame + 10 : frame + 13]
    channels = b"".join(bytes([number]) + channel[1:] for number in (1, 2, 3))
    head = jpeg[: frame + 2] + struct.pack(">H", 17) + jpeg[frame + 4 : frame + 9] + b"\3" + channels
    coded = jpeg[scan + 10 : -2]
    scans = b"".join(SCAN + struct.pack(">HBBB", 8, 1, number, 0) + ALL + coded for number in (1, 2, 3))
    return head + jpeg[frame + 13 : scan] + scans + jpeg[-2:]


def with_chunk(png: bytes, kind: bytes, content: bytes, check: int | None = None) -> bytes:
    """A PNG with a further chunk before its pixels. `check`: its check sum, by default the right one."""
    at = png.index(b"IDAT") - 4
    sound = zlib.crc32(kind + content)
    chunk = struct.pack(">I", len(content)) + kind + content + struct.pack(">I", sound if check is None else check)
    return png[:at] + chunk + png[at:]


def png_with_text(**options: object) -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("prompt", "a photograph " * 200_000, zip=True)
    return encoded("PNG", pnginfo=info, **options)


def tiff(channels: int, bits: int, form: int = 1, big: bool = False, colours: int = 1) -> bytes:
    """A whole TIFF of two by two pixels, gray with further channels; red, green and blue where `colours` is 2."""
    pixels = bytes(4 * channels * bits // 8)
    start = (16 if big else 8) + len(pixels)
    tags = {256: 2, 257: 2, 258: bits, 259: 1, 262: colours, 273: start - len(pixels), 277: channels, 278: 2}
    tags |= {279: len(pixels), 339: form}
    form_of_tag, count, word, end = ("<HHQQ", "<Q", 16, bytes(8)) if big else ("<HHII", "<H", 4, bytes(4))
    entries = b"".join(struct.pack(form_of_tag, tag, word, 1, value) for tag, value in tags.items())
    head = b"II+\0" + struct.pack("<HHQ", 8, 0, start) if big else b"II*\0" + struct.pack("<I", start)
    return head + pixels + struct.pack(count, len(tags)) + entries + end


def tiff_of_strips(strips: int, last: int = 20, order: tuple[int, ...] = ()) -> bytes:
    """A whole TIFF of five channels of 8 bits, two by two pixels a strip; its tags stand before its pixels.

    `last`: bytes that the last strip is said to have; `order`: places of the strips in the file.
    """
    start = 8 + 2 + 10 * 12 + 4
    pixels = start + 2 * 4 * strips
    places = [pixels + 20 * number for number in order or range(strips)]
    tags = {
        256: 2,
        257: 2 * strips,
        258: 8,
        259: 1,
        262: 1,
        273: start,
        277: 5,
        278: 2,
        279: start + 4 * strips,
        339: 1,
    }
    counts = {273: strips, 279: strips}
    entries = b"".join(struct.pack("<HHII", tag, 4, counts.get(tag, 1), value) for tag, value in tags.items())
    lists = struct.pack(f"<{2 * strips}I", *places, *[20] * (strips - 1), last)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + lists + bytes(20 * strips)


GRAY = encoded("JPEG", Image.fromarray(PIXELS[..., 0]))
READ: dict[str, tuple[bytes, bytes]] = {
    "zeros in the scan header, as phones write them": (with_ranges(JPEG, NONE), JPEG),
    "zeros behind a thumbnail": (with_ranges(encoded("JPEG", exif=TURNED), NONE), encoded("JPEG", exif=TURNED)),
    "zeros in a gray picture": (with_ranges(GRAY, NONE), GRAY),
    "zeros in each of three scans": (with_ranges(in_scans_of_one_channel(GRAY), NONE), in_scans_of_one_channel(GRAY)),
    "a PNG with megabytes of text": (png_with_text(), PNG),
    "a PNG with text, turned": (png_with_text(exif=TURNED), encoded("PNG", exif=TURNED)),
    "a PNG with text whose check sum is wrong": (with_chunk(PNG, b"tEXt", b"a\0b", check=1), PNG),
    "a PNG with a profile that is none": (with_chunk(PNG, b"iCCP", b"name\0\0none"), PNG),
    "a PNG without the mark of its end": (PNG[:-12], PNG),
    **{f"{name} with bytes behind its end": (data + b"\r\n<!-- -->", data) for name, data in WHOLE.items()},
}


@pytest.mark.parametrize("name", READ)
def test_what_a_decoder_may_ignore_is_ignored(name: str) -> None:
    data, sound = READ[name]
    assert data != sound
    found, expected = decode(data, 1000), decode(sound, 1000)
    np.testing.assert_array_equal(found.pixels, expected.pixels)
    assert found.sides == expected.sides
    assert (found.slow == SCANS_CORRECTED) == name.startswith("zeros"), "a corrected header is counted"


@pytest.mark.parametrize("share", [0.99, 0.93, 0.5])
@pytest.mark.parametrize("name", WHOLE)
def test_a_file_that_ends_too_early_is_damaged(name: str, share: float) -> None:
    with pytest.raises(UnreadableError) as caught:
        decode(WHOLE[name][: int(share * len(WHOLE[name]))], 1)
    assert caught.value.reason == "damaged image"


UNREAD: dict[str, tuple[bytes, str]] = {
    "float32 in colours": (tiff(3, 32, 3, colours=2), "unsupported pixels: 3 channels of 32 bits floating point"),
    "float32 in three bands": (tiff(3, 32, 3), "pixels without a range: float32"),
    "float64": (tiff(1, 64, 3), "unsupported pixels: 1 channel of 64 bits floating point"),
    "float16": (tiff(1, 16, 3), "unsupported pixels: 1 channel of 16 bits floating point"),
    "five channels": (tiff(5, 8), "unsupported pixels: 5 channels of 8 bits"),
    "twelve channels of a satellite": (tiff(12, 16), "unsupported pixels: 12 channels of 16 bits"),
    "a large TIFF of five channels": (tiff(5, 8, big=True), "unsupported pixels: 5 channels of 8 bits"),
    "five channels in strips": (tiff_of_strips(3), "unsupported pixels: 5 channels of 8 bits"),
    "five channels, cut behind their first strip": (tiff_of_strips(3)[:-40], "damaged image"),
    "five channels, cut within their last strip": (tiff_of_strips(3)[:-1], "damaged image"),
    "five channels, cut within their first strip": (tiff_of_strips(3, order=(2, 1, 0))[:-1], "damaged image"),
    "five channels, a strip longer than the file": (tiff_of_strips(3, last=21), "damaged image"),
    "five channels, cut": (tiff(5, 8)[:-20], "damaged image"),
    "five channels without pixels": (tiff(5, 8).replace(struct.pack("<HHII", 279, 4, 1, 20),
                                                        struct.pack("<HHII", 279, 4, 1, 999)), "damaged image"),
    "a web page": (b"<!DOCTYPE html><html>", "not an image"),
    "nothing": (b"", "empty"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNREAD)
def test_damage_what_is_not_read_and_what_is_no_image_are_three_reasons(name: str) -> None:
    data, said = UNREAD[name]
    with pytest.raises(UnreadableError) as caught:
        decode(data, 1)
    assert str(caught.value) == said


def over(background: int) -> Callable[[bytes], int]:
    """A function that returns the value of a picture's corner over a background."""
    rules = ImageRules(alpha="white" if background else "black")
    return lambda data: int(decode(data, 1, rules).pixels[0, 0, 0])


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("background", [255, 0])
def test_hidden_colours_have_no_say(kind: str, background: int) -> None:
    pixels = np.zeros((16, 16, 4), np.uint8)
    pixels[4:12, 4:12] = (200, 40, 40, 255)
    noisy = pixels.copy()
    noisy[pixels[..., 3] == 0, :3] = PIXELS[:16, :16][pixels[..., 3] == 0]
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    files = [encoded(kind, Image.fromarray(each), **options) for each in (pixels, noisy)]
    assert files[0] != files[1]
    assert [over(background)(data) for data in files] == [background, background]
