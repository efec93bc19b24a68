"""Fixed positions of patches, as in MoCo v3 (arXiv 2104.02057): sines and cosines for the grid of each view.

They need nothing of timm, which takes seconds to import: who asks whether an encoder has them does without it.
"""

from functools import lru_cache

import torch
from torch import Tensor, nn

from dist_ssl.config.bounds import RGB
from dist_ssl.models.patches import Projection

TEMPERATURE = 1e4
"""Limit of the ratio of the longest to the shortest wavelength of the position embeddings."""


@lru_cache(maxsize=32)
def positions(
    rows: int, columns: int, width: int, dtype: torch.dtype, device: torch.device, scale: float = 1.0
) -> Tensor:
    """Return fixed position embeddings, [rows * columns, width], row by row; `width` is a multiple of 4.

    A patch in column w and row h has sin(f w), cos(f w), sin(f h), cos(f h) for width / 4 frequencies f from 1 down
    towards 1 / TEMPERATURE. `scale`: side of a patch in sides of the encoder's own, in whose grid w and h are those of
    the patch's centre. The result is cached for every grid.
    """
    with torch.inference_mode(False):  # the cached tensor is used in training too
        f = TEMPERATURE ** -(torch.arange(width // 4, dtype=torch.float64, device=device) / (width // 4))
        down, along = (
            (torch.arange(count, dtype=torch.float64, device=device) + 0.5) * scale - 0.5 for count in (rows, columns)
        )
        h, w = down.repeat_interleave(columns)[:, None] * f, along.repeat(rows)[:, None] * f
        found: Tensor = torch.cat([w.sin(), w.cos(), h.sin(), h.cos()], dim=1).to(dtype)
        return found


def stored_positions(side: int, width: int) -> Tensor:
    """Return fixed positions as other libraries store them, [1, 1 + side^2, width] fp32, zeros for the class token."""
    own = positions(side, side, width, torch.float32, torch.device("cpu"))
    return torch.cat([torch.zeros(1, width), own])[None].contiguous()


class Patches(nn.Module):
    """Projections of square patches plus position embeddings: [B, C, S, S] -> [B, (S / patch)^2, width].

    With token dropout there are fewer. Raises ConfigError where the side S is no multiple of the patch's.
    """

    def __init__(self, patch: int, width: int, in_channels: int = RGB) -> None:
        super().__init__()
        self.proj = Projection(in_channels, width, patch, patch)
        self.width = width
        self.num_patches = 0  # timm would size learnt position embeddings by it

    def forward(self, x: Tensor) -> Tensor:
        tokens: Tensor = self.proj(x)
        layout = self.proj.latest
        scale = layout.side / self.proj.multiple_of
        return tokens + layout.of(positions(*layout.grid, self.width, tokens.dtype, tokens.device, scale))
