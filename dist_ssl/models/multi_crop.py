"""Views of several sizes through one module, those of one size together in one pass."""

from itertools import groupby

import torch
from torch import Tensor, nn

from dist_ssl.models import norm


def by_size(module: nn.Module, views: list[Tensor]) -> list[Tensor]:
    """What the module makes of every view, [B, D] each, in the order of the views; each with its own statistics.

    `views`: [B, 3, S, S] each; neighbours of one side S share a pass.
    """
    found: list[Tensor] = []
    for _, neighbours in groupby(views, key=lambda view: view.shape[-1]):
        same = list(neighbours)
        norm.set_views(module, len(same))
        found += module(torch.cat(same)).chunk(len(same))
    return found
