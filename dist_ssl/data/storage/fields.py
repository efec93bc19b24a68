"""Checked fields of a data set's JSON files and columns, which may come from a server that is not trusted.

Hashes become names of files in the node cache, names of shards become addresses, and numbers become sizes of reads: so
each is held to its type and range before it is used. Every function raises ValueError that names the field, the value
and the rule; the reader of the file says where it stands.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dist_ssl.config.bounds import MOST_COUNT
from dist_ssl.errors import printable

MOST_SIDE = 1 << 30
"""Largest side of an image, px."""
MOST_IMAGE = (1 << 31) - (1 << 12)
"""Largest encoded image, bytes: Linux returns no more by one read."""
MOST_KEY = 1 << 12
"""Longest key of a sample, bytes: the longest path on Linux."""
MOST_NAME = 200
"""Longest name of a split, bytes: with the endings of its files it is at most the 255 of a file name."""
MOST_BYTES = 1 << 26
"""Largest JSON file that is read: a shard takes some 200 bytes, so that is 335,000 shards, 335 TB in tars of 1 GB."""
MOST_VALUES = 1 << 21
"""Most JSON values in it; a shard has five. A small text of empty objects would take 25 times its size in memory."""
MOST_COLUMN_BYTES = 1 << 35
"""Largest file of columns that is read: a sample takes some 50 bytes, so that is 600 million samples of a split."""
MOST_WHITE = 1e300
"""Largest value that is white; JSON has whole numbers that no float can hold."""
ALPHAS = ("white", "black", "drop")
"""Backgrounds that show through where an image is transparent."""
HEADER_BYTES = 1 << 20
"""No file of columns has more bytes before its columns."""
CHANGED = "It has changed since it was indexed: put the old one back, or make the shards again."
"""Remedy for a shard that is not what its manifest says."""
HASHES = {"sha256": re.compile(r"[0-9a-f]{64}"), "xxh3": re.compile(r"[0-9a-f]{32}")}
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udc7f\udd00-\udfff]")
"""Characters of no file name; the surrogates left out stand for bytes that are not UTF-8."""
Column = npt.NDArray[Any]


def whole(entry: Mapping[str, Any], key: str, least: int = 0, most: int = MOST_COUNT) -> int:
    """Return a whole number from `least` to `most`."""
    value = entry[key]
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{key} is {value!r:.60}, which is no whole number from {least} to {most}")
    return value


def digest(entry: Mapping[str, Any], key: str, kind: str) -> str:
    """Return a hash in lower-case hexadecimal digits; `kind`: `sha256` or `xxh3`."""
    value = entry[key]
    if not isinstance(value, str) or not HASHES[kind].fullmatch(value):
        raise ValueError(f"{key} is {value!r:.60}, which is no {kind}")
    return value


def place(entry: Mapping[str, Any], key: str, *, outside: bool = False) -> str:
    """Return the name of a file relative to the folder of the manifest.

    `outside`: it may begin with `../`, as the names of tars do that are indexed where they are on this machine.
    """
    value = entry[key]
    parts = value.split("/") if isinstance(value, str) else [""]
    while outside and parts[0] == ".." and len(parts) > 1:
        parts = parts[1:]
    if not all(_is_name(part) for part in parts):
        raise ValueError(f"{key} is {value!r:.60}, which is no name of a file within the data set")
    return str(value)


def names(entry: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """Return a list of names, none where there is no such key; characters that act on a terminal are escaped."""
    value = entry.get(key, [])
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ValueError(f"{key} is {value!r:.60}, which is no list of names")
    return tuple(printable(name) for name in value)


def level(entry: object) -> dict[str, Any]:
    """Return how a smaller copy was made. `side` is always there; older versions wrote some of the other keys only."""
    if not isinstance(entry, dict):
        raise ValueError(f"{entry!r:.60} describes no smaller copy")
    whole(entry, "side", 1, MOST_SIDE)
    if "quality" in entry:
        whole(entry, "quality", 1, 100)
    for key in entry.keys() & {"of", "identity"}:
        digest(entry, key, "xxh3")
    white, chroma, alpha = entry.get("range"), entry.get("chroma", ""), entry.get("alpha", "drop")
    if not (white is None or (type(white) in (int, float) and 0 < white <= MOST_WHITE)):
        raise ValueError(f"range is {white!r:.60}, which is no number above 0")
    if not isinstance(chroma, str) or CONTROL.search(chroma):
        raise ValueError(f"chroma is {chroma!r:.60}, which is no text")
    if alpha not in ALPHAS:
        raise ValueError(f"alpha is {alpha!r:.60}, which is none of {', '.join(ALPHAS)}")
    return dict(entry)


def split_name(value: object) -> str:
    """Return the name of a split, with which the names of its files begin."""
    if not isinstance(value, str) or not _is_name(value) or len(value.encode(errors="replace")) > MOST_NAME:
        raise ValueError(f"{value!r:.60} is no name of a split: it has at most {MOST_NAME} bytes and no /")
    return value


def _is_name(text: str) -> bool:
    """Return whether a text names something within a folder, by itself."""
    return text not in ("", ".", "..") and "/" not in text and not CONTROL.search(text)


def most_column_bytes(samples: int) -> int:
    """Return the most bytes that a file of columns may have: six numbers and a key per sample, and its header."""
    return min(MOST_COLUMN_BYTES, HEADER_BYTES + samples * (6 * 8 + MOST_KEY))


def check_columns(columns: Mapping[str, Column], counts: Sequence[int], sizes: Sequence[int]) -> None:
    """Raise ValueError unless the columns describe samples that lie within their shards.

    `counts`, `sizes`: samples and bytes of each shard. The number of samples has been compared with their sum before.
    """
    total = sum(counts)
    for name, values in columns.items():
        if name != "keys" and (values.dtype != np.int64 or values.shape != (total,)):
            raise ValueError(f"column {name} is {values.dtype}{list(values.shape)}, not int64[{total}]")
    keys, ends = columns["keys"], columns["key_ends"]
    if keys.dtype != np.uint8 or keys.ndim != 1:
        raise ValueError(f"column keys is {keys.dtype}{list(keys.shape)}, not uint8[bytes]")
    if (np.diff(ends, prepend=0) < 0).any() or (ends[-1] if total else 0) != len(keys):
        raise ValueError("column key_ends does not cut column keys into the samples' keys")
    for name, least, most in (("labels", -1, MOST_COUNT), ("widths", 0, MOST_SIDE), ("heights", 0, MOST_SIDE)):
        _check_range(columns, name, least, most)
    for name in ("offsets", "sizes"):
        _check_range(columns, name, 0, MOST_COUNT)
    last = np.repeat(np.array(sizes, dtype=np.int64), np.array(counts, dtype=np.int64))
    if (columns["offsets"] + columns["sizes"] > last).any():
        raise ValueError("columns offsets and sizes point behind the end of a shard")
    check_lengths(columns["sizes"], ends)


def check_lengths(sizes: Column, ends: Column) -> None:
    """Raise ValueError where an image or a key is too long. `sizes`: bytes of the images; `ends`: where keys end."""
    for what, values, most in (("an image", sizes, MOST_IMAGE), ("a key", np.diff(ends, prepend=0), MOST_KEY)):
        longest = int(values.max(initial=0))
        if longest > most:
            raise ValueError(f"{what} has {longest} bytes, and at most {most} are read")


def _check_range(columns: Mapping[str, Column], name: str, least: int, most: int) -> None:
    values = columns.get(name)
    if values is not None and len(values) and not (least <= values.min() and values.max() <= most):
        raise ValueError(f"column {name} has values outside {least} to {most}")
