"""Projection and prediction heads: small stacks of linear layers over pooled features, [B, D_in] -> [B, D_out]."""

from itertools import pairwise

from torch import nn


def mlp(widths: list[int], *, last_norm: bool) -> nn.Sequential:
    """Linear layers without bias between the widths, batch norm and ReLU between them (MoCo v3).

    `last_norm` ends the stack with an affine-less batch norm.
    """
    layers: list[nn.Module] = []
    last = len(widths) - 2
    for number, (fan_in, fan_out) in enumerate(pairwise(widths)):
        layers.append(nn.Linear(fan_in, fan_out, bias=False))
        if number < last:
            layers += [nn.BatchNorm1d(fan_out), nn.ReLU(inplace=True)]
        elif last_norm:
            layers.append(nn.BatchNorm1d(fan_out, affine=False))
    return nn.Sequential(*layers)
