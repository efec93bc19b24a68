"""Reader of IDX files (MNIST's format) of unsigned bytes, compressed by gzip or not; damage is one clear message.

A file is: two zero bytes, the type (8: unsigned byte), the number of dimensions, the dimensions as big-endian 32-bit
numbers, and the values.
"""

import gzip
import os
import zlib
from io import BufferedReader
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dist_ssl.errors import DataError
from dist_ssl.runtime.strange_files import open_regular

GZIP = b"\x1f\x8b"
UNSIGNED_BYTES = 8
ANY_FILE = 1 << 28
"""Values that a file of any size may hold when it is decompressed; Fashion-MNIST has 47 million."""
MOST_EXPANDED = 100
"""Values for a byte of a larger file, at most: gzip makes a thousand zeros of one."""


def find(folder: Path, name: str, remedy: str) -> Path:
    """Return the path of NAME or NAME.gz in a folder. Raises DataError with `remedy` if there is neither."""
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise DataError(f"{folder} has no {name}, with or without .gz.", remedy)


def read(path: Path, dimensions: int, remedy: str) -> NDArray[np.uint8]:
    """Return the values of a file with that many dimensions. Raises DataError with `remedy` if it is damaged."""
    try:
        with BufferedReader(open_regular(path)) as file:
            most = max(ANY_FILE, MOST_EXPANDED * os.fstat(file.fileno()).st_size)
            source = gzip.GzipFile(fileobj=file) if file.peek(2)[:2] == GZIP else file
            shape = _shape(source.read(4 + 4 * dimensions), path, dimensions, remedy)
            expected = int(np.prod(shape, dtype=object))
            values = np.frombuffer(source.read(min(expected, most) + 1), np.uint8)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}.", remedy) from error
    if len(values) != expected:
        size, there = " x ".join(map(str, shape)), f"more than {most}" if len(values) > most else len(values)
        raise DataError(f"{path} is damaged: it has {there} values, and its header says {size}.", remedy)
    return values.reshape(shape)


def _shape(header: bytes, path: Path, dimensions: int, remedy: str) -> list[int]:
    magic = bytes((0, 0, UNSIGNED_BYTES, dimensions))
    if header[:4] != magic:
        said = f"{path} begins with {header[:4].hex()}, not {magic.hex()}: it is another kind of file."
        raise DataError(said, remedy)
    if len(header) < 4 + 4 * dimensions:
        raise DataError(f"{path} is damaged: it ends within its header.", remedy)
    return [int.from_bytes(header[at : at + 4], "big") for at in range(4, len(header), 4)]
