"""Images in files of numpy: their values and their range, and what a file may say without costing anything."""

import io
import tracemalloc
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from dist_ssl.data.images.array_files import HEAD_BYTES, header_of
from dist_ssl.data.images.decode import decode, largest_value
from dist_ssl.data.images.file_formats import kind_of
from dist_ssl.data.images.image_rules import ImageRules
from dist_ssl.data.images.unreadable import DAMAGED, NO_RANGE, TOO_LARGE, UNSUPPORTED, UnreadableError

FIVE = ImageRules(channels=5)


def file_of(values: npt.NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, values, allow_pickle=True)
    return file.getvalue()


def noise(*shape: int, most: int = 256, dtype: str = "u1") -> npt.NDArray[Any]:
    return np.random.default_rng(0).integers(0, most, shape).astype(dtype)


def said(shape: str, kind: str = "|u1", version: bytes = b"\x01\x00") -> bytes:
    """A file whose header says this, without any values."""
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY" + version + len(text).to_bytes(2 if version[0] == 1 else 4, "little") + text


def refused(data: bytes, rules: ImageRules = FIVE) -> UnreadableError:
    with pytest.raises(UnreadableError) as caught:
        decode(data, 1, rules)
    return caught.value


@pytest.mark.parametrize("order", ["C", "F"])
def test_bytes_are_pixels(order: Any) -> None:
    values = np.array(noise(7, 9, 5), order=order)
    found = decode(file_of(values), 1, FIVE)
    assert np.array_equal(found.pixels, values)
    assert found.pixels.flags.c_contiguous
    assert found.pixels.flags.writeable
    assert found.sides == (9, 7)


def test_two_dimensions_are_one_channel_and_three_channels_are_rgb() -> None:
    values = noise(7, 9)
    assert np.array_equal(decode(file_of(values), 1, ImageRules(channels=1)).pixels, values[..., None])
    colours = noise(7, 9, 3)
    assert np.array_equal(decode(file_of(colours), 1).pixels, colours)


@pytest.mark.parametrize("dtype", ["<u2", ">u2", "<f4", ">f4"])
def test_deep_values_have_the_range_of_the_rules(dtype: str) -> None:
    values = noise(7, 9, 5, most=5000, dtype=dtype)
    found = decode(file_of(values), 1, ImageRules(range=4095, channels=5)).pixels
    expected = np.rint(np.clip(values.astype(np.float64) / 4095, 0, 1) * 255)
    assert np.abs(found.astype(int) - expected).max() <= (0 if dtype[1] == "f" else 1)
    assert largest_value(file_of(values)) == values.max()


def test_sixteen_bits_have_their_whole_range_and_floating_point_none() -> None:
    assert decode(file_of(np.full((6, 3, 5), 65535, np.uint16)), 1, FIVE).pixels.min() == 255
    assert refused(file_of(np.ones((6, 3, 5), np.float32))).reason == NO_RANGE
    assert largest_value(file_of(np.full((6, 3, 5), 0.3, np.float32))) == 1
    assert largest_value(file_of(noise(6, 3, 5))) is None


def test_what_is_no_number_is_black() -> None:
    values = np.array([[[np.nan, np.inf, -np.inf, -1, 0.5]]], np.float32)
    assert decode(file_of(np.repeat(values, 5, 0)), 1, ImageRules(range=1, channels=5)).pixels[0, 0].tolist() == [
        *(0, 255, 0, 0),
        128,
    ]


def test_a_large_array_is_scaled_in_bands_like_a_whole_one(monkeypatch: pytest.MonkeyPatch) -> None:
    data = file_of(noise(31, 9, 5, most=65536, dtype="<u2"))
    whole = decode(data, 1, FIVE).pixels
    monkeypatch.setattr("dist_ssl.data.images.image_rules.BAND_PIXELS", 100)
    assert np.array_equal(decode(data, 1, FIVE).pixels, whole)


def test_an_array_of_other_channels_is_refused_with_both_numbers() -> None:
    assert str(refused(file_of(noise(7, 9, 4)))) == f"{UNSUPPORTED}: 4 channels, not 5"
    assert "3 channels, not 5" in str(refused(file_of(noise(7, 9, 3))))


@pytest.mark.parametrize(
    "values",
    [
        noise(7),
        noise(2, 7, 9, 5),
        noise(5, 64, 64),
        noise(80, 80, 65),
        noise(0, 9, 5),
        noise(7, 9, 5).astype(np.float64),
        noise(7, 9, 5).astype(np.int32),
        noise(7, 9, 5).astype(bool),
    ],
    ids=["a row", "a batch", "channels first", "too many channels", "empty", "doubles", "integers", "flags"],
)
def test_an_array_that_is_no_image_is_unsupported(values: npt.NDArray[Any]) -> None:
    assert refused(file_of(values)).reason in (UNSUPPORTED, DAMAGED)


def test_no_object_is_unpickled() -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return pytest.fail, ("it was executed",)

    values = np.empty((3, 3), dtype=object)
    values[:] = Bomb()
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": (3, 3)})
    assert refused(file.getvalue() + b"\x80\x04N.").reason == UNSUPPORTED


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (said("(10000, 9999, 5)"), DAMAGED),
        (said("(999999999, 999999999, 5)"), TOO_LARGE),
        (said("(99999999999999999999, 9, 5)"), DAMAGED),
        (said("(-7, 9, 5)"), DAMAGED),
        (said("()"), UNSUPPORTED),
        (said("__import__('os').abort()"), DAMAGED),
        (said("(" * 2000), DAMAGED),
        (said("(7, 9, 5)", kind="<u9999"), UNSUPPORTED),
        (said("(7, 9, 5)", version=b"\x02\x00"), DAMAGED),
        (b"\x93NUMPY", DAMAGED),
        (b"\x93NUMPY\x01\x00\xff\xff{", DAMAGED),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff{", DAMAGED),
        (b"\x93NUMPY\x09\x00\x10\x00\x00\x00" + b" " * 16, DAMAGED),
        (file_of(noise(70, 9, 5))[:-1], DAMAGED),
    ],
)
def test_a_header_that_lies_costs_nothing(data: bytes, reason: str) -> None:
    tracemalloc.start()
    try:
        assert refused(data).reason == reason
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_extra_bytes_make_nothing_unreadable() -> None:
    values = noise(7, 9, 5)
    assert np.array_equal(decode(file_of(values) + b"x" * 9, 1, FIVE).pixels, values)


def test_a_header_is_read_from_the_first_bytes_alone() -> None:
    data = file_of(noise(100, 90, 5))
    found = header_of(data[:HEAD_BYTES])
    assert (found.height, found.width, found.channels, found.size) == (100, 90, 5, len(data))
    assert kind_of(data) == "npy"


def test_sixteen_bits_keep_every_value() -> None:
    rules = ImageRules(channels=5, bits=16)
    values = noise(7, 9, 5, most=65536, dtype="<u2")
    assert np.array_equal(decode(file_of(values), 1, rules).pixels, values)
    assert np.array_equal(decode(file_of(noise(7, 9, 5)), 1, rules).pixels, noise(7, 9, 5) * np.uint16(257))
    floats = np.linspace(0, 1, 7 * 9 * 5, dtype=np.float32).reshape(7, 9, 5)
    found = decode(file_of(floats), 1, ImageRules(range=1, channels=5, bits=16)).pixels
    assert np.abs(found / 65535 - floats).max() < 1e-5


@pytest.mark.parametrize("dtype", ["u2", "f4"])
@pytest.mark.parametrize("bits", [8, 16])
def test_each_channel_may_have_its_own_white(dtype: str, bits: Literal[8, 16]) -> None:
    values = np.broadcast_to(np.array([100, 1000, 70_000 if dtype == "f4" else 65_000]), (4, 5, 3)).astype(dtype)
    whites = (200.0, 1000.0, 130_000.0)
    found = decode(file_of(values), 1, ImageRules(range=whites, bits=bits)).pixels
    shares = np.minimum(values[0, 0] / np.array(whites), 1) * (255 if bits == 8 else 65_535)
    assert np.abs(found - shares).max() <= 0.51
    one = decode(file_of(values), 1, ImageRules(range=200.0, bits=bits)).pixels
    assert np.array_equal(found[..., 0], one[..., 0])


def test_no_picture_has_a_white_for_each_channel() -> None:
    for kind in ("JPEG", "PNG"):
        file = io.BytesIO()
        Image.new("RGB", (9, 9)).save(file, kind)
        with pytest.raises(UnreadableError, match=r"unsupported pixels.*data\.range names a white for each channel"):
            decode(file.getvalue(), 1, ImageRules(range=(1.0, 2.0, 3.0)))
