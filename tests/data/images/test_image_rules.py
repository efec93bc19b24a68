"""Deep pixels have the range that a run says, and what is transparent shows the background, whatever lies under it."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dist_ssl.data.images import image_rules
from dist_ssl.data.images.decode import decode, largest_value
from dist_ssl.data.images.deep_rows import FULL
from dist_ssl.data.images.image_rules import ImageRules
from dist_ssl.data.images.unreadable import UnreadableError

RANDOM = np.random.default_rng(0)
COLOURS = {1: 0, 2: 4, 3: 2, 4: 6}
"""Colour type of a PNG by its number of channels."""


def png_of(values: npt.NDArray[Any]) -> bytes:
    """A PNG of 16 bits with these values [h, w, 1 to 4], which PIL cannot write for colours."""
    height, width, channels = values.shape

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 16, COLOURS[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff_of(values: npt.NDArray[Any], order: str, deflated: bool) -> bytes:
    """A TIFF of 16-bit RGB with these values [h, w, 3]. `order` of bytes: < or >."""
    height, width, _ = values.shape
    data = values.astype(f"{order}u2").tobytes()
    data = zlib.compress(data) if deflated else data
    start = 8 + 2 + 10 * 12 + 4
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 3, start), (259, 4, 1, 8 if deflated else 1)]
    tags += [(262, 4, 1, 2), (273, 4, 1, start + 6), (277, 4, 1, 3), (278, 4, 1, height), (279, 4, 1, len(data))]
    table = b"".join(struct.pack(f"{order}HHII", *tag) for tag in [*tags, (284, 4, 1, 1)])
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HIH", 42, 8, len(tags) + 1)
    return head + table + bytes(4) + struct.pack(f"{order}3H", 16, 16, 16) + data


def file_of(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixels(data: bytes, **rules: Any) -> npt.NDArray[np.uint8]:
    return decode(data, 1, ImageRules(**rules)).pixels


def refusal(data: bytes, **rules: Any) -> str:
    with pytest.raises(UnreadableError) as caught:
        decode(data, 1, ImageRules(**rules))
    return caught.value.reason


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_twelve_bits_reach_white(channels: int) -> None:
    values = RANDOM.integers(0, 4096, (30, 20, channels))
    if channels == 4:
        values[..., -1] = FULL
    found = pixels(png_of(values), range=4095)
    colours = values[..., :3] if channels > 2 else values[..., :1].repeat(3, 2)
    np.testing.assert_array_equal(found, np.rint(colours * 255 / 4095).astype(np.uint8))
    assert largest_value(png_of(values)) == colours.max()


def test_alpha_has_a_range_of_its_own() -> None:
    values = RANDOM.integers(0, 4096, (30, 20, 4))
    values[..., 3] = RANDOM.integers(0, FULL + 1, (30, 20))
    eight = np.dstack([np.rint(values[..., :3] * 255 / 4095), np.rint(values[..., 3] * 255 / FULL)]).astype(np.uint8)
    shown = pixels(file_of(Image.fromarray(eight), "PNG"))
    np.testing.assert_array_equal(pixels(png_of(values), range=4095), shown)


@pytest.mark.parametrize(("most", "white", "found"), [(4095, 4095, 65535), (FULL, 4095, 4095), (FULL, FULL, 65535)])
def test_a_graymap_of_16_bits_names_its_own_white(most: int, white: int, found: int) -> None:
    values = RANDOM.integers(0, white + 1, (6, 5))
    values[0, 0] = white
    data = b"P5 5 6 %d\n" % most + values.astype(">u2").tobytes()
    np.testing.assert_allclose(pixels(data)[..., 0], values * 255 / most, atol=0.51)
    np.testing.assert_allclose(pixels(data, range=white)[..., 0], values * 255 / white, atol=0.51)
    assert largest_value(data) == found


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_values_above_the_range_are_white_and_without_a_range_white_is_that_of_16_bits(kind: str) -> None:
    deep = (np.arange(600).reshape(20, 30) * 109).astype(np.uint16)
    data = file_of(Image.fromarray(deep), kind)
    high = np.floor(np.minimum(deep, 1000).astype(int) * 255 / 1000 + 0.5).astype(np.uint8)
    np.testing.assert_array_equal(pixels(data, range=1000)[..., 1], high)
    np.testing.assert_array_equal(pixels(data), pixels(data, range=FULL))
    assert largest_value(data) == deep.max()


def test_other_numbers_need_a_range() -> None:
    values = np.array([[-1.0, 0.0, 0.25], [0.5, 2.0, np.nan]], np.float32)
    real = file_of(Image.fromarray(values), "TIFF")
    whole = file_of(Image.fromarray((np.nan_to_num(values) * 1000).astype(np.int32)), "TIFF")
    expected = [[0, 0, 64], [128, 255, 0]]
    assert pixels(real, range=1.0)[..., 0].tolist() == expected
    assert pixels(whole, range=1000)[..., 0].tolist() == expected
    assert refusal(real) == refusal(whole) == "pixels without a range"
    assert largest_value(real) is largest_value(whole) is None


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("deflated", [False, True])
def test_deep_colours_of_a_tiff_reach_white(order: str, deflated: bool) -> None:
    values = RANDOM.integers(0, 4096, (6, 5, 3))
    data = tiff_of(values, order, deflated)
    np.testing.assert_array_equal(pixels(data), values >> 8)
    np.testing.assert_array_equal(pixels(data, range=4095), np.rint(values * 255 / 4095).astype(np.uint8))
    assert largest_value(data) == values.max()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "WEBP", "TIFF", "JPEG"])
def test_a_range_changes_nothing_of_eight_bits(kind: str) -> None:
    data = file_of(Image.fromarray(RANDOM.integers(0, 256, (9, 8, 3), dtype=np.uint8)), kind)
    np.testing.assert_array_equal(pixels(data, range=1000), pixels(data))
    assert largest_value(data) is None


def test_colours_of_five_and_six_bits_have_no_range() -> None:
    values = RANDOM.integers(0, 2**16, (4, 4)).astype("<u2").tobytes()
    masks = struct.pack("<III", 0xF800, 0x07E0, 0x001F)
    head = struct.pack("<IiiHHIIiiII", 40, 4, 4, 1, 16, 3, len(values), 0, 0, 0, 0) + masks
    data = b"BM" + struct.pack("<IHHI", 14 + len(head) + len(values), 0, 0, 14 + len(head)) + head + values
    np.testing.assert_array_equal(pixels(data, range=1000), pixels(data))


def test_deep_pixels_of_a_kind_that_no_range_reaches_are_refused_rather_than_dark() -> None:
    data = png_of(RANDOM.integers(0, 4096, (6, 5, 2)))  # gray with alpha
    assert pixels(data).size
    assert refusal(data, range=4095) == "unsupported pixels"
    assert largest_value(data) is None


@pytest.mark.parametrize(("mode", "kind"), [("RGBA", "PNG"), ("LA", "PNG"), ("RGBA", "WEBP"), ("RGBA", "TIFF")])
@pytest.mark.parametrize(("alpha", "background"), [("white", 255), ("black", 0)])
def test_what_is_transparent_shows_the_background(mode: str, kind: str, alpha: str, background: int) -> None:
    drawn = RANDOM.integers(0, 256, (24, 30, len(mode)), dtype=np.uint8)
    drawn[:8, :, -1], drawn[8:16, :, -1] = 0, 255
    data = file_of(Image.fromarray(drawn, mode), kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    found = pixels(data, alpha=alpha)
    assert (found[:8] == background).all()
    colours = drawn[..., :-1].repeat(3 // (len(mode) - 1), 2).astype(float)
    share = drawn[..., -1:] / 255
    np.testing.assert_array_equal(found, np.rint(colours * share + background * (1 - share)).astype(np.uint8))
    np.testing.assert_array_equal(pixels(data, alpha="drop"), colours.astype(np.uint8))


def test_a_palette_with_a_transparent_colour_shows_the_background() -> None:
    numbers = np.arange(64, dtype=np.uint8).reshape(8, 8) % 3
    image = Image.fromarray(numbers, "P")
    image.putpalette([10, 20, 30, 200, 100, 0, 5, 5, 5])
    for kind in ("PNG", "GIF"):
        data = file_of(image, kind, transparency=1)
        assert (pixels(data)[numbers == 1] == 255).all()
        assert (pixels(data, alpha="drop")[numbers == 1] == (200, 100, 0)).all()
        assert (pixels(data)[numbers == 2] == 5).all()


@pytest.mark.parametrize("bits", [8, 16])
def test_files_that_look_the_same_are_the_same_whatever_lies_under_alpha(bits: int) -> None:
    clean = RANDOM.integers(0, 2**bits, (16, 16, 4))
    clean[4:12, :, 3], clean[:4, :, 3], clean[12:, :, 3] = 2**bits - 1, 0, 0
    noisy = clean.copy()
    noisy[:4, :, :3] = RANDOM.integers(0, 2**bits, (4, 16, 3))
    made = png_of if bits == 16 else lambda values: file_of(Image.fromarray(values.astype(np.uint8), "RGBA"), "PNG")
    for rules in ({}, {"alpha": "black"}, {"range": float(2**bits - 1)}):
        np.testing.assert_array_equal(pixels(made(clean), **rules), pixels(made(noisy), **rules))
    assert (pixels(made(clean), alpha="drop") != pixels(made(noisy), alpha="drop")).any()


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from(["RGBA", "P", "L", "deep"]), st.integers(0, 2**32 - 1))
def test_pictures_in_bands_have_the_pixels_of_the_whole(width: int, height: int, mode: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    if mode == "deep":
        data = png_of(random.integers(0, 65536, (height, width, 4)))
    else:
        drawn = random.integers(0, 256, (height, width, 4), dtype=np.uint8)
        data = file_of(Image.fromarray(drawn, "RGBA").convert(mode), "PNG")
    for rules in ({}, {"range": 5000.0, "alpha": "black"}):
        whole = pixels(data, **rules)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(image_rules, "BAND_PIXELS", 50)
            np.testing.assert_array_equal(pixels(data, **rules), whole)


@pytest.mark.parametrize("data", [b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n" + bytes(30), b"II*\0" + bytes(40)])
def test_what_cannot_be_read_has_no_largest_value(data: bytes) -> None:
    assert largest_value(data) is None


def test_a_picture_of_one_channel_is_its_luma_and_a_grey_one_keeps_its_values() -> None:
    rules = ImageRules(channels=1)
    grey = RANDOM.integers(0, 256, (9, 11), dtype=np.uint8)
    for image in (Image.fromarray(grey), Image.fromarray(np.repeat(grey[..., None], 3, axis=2))):
        assert np.array_equal(decode(file_of(image, "PNG"), 1, rules).pixels, grey[..., None])
    colours = RANDOM.integers(0, 256, (9, 11, 3), dtype=np.uint8)
    image = Image.fromarray(colours)
    assert np.array_equal(decode(file_of(image, "PNG"), 1, rules).pixels[..., 0], np.asarray(image.convert("L")))
    jpeg = file_of(image, "JPEG", quality=95)
    rgb = decode(jpeg, 1).pixels
    assert np.array_equal(decode(jpeg, 1, rules).pixels[..., 0], np.asarray(Image.fromarray(rgb).convert("L")))


def test_a_picture_of_four_channels_keeps_its_colours_and_its_alpha() -> None:
    rules = ImageRules(channels=4)
    both = RANDOM.integers(0, 256, (9, 11, 4), dtype=np.uint8)
    assert np.array_equal(decode(file_of(Image.fromarray(both, "RGBA"), "PNG"), 1, rules).pixels, both)
    opaque = decode(file_of(Image.fromarray(both[..., :3]), "JPEG"), 1, rules).pixels
    assert np.array_equal(opaque[..., :3], decode(file_of(Image.fromarray(both[..., :3]), "JPEG"), 1).pixels)
    assert (opaque[..., 3] == 255).all()


def test_deep_pictures_have_one_and_four_channels_too() -> None:
    values = RANDOM.integers(0, 65536, (9, 11, 4), dtype=np.uint16)
    found = decode(png_of(values), 1, ImageRules(range=FULL, channels=4)).pixels
    assert np.abs(found.astype(int) - values / 257).max() <= 1
    gray = decode(png_of(values[..., :1]), 1, ImageRules(channels=1)).pixels
    assert np.array_equal(gray, decode(png_of(values[..., :1]), 1).pixels[..., :1])


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_picture_cannot_have_five_channels(kind: str) -> None:
    with pytest.raises(UnreadableError, match="a picture of 1, 3 or 4 channels, not 5"):
        decode(file_of(Image.new("RGB", (8, 8)), kind), 1, ImageRules(channels=5))


def test_sixteen_bits_keep_what_eight_lose_and_are_the_same_pictures() -> None:
    values = RANDOM.integers(0, 4096, (9, 11, 3), dtype=np.uint16)
    found = decode(png_of(values), 1, ImageRules(range=4095, bits=16)).pixels
    assert found.dtype == np.uint16
    assert np.array_equal(found, (values.astype(np.int64) * 65535 + 2047) // 4095)
    assert len(np.unique(found)) > 256
    colours = RANDOM.integers(0, 256, (9, 11, 4), dtype=np.uint8)
    for data in (file_of(Image.fromarray(colours, "RGBA"), "PNG"), file_of(Image.fromarray(colours[..., :3]), "JPEG")):
        for channels in (1, 3, 4):
            narrow = decode(data, 1, ImageRules(channels=channels)).pixels
            wide = decode(data, 1, ImageRules(channels=channels, bits=16)).pixels
            assert wide.dtype == np.uint16
            assert np.abs(wide / 257 - narrow).max() <= (1.01 if channels != 4 else 0)


@pytest.mark.parametrize("channels", [3, 4])
def test_colours_of_sixteen_bits_are_kept_without_a_range(channels: int) -> None:
    values = RANDOM.integers(0, 65536, (9, 11, channels), dtype=np.uint16)
    rules = ImageRules(alpha="drop", bits=16)
    files = [png_of(values), *(tiff_of(values[..., :3], order, deflated=False) for order in "<>")]
    for data in files:
        assert np.array_equal(decode(data, 1, rules).pixels, values[..., :3])


def test_what_cannot_be_kept_of_sixteen_bits_is_refused() -> None:
    values = RANDOM.integers(0, 65536, (9, 11, 2), dtype=np.uint16)
    assert refusal(png_of(values), bits=16) == "unsupported pixels"
    assert pixels(png_of(values)).shape == (9, 11, 3)


@pytest.mark.parametrize("alpha", ["white", "black", "drop"])
def test_transparency_of_sixteen_bits_is_mixed_alike(alpha: Any) -> None:
    values = RANDOM.integers(0, 65536, (9, 11, 4), dtype=np.uint16)
    values[0, 0] = values[0, 1] = 65535
    values[0, 1, 3] = 0
    found = [decode(png_of(values), 1, ImageRules(range=FULL, alpha=alpha, bits=bits)).pixels for bits in (8, 16)]
    assert np.abs(found[1] / 257 - found[0]).max() < 1.6
    assert found[1][0, 0].tolist() == [65535] * 3
    assert found[1][0, 1].tolist() == [0 if alpha == "black" else 65535] * 3
