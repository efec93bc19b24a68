"""Forward passes of one module over views of several sizes: views of one size share a pass."""

from itertools import groupby

import torch
from torch import Tensor, nn

from dist_ssl.models import norm


def by_size(module: nn.Module, views: list[Tensor]) -> list[Tensor]:
    """Return the output of every view, [B, D] each, in the order of the views, with separate statistics per view.

    `views`: [B, 3, S, S] each; consecutive views with the same side S share a pass.
    """
    found: list[Tensor] = []
    for _, neighbours in groupby(views, key=lambda view: view.shape[-1]):
        same = list(neighbours)
        norm.set_views(module, len(same))
        found += module(torch.cat(same)).chunk(len(same))
    return found
