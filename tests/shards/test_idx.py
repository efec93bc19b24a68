"""IDX files are read whole, compressed or not; what is damaged or another file is one message with a remedy."""

import gzip
import os
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from dist_ssl.errors import DataError
from shards import idx
from tests.shards.wardrobe import idx_bytes

VALUES = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
WHOLE = idx_bytes(VALUES)
REMEDY = "Fetch it again."


PACKED = gzip.compress(WHOLE, mtime=0)
"""Without the time: it would be in the names of tests, and two processes would collect different ones."""


@pytest.mark.parametrize("data", [WHOLE, PACKED], ids=["plain", "gzip"])
@pytest.mark.parametrize("name", ["a", "a.gz"])
def test_values_come_back_whatever_the_name_says(data: bytes, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    values = idx.read(idx.find(tmp_path, "a", REMEDY), 3, REMEDY)
    assert values.dtype == np.uint8
    assert np.array_equal(values, VALUES)


def test_a_file_may_be_empty_of_items(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(idx_bytes(VALUES[:0]))
    assert idx.read(tmp_path / "a", 3, REMEDY).shape == (0, 3, 4)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "begins with , not 00000803: it is another kind of file."),
        (idx_bytes(VALUES[0]), "begins with 00000802, not 00000803: it is another kind of file."),
        (b"\0\0\x0d\3" + WHOLE[4:], "begins with 00000d03, not 00000803"),
        (b"\x89PNG" + WHOLE, "begins with 89504e47, not 00000803"),
        (WHOLE[:9], "is damaged: it ends within its header."),
        (WHOLE[:-1], "is damaged: it has 23 values, and its header says 2 x 3 x 4."),
        (WHOLE + b"\0", "is damaged: it has 25 values, and its header says 2 x 3 x 4."),
        (WHOLE[:4] + b"\xff" * 12 + WHOLE[16:], "says 4294967295 x 4294967295 x 4294967295."),
        (gzip.compress(WHOLE[:-1], mtime=0), "is damaged: it has 23 values"),
        (PACKED[:-9], "cannot be read: Compressed file ended"),
        (PACKED[:-8] + bytes(8), "cannot be read: CRC check failed"),
        (PACKED[:10] + b"\x07" * 9, "cannot be read: Error -3 while decompressing"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_damaged_file_is_one_message(data: bytes, problem: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(DataError, match=re.escape(problem)) as raised:
        idx.read(tmp_path / "a", 3, REMEDY)
    assert str(tmp_path / "a") in raised.value.problem
    assert raised.value.remedy == REMEDY


@pytest.mark.parametrize("begin", [WHOLE[:4] + bytes((0, 8, 0, 0, 0, 0, 0, 32, 0, 0, 0, 32)), b""], ids=["one", "none"])
def test_a_file_that_decompresses_to_very_much_is_not_kept_in_memory(tmp_path: Path, begin: bytes) -> None:
    """512 MB in less than one, of which a header says that they are values."""
    (tmp_path / "a").write_bytes(gzip.compress(begin) + gzip.compress(bytes(1 << 24)) * 32)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=r"more than 268435456 values|begins with 00000000"):
            idx.read(tmp_path / "a", 3, REMEDY)
        assert tracemalloc.get_traced_memory()[1] < 1 << 29
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["a pipe", "a link to a device"])
def test_what_has_no_end_is_refused(tmp_path: Path, kind: str) -> None:
    os.mkfifo(tmp_path / "a") if kind == "a pipe" else (tmp_path / "a").symlink_to("/dev/zero")
    with pytest.raises(DataError, match=r"cannot be read: .*no regular file"):
        idx.read(tmp_path / "a", 3, REMEDY)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no a, with or without") as raised:
        idx.find(tmp_path, "a", REMEDY)
    assert raised.value.remedy == REMEDY
