"""Formats of image files that are read, and how their first bytes tell them."""

import contextlib
import ctypes
import warnings

from PIL import Image, _imaging

Image.init()
# PIL has a line for every tag that it passes over, and libtiff one for every line of a fax that it cannot read: a file
# of 2 kB would write 61 MB into the log of a rank. Where libtiff is built in, it cannot be asked to be silent.
warnings.filterwarnings("ignore", module=r"PIL\.")
with contextlib.suppress(AttributeError, OSError):
    ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(ctypes.c_void_p())
EXTENSIONS = {
    "JPEG": "jpg",
    "PNG": "png",
    "WEBP": "webp",
    "GIF": "gif",
    "TIFF": "tif",
    "BMP": "bmp",
    "PPM": "ppm",
    "JPEG2000": "jp2",
    "AVIF": "avif",
}
"""Usual extensions of files by PIL's name of their format."""
FORMATS = tuple(name for name in EXTENSIONS if name in Image.OPEN)
"""Formats that PIL may try; its other formats are rare, and some run external programs."""
ARRAY, ARRAYS = b"\x93NUMPY", "npy"
"""First bytes of a file of numpy, and its extension."""
TWO_BYTES = (EXTENSIONS["BMP"], EXTENSIONS["PPM"])
"""Formats that are known by their first two bytes."""


def looks_like_image(data: bytes) -> bool:
    """Return whether the first bytes are those of an image in one of the formats that are read."""
    return bool(kind_of(data))


def surely_image(data: bytes) -> bool:
    """Return whether the first bytes are those of an image, and more than two bytes with which a text may begin."""
    return kind_of(data) not in ("", *TWO_BYTES)


def kind_of(data: bytes) -> str:
    """Return the usual extension of an image file by its first bytes; empty if they are of no format that is read."""
    if data.startswith(ARRAY):
        return ARRAYS
    accepts = ((name, Image.OPEN[name][1]) for name in FORMATS)
    return next((EXTENSIONS[name] for name, accept in accepts if accept and accept(data[:16])), "")
