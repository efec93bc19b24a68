"""IDX files for tests: any array as one, and a folder of few made-up garments in the files of Fashion-MNIST."""

import gzip
from pathlib import Path

import numpy as np


def idx_bytes(values: np.ndarray) -> bytes:
    """The IDX file of an array of unsigned bytes."""
    sides = b"".join(side.to_bytes(4, "big") for side in values.shape)
    return bytes((0, 0, 8, values.ndim)) + sides + values.tobytes()


def garments(count: int, seed: int) -> np.ndarray:
    """Grey boxes of random sides with a dark stripe, on black: [count, 28, 28]."""
    rng = np.random.default_rng(seed)
    pictures = np.zeros((count, 28, 28), np.uint8)
    for picture in pictures:
        top, left = rng.integers(1, 9, 2)
        bottom, right = rng.integers(19, 28, 2)
        picture[top:bottom, left:right] = rng.integers(100, 256, (bottom - top, right - left))
        picture[(top + bottom) // 2, left + 2 : right - 2] = 0
    return pictures


def wardrobe(folder: Path, train: int = 40, val: int = 20) -> Path:
    """Write the four files, those of training compressed: labels of training are 0 to 4, of testing 5 to 9."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, count, first in (("train", train, 0), ("t10k", val, 5)):
        arrays = {"images-idx3": garments(count, first), "labels-idx1": first + np.arange(count, dtype=np.uint8) % 5}
        for kind, values in arrays.items():
            path = folder / f"{name}-{kind}-ubyte"
            if name == "train":
                path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(idx_bytes(values), 1))
            else:
                path.write_bytes(idx_bytes(values))
    return folder
