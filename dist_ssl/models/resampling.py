"""Timm's transformers for views and patches of any side: learnt positions are resized by a matrix product.

timm resizes the grid of positions by antialiased bicubic interpolation, whose backward pass on GPUs torch refuses
while only deterministic algorithms are allowed. Interpolation is linear in what it resizes, so it is a matrix
[rows * columns, old rows * old columns] that depends on the sizes alone:

    matrix = interpolate(identity)          # once per size
    resized = matrix @ positions            # the same numbers, and the gradient is matrix.T @ gradient

Patches have any side, and may be dropped, as `patches` does it.
"""

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from dist_ssl.models.patches import Grid, Projection


@lru_cache(maxsize=32)
def resampling(old: Grid, new: Grid, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the matrix, [new patches, old patches], that resizes a grid as antialiased bicubic interpolation does.

    It is computed in double precision on the host, and kept for every size that was asked for.
    """
    with torch.inference_mode(False), torch.no_grad():  # what is kept must serve training too
        count = old[0] * old[1]
        identity = torch.eye(count, dtype=torch.float64, device="cpu").view(count, 1, *old)
        resized = F.interpolate(identity, size=new, mode="bicubic", antialias=True)
        return resized.flatten(1).T.contiguous().to(device, dtype)


def resized(positions: Tensor, old: Grid, new: Grid) -> Tensor:
    """Return resized positions, [1, old patches, D] -> [1, new patches, D], in their own precision."""
    if old == new:
        return positions
    with torch.autocast(positions.device.type, enabled=False):  # as interpolation, which is never cast down
        return resampling(old, new, positions.dtype, positions.device) @ positions


class ChosenPatches(PatchEmbed):  # type: ignore[misc]
    """timm's patches, of any side and all or some of them: [B, 3, S, S] -> [B, K, D]."""

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x))  # type: ignore[no-any-return]


class ResizedPositions(VisionTransformer):  # type: ignore[misc]
    """timm's transformer, which resizes its positions by a matrix product."""

    def _pos_embed(self, x: Tensor) -> Tensor:
        """Return patches, [B, K, D], with positions, and class and register tokens in front, [B, tokens, D]."""
        count = 0 if self.no_embed_class else self.num_prefix_tokens
        prefix, learnt = self.pos_embed[:, :count], self.pos_embed[:, count:]
        layout = self.patch_embed.proj.latest
        learnt = resized(learnt, self.patch_embed.grid_size, layout.grid)
        size = x.shape[0]  # and not len(x), which torch.export takes as a constant
        if layout.kept is not None:
            learnt, prefix = layout.of(learnt[0]), prefix.expand(size, -1, -1)
        positions = torch.cat([prefix, learnt], dim=1)
        tokens = [token.expand(size, -1, -1) for token in (self.cls_token, self.reg_token) if token is not None]
        if self.no_embed_class:
            return self.pos_drop(torch.cat([*tokens, x + positions], dim=1))  # type: ignore[no-any-return]
        return self.pos_drop(torch.cat([*tokens, x], dim=1) + positions)  # type: ignore[no-any-return]


def resize_by_products(encoder: nn.Module) -> None:
    """Let one of timm's transformers resize positions and patches by matrix products; others stay as they are."""
    plain = type(encoder) is VisionTransformer and type(encoder.patch_embed) is PatchEmbed
    if plain and encoder.dynamic_img_size and encoder.pos_embed is not None:
        encoder.__class__ = ResizedPositions  # timm's factories name the classes themselves
        patches: Any = encoder.patch_embed
        patches.__class__, patches.proj.__class__ = ChosenPatches, Projection
