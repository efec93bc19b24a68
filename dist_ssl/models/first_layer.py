"""Encoders whose first layer has as many channels as the images, and weights for RGB made to fit other channels."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dist_ssl.config.bounds import RGB
from dist_ssl.config.instantiate import accepted_by, instantiate, resolve
from dist_ssl.errors import ConfigError

IN_CHANNELS = "in_channels"
"""Argument of an encoder that takes images of any number of channels."""
GIVEN = (IN_CHANNELS, "in_chans")
"""Keys of a config that may say the number of channels, ours and timm's, where it is that of the images."""


def make_encoder(node: Mapping[str, Any], channels: int) -> nn.Module:
    """Return the untrained encoder of a config node, for images with `channels` channels. Raises ConfigError."""
    given = {IN_CHANNELS: channels}
    own = accepted_by(resolve(node.get("_target_"), "encoder._target_"), given)
    if own or IN_CHANNELS in node:
        node = without_channels(node, channels)
    if channels != RGB and not own:
        name = str(node["_target_"]).rpartition(".")[2]
        raise ConfigError(
            f"The encoder {name} takes images of {RGB} channels; those of the data set have {channels}.",
            f"Give it an argument {IN_CHANNELS}, or choose another: encoder=resnet18, say.",
        )
    found: nn.Module = instantiate(node, "encoder", offered=given)
    return found


def without_channels(node: Mapping[str, Any], channels: int) -> dict[str, Any]:
    """Return a config node without its number of channels. Raises ConfigError where that is not the images' own."""
    for key in GIVEN:
        if key in node and node[key] != channels:
            raise ConfigError(
                f"encoder.{key}={node[key]} is not possible: images have the channels of the data set, {channels}.",
                "Leave it out.",
            )
    return {key: value for key, value in node.items() if key not in GIVEN}


def for_channels(weight: Tensor, channels: int) -> Tensor:
    """Return the weights of a first layer for RGB, [D, 3, ...], for images of other channels, [D, channels, ...].

    One channel gets the sum of the three: a grey picture gives what it gives as RGB. More than one get those of red,
    green and blue in turn, times 3 / channels, so that what a layer sums up stays as large.
    """
    if channels == 1:
        return weight.sum(1, keepdim=True)
    return weight[:, torch.arange(channels) % RGB] * (RGB / channels)
