"""Reads of an image no more than says how many channels it has: a TIFF may have gigabytes."""

import os
import struct

from dist_ssl.data.images.array_files import HEAD_BYTES
from dist_ssl.data.images.tiff_tags import STARTS, order_of

TAG_BYTES = 1 << 14
"""Bytes of the tags that are read: some 800 tags at least. They are sorted by their numbers, and those of the channels
are among the first."""


def head_at(file: int, offset: int, size: int) -> bytes:
    """Return the first HEAD_BYTES of an image; of a TIFF another one, that has the same tags and nothing else.

    Values that lie outside of the tags are lost: of those that tell the channels there is one each, inside.
    `file`: a descriptor; `offset`, `size`: where in the file the image is, bytes. Raises OSError.
    """
    head = os.pread(file, min(size, HEAD_BYTES), offset)
    order, big = order_of(head)
    number, width = ("Q", 8) if big else ("L", 4)
    if not head.startswith(STARTS) or len(head) < 2 * width:
        return head
    (at,) = struct.unpack_from(order + number, head, width)
    tags = os.pread(file, min(TAG_BYTES, size - at), offset + at) if at < size else b""
    return head[:width] + struct.pack(order + number, 2 * width) + tags
