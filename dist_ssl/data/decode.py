"""From the bytes of an image to uint8 pixels at the size that is asked for.

A sample that cannot be decoded is a fact about the sample, named by a reason; its place in the batch stays.
"""

import io

import numpy as np
import numpy.typing as npt
from PIL import Image

Box = tuple[float, float, float, float]


class UnreadableError(Exception):
    """This sample's bytes are not an image. `reason`: why, in a few words that are the same for all such samples."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


def open_image(data: bytes, largest_view: int) -> tuple[Image.Image, int, int]:
    """An RGB image and the size of the original; decoded at a libjpeg scale that still leaves `largest_view` px.

    Raises UnreadableError where the bytes are not an image.
    """
    if not data:
        raise UnreadableError("empty")
    try:
        image = Image.open(io.BytesIO(data))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UnreadableError("not an image", f"{type(error).__name__}: {error}") from error
    try:
        width, height = image.size
        image.draft("RGB", (largest_view, largest_view))
        return image.convert("RGB"), width, height
    except (OSError, ValueError, SyntaxError) as error:
        raise UnreadableError("damaged image", f"{type(error).__name__}: {error}") from error


def resize(image: Image.Image, box: Box, size: int) -> npt.NDArray[np.uint8]:
    """A box of an image at size x size, [size, size, 3] uint8."""
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box))
