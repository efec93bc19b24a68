"""Reader of IDX files (MNIST's format) of unsigned bytes, compressed by gzip or not; damage is one clear message.

A file is: two zero bytes, the type (8: unsigned byte), the number of dimensions, the dimensions as big-endian 32-bit
numbers, and the values.
"""

import gzip
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dist_ssl.errors import DataError

GZIP = b"\x1f\x8b"
UNSIGNED_BYTES = 8


def find(folder: Path, name: str, remedy: str) -> Path:
    """Return the path of NAME or NAME.gz in a folder. Raises DataError with `remedy` if there is neither."""
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise DataError(f"{folder} has no {name}, with or without .gz.", remedy)


def read(path: Path, dimensions: int, remedy: str) -> NDArray[np.uint8]:
    """Return the values of a file with that many dimensions. Raises DataError with `remedy` if it is damaged."""
    try:
        data = path.read_bytes()
        if data.startswith(GZIP):
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}.", remedy) from error
    magic = bytes((0, 0, UNSIGNED_BYTES, dimensions))
    if data[:4] != magic:
        raise DataError(f"{path} begins with {data[:4].hex()}, not {magic.hex()}: it is another kind of file.", remedy)
    begin = 4 + 4 * dimensions
    header = data[4:begin].ljust(4 * dimensions, b"\0")
    shape = [int.from_bytes(header[at : at + 4], "big") for at in range(0, 4 * dimensions, 4)]
    values = np.frombuffer(data, np.uint8)[begin:]
    expected = int(np.prod(shape, dtype=object))
    if len(data) < begin or len(values) != expected:
        size = " x ".join(map(str, shape))
        raise DataError(f"{path} is damaged: it has {len(values)} values, and its header says {size}.", remedy)
    return values.reshape(shape)
