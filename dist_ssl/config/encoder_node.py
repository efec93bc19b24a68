"""Builds the encoder of a config for images of any number of channels."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dist_ssl.config.bounds import RGB
from dist_ssl.config.instantiate import accepted_by, instantiate, resolve
from dist_ssl.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

IN_CHANNELS = "in_channels"
"""Argument of an encoder that takes images of any number of channels."""
GIVEN = (IN_CHANNELS, "in_chans")
"""Keys of a config that may say the number of channels, ours and timm's, where it is that of the images."""


def make_encoder(node: Mapping[str, Any], channels: int) -> "nn.Module":
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
