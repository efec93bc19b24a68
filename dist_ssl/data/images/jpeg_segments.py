"""Segments of a JPEG, read without a decoder, and the correction of scan headers that every viewer ignores."""

import re
from collections.abc import Iterator

from dist_ssl.data.images.tiff_tags import MOST_PARTS
from dist_ssl.data.images.unreadable import TOO_MANY_PARTS, UnreadableError

SCAN, END, APP1 = 0xDA, 0xD9, 0xE1
"""Markers of a JPEG: of a scan, of the end, and of a segment that may hold Exif."""
ALONE = (0x01, 0xD8)
"""Markers that no segment follows."""
MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
"""A marker of a JPEG. Within scans a byte of 0xFF is followed by 0, or is that of a restart."""
SEQUENTIAL = (0xC0, 0xC1)
"""Markers of JPEGs whose scans hold all of the coefficients, so that their range need not be said."""
ALL = b"\0\x3f\0"
"""The range of a scan that holds all coefficients."""


def with_range_of_scans(jpeg: bytes) -> bytes:
    """Return a sequential JPEG whose scans say that they hold all coefficients, as they do.

    Some phones write zeros there; decoders of sequential JPEGs ignore it, and libjpeg warns, as it does of damage.
    """
    parts, kept, channels = list[bytes](), 0, 0
    for kind, start, end in segments(jpeg):
        if kind in SEQUENTIAL:
            channels = int.from_bytes(jpeg[start + 5 : start + 6])
        elif kind == SCAN:
            if channels and jpeg[end - 3 : end] != ALL:
                parts += [jpeg[kept : end - 3], ALL]
                kept = end
            channels -= int.from_bytes(jpeg[start : start + 1])  # its own; further ones may be in further scans
            if channels <= 0:
                break
    return b"".join([*parts, jpeg[kept:]]) if parts else jpeg


def segments(jpeg: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield the marker of each segment of a JPEG up to its end, where its content starts and where it ends.

    Thumbnails within a segment and films behind the end have markers of their own, which are not among them. Raises
    UnreadableError where there are too many.
    """
    at, left = 2, MOST_PARTS
    while (marker := MARKER.search(jpeg, at)) and (kind := jpeg[marker.end() - 1]) != END:
        start = marker.end()
        at = start if kind in ALONE else start + int.from_bytes(jpeg[start : start + 2])
        left -= 1
        if left < 0:
            raise UnreadableError(TOO_MANY_PARTS)
        yield kind, start + 2, at
