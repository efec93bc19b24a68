"""Projection and prediction heads: small stacks of linear layers over pooled features, [B, D_in] -> [B, D_out]."""

from itertools import pairwise

from torch import nn


def mlp(
    widths: list[int], *, last_norm: bool, bias: bool = False, hidden_norm: bool = True, affine: bool = False
) -> nn.Sequential:
    """Return linear layers of these widths, with batch norm (if `hidden_norm`) and ReLU between them.

    `last_norm` ends the stack in a batch norm, with scale and shift if `affine`; `bias`: linear layers have biases.
    """
    layers: list[nn.Module] = []
    last = len(widths) - 2
    for number, (fan_in, fan_out) in enumerate(pairwise(widths)):
        layers.append(nn.Linear(fan_in, fan_out, bias=bias))
        if number < last:
            layers += [nn.BatchNorm1d(fan_out)] if hidden_norm else []
            layers.append(nn.ReLU(inplace=True))
        elif last_norm:
            layers.append(nn.BatchNorm1d(fan_out, affine=affine))
    return nn.Sequential(*layers)
