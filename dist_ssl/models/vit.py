"""Vision transformers as in MoCo v3 (arXiv 2104.02057): [B, C, S, S] in, the class token [B, D] out.

timm's VisionTransformer with fixed instead of learnt position embeddings, the weight initialisation of MoCo v3, and an
untrained random projection of the patches (`frozen_patches`), which keeps long runs with large batches stable. Position
embeddings are computed for the grid of each view, so the side of views may change between steps, and so may the side of
patches and the number of tokens (`patches`). Parameters have timm's names.
"""

import math
from functools import partial

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from dist_ssl.config.bounds import RGB
from dist_ssl.errors import ConfigError
from dist_ssl.models.encoders import at_least_one
from dist_ssl.models.fixed_positions import Patches


def check_sizes(width: int, depth: int, heads: int, patch: int, mlp_ratio: float) -> None:
    """Raise ConfigError where no transformer has these sizes; see `vit`."""
    least = math.lcm(4, heads) if heads > 0 else 0
    if least == 0 or width < 1 or width % least:
        wider = f"It is a multiple of {least}, say {max(1, round(width / max(1, least))) * least}."
        raise ConfigError(
            f"encoder.width={width} is not possible with encoder.heads={heads}.",
            wider if least else "Set encoder.heads=12.",
        )
    at_least_one(depth=depth, patch=patch)
    if not width * mlp_ratio >= 1:
        raise ConfigError(
            f"encoder.mlp_ratio={mlp_ratio:g} is not possible: a block's hidden layer has at least one unit.",
            "Set encoder.mlp_ratio=4, say.",
        )


def vit(
    width: int,
    depth: int,
    heads: int,
    patch: int = 16,
    mlp_ratio: float = 4.0,
    frozen_patches: bool = True,
    in_channels: int = RGB,
) -> nn.Module:
    """Return an untrained transformer with `num_features` and `multiple_of` (see `encoders`).

    `width`: D, a multiple of 4 and of `heads`; `depth`: number of blocks; `patch`: side of a patch, px; `mlp_ratio`:
    ratio of a block's hidden width to its width; `frozen_patches`: never train the projection of the patches;
    `in_channels`: C. Raises ConfigError.
    """
    check_sizes(width, depth, heads, patch, mlp_ratio)
    encoder: nn.Module = VisionTransformer(
        embed_layer=lambda **_: Patches(patch, width, in_channels),
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        mlp_ratio=mlp_ratio,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        pos_embed="none",
        num_classes=0,
        weight_init="skip",
    )
    draw_weights(encoder)
    if frozen_patches:
        encoder.patch_embed.requires_grad_(False)
    encoder.multiple_of = patch  # type: ignore[assignment]
    return encoder


@torch.no_grad()
def draw_weights(encoder: nn.Module) -> None:
    """Draw all weights as MoCo v3 does: queries, keys, values count as three layers, a patch as C * patch^2 inputs."""
    for name, layer in encoder.named_modules():
        if isinstance(layer, nn.Linear):
            fan_out = layer.out_features / 3 if name.endswith(".qkv") else layer.out_features
            _draw(layer, fan_out + layer.in_features)
        elif isinstance(layer, nn.Conv2d):
            _draw(layer, layer.weight[0].numel() + layer.out_channels)
    nn.init.normal_(encoder.cls_token, std=1e-6)  # type: ignore[arg-type]


def _draw(layer: nn.Linear | nn.Conv2d, fans: float) -> None:
    bound = math.sqrt(6 / fans)
    nn.init.uniform_(layer.weight, -bound, bound)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
