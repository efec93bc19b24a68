"""JPEGs as large as ImageNet's, drawn by us, in shards: a few hundred pictures, each of them many samples."""

import io
import tarfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from dist_ssl.data.storage import manifest
from dist_ssl.data.storage.samples import columns
from dist_ssl.runtime.own_cores import own_cores

WIDTH, HEIGHT = 500, 375
GRAIN, QUALITY = 12.0, 88
"""At which pictures take about 4 bits per pixel."""


def noise(seed: int, grain: float) -> Image.Image:
    """A picture of 500 x 375 px: noise at scales from clouds to grain, as photographs have.

    `grain`: standard deviation of what is no larger than a pixel.
    """
    rng = np.random.default_rng(seed)
    total = grain * rng.standard_normal((HEIGHT, WIDTH, 3), dtype=np.float32)
    for cells, weight in ((4, 60), (16, 40), (64, 25), (256, 14)):
        coarse = rng.standard_normal((3, max(2, 3 * cells // 4), cells), dtype=np.float32)
        planes = [Image.fromarray(plane).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC) for plane in coarse]
        total += weight * np.stack([np.asarray(plane) for plane in planes], -1)
    return Image.fromarray((128 + 0.7 * total).clip(0, 255).astype(np.uint8))


def jpeg(image: Image.Image, quality: int) -> bytes:
    """The picture as a JPEG file."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def drawn_jpeg(seed: int) -> bytes:
    """A picture as a JPEG of about 4 bits per pixel."""
    return jpeg(noise(seed, GRAIN), QUALITY)


def drawn(count: int) -> list[bytes]:
    """So many pictures, by all cores."""
    with ThreadPoolExecutor(own_cores()) as pool:
        return list(pool.map(drawn_jpeg, range(count)))


def write_shards(folder: Path, pictures: Sequence[bytes], shards: int) -> int:
    """One tar of the pictures that goes by so many names, and a manifest of them all; how many samples that is."""
    folder.mkdir(parents=True)
    first = folder / "train-000000.tar"
    with tarfile.open(first, "w") as archive:
        for number, data in enumerate(pictures):
            member = tarfile.TarInfo(f"{number:08d}.jpg")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    for number in range(1, shards):
        (folder / f"train-{number:06d}.tar").hardlink_to(first)
    with tarfile.open(first) as archive:
        places = [(member.offset_data, member.size) for member in archive]
    rows = [(f"{shard}/{at}", *place, 0) for shard in range(shards) for at, place in enumerate(places)]
    found = [manifest.Shard(f"train-{n:06d}.tar", len(places), first.stat().st_size, "0" * 64) for n in range(shards)]
    manifest.write(folder, {"train": (found, columns(rows))})
    return len(rows)
