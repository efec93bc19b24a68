"""An encoder as a library has it: the file or folder that is written, and how the library loads it.

Here is what the libraries share: how an encoder is recognised that they have too, and what is said of others.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dist_ssl.config.bounds import RGB
from dist_ssl.config.encoder_node import IN_CHANNELS
from dist_ssl.config.instantiate import defaults_of
from dist_ssl.data.images.image_rules import counted
from dist_ssl.errors import ConfigError
from dist_ssl.models.vit import vit
from dist_ssl.saved_encoder import POSITIONS, SavedEncoder

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
"""Architectures that all libraries have."""
TIMM = "dist_ssl.models.encoders.timm_encoder"
OWN_VIT = "dist_ssl.models.vit.vit"
ANY_VIT = "vit_base_patch16_224"
"""timm's function for a transformer whose sizes are all given."""
PLAIN = {
    *("cls_token", POSITIONS, "patch_embed.proj.weight", "norm.weight"),
    *("blocks.0.attn.qkv.weight", "blocks.0.mlp.fc1.weight"),
}
"""Tensors of a plain transformer, by timm's names."""
CARD = "README.md"
"""Name of the card in a folder."""


@dataclass(frozen=True)
class Target:
    """An encoder as a library has it. `renamed`: tensors by the library's names; `described`: keep our metadata."""

    library: str
    renamed: Mapping[str, Tensor]
    described: bool
    load: Callable[[Path], nn.Module]
    """Function that builds the encoder by the library, from what was written; [B, C, S, S] -> [B, D]."""
    lines: Callable[[Path], list[str]]
    """Lines of Python that do the same."""
    write: Callable[["Target", Path], None] | None = None
    """Function that writes something else than one safetensors file; a folder is there, and empty."""
    folder: bool = False
    recipe: str = ""
    """How the encoder was trained, for formats that keep it beside the weights."""
    heading: str = ""
    """Lines above the card, for programs that read it."""
    prepare: Callable[[Path, Sequence[bytes]], Tensor] | None = None
    """Function that prepares images of files by the library, [N, 3, S, S]; None where it says nothing about that."""

    def card(self, place: Path) -> Path:
        """Return where the card of a file or folder is."""
        return place / CARD if self.folder else Path(f"{place}.md")


class LoadedNetwork(nn.Module):
    """A network that another library has loaded: [B, C, S, S] -> [B, D]. `tensors`: by the names in the file."""

    def __init__(self, features: Callable[[Tensor], Tensor], tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.features, self.named = features, tensors

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x)

    def tensors(self) -> Mapping[str, Tensor]:
        """Return the tensors of the file by their names."""
        return self.named


@dataclass(frozen=True)
class PlainSizes:
    """The sizes of a plain transformer, whose features are its class token."""

    image: int
    """Side of an image, px."""
    patch: int
    """Side of a patch, px."""
    width: int
    depth: int
    heads: int
    hidden: int
    """Width of a block's hidden layer."""


def plain_sizes(saved: SavedEncoder, library: str) -> PlainSizes:
    """Return the sizes of a plain transformer. Raises ConfigError where the encoder is none."""
    refuse_extra_layer(saved, library)
    refuse_channels(saved, library)
    own: Any = saved.encoder
    tensors = saved.tensors()
    if not tensors.keys() >= PLAIN:
        raise unknown(saved, library, "It has ResNets and plain vision transformers.")
    if (pool := getattr(own, "global_pool", "token")) != "token":
        raise ConfigError(
            f"The features of a transformer of {library} are its class token; this encoder has global_pool={pool}.",
            "Use to=timm or to=onnx.",
        )
    patch = own.patch_embed.proj.kernel_size[0]
    side = patch * round((tensors[POSITIONS].shape[1] - 1) ** 0.5)
    if side != saved.description.crop:
        raise ConfigError(
            f"Transformers of {library} take images of one side, here {side} px, not {saved.description.crop} px.",
            "Use to=timm or to=onnx.",
        )
    hidden = tensors["blocks.0.mlp.fc1.weight"].shape[0]
    return PlainSizes(side, patch, own.num_features, len(own.blocks), own.blocks[0].attn.num_heads, hidden)


def is_resnet(saved: SavedEncoder) -> bool:
    """Return whether the encoder is a ResNet that all libraries have, with either stem."""
    node = saved.description.encoder
    return saved.description.extra_layer is None and node["_target_"] == TIMM and node["name"] in RESNETS


def timm_call(saved: SavedEncoder) -> tuple[str, dict[str, Any]]:
    """Return name and options with which `timm.create_model` builds the network. Raises ConfigError."""
    own = saved.description
    node = own.encoder
    refuse_extra_layer(saved, "timm")
    if node["_target_"] == TIMM:
        options = {key: value for key, value in node.items() if key not in ("_target_", "name", "stem", IN_CHANNELS)}
        options = {key: value for key, value in options.items() if key != "zero_init_last"}
        return str(node["name"]), {**options, **in_chans(saved)}
    if node["_target_"] != OWN_VIT:
        raise ConfigError(
            f"timm has no {str(node['_target_']).rpartition('.')[2]}.",
            "Use to=safetensors: dist_ssl.load_encoder loads it.",
        )
    node = {**defaults_of(vit), **node}  # a config may leave out what the function has a default for
    sizes = {"img_size": own.crop, "patch_size": node["patch"], "embed_dim": node["width"], "depth": node["depth"]}
    return ANY_VIT, {**sizes, "num_heads": node["heads"], "mlp_ratio": node["mlp_ratio"], **in_chans(saved)}


def in_chans(saved: SavedEncoder) -> dict[str, int]:
    """Return timm's option for images of other channels than RGB, nothing for RGB."""
    channels = saved.description.rules.channels
    return {} if channels == RGB else {"in_chans": channels}


def refuse_channels(saved: SavedEncoder, library: str) -> None:
    """Raise ConfigError where the encoder takes images of other channels than RGB, for a library that has no such."""
    if (channels := saved.description.rules.channels) != RGB:
        raise ConfigError(
            f"The encoder takes images of {counted(channels)}, and {library} takes RGB.",
            "Use to=timm, to=onnx or to=safetensors.",
        )


def with_path(lines: tuple[str, ...]) -> Callable[[Path], list[str]]:
    """Return the function that puts the path of a file into lines of Python."""
    needs_torch = any("torch.nn" in line for line in lines) and not any("import torch" in line for line in lines[:1])
    ahead = ("import torch",) if needs_torch else ()
    plain = any(line.startswith("model =") for line in lines) and not lines[-1].startswith("features")
    after = ("model.eval()",) if plain else ()  # it is built as for training
    return lambda path: [line.replace("{path!r}", repr(str(path))) for line in (*ahead, *lines, *after)]


def refuse_extra_layer(saved: SavedEncoder, library: str) -> None:
    """Raise ConfigError where the encoder has a layer on top that no library knows."""
    if saved.description.extra_layer is not None:
        raise ConfigError(
            f"The encoder of EMP-SSL has one more layer, which {library} has not.",
            "Use to=safetensors: dist_ssl.load_encoder loads it.",
        )


def unknown(saved: SavedEncoder, library: str, known: str) -> ConfigError:
    """Return the error of an encoder that a library has not. `known`: a sentence that says which it has."""
    kind = type(saved.encoder).__name__
    return ConfigError(f"{library} has no {kind} like this one.", f"{known} Use to=timm, to=onnx or to=safetensors.")


def needs(to: str, *packages: str) -> ConfigError:
    """Return the error of packages that are not installed; our extra that installs them has the name of the target."""
    named = ", ".join(packages)
    return ConfigError(f"to={to} needs {named}.", f"pip install 'dist_ssl[{to}]', or pip install {' '.join(packages)}.")
