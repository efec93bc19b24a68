"""Folders of small pictures for tests, and what a data set made of them holds."""

import io
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from dist_ssl.data.storage import manifest
from dist_ssl.data.storage.read import Reader

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


@contextmanager
def forbidden(folder: Path) -> Iterator[None]:
    """A folder that this process may not look into, whoever it is."""
    folder.chmod(0)
    own = os.geteuid()
    if own == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(own)
        folder.chmod(0o755)


def files_in(folder: Path) -> Mapping[str, bytes]:
    """Every file below a folder and its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def odd_pictures(root: Path) -> dict[str, bytes]:
    """Write a folder of 40 pictures in two classes, most of 90 x 70 px, some of unusual kinds or damaged."""
    y, x = np.mgrid[0:70, 0:90]
    smooth = Image.fromarray(
        np.stack([128 + 90 * np.sin(x / p) * np.cos(y / 9) for p in (5, 7, 11)], -1).astype(np.uint8)
    )
    turned, files = Image.Exif(), {}
    turned[0x0112] = 6
    made = {
        "turned.jpg": (smooth, {"exif": turned}),
        "gray.jpg": (smooth.convert("L"), {}),
        "cmyk.jpg": (smooth.convert("CMYK"), {}),
        "alpha.png": (smooth.convert("RGBA"), {}),
        "deep.png": (Image.fromarray(np.asarray(smooth.convert("L")).astype(np.uint16) * 257), {}),
        "wide.jpg": (smooth.resize((300, 60)), {}),
        "flat.jpg": (Image.new("RGB", (90, 70), (9, 9, 9)), {"optimize": True, "quality": 5}),
        "tiny.webp": (smooth.resize((20, 13)), {}),
    }
    made |= {f"{n}.jpg": (smooth.rotate(9 * n), {"quality": 95}) for n in range(29)}
    for name, (image, options) in made.items():
        file = io.BytesIO()
        image.save(file, FORMATS.get(name.rpartition(".")[2], name.rpartition(".")[2].upper()), **options)
        files[name] = file.getvalue()
    files |= {"text.jpg": b"no image", "empty.jpg": b"", "cut.jpg": files["0.jpg"][:800]}
    for number, (name, data) in enumerate(files.items()):
        path = root / "ab"[number % 2] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return files
