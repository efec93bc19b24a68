"""Tools that every drawn data set shares: keyed random generators, random colours, and the JPEG file of an image."""

import hashlib
import io
import math

import numpy as np
from PIL import Image

Random = np.random.Generator
Colour = tuple[int, int, int]
TURN = math.tau


def stream(seed: int, split: str, index: int) -> Random:
    """Return the random generator of one image, keyed by the three arguments alone."""
    digest = hashlib.blake2b(f"{seed}/{split}/{index}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def colour(rng: Random, light: float) -> Colour:
    """Return an RGB colour of any hue with luma near light (0..1)."""
    hue, tint = rng.uniform(0, TURN), rng.uniform(0, 0.25)
    red, green, blue = math.cos(hue), math.cos(hue - TURN / 3), math.cos(hue + TURN / 3)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    red, green, blue = (min(max(int(255 * (light + tint * (v - luma))), 0), 255) for v in (red, green, blue))
    return red, green, blue


def jpeg(image: Image.Image) -> bytes:
    """Return the image as a JPEG file of quality 90."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()
