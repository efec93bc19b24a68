"""Portable maps have the pixels that PIL's own decoders find, and cost what other images do."""

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PpmImagePlugin

from dist_ssl.data.images import portable_maps
from dist_ssl.data.images.decode import decode
from dist_ssl.data.images.file_parts import FileInPieces
from dist_ssl.data.images.unreadable import UnreadableError

GREY_TEXT, COLOUR_TEXT, GREY, COLOUR = b"P2", b"P3", b"P5", b"P6"


def by_pillow(data: bytes) -> Any:
    """The pixels that PIL's own decoders find; None where they find none."""
    Image.register_decoder("ppm", PpmImagePlugin.PpmDecoder)
    Image.register_decoder("ppm_plain", PpmImagePlugin.PpmPlainDecoder)
    try:
        return ours(data)
    finally:
        portable_maps.register()


def ours(data: bytes) -> Any:
    try:
        with Image.open(io.BytesIO(data), formats=["PPM"]) as image:
            return np.asarray(image)
    except (OSError, ValueError):
        return None


@st.composite
def maps(draw: st.DrawFn) -> bytes:
    """A map of a few pixels, of any white, some too short, with numbers above white where they are binary."""
    kind, white = draw(st.sampled_from([GREY_TEXT, COLOUR_TEXT, GREY, COLOUR])), draw(st.integers(1, 65535))
    width, height = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    count = width * height * (3 if kind in (COLOUR, COLOUR_TEXT) else 1) - draw(st.sampled_from([0, 0, 0, 1]))
    binary = kind in (GREY, COLOUR)
    most = (255 if white < 256 else 65535) if binary else white + draw(st.sampled_from([0, 0, 0, 1]))
    numbers = draw(st.lists(st.integers(0, most), min_size=count, max_size=count))
    if binary:
        body = np.array(numbers, dtype="u1" if white < 256 else ">u2").tobytes()
    else:
        blanks = st.sampled_from([b" ", b"\n", b"\t\r", b"  "])
        body = b"".join(b"%d" % number + draw(blanks) for number in numbers) + draw(st.sampled_from([b"", b"7", b"0x"]))
    return kind + b" %d %d %d\n" % (width, height, white) + body


@settings(max_examples=300, deadline=None)
@given(maps())
def test_the_pixels_are_those_of_pils_own_decoders(data: bytes) -> None:
    expected, found = by_pillow(data), ours(data)
    if expected is None or found is None:
        assert found is None
        assert expected is None or data.endswith(b"0x")  # beyond the last number: PIL does not always look there
    else:
        assert expected.dtype == found.dtype
        assert np.array_equal(expected, found)


@pytest.mark.parametrize("block", [1, 2, 7, 11])
def test_numbers_may_reach_from_block_to_block(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(portable_maps, "BLOCK", block)
    data = b"P3 2 2 1000\n" + b" ".join(b"%d" % number for number in (0, 1000, 3, 12, 500, 7, 8, 9, 10, 999, 1, 2))
    assert np.array_equal(ours(data), by_pillow(data))


@pytest.mark.parametrize(
    "body", [b"1 2 -3 4", b"1 2 +3 4", b"1 2 3_0 4", b"1 2 x 4", b"1 2 256 4", b"9" * 3_000_000 + b" 2 3 4", b"1 2 3"]
)
def test_what_is_no_number_is_damage(body: bytes) -> None:
    with pytest.raises(UnreadableError, match="damaged image"):
        decode(b"P2 2 2 255\n" + body, 1)


@pytest.mark.parametrize("kind", [COLOUR, COLOUR_TEXT])
def test_a_map_is_read_in_large_pieces(kind: bytes) -> None:
    body = bytes(2 * 3 * 10**6) if kind == COLOUR else b"0 " * 3 * 10**6
    file = FileInPieces(kind + b" 1000 1000 1000\n" + body)
    before = file.left
    with Image.open(file, formats=["PPM"]) as image:
        image.load()
    assert before - file.left < 100  # PIL's own decoder reads once for each pixel of a binary one
