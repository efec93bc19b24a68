"""Fast-MoCo (Ci et al. 2022, arXiv 2207.08220): views are split into tiles, encoded, and combined again.

Every view is cut into tiles that the backbone encodes one by one; the pooled features of every subset of tiles are
averaged, projected and predicted, and each of these embeddings has the other view's key as its positive.
"""

from itertools import combinations

import torch
from torch import Tensor

from dist_ssl.losses.contrastive import info_nce


def split(view: Tensor, parts: int = 2) -> Tensor:
    """Cut views into tiles, [B, C, S, S] -> [parts^2 B, C, S/parts, S/parts], tile-major, column by column.

    Raises ValueError where S is no multiple of `parts`.
    """
    if view.shape[2] % parts or view.shape[3] % parts:
        raise ValueError(f"views of {view.shape[3]} x {view.shape[2]} px cannot be split into {parts} x {parts} tiles")
    columns = view.chunk(parts, dim=3)
    return torch.cat([tile for column in columns for tile in column.chunk(parts, dim=2)])


def combine(features: Tensor, tiles: int = 4, size: int = 2) -> Tensor:
    """Return the mean features of every subset of `size` tiles, in lexicographic order: [tiles * B, D] -> [C * B, D].

    C = tiles! / (size! (tiles - size)!); 1 <= size <= tiles.
    """
    subsets = torch.tensor(list(combinations(range(tiles), size)), device=features.device)
    return features.reshape(tiles, -1, features.shape[1])[subsets].mean(1).flatten(0, 1)


def combined_cross_entropy(
    predictions: Tensor, keys: Tensor, first: int, temperature: float = 1.0, valid: Tensor | None = None
) -> Tensor:
    """Return [B] the mean over both views and all combinations of CE against the other view's keys; no factor 2 T.

    `predictions`: [2, C, B, D] of this rank; `keys`: [2, N, D] of the whole job, without gradients; `first` and
    `valid` as in `info_nce`.
    """
    rows = [info_nce(p, k, first, temperature, valid) for p, k in zip(predictions, keys.flip(0), strict=True)]
    return torch.cat(rows).mean(0)
