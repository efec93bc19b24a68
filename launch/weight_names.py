"""The names that torchvision and Hugging Face's transformers give the tensors of ResNets and plain transformers (ViT).

An encoder's own names are timm's, which torchvision shares for ResNets. The other names are translated by the tables
here; a name that no table knows stays as it is, so that the match reports it.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from launch.export_targets import PER_BLOCK

Names = list[tuple[str, str]]
"""Pairs of a pattern at the start of a name, and what takes the place of what it matches."""

TORCHVISION_VIT: Names = [
    (r"conv_proj\.", "patch_embed.proj."),
    (r"class_token$", "cls_token"),
    (r"encoder\.pos_embedding$", "pos_embed"),
    (r"encoder\.ln\.", "norm."),
    *(
        (rf"encoder\.layers\.encoder_layer_(\d+)\.{re.escape(theirs)}", rf"blocks.\1.{timms}")
        for theirs, timms in PER_BLOCK.items()
    ),
]
HUGGINGFACE_VIT: Names = [
    (r"embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"embeddings\.cls_token$", "cls_token"),
    (r"embeddings\.position_embeddings$", "pos_embed"),
    (r"layernorm\.", "norm."),
    (r"encoder\.layer\.(\d+)\.layernorm_before\.", r"blocks.\1.norm1."),
    (r"encoder\.layer\.(\d+)\.attention\.output\.dense\.", r"blocks.\1.attn.proj."),
    (r"encoder\.layer\.(\d+)\.layernorm_after\.", r"blocks.\1.norm2."),
    (r"encoder\.layer\.(\d+)\.intermediate\.dense\.", r"blocks.\1.mlp.fc1."),
    (r"encoder\.layer\.(\d+)\.output\.dense\.", r"blocks.\1.mlp.fc2."),
]
QUERY = re.compile(r"encoder\.layer\.(\d+)\.attention\.attention\.query\.(weight|bias)")
"""The first of three tensors of a block that timm has as one: of queries, keys and values."""
HUGGINGFACE_RESNET = re.compile(
    r"(?:embedder\.embedder|encoder\.stages\.(?P<stage>\d+)\.layers\.(?P<block>\d+)\."
    r"(?:(?P<shortcut>shortcut)|layer\.(?P<layer>\d+)))\.(?P<kind>convolution|normalization)\."
)


def in_timm_names(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Return the tensors of a file by timm's names, and the library whose names they had: "timm" for all others."""
    if "conv_proj.weight" in tensors:
        return renamed(tensors, TORCHVISION_VIT), "torchvision"
    plain = {re.sub(r"^(vit|resnet)\.", "", name): value for name, value in tensors.items()}
    if "embeddings.patch_embeddings.projection.weight" in plain:
        return renamed(joined(plain), HUGGINGFACE_VIT), "Hugging Face"
    if "embedder.embedder.convolution.weight" in plain:
        found = {HUGGINGFACE_RESNET.sub(_of_resnet, name): value for name, value in plain.items()}
        return found, "Hugging Face"
    return dict(tensors), "timm"


def renamed(tensors: Mapping[str, Tensor], names: Names) -> dict[str, Tensor]:
    """Return the tensors with their names replaced by the first pattern that fits."""

    def new(name: str) -> str:
        fitting = ((found, timms) for theirs, timms in names if (found := re.match(theirs, name)))
        return next((found.expand(timms) + name[found.end() :] for found, timms in fitting), name)

    return {new(name): value for name, value in tensors.items()}


def joined(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with those of queries, keys and values as one, where a block has all three of one shape."""
    found = dict(tensors)
    for name in tensors:
        if block := QUERY.fullmatch(name):
            names = [name.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
            three = [tensors[other] for other in names if other in tensors]
            if len(three) == len(names) and len({x.shape for x in three}) == 1:
                found[f"blocks.{block[1]}.attn.qkv.{block[2]}"] = torch.cat(three)
                for other in names:
                    del found[other]
    return found


def _of_resnet(found: "re.Match[str]") -> str:
    """Return the start of timm's name for what a name of Hugging Face's ResNet begins with."""
    norm = found["kind"] == "normalization"
    if found["stage"] is None:
        return "bn1." if norm else "conv1."
    block = f"layer{int(found['stage']) + 1}.{found['block']}"
    if found["shortcut"]:
        return f"{block}.downsample.{int(norm)}."
    return f"{block}.{'bn' if norm else 'conv'}{int(found['layer']) + 1}."
