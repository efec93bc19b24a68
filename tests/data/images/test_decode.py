"""Pixels are libjpeg's and PIL's whatever the path, upright; bytes are readable or not whatever the scale."""

import io
import math
import struct
import subprocess
import sys
import warnings
import zlib
from contextlib import suppress
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps, PngImagePlugin, PpmImagePlugin

from dist_ssl.config.bounds import MAX_PIXELS
from dist_ssl.data.images import decode as decoding
from dist_ssl.data.images import image_rules
from dist_ssl.data.images.decode import decode, largest_value
from dist_ssl.data.images.image_rules import ImageRules
from dist_ssl.data.images.jpeg_segments import with_range_of_scans
from dist_ssl.data.images.resize import resize
from dist_ssl.data.images.unreadable import UnreadableError
from tests.fuzzing import bounded_memory


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """A smooth image with a colour gradient of its own in every direction."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [128 + 100 * np.sin(x / 9 + p) * np.cos(y / 7 - p) for p in (0.0, 1.0, 2.0)]
    return Image.fromarray(np.stack(waves, -1).astype(np.uint8)).convert(mode)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """The image as a file."""
    file = io.BytesIO()
    image.save(file, kind, **({"quality": 95} if kind == "JPEG" else {}), **options)
    return file.getvalue()


def reason(data: bytes, least: int = 1, **rules: Any) -> str:
    """Why these bytes cannot be read."""
    with pytest.raises(UnreadableError) as caught:
        decode(data, least, ImageRules(**{"max_pixels": 10**6} | rules))
    return caught.value.reason


@pytest.mark.parametrize(
    ("mode", "kind", "options", "slow"),
    [
        ("RGB", "JPEG", {}, ""),
        ("RGB", "JPEG", {"progressive": True}, ""),
        ("RGB", "JPEG", {"subsampling": 0}, ""),
        ("RGB", "JPEG", {"restart_marker_blocks": 2}, ""),
        ("L", "JPEG", {}, ""),
        ("CMYK", "JPEG", {}, "cmyk"),
        ("RGB", "PNG", {}, "format"),
        ("L", "PNG", {}, "format"),
        ("RGBA", "PNG", {}, "format"),
        ("LA", "PNG", {}, "format"),
        ("P", "PNG", {}, "format"),
        ("1", "PNG", {}, "format"),
        ("RGB", "WEBP", {}, "format"),
        ("RGBA", "WEBP", {}, "format"),
        ("RGB", "GIF", {}, "format"),
        ("RGB", "TIFF", {}, "format"),
        ("CMYK", "TIFF", {}, "format"),
        ("RGB", "BMP", {}, "format"),
    ],
)
def test_images_of_every_kind_become_what_pil_makes_of_them(
    mode: str, kind: str, options: dict[str, object], slow: str
) -> None:
    data = encoded(picture(61, 50, mode), kind, **options)
    found = decode(data, 1000)
    np.testing.assert_array_equal(found.pixels, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
    assert found.slow == slow


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_to_eight(kind: str) -> None:
    deep = (np.arange(600).reshape(20, 30) * 109).astype(np.uint16)
    found = decode(encoded(Image.fromarray(deep), kind), 1).pixels
    np.testing.assert_array_equal(found, np.round(deep / 257).astype(np.uint8)[..., None].repeat(3, 2))


def test_pixels_without_a_range_are_unreadable() -> None:
    assert reason(encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF")) == "pixels without a range"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_pictures_are_upright(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[decoding.ORIENTATION] = orientation
    data = encoded(picture(61, 50), kind, exif=exif)
    found = decode(data, 1000)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    np.testing.assert_array_equal(found.pixels, np.asarray(expected))
    assert found.pixels.flags.c_contiguous
    assert found.slow == ("format" if kind != "JPEG" else "orientation" if orientation > 1 else "")


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("exif", [b"", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0" + bytes(range(200))])
def test_exif_without_sense_says_nothing(exif: bytes) -> None:
    plain = encoded(picture(40, 30), "JPEG")
    data = plain[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2) + exif + plain[2:]
    np.testing.assert_array_equal(decode(data, 1000).pixels, decode(plain, 1000).pixels)


@pytest.mark.parametrize(
    ("least", "shape"),
    [(1, (60, 80)), (60, (60, 80)), (61, (120, 160)), (121, (240, 320)), (241, (480, 640)), (10**6, (480, 640))],
)
def test_jpegs_are_decoded_at_the_smallest_scale_that_is_asked_for(least: int, shape: tuple[int, int]) -> None:
    assert decode(encoded(picture(640, 480), "JPEG"), least).pixels.shape == (*shape, 3)


@given(st.integers(1, 200), st.integers(1, 200), st.integers(1, 300))
def test_no_side_is_smaller_than_was_asked_for(width: int, height: int, least: int) -> None:
    found = decode(encoded(picture(width, height), "JPEG"), least).pixels
    assert min(found.shape[:2]) >= min(width, height, least)
    scale = width / found.shape[1]
    assert found.shape[:2] in [(math.ceil(height / s), math.ceil(width / s)) for s in decoding.SCALES]
    assert scale <= 8


WHOLE = encoded(picture(160, 120), "JPEG")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "empty"),
        (b"not an image at all", "not an image"),
        (bytes(1000), "not an image"),
        (WHOLE[100:], "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        (WHOLE[:3], "damaged image"),
        (WHOLE[:20], "damaged image"),
        (WHOLE[:-400], "damaged image"),
        (WHOLE[:-2], "damaged image"),
        (WHOLE[:-400] + b"\xff\xd9", "damaged image"),
        (WHOLE[:2000] + b"\xff\xd9" + WHOLE[2002:], "damaged image"),
        (encoded(picture(160, 120, "CMYK"), "JPEG")[:-400] + b"\xff\xd9", "damaged image"),
        (encoded(picture(160, 120), "JPEG", progressive=True)[:-400], "damaged image"),
        (encoded(picture(60, 50), "PNG")[:-400], "damaged image"),
        (encoded(picture(60, 50), "WEBP")[:-100], "damaged image"),
        (encoded(picture(60, 50), "GIF")[:-400], "damaged image"),
        (encoded(picture(60, 50), "BMP")[:-400], "damaged image"),
    ],
)
@pytest.mark.parametrize("least", [1, 1000])
def test_bytes_that_are_no_whole_image_are_unreadable_for_a_reason(data: bytes, expected: str, least: int) -> None:
    assert reason(data, least) == expected


@pytest.mark.parametrize(
    "data", [WHOLE + b"junk", WHOLE[:-2] + b"junk" + WHOLE[-2:], WHOLE[:-2] + bytes(600) + WHOLE[-2:]]
)
def test_spare_bytes_do_no_harm(data: bytes) -> None:
    np.testing.assert_array_equal(decode(data, 1000).pixels, decode(WHOLE, 1000).pixels)


@pytest.mark.parametrize(
    ("kind", "mode", "times"),
    [
        *(("JPEG", "RGB", 1), ("PNG", "RGB", 1), ("TIFF", "RGB", 1), ("TIFF", "CMYK", 1)),
        *(("WEBP", "RGB", 2), ("AVIF", "RGB", 2), ("JPEG", "CMYK", 2), ("JPEG2000", "RGB", 3)),
    ],
)
@pytest.mark.parametrize("bits", [8, 16])
def test_too_many_pixels_are_not_decoded(
    kind: str, mode: str, times: int, bits: Literal[8, 16], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, most = encoded(picture(60, 50).convert(mode), kind), 3000 * (times + (bits == 16))
    assert decode(data, 1, ImageRules(max_pixels=most, bits=bits)).pixels.size
    monkeypatch.setattr(decoding, "_decode_jpeg", None)
    monkeypatch.setattr(Image.Image, "load", None)
    assert reason(data, 1, max_pixels=most - 1, bits=bits) == "too many pixels"


def test_a_bmp_of_runs_may_have_few_pixels() -> None:
    head = struct.pack("<IiiHHIIiiII", 40, 60, 50, 1, 8, 1, 200, 0, 0, 256, 0)
    data = b"BM" + struct.pack("<IHHI", 54 + 1024 + 200, 0, 0, 54 + 1024) + head + bytes(1024) + b"\x3c\7\0\0" * 50
    assert decode(data, 1, ImageRules(max_pixels=25 * 3000)).pixels.shape == (50, 60, 3)
    assert reason(data, 1, max_pixels=25 * 3000 - 1) == "too many pixels"


def test_a_small_file_of_a_gigantic_image_is_unreadable_at_once() -> None:
    data = bytearray(encoded(Image.new("1", (8, 8)), "PNG"))
    data[16:24] = (60000).to_bytes(4) * 2
    data[29:33] = (zlib.crc32(data[12:29])).to_bytes(4)
    assert reason(bytes(data), max_pixels=MAX_PIXELS) == "too many pixels"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
def test_damaged_bytes_are_an_image_or_unreadable_and_nothing_else(kind: str) -> None:
    whole = encoded(picture(40, 30), kind)
    rng = np.random.default_rng(0)
    for _ in range(150):
        data = bytearray(whole)
        places = rng.integers(0, min(len(data), int(rng.choice([30, 100, 10**6]))), rng.integers(1, 6))
        for place in places:
            data[place] = rng.integers(256)
        if rng.random() < 0.3:
            del data[rng.integers(len(data)) :]
        outcomes = []
        for least in (1, 1000):
            with suppress(UnreadableError):
                outcomes.append(decode(bytes(data), least, ImageRules(10**6)).pixels.ndim)
        assert outcomes in ([], [3, 3])


@given(st.integers(0, 10**6), st.sampled_from([20, 96, 224]), st.booleans())
def test_resizing_is_near_pils(seed: int, size: int, noisy: bool) -> None:
    rng = np.random.default_rng(seed)
    pixels = np.asarray(picture(int(rng.integers(30, 500)), int(rng.integers(30, 400)))).copy()
    if noisy:
        pixels = (0.5 * pixels + 0.5 * rng.integers(0, 256, pixels.shape)).astype(np.uint8)
    height, width, _ = pixels.shape
    w, h = int(rng.integers(20, width + 1)), int(rng.integers(20, height + 1))
    left, top = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
    box = (left, top, left + w, top + h)
    own = resize(pixels, box, size).astype(float)
    pil = Image.fromarray(pixels).crop(box).resize((size, size), Image.Resampling.BILINEAR)
    assert np.sqrt(((own - np.asarray(pil)) ** 2).mean()) <= 2


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "TIFF", "BMP", "CMYK"])
def test_a_crop_of_a_slow_image_is_near_pils(kind: str) -> None:
    image = picture(200, 150, "CMYK" if kind == "CMYK" else "RGB")
    data = encoded(image, "JPEG" if kind == "CMYK" else kind)
    own = resize(decode(data, 1000).pixels, (20, 10, 170, 140), 96).astype(float)
    whole = Image.open(io.BytesIO(data)).convert("RGB")
    pil = whole.resize((96, 96), Image.Resampling.BILINEAR, box=(20, 10, 170, 140))
    assert np.sqrt(((own - np.asarray(pil)) ** 2).mean()) <= 2


def test_a_jpeg_of_endless_scans_is_refused_by_their_work_not_by_their_number() -> None:
    plain = encoded(picture(160, 120), "JPEG", progressive=True)
    scans = plain.count(decoding.START_OF_SCAN)
    assert 1 < scans <= decoding.SCANS
    last = plain.rindex(decoding.START_OF_SCAN)
    many = plain[:-2] + plain[last:-2] * 100 + plain[-2:]
    small = 160 * 120 * 100 // decoding.SCANS
    assert reason(many, max_pixels=small) == "too many scans"
    assert decode(plain, 1, ImageRules(160 * 120)).pixels.shape == (15, 20, 3)
    with suppress(UnreadableError):  # libjpeg may find the repeated scan damaged; its work is what is bounded
        decode(many, 1, ImageRules(small * 10))


def test_scans_are_counted_in_files_of_several_pictures_too() -> None:
    """PIL has another name for them, MPO; it decodes what libjpeg-turbo does not take."""
    image = picture(160, 120)
    whole = encoded(image, "MPO", save_all=True, append_images=[image], progressive=True)
    end = whole.index(b"\xff\xd9", whole.index(decoding.START_OF_SCAN))
    last = whole.rindex(decoding.START_OF_SCAN, 0, end)
    many = whole[:end] + whole[last:end] * 100 + whole[end:]
    with Image.open(io.BytesIO(many)) as found:
        assert found.format == "MPO"
    with pytest.raises(UnreadableError, match="too many scans"):
        decoding._other(many, ImageRules(160 * 120), decoding.SAMPLING)


@pytest.mark.parametrize("place", ["behind", "in a segment"])
@pytest.mark.parametrize("progressive", [False, True])
def test_scans_of_other_pictures_in_the_file_do_not_count(progressive: bool, place: str) -> None:
    """Phones append a film of some seconds to a picture: among its bytes are those of markers, by chance."""
    plain, film = encoded(picture(40, 32), "JPEG", progressive=progressive), decoding.START_OF_SCAN * 500
    segment = b"\xff\xe2" + (len(film) + 2).to_bytes(2) + film
    data = plain + film if place == "behind" else plain[:2] + segment + plain[2:]
    np.testing.assert_array_equal(decode(data, 1, ImageRules(40 * 32)).pixels, decode(plain, 1).pixels)


def test_scans_do_not_hide_behind_a_marker_without_a_segment() -> None:
    plain = encoded(picture(160, 120), "JPEG", progressive=True)
    last = plain.rindex(decoding.START_OF_SCAN)
    hidden = plain[:-2] + (b"\xff\x01" + plain[last:-2]) * 100 + plain[-2:]
    assert reason(hidden, max_pixels=160 * 120) == "too many scans"


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "RGBA", "CMYK"])
def test_a_large_picture_is_converted_in_bands_to_the_same_pixels(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(picture(61, 50, mode), "TIFF" if mode == "CMYK" else "PNG")
    whole = decode(data, 1000).pixels
    monkeypatch.setattr(image_rules, "BAND_PIXELS", 61 * 7)
    np.testing.assert_array_equal(decode(data, 1000).pixels, whole)


def with_range(jpeg: bytes, value: bytes) -> bytes:
    at = jpeg.index(decoding.START_OF_SCAN)
    end = at + 2 + int.from_bytes(jpeg[at + 2 : at + 4])
    return jpeg[: end - 3] + value + jpeg[end:]


@pytest.mark.parametrize("value", [b"\0\0\0", b"\0\x01\x11", b"\xff\xff\xff", b"\0\x3f\0"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_the_range_of_a_sequential_scan_is_ignored_as_viewers_do(value: bytes, mode: str) -> None:
    plain = encoded(picture(61, 50, mode), "JPEG")
    np.testing.assert_array_equal(decode(with_range(plain, value), 1000).pixels, decode(plain, 1000).pixels)
    assert reason(with_range(plain, value)[:-200]) == "damaged image"


@pytest.mark.parametrize("before", [b"\xff\xe1", b"\xff\xff\xff\xe2"], ids=["Exif", "after fill bytes"])
def test_the_range_is_ignored_behind_a_thumbnail_too(before: bytes) -> None:
    """Phones put a small JPEG into a segment before the picture: its scan is not that of the picture."""
    whole, small = (encoded(picture(*sides), "JPEG") for sides in ((40, 32), (8, 8)))
    content = b"Exif\0\0" + bytes(20) + small
    inside = before + (len(content) + 2).to_bytes(2) + content
    wrong = with_range(whole, b"\0\0\0")
    found = decode(wrong[:2] + inside + wrong[2:], 1).pixels
    np.testing.assert_array_equal(found, decode(whole, 1).pixels)


def test_the_range_of_a_progressive_scan_is_not() -> None:
    data = encoded(picture(61, 50), "JPEG", progressive=True)
    assert with_range_of_scans(data) == data


@pytest.mark.parametrize("kind", ["zip", "plain", "international", "profile"])
def test_metadata_of_a_png_has_no_say_in_its_pixels(kind: str) -> None:
    info, text, options = PngImagePlugin.PngInfo(), "a photograph " * 200_000, {}
    if kind == "international":
        info.add_itxt("prompt", text, zip=True)
    elif kind == "profile":
        options["icc_profile"] = text.encode()
    else:
        info.add_text("prompt", text, zip=kind == "zip")
    plain = encoded(picture(61, 50), "PNG")
    data = encoded(picture(61, 50), "PNG", pnginfo=info, **options)
    np.testing.assert_array_equal(decode(data, 1000).pixels, decode(plain, 1000).pixels)
    assert reason(data[:-500]) == "damaged image"


def test_the_exif_of_a_png_is_kept_beside_large_text() -> None:
    info, exif = PngImagePlugin.PngInfo(), Image.Exif()
    info.add_text("prompt", "a photograph " * 200_000, zip=True)
    exif[decoding.ORIENTATION] = 6
    assert decode(encoded(picture(61, 50), "PNG", pnginfo=info, exif=exif), 1000).sides == (50, 61)


def tiff_of(bits: int, form: int) -> bytes:
    """A whole TIFF of one row of four pixels of one channel."""
    pixels = bytes(4 * bits // 8)
    tags = {256: 4, 257: 1, 258: bits, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: len(pixels), 339: form}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    header = b"II*\0" + struct.pack("<I", 8 + len(pixels))
    return header + pixels + struct.pack("<H", len(tags)) + entries + bytes(4)


@pytest.mark.parametrize(("bits", "form"), [(64, 3), (16, 3), (64, 1)])
def test_pixels_that_are_not_read_are_unsupported_and_not_damaged(bits: int, form: int) -> None:
    assert reason(tiff_of(bits, form)) == "unsupported pixels"


@pytest.mark.parametrize("change", [(b"\xff\xc0\x00\x11\x08", b"\xff\xc0\x00\x11\x0c"), (b"\xff\xc0", b"\xff\xc3")])
def test_jpegs_of_12_bits_and_lossless_ones_are_unsupported(change: tuple[bytes, bytes]) -> None:
    assert WHOLE.count(change[0]) == 1
    assert reason(WHOLE.replace(*change)) == "unsupported pixels"


PLAIN = {
    "P1": (b"2 3\n1 0 1\n0 1 1", (3, 2)),
    "P2": (b"2 2\n255\n1 20 30 4\n", (2, 2)),
    "P3": (b"1 2\n65535\n1 2 3 40000 5 6", (2, 1)),
}


@pytest.mark.parametrize("kind", PLAIN)
def test_comments_of_a_picture_in_text_take_no_work_each(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text, shape = PLAIN[kind]
    plain = decode(kind.encode() + b"\n" + text, 1).pixels
    said = b" # made by hand 1 2\n".join(part + (b" " if at % 2 else b"\t") for at, part in enumerate(text.split(b" ")))
    searched: list[bytes] = []
    find = PpmImagePlugin.PpmPlainDecoder._find_comment_end
    monkeypatch.setattr(
        PpmImagePlugin.PpmPlainDecoder,
        "_find_comment_end",
        lambda self, block, start=0: searched.append(block) or find(self, block, start),
    )
    for data in (said, said + b"\n" + b"#\n" * 2000, b"# first\n" + said + b" # no end"):
        found = decode(kind.encode() + b"\n" + data, 1).pixels
        assert found.shape == (*shape, 3)
        assert (found == plain).all()
        largest_value(kind.encode() + b"\n" + data)
    assert not searched, "PIL copies the rest of the picture for each comment"


def test_overlapping_tags_of_a_tiff_take_no_memory_each() -> None:
    data, size = bytearray(encoded(picture(8, 8), "TIFF")), 1 << 20
    at = struct.unpack_from("<L", data, 4)[0]
    [count] = struct.unpack_from("<H", data, at)
    rows = bytes(data[at + 2 : at + 2 + 12 * count])
    over = b"".join(struct.pack("<HHLL", 52000 + number, 7, size - 16, 8) for number in range(1500))
    tags = struct.pack("<H", count + 1500) + rows + over + bytes(4)
    struct.pack_into("<L", data, 4, len(data))
    with bounded_memory(), warnings.catch_warnings(action="ignore"):  # 1,500 tags over the whole of 1 MB
        assert decode((bytes(data) + tags).ljust(size, b"\0"), 1).pixels.shape == (8, 8, 3)


def png_of_many_tags() -> bytes:
    """A PNG with Exif of which most tags say that their values are all of it."""
    tags = b"".join(struct.pack("<HHLL", 1000 + number, 7, 5000, 0) for number in range(500))
    chunk = b"eXIf" + struct.pack("<2sHLH", b"II", 42, 8, 500) + tags + bytes(4)
    chunk = struct.pack(">L", len(chunk) - 4) + chunk + struct.pack(">L", zlib.crc32(chunk))
    png = encoded(picture(8, 8), "PNG")
    return png[:33] + chunk + png[33:]  # 33: behind the first chunk


def fax(compression: int) -> bytes:
    """A TIFF of lines of a fax, none of which can be read."""
    tags = [
        (256, 64),
        (257, 1000),
        (258, 1),
        (259, compression),
        (262, 0),
        (273, 8),
        (277, 1),
        (278, 1000),
        (279, 2000),
    ]
    rows = b"".join(struct.pack("<HHLL", tag, 4, 1, value) for tag, value in tags)
    data = bytes(np.random.default_rng(2).integers(0, 256, 2000, dtype=np.uint8))
    return struct.pack("<2sHL", b"II", 42, 8 + 2000) + data + struct.pack("<H", len(tags)) + rows + bytes(4)


@pytest.mark.parametrize(
    "data", [png_of_many_tags(), fax(2), fax(3), fax(4)], ids=["tags", "rle", "group 3", "group 4"]
)
def test_a_file_writes_nothing_into_the_log(data: bytes) -> None:
    code = "import contextlib, sys; from dist_ssl.data.images.decode import UnreadableError, decode\n"
    code += "with contextlib.suppress(UnreadableError): decode(sys.stdin.buffer.read(), 1)"
    done = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=True)
    assert done.stdout + done.stderr == b""
