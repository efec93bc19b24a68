"""`data.max_pixels` as a bound of memory and time: images that take more of it a pixel may have fewer pixels.

Most images take 3 to 9.5 bytes a pixel: what a decoder made, and the pixels that are made of it. Others are counted as
several, so that none takes more than about 10 bytes for each of `max_pixels`: 1 GB of 100 million.
"""

from PIL import Image

from dist_ssl.config.bounds import RGB
from dist_ssl.data.images.deep_rows import has_two_bytes
from dist_ssl.data.images.image_rules import ImageRules
from dist_ssl.data.images.unreadable import TOO_LARGE, UnreadableError

DEMANDING = {"WEBP": 2, "AVIF": 2, "JPEG2000": 3}
"""As how many pixels one of a format counts, whose decoder takes up to 18, 13 and 25 bytes for it."""
INKS = 2
"""The same for a JPEG of four inks, whose coefficients alone take 8 bytes a pixel if it is progressive."""
RUNS = 25
"""The same for a BMP of runs, which PIL decodes in Python: each may be as short as a pixel and takes a microsecond."""
DEEP = 2
"""The same for colours of 16 bits that are read as such: they are decoded twice."""


def check_size(width: int, height: int, rules: ImageRules, times: int = 1) -> None:
    """Raise UnreadableError where an image is too large. `times`: as how many pixels each of it counts.

    It counts as one more where 16 bits of each number are kept.
    """
    times += rules.bits == 16
    if times * width * height > rules.max_pixels:
        counted = {1: "", 2: ", each counted twice"}.get(times, f", each counted {times} times")
        raise UnreadableError(TOO_LARGE, f"{width} x {height}{counted}")


def times_of(image: Image.Image, rules: ImageRules) -> int:
    """Return as how many pixels each of an image counts that has been opened, but not loaded."""
    deep = (rules.bits == 16 or rules.range is not None) and has_two_bytes(image)
    if deep and len(image.getbands()) >= RGB:
        return DEEP
    if any(tile.codec_name == "bmp_rle" for tile in getattr(image, "tile", [])):
        return RUNS
    if image.mode == "CMYK" and image.format in ("JPEG", "MPO"):
        return INKS
    return DEMANDING.get(str(image.format), 1)
