"""TIFFs of bands by LZW and PackBits have the values that were written, and cost what their sides tell."""

import io
import struct
import tracemalloc
from functools import partial
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dist_ssl.data.images import tiff_segments
from dist_ssl.data.images.decode import decode
from dist_ssl.data.images.image_rules import ImageRules
from dist_ssl.data.images.tiff_bands import bands_in
from dist_ssl.data.images.unreadable import DAMAGED, TOO_LARGE, UNSUPPORTED, UnreadableError
from tests.data.images.test_tiff_bands import Values, expected, noise, rules, tiff

KINDS = {"tiff_lzw": 5, "packbits": 32773}


def by_pillow(kind: str, content: bytes) -> bytes:
    """A segment of these bytes, as PIL writes it."""
    file = io.BytesIO()
    Image.frombytes("L", (len(content), 1), content).save(file, "TIFF", compression=kind)
    with Image.open(io.BytesIO(file.getvalue())) as image:
        (start,), (length,) = (image.tag_v2[tag] for tag in (273, 279))  # type: ignore[attr-defined]
    return file.getvalue()[start : start + length]


def packed(kind: str, values: Values, **stored: Any) -> bytes:
    return tiff(values, packed=partial(by_pillow, kind), **{"t259": KINDS[kind], **stored})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", ["u1", "u2", "f4"])
@pytest.mark.parametrize(
    "stored",
    [
        {"rows": 40},
        {"rows": 7, "apart": True},
        {"rows": 7, "differing": True},
        {"rows": None},
        {"rows": None, "apart": True, "differing": True},
    ],
    ids=["one strip", "strips of bands", "differences", "tiles", "tiles of bands"],
)
def test_every_way_of_storing_gives_the_same_values(kind: str, order: str, dtype: str, stored: dict[str, Any]) -> None:
    values = noise(40, 37, 6, dtype=dtype) // (1 if dtype == "f4" else 16)
    stored = {key: value for key, value in stored.items() if dtype != "f4" or key != "differing"}
    found = decode(packed(kind, values, order=order, **stored), 1, rules(values)).pixels
    assert np.abs(found.astype(np.int64) - expected(values)).max() <= (dtype == "f4")


@pytest.mark.parametrize(("at_once", "most"), [(1, 1024), (1 << 22, 2), (1 << 22, 1024)])
def test_the_number_that_is_expanded_at_once_changes_nothing(
    at_once: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiff_segments, "AT_ONCE", at_once)
    monkeypatch.setattr(tiff_segments, "MOST_AT_ONCE", most)
    values = noise(40, 37, 6)
    np.testing.assert_array_equal(decode(packed("tiff_lzw", values), 1, rules(values)).pixels, values)


@pytest.mark.parametrize("kind", KINDS)
def test_segments_that_end_too_early_are_damaged(kind: str) -> None:
    values = noise(20, 20, 6)
    with pytest.raises(UnreadableError, match=DAMAGED):
        decode(packed(kind, values, rows=20, t279=100), 1, ImageRules(channels=6))
    whole = packed(kind, values)
    with pytest.raises(UnreadableError):
        decode(whole[: len(whole) // 2], 1, ImageRules(channels=6))
    with pytest.raises(UnreadableError, match=DAMAGED):
        decode(packed(kind, values, rows=20, t273=1 << 31), 1, ImageRules(channels=6))


@pytest.mark.parametrize("kind", KINDS)
def test_a_segment_is_expanded_no_further_than_its_sides_tell(kind: str) -> None:
    bomb = by_pillow(kind, bytes(30_000_000))
    start = len(packed(kind, noise(20, 20, 6), rows=20))
    data = packed(kind, noise(20, 20, 6), rows=20, t273=start, t279=len(bomb)).ljust(start, b"\0") + bomb
    tracemalloc.start()
    try:
        assert decode(data, 1, ImageRules(channels=6)).pixels.max() == 0
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()
    with pytest.raises(UnreadableError, match=TOO_LARGE):
        decode(packed(kind, noise(20, 20, 6), rows=20, t257=9_000, t256=9_000, t277=64), 1, ImageRules(channels=64))


def test_segments_over_each_other_are_copied_in_bounded_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    whole = tiff_segments.grey_tiff

    def watched(*given: Any) -> bytes:
        sizes.append(len(made := whole(*given)))
        return made

    monkeypatch.setattr(tiff_segments, "grey_tiff", watched)
    data = by_pillow("tiff_lzw", bytes(1 << 20)) + bytes(1 << 24)
    parts = [((0, len(data)), 1 << 20)] * 64
    assert [len(one) for one in tiff_segments.expanded(data, 5, parts)] == [1 << 20] * 64
    assert max(sizes) < 10_000_000


def big(order: str, values: Values, magic: int = 43) -> bytes:
    """A TIFF of 8 bytes for every place, whose only strip is plain."""
    content = values.astype(values.dtype.newbyteorder(order)).tobytes()
    height, width, bands = values.shape
    tags = {256: width, 257: height, 258: 8 * values.dtype.itemsize, 259: 1, 262: 1, 273: 16}
    tags |= {277: bands, 278: height, 279: len(content), 284: 1}
    rows = b"".join(struct.pack(f"{order}HHQQ", tag, 16, 1, value) for tag, value in tags.items())
    head = struct.pack(f"{order}HHHQ", magic, 8, 0, 16 + len(content))
    return (b"II" if order == "<" else b"MM") + head + content + struct.pack(f"{order}Q", len(tags)) + rows + bytes(8)


@pytest.mark.parametrize("order", ["<", ">"])
def test_bands_of_a_file_of_more_than_4_gb_are_read_in_both_orders_of_bytes(order: str) -> None:
    values = noise(20, 24, 5)
    assert bands_in(big(order, values)) == 5
    np.testing.assert_array_equal(decode(big(order, values), 1, rules(values)).pixels, values)


def test_a_picture_whose_tags_pil_looks_for_elsewhere_is_unsupported() -> None:
    data = bytearray(big(">", noise(20, 24, 1, dtype="u1")))
    with pytest.raises(UnreadableError, match=UNSUPPORTED):
        decode(bytes(data), 1)
    hidden = tiff(noise(20, 24, 1, dtype="u1"), order=">", rows=20)
    data = data.ljust(0x80000, b"\0") + hidden[struct.unpack(">L", hidden[4:8])[0] :]
    with pytest.raises(UnreadableError, match=UNSUPPORTED):
        decode(bytes(data), 1)
