"""Libraries that an encoder is exported to: the names that its tensors have there, and how a program builds it there.

A target is verified before its file is kept: the library loads the file as the printed lines do, and both networks
compute the features of the same images.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn

from dist_ssl.errors import ConfigError
from dist_ssl.saved_encoder import COUNTERS, POSITIONS, SavedEncoder, load_encoder

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
"""Architectures whose tensors have the same names in timm and in torchvision."""
TIMM = "dist_ssl.models.encoders.timm_encoder"
OWN_VIT = "dist_ssl.models.vit.vit"
ANY_VIT = "vit_base_patch16_224"
"""timm's function for a transformer whose sizes are all given."""
PER_BLOCK = {
    "ln_1": "norm1",
    "self_attention.in_proj_": "attn.qkv.",
    "self_attention.out_proj": "attn.proj",
    "ln_2": "norm2",
    "mlp.0": "mlp.fc1",
    "mlp.3": "mlp.fc2",
}
"""torchvision's names within a block of a transformer, and timm's."""


@dataclass(frozen=True)
class Target:
    """An encoder as a library has it. `renamed`: tensors by the library's names; `described`: keep our metadata."""

    renamed: Mapping[str, Tensor]
    described: bool
    load: Callable[[Path], nn.Module]
    """Function that builds the encoder by the library, from a file; [B, 3, S, S] -> [B, D]."""
    lines: Callable[[Path], list[str]]
    """Lines of Python that do the same."""


def of_dist_ssl(saved: SavedEncoder) -> Target:
    """Return the encoder as this package has it."""
    lines = ("import dist_ssl", "encoder = dist_ssl.load_encoder({path!r})")
    return Target(saved.tensors(), True, load_encoder, _written(lines))


def of_timm(saved: SavedEncoder) -> Target:
    """Return the encoder as timm has it. Raises ConfigError where timm has no such network."""
    import timm

    name, options = timm_call(saved)
    small = saved.description.encoder.get("stem") == "small"

    def build() -> nn.Module:
        model: nn.Module = timm.create_model(name, num_classes=0, **options)
        return _small_stem(model) if small else model

    def load(path: Path) -> nn.Module:
        if not small:
            plain: nn.Module = timm.create_model(name, num_classes=0, checkpoint_path=str(path), **options)
            return plain
        return _loaded(build(), load_file(path))

    given = "".join(f", {key}={value!r}" for key, value in options.items())
    lines: tuple[str, ...]
    if small:
        lines = ("import timm", f"model = timm.create_model({name!r}, num_classes=0{given})", *SMALL_STEM, *LOADING)
    else:
        lines = (
            "import timm",
            f"model = timm.create_model({name!r}, num_classes=0{given}, checkpoint_path={{path!r}})",
        )
    return Target(saved.tensors(), True, load, _written(lines))


def of_torchvision(saved: SavedEncoder) -> Target:
    """Return the encoder as torchvision has it. Raises ConfigError where torchvision has no such network."""
    from torchvision import models
    from torchvision.models import VisionTransformer

    node = saved.description.encoder
    if node["_target_"] == TIMM and node["name"] in RESNETS:
        name, small = str(node["name"]), node.get("stem") == "small"

        def resnet(path: Path) -> nn.Module:
            model = models.get_model(name, weights=None)
            model.fc = nn.Identity()
            return _loaded(_small_stem(model) if small else model, load_file(path))

        made = (f"model = torchvision.models.{name}()", "model.fc = torch.nn.Identity()")
        lines = ("import torch, torchvision", *made, *(SMALL_STEM if small else ()), *LOADING)
        return Target(saved.tensors(), True, resnet, _written(lines))
    sizes = sizes_of(saved)

    def transformer(path: Path) -> nn.Module:
        model = VisionTransformer(**sizes)
        model.heads = nn.Identity()
        return _loaded(model, load_file(path))

    given = ", ".join(f"{key}={value}" for key, value in sizes.items())
    made = (f"model = torchvision.models.VisionTransformer({given})", "model.heads = torch.nn.Identity()")
    lines = ("import torch, torchvision", *made, *LOADING)
    return Target(in_torchvision(saved.tensors()), False, transformer, _written(lines))


SMALL_STEM = (
    "model.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)",
    "model.maxpool = torch.nn.Identity()",
)
LOADING = ("import safetensors.torch", "model.load_state_dict(safetensors.torch.load_file({path!r}))")


def _written(lines: tuple[str, ...]) -> Callable[[Path], list[str]]:
    """Return the function that puts the path of a file into lines of Python."""
    needs_torch = any("torch.nn" in line for line in lines) and not any("import torch" in line for line in lines[:1])
    ahead = ("import torch",) if needs_torch else ()
    return lambda path: [line.replace("{path!r}", repr(str(path))) for line in (*ahead, *lines)]


def _small_stem(model: Any) -> nn.Module:
    """Replace the first layers of a ResNet by those for small images, as the printed lines do."""
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    found: nn.Module = model
    return found


def _loaded(model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """Load all tensors of a file into a network, as the printed lines do. Raises RuntimeError where names differ."""
    model.load_state_dict(state)
    return model


def timm_call(saved: SavedEncoder) -> tuple[str, dict[str, Any]]:
    """Return name and options with which `timm.create_model` builds the network. Raises ConfigError."""
    own = saved.description
    node = own.encoder
    refuse_extra_layer(saved, "timm")
    if node["_target_"] == TIMM:
        options = {key: value for key, value in node.items() if key not in ("_target_", "name", "stem")}
        return str(node["name"]), {key: value for key, value in options.items() if key != "zero_init_last"}
    if node["_target_"] != OWN_VIT:
        raise ConfigError(
            f"timm has no {str(node['_target_']).rpartition('.')[2]}.",
            "Use to=safetensors: dist_ssl.load_encoder loads it.",
        )
    sizes = {"img_size": own.crop, "patch_size": node["patch"], "embed_dim": node["width"], "depth": node["depth"]}
    return ANY_VIT, {**sizes, "num_heads": node["heads"], "mlp_ratio": node["mlp_ratio"]}


def sizes_of(saved: SavedEncoder) -> dict[str, int]:
    """Return the sizes of a plain transformer as torchvision names them. Raises ConfigError where it is none."""
    refuse_extra_layer(saved, "torchvision")
    own: Any = saved.encoder
    tensors = saved.tensors()
    names = {name.rpartition(".")[0] for name in in_torchvision(tensors)}
    if not {"conv_proj", "encoder.ln", "encoder"} <= names:
        raise ConfigError(
            f"torchvision has no {type(own).__name__} like this one.",
            "It has ResNets and plain vision transformers. Use to=timm or to=safetensors.",
        )
    patch, width = own.patch_embed.proj.kernel_size[0], own.num_features
    side = patch * round((tensors[POSITIONS].shape[1] - 1) ** 0.5)
    if side != saved.description.crop:
        raise ConfigError(
            f"torchvision's transformers take images of one side, here {side} px, not {saved.description.crop} px.",
            "Use to=timm.",
        )
    hidden = tensors["blocks.0.mlp.fc1.weight"].shape[0]
    sizes = {"image_size": side, "patch_size": patch, "num_layers": len(own.blocks)}
    return {**sizes, "num_heads": own.blocks[0].attn.num_heads, "hidden_dim": width, "mlp_dim": hidden}


def in_torchvision(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a transformer by torchvision's names in place of timm's."""
    found = {}
    fixed = {"cls_token": "class_token", POSITIONS: "encoder.pos_embedding"}
    for name, value in tensors.items():
        new = fixed.get(name, name).replace("patch_embed.proj.", "conv_proj.")
        new = f"encoder.ln.{new.removeprefix('norm.')}" if new.startswith("norm.") else new
        if new.startswith("blocks."):
            _, number, inner = new.split(".", 2)
            ours = next((pair for pair in PER_BLOCK.items() if inner.startswith(pair[1])), ("", ""))
            new = f"encoder.layers.encoder_layer_{number}.{ours[0]}{inner.removeprefix(ours[1])}"
        found[new] = value
    return found


def refuse_extra_layer(saved: SavedEncoder, library: str) -> None:
    """Raise ConfigError where the encoder has a layer on top that no library knows."""
    if saved.description.extra_layer is not None:
        raise ConfigError(
            f"The encoder of EMP-SSL has one more layer, which {library} has not.",
            "Use to=safetensors: dist_ssl.load_encoder loads it.",
        )


def matched(target: Target, model: nn.Module) -> tuple[int, int]:
    """Return how many tensors of the file the library's network has by name and shape, and how many it has in all."""
    state = model.tensors() if isinstance(model, SavedEncoder) else model.state_dict()
    own = {name: value for name, value in state.items() if not name.endswith(COUNTERS)}
    same = [name for name, value in own.items() if name in target.renamed and target.renamed[name].shape == value.shape]
    return len(same), len(own.keys() | target.renamed.keys())


TARGETS: dict[str, Callable[[SavedEncoder], Target]] = {
    "safetensors": of_dist_ssl,
    "timm": of_timm,
    "torchvision": of_torchvision,
}
"""By the value of `to`."""
