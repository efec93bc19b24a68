"""Files of countless parts or huge tiles are refused before they cost anything; ordinary ones are read."""

import io
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from dist_ssl.data.images import decode as decoding
from dist_ssl.data.images import file_parts
from dist_ssl.data.images.decode import SAMPLING, decode, largest_value
from dist_ssl.data.images.file_parts import MOST_PARTS
from dist_ssl.data.images.image_rules import RULES, ImageRules
from tests.data.images.test_decode import encoded, picture, reason

BYTE, SHORT, LONG, FRACTION = 1, 3, 4, 5
LENGTHS = {BYTE: "B", SHORT: "H", LONG: "L", FRACTION: "Q"}
Tags = Mapping[int, tuple[int, list[int]]]
GRAY: Tags = {258: (SHORT, [8]), 259: (SHORT, [1]), 262: (SHORT, [1]), 277: (SHORT, [1])}


def tiff(tags: Tags, pixels: bytes = b"", order: str = "<", big: bool = False) -> bytes:
    """A TIFF of these tags, whose pixels are at byte 16."""
    body = bytearray(16) + pixels + bytes(len(pixels) % 2)
    head, count, entry = ("Q", "Q", "HHQ") if big else ("L", "H", "HHL")
    entries = b""
    for tag, (kind, values) in sorted({**GRAY, **tags}.items()):
        packed = struct.pack(f"{order}{len(values)}{LENGTHS[kind]}", *values)
        room = struct.calcsize(order + head)
        if len(packed) > room:
            packed, body = struct.pack(order + head, len(body)), body + packed
        entries += struct.pack(order + entry, tag, kind, len(values)) + packed.ljust(room, b"\0")
    start = struct.pack(order + ("HHHQ" if big else "HL"), *((43, 8, 0, len(body)) if big else (42, len(body))))
    body[: 2 + len(start)] = (b"MM" if order == ">" else b"II") + start
    return bytes(body) + struct.pack(order + count, len({**GRAY, **tags})) + entries + bytes(8)


def tiled(side: int, image: tuple[int, int], count: int = 1, compression: int = 1) -> Tags:
    """The tags of a gray picture (width, height) in square tiles."""
    size = side * side
    return {
        256: (LONG, [image[0]]),
        257: (LONG, [image[1]]),
        259: (SHORT, [compression]),
        322: (LONG, [side]),
        323: (LONG, [side]),
        324: (LONG, [16 + size * n for n in range(count)]),
        325: (LONG, [size] * count),
    }


@pytest.fixture
def unopened(monkeypatch: pytest.MonkeyPatch) -> None:
    """PIL opens nothing."""

    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("PIL opens the file")

    monkeypatch.setattr(Image, "open", refused)


@pytest.mark.usefixtures("unopened")
@pytest.mark.parametrize(("order", "big"), [("<", False), (">", False), ("<", True)])
@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        (tiled(20000, (16, 16)), "too many pixels"),
        (tiled(2048, (16, 16)), "too many pixels"),
        ({**tiled(2048, (16, 16)), 322: (LONG, [2**31]), 323: (SHORT, [1])}, "too many pixels"),
        (tiled(512, (200_000, 1)), "too many pixels"),
        ({256: (LONG, [1]), 257: (LONG, [MOST_PARTS + 1]), 273: (BYTE, [16] * (MOST_PARTS + 1))}, "too many parts"),
        ({256: (LONG, [1]), 257: (LONG, [1]), 325: (SHORT, [1] * (MOST_PARTS + 1))}, "too many parts"),
        ({256: (LONG, [1]), 257: (LONG, [1]), 282: (FRACTION, [1] * (MOST_PARTS + 1))}, "too many parts"),
    ],
)
def test_a_tiff_of_huge_tiles_or_countless_parts_is_refused_unopened(
    tags: Tags, expected: str, order: str, big: bool
) -> None:
    data = tiff(tags, b"1", order, big)
    assert reason(data) == expected
    assert largest_value(data) is None or expected == "too many pixels"  # a maximum is sought in 100 million pixels


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("side", [16, 64, 512])
def test_tiles_may_reach_over_the_edges_of_the_picture(side: int, order: str) -> None:
    image = (100, 70)
    columns, rows = -(-image[0] // side), -(-image[1] // side)
    whole = np.random.default_rng(1).integers(0, 256, (rows * side, columns * side), dtype=np.uint8)
    pieces = [
        whole[y : y + side, x : x + side] for y in range(0, rows * side, side) for x in range(0, columns * side, side)
    ]
    data = tiff(tiled(side, image, columns * rows), b"".join(piece.tobytes() for piece in pieces), order)
    found = decode(data, 1)
    np.testing.assert_array_equal(found.pixels[..., 0], whole[: image[1], : image[0]])
    packed = io.BytesIO()  # by libtiff
    Image.fromarray(whole[: image[1], : image[0]]).save(packed, "TIFF", compression="tiff_deflate", tile=(side, side))
    np.testing.assert_array_equal(decode(packed.getvalue(), 1).pixels, found.pixels)


def test_tiles_that_cover_a_picture_again_and_again_are_refused() -> None:
    again: dict[int, Any] = {**tiled(64, (60, 60)), 324: (LONG, [16] * 100), 325: (LONG, [4096] * 100)}
    assert reason(tiff(again, bytes(4096))) == "too many parts"
    again[324] = (LONG, [16] * 4)
    assert decode(tiff(again, bytes(4096)), 1).sides == (60, 60)


def test_a_tiff_of_a_row_in_every_strip_is_read() -> None:
    height = 3000
    tags: Tags = {256: (LONG, [1]), 257: (LONG, [height]), 273: (LONG, [16 + n for n in range(height)])}
    pixels = bytes(n % 251 for n in range(height))
    found = decode(tiff({**tags, 278: (SHORT, [1]), 279: (BYTE, [1] * height)}, pixels), 1)
    assert found.pixels[:, 0, 0].tobytes() == pixels


def test_exif_of_a_tiff_is_not_read_but_its_orientation_is(monkeypatch: pytest.MonkeyPatch) -> None:
    tags: Tags = {256: (LONG, [4]), 257: (LONG, [3]), 273: (LONG, [16]), 278: (LONG, [3]), 279: (LONG, [12])}
    data = tiff({**tags, 0x0112: (SHORT, [6]), 0x8769: (LONG, [16])}, bytes(12))
    read: list[Any] = []
    monkeypatch.setattr(Image.Exif, "_get_ifd_dict", lambda _, *where: read.append(where))
    assert decode(data, 1).pixels.shape == (4, 3, 3)
    assert not read


def jpeg_with(between: bytes) -> bytes:
    plain = encoded(picture(32, 24), "JPEG")
    return plain[:2] + between + plain[2:]


SEGMENT, CHUNK = b"\xff\xe3\0\2", struct.pack(">I", 0) + b"teST" + struct.pack(">I", zlib.crc32(b"teST"))


def png_with(between: bytes, place: bytes = b"IDAT") -> bytes:
    plain = encoded(picture(32, 24), "PNG")
    at = plain.index(place) - 4
    return plain[:at] + between + plain[at:]


@pytest.mark.usefixtures("unopened")
@pytest.mark.parametrize(
    "data",
    [jpeg_with(SEGMENT * (MOST_PARTS + 1)), jpeg_with(b"\xff\1" * (MOST_PARTS + 1)), png_with(CHUNK * MOST_PARTS)],
)
def test_a_file_of_countless_parts_is_refused_unopened(data: bytes) -> None:
    assert reason(data) == "too many parts"


def gif_with(comments: bytes) -> bytes:
    plain = encoded(picture(32, 24), "GIF")
    at = plain.index(b",\0\0\0\0")  # the picture after its palette
    return plain[:at] + b"!\xfe" + comments + b"\0" + plain[at:]


JP2 = encoded(picture(32, 24), "JPEG2000")
PARTS = {
    "fill of a jpeg": jpeg_with(b"\xff" * 3000),
    "chunks behind the pixels": png_with(CHUNK * 1000, b"IEND"),
    "empty chunks of pixels": png_with((CHUNK[:4] + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))) * 1000),
    "comments": gif_with(b"\1a" * 2000),
    "boxes": JP2[:32] + (b"\0\0\0\x08free" * 1000) + JP2[32:],
}


@pytest.mark.parametrize("name", PARTS)
def test_the_pieces_that_pil_reads_are_counted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rules = ImageRules(10**6)
    assert decoding._other(PARTS[name], rules, SAMPLING).sides == (32, 24)
    monkeypatch.setattr(file_parts, "READS", 500)
    monkeypatch.setattr(file_parts, "READS_PER_PIXEL", 0)
    with pytest.raises(decoding.UnreadableError, match="too many parts"):
        decoding._other(PARTS[name], rules, SAMPLING)


def test_ordinary_files_have_many_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = encoded(picture(32, 24), "JPEG")
    data = jpeg_with(b"".join(b"\xff" + bytes([kind]) + b"\xff\xff" + bytes(65533) for kind in (0xE1, 0xE2)) * 40)
    np.testing.assert_array_equal(decode(data, 1).pixels, decode(plain, 1).pixels)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (600, 600, 3), dtype=np.uint8))
    monkeypatch.setattr(ImageFile, "MAXBLOCK", 1 << 10)  # a chunk for each kilobyte
    small = encoded(noise, "PNG", compress_level=0)
    assert small.count(b"IDAT") > 400
    monkeypatch.setattr(file_parts, "READS", 0)
    np.testing.assert_array_equal(decode(small, 1, RULES).pixels, np.asarray(noise))
