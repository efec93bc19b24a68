"""Image encoders: [B, C, S, S] in, one pooled feature vector [B, num_features] out.

Published architectures come from timm by name; their first layers may be replaced by the small-image stem of the CIFAR
literature. `TinyResNet` is the encoder of the demo: three residual stages that two CPU cores can train. Every encoder
carries `num_features`, the width D of its output; one that cuts images into patches also carries `multiple_of`: the
side S must be a multiple of it. One that has an argument `in_channels` takes images of any number of channels C.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from dist_ssl.config.bounds import RGB
from dist_ssl.errors import ConfigError, nearest

UNUSABLE = ("pretrained", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")
"""Options of `timm.create_model` that fetch or unpickle weights."""
TAKEN = ("num_classes", "features_only")
"""Its options that say what an encoder returns: always its pooled features."""


def at_least_one(**values: float) -> None:
    """Raise ConfigError where one of these keys of the encoder is less than 1."""
    for key, value in values.items():
        if value < 1:
            raise ConfigError(f"encoder.{key}={value} is not possible: it must be at least 1.", "Correct it.")


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters: [B, C_in, H, W] -> [B, C_out, H/stride, W/stride].

    Where the block shrinks or widens, the shortcut averages 2x2 squares and adds channels of zeros (option A of He et
    al. 2016, averaged): a shortcut without batch norm saves an exchange between the ranks.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels_out)
        self.stride, self.wider_by = stride, channels_out - channels_in

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self._shortcut(x))

    def _shortcut(self, x: Tensor) -> Tensor:
        if self.stride > 1:  # no effect: nothing is padded; with True torch's compiler computes a wrong gradient
            x = F.avg_pool2d(x, self.stride, ceil_mode=True, count_include_pad=False)
        return F.pad(x, (0, 0, 0, 0, 0, self.wider_by)) if self.wider_by else x


class TinyResNet(nn.Module):
    """A residual net for images of 24 to 64 px: [B, C, S, S] -> [B, 8 * width].

    A 3x3 stem at full resolution, then three stages that halve the side and double the channels, then global pooling.
    `width`: channels of the stem, from 1; `blocks`: blocks per stage, from 1; `pool`: over the places of the last
    stage; `in_channels`: C. Raises ConfigError.
    """

    def __init__(
        self, width: int = 16, blocks: int = 1, pool: Literal["max", "mean"] = "max", in_channels: int = RGB
    ) -> None:
        super().__init__()
        at_least_one(width=width, blocks=blocks)
        self.pool = pool
        self.stem = nn.Sequential(nn.Conv2d(in_channels, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        stages: list[nn.Module] = []
        for channels in (2 * width, 4 * width, 8 * width):
            stages.append(ResidualBlock(channels // 2, channels, stride=2))
            stages.extend(ResidualBlock(channels, channels, stride=1) for _ in range(blocks - 1))
        self.stages = nn.Sequential(*stages)
        self.num_features = 8 * width
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.stages(self.stem(x))
        return features.amax((2, 3)) if self.pool == "max" else features.mean((2, 3))


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Raise ConfigError where timm has no such model, or an option is not for an encoder."""
    import timm

    if not timm.is_model(name):
        raise ConfigError(f"encoder.name={name} is not a model of timm.", nearest(name, timm.list_models()))
    for key in UNUSABLE:
        if key in options:
            raise ConfigError(
                f"encoder.{key}={options[key]} is not possible: an encoder starts untrained, and files of weights are "
                "not read here.",
                f"Leave encoder.{key} out. To start from existing weights: init=timm:{name}, init=FILE.safetensors or "
                "init=runs/NAME.",
            )
    for key in TAKEN:
        if key in options:
            raise ConfigError(f"encoder.{key} is not possible: an encoder has no classifier.", "Leave it out.")
    if "in_chans" in options:
        raise ConfigError(
            "encoder.in_chans is not possible: images have the channels of the data set.", "Leave it out."
        )


def timm_encoder(
    name: str, stem: Literal["standard", "small"] = "standard", in_channels: int = RGB, **options: Any
) -> nn.Module:
    """Return an untrained encoder of timm without its classifier. `stem=small`: for images of 32 px, ResNets only.

    `options` go to `timm.create_model`. The small stem is a 3x3 convolution of stride 1 without max-pooling, as in
    SimCLR's CIFAR experiments (Chen et al. 2020, appendix B.9). Raises ConfigError.
    """
    import timm  # slow (torchvision and hundreds of models), so only where it is used

    from dist_ssl.models.resampling import resize_by_products

    check_options(name, options)
    own = {} if in_channels == RGB else {"in_chans": in_channels}
    try:
        encoder: nn.Module = timm.create_model(name, num_classes=0, **own, **options)
        encoder.num_features = getattr(encoder, "head_hidden_size", None) or encoder.num_features
    except (TypeError, ValueError, AttributeError, AssertionError, KeyError, RuntimeError) as error:
        if not options and not own:
            raise
        raise cannot_make(name, in_channels, options, error) from error
    patches = getattr(encoder, "patch_embed", None)
    if patches is not None and hasattr(patches, "patch_size"):
        encoder.multiple_of = patches.patch_size[0]
        resize_by_products(encoder)
    if stem == "small":
        _shrink_stem(encoder, name)
    return encoder


def cannot_make(name: str, in_channels: int, options: Mapping[str, Any], error: Exception) -> ConfigError:
    """Return the error for a model that timm cannot make. `options`: those of the config."""
    keys = " ".join(f"encoder.{key}={value}" for key, value in options.items())
    images = f"for images of {in_channels} channels" if in_channels != RGB else ""
    remedies = ["Correct these keys, or leave them out."] if keys else []
    remedies += ["Images have the channels of the data set; encoder=resnet18, say, takes any number."] if images else []
    given = " ".join(part for part in (f"with {keys}" if keys else "", images) if part)
    return ConfigError(f"timm cannot make {name} {given}: {error}.", " ".join(remedies))


def _shrink_stem(encoder: nn.Module, name: str) -> None:
    conv = getattr(encoder, "conv1", None)
    if not isinstance(conv, nn.Conv2d) or not hasattr(encoder, "maxpool"):
        raise ConfigError(f"encoder.stem=small does not fit {name}.", "It is for ResNets; use stem=standard.")
    encoder.conv1 = nn.Conv2d(conv.in_channels, conv.out_channels, 3, 1, 1, bias=False)
    nn.init.kaiming_normal_(encoder.conv1.weight, mode="fan_out", nonlinearity="relu")
    encoder.maxpool = nn.Identity()
