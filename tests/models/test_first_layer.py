"""Encoders take images of the data set's channels, and weights for RGB are made to fit other channels."""

from typing import Any

import pytest
import torch
from torch import nn

from dist_ssl.config.encoder_node import make_encoder
from dist_ssl.errors import ConfigError
from dist_ssl.models.first_layer import for_channels
from launch import settings
from launch.run_dir import PROJECT

SMALL = {
    "resnet18": {"channels": [8, 8, 8, 8]},
    "resnet50": {"channels": [8, 8, 8, 8], "layers": [1, 1, 1, 1]},
    "tiny": {"width": 4},
    "vit_base": {"width": 16, "depth": 1, "heads": 2},
    "vit_small": {"width": 16, "depth": 1, "heads": 2},
    "vit_small_dino": {"embed_dim": 16, "depth": 1, "num_heads": 2},
    "vit_tiny_demo": {"width": 16, "depth": 1, "heads": 2},
}
"""Keys that make each encoder of the configs small."""


def node(name: str, **keys: Any) -> dict[str, Any]:
    found: dict[str, Any] = settings.compose([f"encoder={name}", "data.path=x"], PROJECT / "configs")["encoder"]
    return {**found, **SMALL[name], **keys}


def test_every_encoder_of_the_configs_is_small_here() -> None:
    assert {path.stem for path in (PROJECT / "configs" / "encoder").glob("*.yaml")} == {*SMALL}


@pytest.mark.parametrize("channels", [1, 5])
@pytest.mark.parametrize("name", sorted(SMALL))
def test_every_encoder_takes_the_channels_of_the_images(name: str, channels: int) -> None:
    encoder = make_encoder(node(name), channels).eval()
    side = 2 * getattr(encoder, "multiple_of", 16)
    x = torch.randn(2, channels, side, side)
    whole = encoder(x)
    for channel in range(channels):
        changed = x.clone()
        changed[:, channel] += 1
        assert not torch.equal(encoder(changed), whole), f"channel {channel} has no effect"


@pytest.mark.parametrize("name", ["tiny", "resnet18"])
def test_three_channels_have_the_weights_that_they_always_had(name: str) -> None:
    from dist_ssl.config.instantiate import instantiate

    torch.manual_seed(3)
    plain = instantiate(node(name), "encoder").state_dict()
    torch.manual_seed(3)
    own = make_encoder(node(name), 3).state_dict()
    assert all(torch.equal(plain[key], own[key]) for key in plain)


def test_the_small_stem_has_the_channels_too() -> None:
    conv = make_encoder(node("resnet18", stem="small"), 2).conv1
    assert isinstance(conv, nn.Conv2d)
    assert conv.weight.shape[1:] == (2, 3, 3)


@pytest.mark.parametrize("key", ["in_channels", "in_chans"])
def test_channels_are_no_key_of_an_encoder(key: str) -> None:
    with pytest.raises(ConfigError, match=f"encoder.{key}=4 is not possible: images have the channels of the data set"):
        make_encoder(node("resnet18", **{key: 4}), 3)


@pytest.mark.parametrize("channels", [3, 5])
@pytest.mark.parametrize("key", ["in_channels", "in_chans"])
def test_a_config_that_says_the_channels_of_the_images_is_read(key: str, channels: int) -> None:
    conv = make_encoder(node("resnet18", **{key: channels}), channels).conv1
    assert isinstance(conv, nn.Conv2d)
    assert conv.in_channels == channels


class OfThree(nn.Module):
    """An encoder that has no argument for channels."""


def test_an_encoder_of_three_channels_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dist_ssl.models.encoders.OfThree", OfThree, raising=False)
    monkeypatch.setattr(OfThree, "__module__", "dist_ssl.models.encoders")
    given = {"_target_": "dist_ssl.models.encoders.OfThree"}
    assert isinstance(make_encoder(given, 3), OfThree)
    with pytest.raises(ConfigError, match="encoder OfThree takes images of 3 channels; those of the data set have 5"):
        make_encoder(given, 5)


def test_a_grey_picture_gives_what_it_gives_as_rgb() -> None:
    weight, grey = torch.randn(4, 3, 5, 5, dtype=torch.float64), torch.randn(2, 1, 9, 9, dtype=torch.float64)
    whole = nn.functional.conv2d(grey.expand(-1, 3, -1, -1), weight)
    torch.testing.assert_close(nn.functional.conv2d(grey, for_channels(weight, 1)), whole)


@pytest.mark.parametrize("channels", [2, 4, 6])
def test_channels_have_the_colours_in_turn(channels: int) -> None:
    weight = torch.randn(4, 3, 5, 5)
    found = for_channels(weight, channels)
    assert found.shape == (4, channels, 5, 5)
    for channel in range(channels):
        torch.testing.assert_close(found[:, channel], weight[:, channel % 3] * (3 / channels))
