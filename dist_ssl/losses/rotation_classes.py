"""Rotation prediction (Gidaris et al. 2018) as an auxiliary task after Addepalli et al. 2022 (arXiv 2210.09866)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from dist_ssl.losses.job import full_precision

TURNS = 4
"""Number of classes: quarter turns counter-clockwise, 0 to 3."""


def rotate(images: Tensor, turns: Tensor) -> Tensor:
    """Rotate images [B, C, S, S] counter-clockwise by `turns` [B] each, 0 to 3. Raises ValueError if not square."""
    if images.shape[2] != images.shape[3]:
        raise ValueError(f"images of {images.shape[3]} x {images.shape[2]} px cannot be turned: they are not square")
    turned = images
    for turn in range(1, TURNS):
        turned = torch.where((turns == turn)[:, None, None, None], images.rot90(turn, (2, 3)), turned)
    return turned


def rotation_cross_entropy(logits: Tensor, turns: Tensor) -> Tensor:
    """Return the cross-entropy [B] of logits [B, 4] with the true turns [B], in float32 or better; ln 4 by chance."""
    return F.cross_entropy(full_precision(logits), turns, reduction="none")
