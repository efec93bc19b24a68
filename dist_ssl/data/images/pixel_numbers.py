"""The numbers of pixels on a device: which is white, and whether compiled loops take them."""

import torch
from torch import Tensor

from dist_ssl.config.bounds import RGB


def white(pixels: Tensor) -> int:
    """Return the number that is white in these pixels, of uint8 or uint16."""
    return torch.iinfo(pixels.dtype).max


def loopable(pixels: Tensor) -> bool:
    """Return whether compiled loops and kernels take these pixels [B, S, S, C]: RGB of 8 bits."""
    return pixels.shape[-1] == RGB and pixels.dtype == torch.uint8
