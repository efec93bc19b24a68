"""TIFFs of many bands: every way of storing them that is read gives the same values, and what lies costs nothing."""

import io
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from dist_ssl.data.images.decode import decode, largest_value
from dist_ssl.data.images.image_rules import ImageRules
from dist_ssl.data.images.tiff_bands import bands_in
from dist_ssl.data.images.unreadable import DAMAGED, TOO_LARGE, TOO_MANY_PARTS, UNSUPPORTED, UnreadableError

Values = npt.NDArray[Any]
TILE = 16


def differences(values: Values) -> Values:
    """Every value of a row minus the one on its left."""
    return np.diff(values, axis=1, prepend=np.zeros_like(values[:, :1]))


def pieces(values: Values, rows: int | None, apart: bool) -> list[Values]:
    """Strips of so many rows, or tiles if None, pixel by pixel or band by band."""
    height, width, bands = values.shape
    parts = [values[..., band : band + 1] for band in range(bands)] if apart else [values]
    if rows:
        return [part[top : top + rows] for part in parts for top in range(0, height, rows)]
    rest = ((0, -height % TILE), (0, -width % TILE), (0, 0))
    places = [(top, left) for top in range(0, height, TILE) for left in range(0, width, TILE)]
    return [np.pad(part, rest)[y : y + TILE, x : x + TILE] for part in parts for y, x in places]


def tiff(
    values: Values,
    *,
    order: str = "<",
    rows: int | None = 7,
    apart: bool = False,
    deflated: bool = False,
    packed: Callable[[bytes], bytes] | None = None,
    differing: bool = False,
    **changed: int,
) -> bytes:
    """A TIFF of bands. `changed`: values of tags by their numbers, as `t277`, written in place of right ones.

    `packed`: compresses a segment.
    """
    height, width, bands = values.shape
    stored = [differences(part) if differing else part for part in pieces(values, rows, apart)]
    written = [part.astype(values.dtype.newbyteorder(order)).tobytes() for part in stored]
    compress = zlib.compress if deflated else packed or bytes
    segments = [compress(part) for part in written]
    starts = list(accumulate(map(len, segments[:-1]), initial=8))
    tags: dict[int, tuple[int, list[int]]] = {
        256: (4, [width]),
        257: (4, [height]),
        258: (3, [8 * values.dtype.itemsize] * bands),
        259: (3, [8 if deflated else 1]),
        262: (3, [1]),
        277: (3, [bands]),
        284: (3, [2 if apart else 1]),
        317: (3, [2 if differing else 1]),
        339: (3, [3 if values.dtype.kind == "f" else 1] * bands),
    }
    lengths = [len(one) for one in segments]
    tags |= {278: (4, [rows]), 273: (4, starts), 279: (4, lengths)} if rows else {}
    tags |= {} if rows else {322: (4, [TILE]), 323: (4, [TILE]), 324: (4, starts), 325: (4, lengths)}
    tags |= {int(name[1:]): (4, [value]) for name, value in changed.items()}
    return b"".join([(b"II" if order == "<" else b"MM"), *tail(order, tags, segments)])


def tail(order: str, tags: dict[int, tuple[int, list[int]]], segments: list[bytes]) -> list[bytes]:
    """All of a TIFF behind its first two bytes: its segments, then the values that do not fit into tags, then these."""
    entries, outside, at = [], [], 8 + sum(map(len, segments))
    for number, (kind, values) in sorted(tags.items()):
        content = struct.pack(f"{order}{len(values)}{'H' if kind == 3 else 'L'}", *values)
        inside = content.ljust(4, b"\0") if len(content) <= 4 else struct.pack(f"{order}L", at)
        entries.append(struct.pack(f"{order}HHL", number, kind, len(values)) + inside)
        if len(content) > 4:
            outside.append(content)
            at += len(content)
    head = struct.pack(f"{order}HL", 42, at)
    return [head, *segments, *outside, struct.pack(f"{order}H", len(tags)), *entries, bytes(4)]


def noise(*shape: int, dtype: str = "u2") -> Values:
    chance = np.random.default_rng(0)
    return (
        chance.random(shape, np.float32)
        if dtype == "f4"
        else chance.integers(0, 256 ** int(dtype[1]), shape).astype(dtype)
    )


def rules(values: Values, **more: Any) -> ImageRules:
    return ImageRules(range=1 if values.dtype.kind == "f" else None, channels=values.shape[2], bits=16, **more)


def expected(values: Values) -> Values:
    """The pixels of 16 bits that the values are."""
    return {"u1": values * np.uint16(257), "u2": values, "f4": np.rint(values * np.float32(65535))}[
        values.dtype.str[1:]
    ]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", ["u1", "u2", "f4"])
@pytest.mark.parametrize(
    "stored",
    [
        {"rows": 40},
        {"rows": 7, "apart": True},
        {"rows": 7, "deflated": True, "differing": True},
        {"rows": None, "deflated": True},
        {"rows": None, "apart": True, "deflated": True, "differing": True},
    ],
    ids=["one strip", "strips of bands", "differences", "tiles", "tiles of bands"],
)
def test_every_way_of_storing_gives_the_same_values(order: str, dtype: str, stored: dict[str, Any]) -> None:
    values = noise(40, 37, 6, dtype=dtype)
    if dtype == "f4":
        stored = {key: value for key, value in stored.items() if key != "differing"}
    data = tiff(values, order=order, **stored)
    assert bands_in(data) == 6
    found = decode(data, 1, rules(values))
    assert found.sides == (37, 40)
    assert np.abs(found.pixels.astype(np.int64) - expected(values)).max() <= (dtype == "f4")


def test_eight_bits_have_the_range_of_the_rules_too() -> None:
    values = np.random.default_rng(0).integers(0, 4096, (20, 20, 4)).astype(np.uint16)
    assert largest_value(tiff(values)) == values.max()
    found = decode(tiff(values), 1, ImageRules(range=4095, channels=4)).pixels
    assert np.abs(found - values / 4095 * 255).max() <= 0.51


def test_pictures_stay_pictures() -> None:
    for mode in ("L", "LA", "RGB", "RGBA", "1", "I;16", "F"):
        file = io.BytesIO()
        Image.new(mode, (9, 9)).save(file, "TIFF")
        assert bands_in(file.getvalue()) is None, mode
    assert bands_in(b"II*\0") is None
    assert bands_in(b"no tiff") is None


def test_a_picture_with_more_bands_is_still_read_as_a_picture_where_one_is_asked_for() -> None:
    values = noise(20, 20, 5, dtype="u1")
    data = tiff(values, t262=2, t338=0)
    assert bands_in(data) == 5
    assert decode(data, 1, ImageRules(channels=5)).pixels.shape == (20, 20, 5)
    with pytest.raises(UnreadableError, match="5 channels, not 7"):
        decode(data, 1, ImageRules(channels=7))


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"t317": 3}, UNSUPPORTED),
        ({"t258": 12}, UNSUPPORTED),
        ({"t339": 2}, UNSUPPORTED),
        ({"t256": 0}, DAMAGED),
        ({"t278": 0}, DAMAGED),
        ({"t257": 60_000, "t278": 60_000}, DAMAGED),
        ({"t256": 90_000, "t257": 90_000}, TOO_LARGE),
        ({"t256": 9_000, "t257": 9_000, "t277": 64}, TOO_LARGE),
        ({"t277": 65_000}, TOO_LARGE),
    ],
)
@pytest.mark.parametrize("deflated", [False, True])
def test_what_a_file_says_costs_nothing_before_it_is_checked(
    changed: dict[str, int], reason: str, deflated: bool
) -> None:
    data = tiff(noise(20, 20, 6), **{"deflated": deflated, "rows": 20, **changed})
    tracemalloc.start()
    try:
        with pytest.raises(UnreadableError) as caught:
            decode(data, 1, ImageRules(channels=6))
        assert caught.value.reason in (reason, TOO_LARGE)
        assert tracemalloc.get_traced_memory()[1] < 60_000 * 20 * 12 + 10_000_000
    finally:
        tracemalloc.stop()


def test_a_segment_is_inflated_no_further_than_its_sides_tell() -> None:
    bomb = zlib.compress(bytes(100_000_000), 9)
    data = tiff(noise(20, 20, 6), deflated=True, rows=20)
    head = struct.unpack("<L", data[4:8])[0]
    start = len(data)
    changed = tiff(noise(20, 20, 6), deflated=True, rows=20, t273=start, t279=len(bomb))
    assert head < start
    tracemalloc.start()
    try:
        assert decode(changed.ljust(start, b"\0") + bomb, 1, ImageRules(channels=6)).pixels.max() == 0
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("deflated", [False, True])
def test_a_file_that_ends_too_early_is_damaged(deflated: bool) -> None:
    data = tiff(noise(20, 20, 6), deflated=deflated, rows=20, t279=100)
    with pytest.raises(UnreadableError, match=DAMAGED):
        decode(data, 1, ImageRules(channels=6))
    whole = tiff(noise(20, 20, 6), deflated=deflated)
    with pytest.raises(UnreadableError):
        decode(whole[: len(whole) // 2], 1, ImageRules(channels=6))


@pytest.mark.parametrize(
    ("number", "name"), [(7, "JPEG"), (50000, "Zstandard"), (34887, "LERC"), (99, "compression 99")]
)
def test_other_compressions_are_refused_by_name(number: int, name: str) -> None:
    with pytest.raises(UnreadableError, match=f"6 bands by {name}: plain, LZW, deflate, PackBits are read") as caught:
        decode(tiff(noise(20, 20, 6), t259=number), 1, ImageRules(channels=6))
    assert caught.value.reason == UNSUPPORTED


def test_countless_strips_are_refused() -> None:
    with pytest.raises(UnreadableError, match=TOO_MANY_PARTS):
        decode(tiff(noise(70_000, 1, 6, dtype="u1"), rows=1), 1, ImageRules(channels=6))


def test_segments_are_counted_before_any_of_them_is_listed() -> None:
    data = tiff(noise(20, 20, 3, dtype="u1"), rows=None, apart=True, t256=1_000, t257=1_000, t322=1, t323=1)
    tracemalloc.start()
    try:
        with pytest.raises(UnreadableError, match="segments of 3000000"):
            decode(data, 1, ImageRules(channels=3, range=255))
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_a_tile_that_is_far_larger_than_its_image_is_not_inflated() -> None:
    bomb = zlib.compress(bytes(6 * 3_000 * 3_000), 9)
    small = {"rows": None, "deflated": True, "t322": 3_000, "t323": 3_000, "t325": len(bomb)}
    start = len(tiff(noise(TILE, TILE, 6, dtype="u1"), **small, t324=0))
    data = tiff(noise(TILE, TILE, 6, dtype="u1"), **small, t324=start) + bomb
    tracemalloc.start()
    try:
        with pytest.raises(UnreadableError, match="1 segments of 3000 x 3000"):
            decode(data, 1, ImageRules(channels=6))
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_a_small_image_in_one_large_tile_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    values = noise(TILE, TILE, 6)
    monkeypatch.setattr(f"{__name__}.TILE", 1024)
    data = tiff(values, rows=None, deflated=True)
    np.testing.assert_array_equal(decode(data, 1, rules(values)).pixels, expected(values))


class Counted(bytes):
    """Bytes of a file that count how many of them are copied out of it."""

    copied = 0

    def __getitem__(self, place: Any) -> Any:
        found = super().__getitem__(place)
        type(self).copied += len(found) if isinstance(found, bytes) else 1
        return found


def copied(data: bytes, channels: int, reason: str | None = None) -> int:
    """How many bytes are copied out of a file while it is decoded, as far as Python does that."""
    Counted.copied = 0
    if reason:
        with pytest.raises(UnreadableError, match=reason):
            decode(Counted(data), 1, ImageRules(channels=channels))
    else:
        decode(Counted(data), 1, ImageRules(channels=channels))
    return Counted.copied


@pytest.mark.parametrize("deflated", [False, True])
def test_of_segments_over_each_other_no_more_is_read_than_they_need(deflated: bool) -> None:
    values = np.zeros((500, 4, 6), np.uint8)
    data = bytearray(tiff(values, rows=1, deflated=deflated) + bytes(1_000_000))
    last = struct.unpack_from("<L", data, 4)[0]
    lengths = next(at for at in range(last + 2, len(data), 12) if struct.unpack_from("<H", data, at)[0] == 279)
    at = struct.unpack_from("<L", data, lengths + 8)[0]
    struct.pack_into("<500L", data, at, *[1_000_000] * 500)  # each claims nearly all of the file
    assert copied(bytes(data), 6) < 2_000_000


def test_a_tag_that_is_there_again_and_again_is_read_once() -> None:
    content = struct.pack("<60000L", *[1] * 60_000)
    tags = [(256, 20), (257, 20), (258, 8), (259, 1), (277, 6), (284, 1), (278, 20)]
    rows = b"".join(struct.pack("<HHLL", tag, 4, 1, value) for tag, value in tags)
    rows += struct.pack("<HHLL", 273, 4, 60_000, 8) * 300 + struct.pack("<HHLL", 279, 4, 1, 2400)
    data = struct.pack("<2sHL", b"II", 42, 8 + len(content)) + content + struct.pack("<H", 308) + rows + bytes(4)
    assert copied(data, 6) < 2_000_000


def test_many_bands_with_a_large_tile_each_are_not_inflated_for_a_small_image() -> None:
    bomb = zlib.compress(bytes(4 * 2_000 * 2_000), 9)
    tags = [(256, 1), (257, 1), (258, 32), (259, 8), (277, 64), (284, 2), (339, 3), (322, 2_000), (323, 2_000)]
    at = 8 + 2 + 12 * 11 + 4
    rows = b"".join(struct.pack("<HHLL", tag, 4, 1, value) for tag, value in tags)
    rows += struct.pack("<HHLLHHLL", 324, 4, 64, at, 325, 4, 64, at + 256)
    lists = struct.pack("<128L", *[at + 512] * 64, *[len(bomb)] * 64)
    data = struct.pack("<2sHLH", b"II", 42, 8, 11) + rows + bytes(4) + lists + bomb
    with pytest.raises(UnreadableError, match="64 segments of 2000 x 2000"):
        decode(data, 1, ImageRules(channels=64, range=1))


def test_the_reason_names_few_of_many_numbers() -> None:
    bits = struct.pack("<60000L", *range(60_000))
    rows = b"".join(struct.pack("<HHLL", tag, 4, 1, value) for tag, value in [(256, 20), (257, 20), (277, 6)])
    rows += struct.pack("<HHLL", 258, 4, 60_000, 8)
    data = struct.pack("<2sHL", b"II", 42, 8 + len(bits)) + bits + struct.pack("<H", 4) + rows + bytes(4)
    with pytest.raises(UnreadableError, match=UNSUPPORTED) as caught:
        decode(data, 1, ImageRules(channels=6))
    assert len(str(caught.value)) < 200
