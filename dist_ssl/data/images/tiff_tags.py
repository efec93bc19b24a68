"""Tags of a TIFF, read without PIL: what its pixels are, and whether they are in the file."""

import struct
from collections.abc import Collection, Iterator
from itertools import zip_longest
from typing import NamedTuple

from dist_ssl.data.images.unreadable import DAMAGED, TOO_MANY_PARTS, UnreadableError

MOST_PARTS = 1 << 16
"""Segments of a JPEG, chunks of a PNG before its pixels, strips or tiles of a TIFF, and fractions in a tag of one."""
STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""First bytes of a TIFF; with a plus, of one that may have more than 4 GB."""
NOT_OF_PIL = b"MM\0+"
"""First bytes of a TIFF whose tags PIL looks for at another place than where they are."""
IMAGE_WIDTH, IMAGE_LENGTH, BITS, CHANNELS, FORM = 256, 257, 258, 277, 339
LISTS = (273, 279, 324, 325)
"""Tags of a TIFF with a number for every strip or tile: where it is, and how long."""
PLACES = {273: 279, 324: 325}
"""Tags with the places of strips and tiles, and those with their lengths."""
FORMS = {2: " signed", 3: " floating point"}
"""Kinds of numbers that pixels may be, besides whole numbers without a sign."""
BYTES = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""Bytes of a value by the type of its tag; of all others one."""
INTEGERS = {1: "B", 3: "H", 4: "L", 6: "B", 8: "H", 9: "L", 16: "Q", 17: "Q"}
"""Types of tags that hold whole numbers, and how `struct` reads them. A negative number becomes a huge one."""


def pixels_of_tiff(tiff: bytes) -> str:
    """Return what the pixels of a whole TIFF are, `3 channels of 32 bits floating point`.

    Empty where the bytes are no TIFF, or end before its tags or its pixels.
    """
    if not tiff.startswith(STARTS) or not _has_all_tags(tiff):
        return ""
    found = {tag: value for tag, _, _, value in tags_of(tiff)}
    lists = values_of(tiff, LISTS, most=len(tiff))
    parts = [zip_longest(lists.get(place, ()), lists.get(size, ()), fillvalue=0) for place, size in PLACES.items()]
    ends = [place + size for pairs in parts for place, size in pairs]
    if not found.get(IMAGE_WIDTH) or not found.get(IMAGE_LENGTH) or not ends or max(ends) > len(tiff):
        return ""
    channels = found.get(CHANNELS, 1)
    named = f"{channels} channels" if channels != 1 else "1 channel"
    return f"{named} of {found.get(BITS, 1)} bits{FORMS.get(found.get(FORM, 1), '')}"


class TagTable(NamedTuple):
    """Where the tags of a TIFF are: how many there are, the place of the first, and how one is written.

    `order`: `<` or `>`; `entry`: a tag in the words of `struct`; `room`: bytes of its values that fit into it, of more
    values it holds the place.
    """

    tags: int
    start: int
    order: str
    entry: str
    room: int

    def place(self, inside: bytes) -> int:
        """Return the place that stands in a tag instead of its values."""
        return int(struct.unpack(self.order + ("Q" if self.room == 8 else "L"), inside)[0])


def order_of(tiff: bytes) -> tuple[str, bool]:
    """Return the order of the bytes of numbers, `<` or `>`, and whether places have 8 bytes and not 4."""
    return ">" if tiff.startswith(b"MM") else "<", tiff[2:3] == b"+" or tiff.startswith(NOT_OF_PIL)


def _layout(tiff: bytes) -> TagTable | None:
    """Return where the tags are; None where the file ends before. Raises UnreadableError where there are too many."""
    order, big = order_of(tiff)
    head, entry, room = ("Q", "HHQ8s", 8) if big else ("H", "HHL4s", 4)
    try:
        (at,) = struct.unpack_from(order + ("Q" if big else "L"), tiff, 8 if big else 4)
        (count,) = struct.unpack_from(order + head, tiff, at)
    except (struct.error, OverflowError):
        return None  # PIL finds the same damage
    if count > MOST_PARTS:
        raise UnreadableError(TOO_MANY_PARTS, f"{count} tags")
    return TagTable(count, at + struct.calcsize(order + head), order, order + entry, room)


def _entries(tiff: bytes, layout: TagTable) -> Iterator[tuple[int, int, int, bytes]]:
    """Yield the number, type and count of each tag, and the bytes in its entry: its values or their place."""
    size = struct.calcsize(layout.entry)
    whole = tiff[layout.start : layout.start + layout.tags * size]
    yield from struct.iter_unpack(layout.entry, whole[: len(whole) // size * size])


def tags_of(tiff: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Yield the number, type, count and first value of the tags of a TIFF; values that are no whole numbers are 0.

    Raises UnreadableError where there are too many.
    """
    if layout := _layout(tiff):
        for tag, kind, count, inside in _entries(tiff, layout):
            yield tag, kind, count, _first(tiff, layout, kind, count, inside)


def values_of(tiff: bytes, asked: Collection[int], most: int = MOST_PARTS) -> dict[int, list[int]]:
    """Return all values of these tags, as far as the file has them and they are whole numbers.

    Raises UnreadableError where a tag has more than `most`, or the file ends before them.
    """
    found: dict[int, list[int]] = {}
    if layout := _layout(tiff):
        # of a tag that is there several times the last one counts, as in `tags_of`
        rows = {entry[0]: entry[1:] for entry in _entries(tiff, layout) if entry[0] in asked}
        for tag, (kind, count, inside) in rows.items():
            if kind not in INTEGERS or not count:
                continue
            if count > most:
                raise UnreadableError(TOO_MANY_PARTS, f"{count} values of tag {tag}")
            size = count * struct.calcsize(layout.order + INTEGERS[kind])
            at = layout.place(inside) if size > layout.room else 0
            held = inside[:size] if size <= layout.room else tiff[at : at + size]
            if len(held) < size:
                raise UnreadableError(DAMAGED, f"tag {tag} ends behind the file")
            found[tag] = list(struct.unpack(f"{layout.order}{count}{INTEGERS[kind]}", held))
    return found


def _has_all_tags(tiff: bytes) -> bool:
    """Return whether the file ends behind all of its tags and their values."""
    layout = _layout(tiff)
    if layout is None:
        return False
    found = list(_entries(tiff, layout))
    sizes = [(count * BYTES.get(kind, 1), inside) for _, kind, count, inside in found]
    ends = [layout.place(inside) + size for size, inside in sizes if size > layout.room]
    return len(found) == layout.tags and max(ends, default=0) <= len(tiff)


def _first(tiff: bytes, layout: TagTable, kind: int, count: int, inside: bytes) -> int:
    """Return the first value of a tag. `inside`: the bytes in its entry."""
    if kind not in INTEGERS or not count:
        return 0
    own = layout.order + INTEGERS[kind]
    if count * struct.calcsize(own) <= layout.room:
        return int(struct.unpack_from(own, inside)[0])
    at = layout.place(inside)
    held = tiff[at : at + struct.calcsize(own)]
    return int(struct.unpack(own, held)[0]) if len(held) == struct.calcsize(own) else 0
