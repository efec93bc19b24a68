"""Folders of small pictures for tests, and what a data set made of them holds."""

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from dist_ssl.data import manifest
from dist_ssl.data.read import Reader

FORMATS = {"jpg": "JPEG", "jpeg": "JPEG", "tif": "TIFF"}


def picture(number: int, kind: str = "jpg", side: int = 12) -> bytes:
    """An image file of noise that is another one for every number."""
    pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, FORMATS.get(kind.lower(), kind.upper()))
    return file.getvalue()


def folder_of(root: Path, *names: str) -> dict[str, bytes]:
    """Write pictures under these names; their bytes."""
    files = {name: picture(n, name.rpartition(".")[2]) for n, name in enumerate(names)}
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return files


def held(folder: Path, split: str = "train") -> dict[str, tuple[bytes, int]]:
    """Image and label of every key of a split."""
    found = manifest.read(folder).split(split)
    with Reader(found) as reader:
        return {found.samples.key(n): (reader.read(n), int(found.samples.labels[n])) for n in range(len(found.samples))}


def files_in(folder: Path) -> Mapping[str, bytes]:
    """Every file below a folder and its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
