"""Encoders give one pooled vector per image, carry its width, and are refused by name where they do not exist."""

import re
from typing import Any

import pytest
import torch
from torch import nn

from dist_ssl.errors import ConfigError
from dist_ssl.models.encoders import ResidualBlock, TinyResNet, timm_encoder


@pytest.mark.parametrize("side", [24, 32, 64])
@pytest.mark.parametrize(("width", "blocks"), [(16, 1), (8, 2)])
def test_the_tiny_encoder_pools_to_eight_times_its_width(width: int, blocks: int, side: int) -> None:
    encoder = TinyResNet(width, blocks)
    assert encoder.num_features == 8 * width
    assert encoder(torch.randn(2, 3, side, side)).shape == (2, 8 * width)


def test_the_mean_over_tiles_is_that_of_the_whole_with_mean_pooling_only() -> None:
    features = torch.rand(2, 8, 4, 4)
    tiles = [features[:, :, row : row + 2, column : column + 2] for row in (0, 2) for column in (0, 2)]
    for pool, equal in (("mean", True), ("max", False)):
        encoder = TinyResNet(1, pool=pool)
        encoder.stem = encoder.stages = nn.Identity()
        apart = torch.stack([encoder(tile) for tile in tiles]).mean(0)
        assert torch.allclose(apart, encoder(features)) is equal


def test_more_blocks_are_more_parameters() -> None:
    counts = [sum(p.numel() for p in TinyResNet(8, blocks).parameters()) for blocks in (1, 2, 3)]
    assert counts[0] < counts[1] < counts[2]


def test_a_block_without_a_change_of_shape_passes_its_input_on() -> None:
    block = ResidualBlock(4, 4, stride=1)
    for conv in (block.conv1, block.conv2):
        nn.init.zeros_(conv.weight)
    x = torch.randn(2, 4, 6, 6)
    torch.testing.assert_close(block.eval()(x), x.relu())


def test_a_block_that_shrinks_and_widens_passes_averages_and_zeros_on() -> None:
    block = ResidualBlock(2, 5, stride=2)
    for conv in (block.conv1, block.conv2):
        nn.init.zeros_(conv.weight)
    x = torch.rand(2, 2, 6, 6)
    y = block.eval()(x)
    torch.testing.assert_close(y[:, :2], x.view(2, 2, 3, 2, 3, 2).mean((3, 5)))
    assert torch.equal(y[:, 2:], torch.zeros(2, 3, 3, 3))


@pytest.mark.parametrize("side", [5, 7])
def test_an_odd_side_is_halved_upwards(side: int) -> None:
    assert ResidualBlock(4, 8, stride=2)(torch.randn(2, 4, side, side)).shape[-1] == (side + 1) // 2


def test_a_block_with_a_stride_halves_the_side() -> None:
    assert ResidualBlock(4, 8, stride=2)(torch.randn(2, 4, 6, 6)).shape == (2, 8, 3, 3)


def test_the_gradient_reaches_every_parameter() -> None:
    encoder = TinyResNet(4)
    encoder(torch.randn(4, 3, 24, 24)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.parameters())


def test_the_same_seed_gives_the_same_weights() -> None:
    weights = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        weights.append(TinyResNet(4).stem[0].weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_an_encoder_of_timm_is_known_by_name() -> None:
    encoder = timm_encoder("resnet18")
    assert encoder.num_features == 512
    assert encoder(torch.randn(2, 3, 64, 64)).shape == (2, 512)
    assert not any(isinstance(module, nn.Linear) for module in encoder.modules())


@pytest.mark.parametrize("name", ["resnet18", "regnety_002", "mobilenetv3_small_050", "efficientnet_b0"])
def test_an_encoder_carries_the_width_of_its_output(name: str) -> None:
    encoder = timm_encoder(name).eval()
    with torch.no_grad():
        assert encoder(torch.randn(1, 3, 32, 32)).shape == (1, encoder.num_features)


def test_options_go_to_timm() -> None:
    zeroed = timm_encoder("resnet18", zero_init_last=True)
    assert zeroed.layer1[0].bn2.weight.abs().sum() == 0
    usual = timm_encoder("resnet18", zero_init_last=False)
    assert usual.layer1[0].bn2.weight.abs().sum() > 0


def test_the_small_stem_keeps_the_side_of_small_images() -> None:
    encoder = timm_encoder("resnet18", stem="small")
    conv = encoder.conv1
    assert (conv.kernel_size, conv.stride, conv.padding, conv.bias) == ((3, 3), (1, 1), (1, 1), None)
    assert isinstance(encoder.maxpool, nn.Identity)
    assert encoder.forward_features(torch.randn(2, 3, 32, 32)).shape == (2, 512, 4, 4)


def test_the_standard_stem_is_timms_own() -> None:
    encoder = timm_encoder("resnet18")
    assert (encoder.conv1.kernel_size, encoder.conv1.stride) == ((7, 7), (2, 2))
    assert isinstance(encoder.maxpool, nn.MaxPool2d)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet18d", "mobilenetv3_small_050"])
def test_the_small_stem_is_refused_where_it_does_not_fit(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"encoder\.stem=small does not fit {name}") as caught:
        timm_encoder(name, stem="small")
    assert "stem=standard" in caught.value.remedy


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"encoder\.name=resnet81 is not a model of timm") as caught:
        timm_encoder("resnet81")
    assert "Did you mean 'resnet" in caught.value.remedy
    with pytest.raises(ConfigError) as caught:
        timm_encoder("something else altogether")
    assert re.fullmatch(r"Valid names: .{200,3000} and \d+ more\.", caught.value.remedy)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"depth": 3}, r"timm cannot make resnet18 with encoder\.depth=3: .*depth"),
        ({"global_pool": "nosuch"}, r"timm cannot make resnet18 with encoder\.global_pool=nosuch: .*nosuch"),
        ({"num_classes": 3}, r"encoder\.num_classes is not possible"),
        ({"features_only": True}, r"encoder\.features_only is not possible"),
    ],
)
def test_options_that_timm_does_not_take_are_named(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        timm_encoder("resnet18", **options)


def test_channels_that_a_model_does_not_take_are_named_instead_of_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*words: str, in_chans: int, **options: Any) -> None:
        raise AssertionError("only RGB")

    monkeypatch.setattr("timm.create_model", refuse)
    with pytest.raises(ConfigError) as caught:
        timm_encoder("resnet18", in_channels=5)
    assert caught.value.problem == "timm cannot make resnet18 for images of 5 channels: only RGB."
    assert caught.value.remedy.endswith("encoder=resnet18, say, takes any number.")
    with pytest.raises(
        ConfigError, match=r"resnet18 with encoder\.depth=3 for images of 5 channels(?s:.*)Correct these"
    ):
        timm_encoder("resnet18", in_channels=5, depth=3)


@pytest.mark.parametrize("channels", [3, 5])
def test_a_model_whose_patches_name_no_side_is_made(channels: int) -> None:
    with torch.device("meta"):
        encoder = timm_encoder("hiera_tiny_224", in_channels=channels)
    assert encoder.num_features == 768


def test_a_model_can_be_built_without_its_memory() -> None:
    with torch.device("meta"):
        encoders = [TinyResNet(), timm_encoder("resnet18", stem="small")]
    assert {p.device.type for encoder in encoders for p in encoder.parameters()} == {"meta"}


def test_positions_that_are_learnt_serve_views_of_other_sides() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = timm_encoder("vit_tiny_patch16_224", depth=1, dynamic_img_size=True).eval()
    assert encoder.multiple_of == 16
    assert encoder.pos_embed.requires_grad
    with torch.no_grad():
        assert [encoder(torch.zeros(2, 3, side, side)).shape for side in (96, 224)] == [(2, 192)] * 2


def test_an_encoder_without_patches_takes_any_side() -> None:
    assert not hasattr(timm_encoder("resnet18"), "multiple_of")
