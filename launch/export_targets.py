"""Libraries that an encoder is exported to: the names that its tensors have there, and how a program builds it there.

A target is verified before its file is kept: the library loads the file as the printed lines do, and both networks
compute the features of the same images.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn

from dist_ssl.config.bounds import RGB
from dist_ssl.saved_encoder import SavedEncoder, load_encoder
from launch.export_target import Target, is_resnet, plain_sizes, refuse_channels, timm_call, with_path
from launch.huggingface_export import of_huggingface
from launch.onnx_export import of_onnx
from launch.weight_names import TORCHVISION_VIT, renamed


def of_dist_ssl(saved: SavedEncoder) -> Target:
    """Return the encoder as this package has it."""
    lines = ("import dist_ssl", "encoder = dist_ssl.load_encoder({path!r})")
    return Target("dist_ssl", saved.tensors(), True, load_encoder, with_path(lines))


def of_timm(saved: SavedEncoder) -> Target:
    """Return the encoder as timm has it. Raises ConfigError where timm has no such network."""
    import timm

    name, options = timm_call(saved)
    small, channels = saved.description.encoder.get("stem") == "small", saved.description.rules.channels

    def build() -> nn.Module:
        model: nn.Module = timm.create_model(name, num_classes=0, **options)
        return _small_stem(model, channels) if small else model

    def load(path: Path) -> nn.Module:
        if not small:
            plain: nn.Module = timm.create_model(name, num_classes=0, checkpoint_path=str(path), **options)
            return plain
        return _loaded(build(), load_file(path))

    given = "".join(f", {key}={value!r}" for key, value in options.items())
    lines: tuple[str, ...]
    if small:
        lines = (
            "import timm",
            f"model = timm.create_model({name!r}, num_classes=0{given})",
            *small_stem(channels),
            *LOADING,
        )
    else:
        lines = (
            "import timm",
            f"model = timm.create_model({name!r}, num_classes=0{given}, checkpoint_path={{path!r}})",
        )
    return Target("timm", saved.tensors(), True, load, with_path(lines))


def of_torchvision(saved: SavedEncoder) -> Target:
    """Return the encoder as torchvision has it. Raises ConfigError where torchvision has no such network."""
    from torchvision import models
    from torchvision.models import VisionTransformer

    node = saved.description.encoder
    if is_resnet(saved):
        refuse_channels(saved, "torchvision")
        name, small = str(node["name"]), node.get("stem") == "small"

        def resnet(path: Path) -> nn.Module:
            model = models.get_model(name, weights=None)
            model.fc = nn.Identity()
            return _loaded(_small_stem(model) if small else model, load_file(path))

        made = (f"model = torchvision.models.{name}()", "model.fc = torch.nn.Identity()")
        lines = ("import torch, torchvision", *made, *(small_stem() if small else ()), *LOADING)
        return Target("torchvision", saved.tensors(), True, resnet, with_path(lines))
    own = plain_sizes(saved, "torchvision")
    sizes = {"image_size": own.image, "patch_size": own.patch, "num_layers": own.depth}
    sizes |= {"num_heads": own.heads, "hidden_dim": own.width, "mlp_dim": own.hidden}

    def transformer(path: Path) -> nn.Module:
        model = VisionTransformer(**sizes)
        model.heads = nn.Identity()
        return _loaded(model, load_file(path))

    given = ", ".join(f"{key}={value}" for key, value in sizes.items())
    made = (f"model = torchvision.models.VisionTransformer({given})", "model.heads = torch.nn.Identity()")
    lines = ("import torch, torchvision", *made, *LOADING)
    return Target("torchvision", renamed(saved.tensors(), TORCHVISION_VIT), False, transformer, with_path(lines))


LOADING = ("import safetensors.torch", "model.load_state_dict(safetensors.torch.load_file({path!r}))")


def small_stem(channels: int = RGB) -> tuple[str, str]:
    """Return the lines of Python that replace the first layers of a ResNet by those for small images."""
    conv = f"model.conv1 = torch.nn.Conv2d({channels}, 64, 3, padding=1, bias=False)"
    return conv, "model.maxpool = torch.nn.Identity()"


def _small_stem(model: Any, channels: int = RGB) -> nn.Module:
    """Replace the first layers of a ResNet by those for small images, as the printed lines do."""
    model.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    found: nn.Module = model
    return found


def _loaded(model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """Load all tensors of a file into a network, as the printed lines do. Raises RuntimeError where names differ."""
    model.load_state_dict(state)
    return model


TARGETS: dict[str, Callable[[SavedEncoder], Target]] = {
    "safetensors": of_dist_ssl,
    "timm": of_timm,
    "torchvision": of_torchvision,
    "huggingface": of_huggingface,
    "onnx": of_onnx,
}
"""By the value of `to`."""
