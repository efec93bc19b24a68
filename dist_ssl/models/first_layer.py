"""Weights of a first layer for RGB, made to fit images of other channels."""

import torch
from torch import Tensor

from dist_ssl.config.bounds import RGB


def for_channels(weight: Tensor, channels: int) -> Tensor:
    """Return the weights of a first layer for RGB, [D, 3, ...], for images of other channels, [D, channels, ...].

    One channel gets the sum of the three: a grey picture gives what it gives as RGB. More than one get those of red,
    green and blue in turn, times 3 / channels, so that what a layer sums up stays as large.
    """
    if channels == 1:
        return weight.sum(1, keepdim=True)
    return weight[:, torch.arange(channels) % RGB] * (RGB / channels)
