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

LARGEST = 1 << 60
"""No file has as many bytes, and sums of two of them fit into 64 bits."""
MOST_SIDE = 1 << 30
"""Largest side of an image, px."""
HASHES = {"sha256": re.compile(r"[0-9a-f]{64}"), "xxh3": re.compile(r"[0-9a-f]{32}")}
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
Column = npt.NDArray[Any]


def whole(entry: Mapping[str, Any], key: str, least: int = 0, most: int = LARGEST) -> int:
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

    `outside`: it may begin with `../`, as the names of tars do that are indexed where they are.
    """
    value = entry[key]
    parts = value.split("/") if isinstance(value, str) else [""]
    while outside and parts[0] == ".." and len(parts) > 1:
        parts = parts[1:]
    if CONTROL.search("".join(parts)) or any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"{key} is {value!r:.60}, which is no name of a file within the data set")
    return str(value)


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
    for name, least, most in (("labels", -1, LARGEST), ("widths", 0, MOST_SIDE), ("heights", 0, MOST_SIDE)):
        _check_range(columns, name, least, most)
    for name in ("offsets", "sizes"):
        _check_range(columns, name, 0, LARGEST)
    last = np.repeat(np.array(sizes, dtype=np.int64), np.array(counts, dtype=np.int64))
    if (columns["offsets"] + columns["sizes"] > last).any():
        raise ValueError("columns offsets and sizes point behind the end of a shard")


def _check_range(columns: Mapping[str, Column], name: str, least: int, most: int) -> None:
    values = columns.get(name)
    if values is not None and len(values) and not (least <= values.min() and values.max() <= most):
        raise ValueError(f"column {name} has values outside {least} to {most}")
