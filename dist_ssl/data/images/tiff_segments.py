"""Expands the strips and tiles of a TIFF of bands: plain, deflated, or by LZW or PackBits.

Of the last two, libtiff does the work, which PIL has: the segments become those of a grey picture of 8 bits, whose
sides we write. So it finds no number of the file but the compressed bytes, and fills no memory but that of the
segments, some megabytes at a time. What each of them may read is bounded too, since each may claim all of the file.
"""

import io
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from PIL import Image

from dist_ssl.data.images.unreadable import DAMAGED, UnreadableError

PLAIN, LZW, PACKED = 1, 5, 32773
DEFLATED = (8, 32946)
READ = {PLAIN: "plain", LZW: "LZW", 8: "deflate", 32946: "deflate", PACKED: "PackBits"}
"""Names of the values of the tag of the compression that are read."""
NOT_READ = {
    6: "JPEG",
    7: "JPEG",
    33003: "JPEG 2000",
    33005: "JPEG 2000",
    34712: "JPEG 2000",
    34887: "LERC",
    34925: "LZMA",
    50000: "Zstandard",
    50001: "WebP",
    50002: "JPEG XL",
}
"""Names of others."""
SPARE_BYTES = 1024
"""Bytes of a segment that are read beyond twice those of its values: compressing lengthens by far less."""
AT_ONCE, MOST_AT_ONCE = 1 << 22, 1024
"""Bytes of segments, expanded, and their number, that libtiff expands at once; a larger one alone."""
Part = tuple[tuple[int, int], int]
"""Place and length of a segment in the file, and the bytes that it expands to."""


def expanded(data: bytes, compression: int, parts: Iterable[Part]) -> Iterator[bytes]:
    """Yield the bytes of segments, each of at least as many as it must have. Raises UnreadableError.

    `compression`: one of `READ`.
    """
    if compression in (LZW, PACKED):
        for group in grouped(parts):
            yield from by_libtiff(data, compression, group)
        return
    for part in parts:
        raw, size = compressed_bytes(data, part), part[1]
        if compression in DEFLATED:
            try:
                raw = zlib.decompressobj().decompress(raw, size)
            except zlib.error as error:
                raise UnreadableError(DAMAGED, f"a segment: {error}") from error
        if len(raw) < size:
            raise UnreadableError(DAMAGED, f"a segment of {len(raw)} bytes, not {size}")
        yield raw


def compressed_bytes(data: bytes, part: Part) -> bytes:
    """Return what is read of a segment."""
    (start, length), size = part
    return data[start : start + min(length, 2 * size + SPARE_BYTES)]


def grouped(parts: Iterable[Part]) -> Iterator[list[Part]]:
    """Yield segments of equal size that follow each other, as many as are expanded at once."""
    left = iter(parts)
    group = list(islice(left, 1))
    while group:
        size, following = group[0][1], None
        for part in left:
            if part[1] != size or (len(group) + 1) * size > AT_ONCE or len(group) == MOST_AT_ONCE:
                following = part
                break
            group.append(part)
        yield group
        group = [following] if following else []


def by_libtiff(data: bytes, compression: int, group: Sequence[Part]) -> Iterator[bytes]:
    """Yield the bytes of segments that expand to the same size. Raises UnreadableError."""
    size = group[0][1]
    try:
        with Image.open(io.BytesIO(grey_tiff(data, compression, group)), formats=["TIFF"]) as image:
            whole = image.tobytes()
    except MemoryError:
        raise
    except Exception as error:  # of many kinds; the tags are ours, so it is the segments that are wrong
        raise UnreadableError(DAMAGED, f"a segment: {error}") from error
    for start in range(0, len(whole), size):
        yield whole[start : start + size]


def grey_tiff(data: bytes, compression: int, group: Sequence[Part]) -> bytes:
    """Return a TIFF, grey with 8 bits, in which each segment is a strip of one row."""
    stored, count = [compressed_bytes(data, part) for part in group], len(group)
    starts, at = [], 8
    for one in stored:
        starts.append(at)
        at += len(one)
    lists = struct.pack(f"<{2 * count}L", *starts, *map(len, stored))
    places, lengths = (at, at + 4 * count) if count > 1 else (starts[0], len(stored[0]))
    tags = [(256, 1, group[0][1]), (257, 1, count), (258, 1, 8), (259, 1, compression), (262, 1, 1)]
    tags += [(273, count, places), (277, 1, 1), (278, 1, 1), (279, count, lengths)]
    written = b"".join(struct.pack("<HHLL", tag, 4, number, value) for tag, number, value in tags)
    head = struct.pack("<2sHL", b"II", 42, at + len(lists))
    return b"".join([head, *stored, lists, struct.pack("<H", len(tags)), written, bytes(4)])
