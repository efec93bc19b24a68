"""The names that torchvision and Hugging Face's transformers give the tensors of ResNets and plain transformers (ViT).

An encoder's own names are timm's, which torchvision shares for ResNets. Each table serves both directions: files of
other libraries are read by it (`init=`), and exports are written by it.
"""

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

Names = tuple[tuple[str, str], ...]
"""Beginnings of timm's names, and of the other library's; "{1}" is a number that this library counts from 1."""

BLOCK = "encoder.layers.encoder_layer_{0}"
TORCHVISION_VIT: Names = (
    ("cls_token", "class_token"),
    ("pos_embed", "encoder.pos_embedding"),
    ("patch_embed.proj.", "conv_proj."),
    ("norm.", "encoder.ln."),
    ("blocks.{0}.norm1.", f"{BLOCK}.ln_1."),
    ("blocks.{0}.attn.qkv.", f"{BLOCK}.self_attention.in_proj_"),
    ("blocks.{0}.attn.proj.", f"{BLOCK}.self_attention.out_proj."),
    ("blocks.{0}.norm2.", f"{BLOCK}.ln_2."),
    ("blocks.{0}.mlp.fc1.", f"{BLOCK}.mlp.0."),
    ("blocks.{0}.mlp.fc2.", f"{BLOCK}.mlp.3."),
    (
        "blocks.{0}.mlp.fc1.",
        f"{BLOCK}.mlp.linear_1.",
    ),  # its published weights are older than its code
    ("blocks.{0}.mlp.fc2.", f"{BLOCK}.mlp.linear_2."),
)
LAYER = "encoder.layer.{0}"
HUGGINGFACE_VIT: Names = (
    ("cls_token", "embeddings.cls_token"),
    ("pos_embed", "embeddings.position_embeddings"),
    ("patch_embed.proj.", "embeddings.patch_embeddings.projection."),
    ("norm.", "layernorm."),
    ("blocks.{0}.norm1.", f"{LAYER}.layernorm_before."),
    ("blocks.{0}.attn.qkv.", f"{LAYER}.attention.attention.qkv."),
    ("blocks.{0}.attn.proj.", f"{LAYER}.attention.output.dense."),
    ("blocks.{0}.norm2.", f"{LAYER}.layernorm_after."),
    ("blocks.{0}.mlp.fc1.", f"{LAYER}.intermediate.dense."),
    ("blocks.{0}.mlp.fc2.", f"{LAYER}.output.dense."),
)
UNIT = "encoder.stages.{0}.layers.{0}"
HUGGINGFACE_RESNET: Names = (
    ("conv1.", "embedder.embedder.convolution."),
    ("bn1.", "embedder.embedder.normalization."),
    ("layer{1}.{0}.conv{1}.", f"{UNIT}.layer.{{0}}.convolution."),
    ("layer{1}.{0}.bn{1}.", f"{UNIT}.layer.{{0}}.normalization."),
    ("layer{1}.{0}.downsample.0.", f"{UNIT}.shortcut.convolution."),
    ("layer{1}.{0}.downsample.1.", f"{UNIT}.shortcut.normalization."),
)
QKV = "attention.attention.qkv."
"""Part of the name of a tensor that Hugging Face's files have as three: of queries, keys and values."""
PARTS = tuple(QKV.replace("qkv", part) for part in ("query", "key", "value"))
COUNTED = re.compile(r"\{(\d)\}")
"""A number in a beginning, and where its library begins to count."""


def in_timm_names(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Return the tensors of a file by timm's names, and the library whose names they had: "timm" for all others.

    A name that no table knows stays as it is, so that the match reports it.
    """
    if "conv_proj.weight" in tensors:
        return renamed(tensors, _turned(TORCHVISION_VIT)), "torchvision"
    plain = {re.sub(r"^(vit|resnet)\.", "", name): value for name, value in tensors.items()}
    if "embeddings.patch_embeddings.projection.weight" in plain:
        return renamed(_joined(plain), _turned(HUGGINGFACE_VIT)), "Hugging Face"
    if "embedder.embedder.convolution.weight" in plain:
        return renamed(plain, _turned(HUGGINGFACE_RESNET)), "Hugging Face"
    return dict(tensors), "timm"


def in_huggingface_vit_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a transformer by Hugging Face's names in place of timm's."""
    found: dict[str, Tensor] = {}
    for name, value in renamed(tensors, HUGGINGFACE_VIT).items():
        if QKV in name:
            three = zip(PARTS, value.chunk(3), strict=True)
            found |= {name.replace(QKV, part): own.contiguous() for part, own in three}
        else:
            found[name] = value
    return found


def renamed(tensors: Mapping[str, Tensor], names: Iterable[tuple[str, str]]) -> dict[str, Tensor]:
    """Return the tensors with the beginnings of their names replaced by the first pair that fits."""
    pairs = [
        (re.compile(COUNTED.sub(r"(\\d{1,9})", re.escape(old).replace(r"\{", "{").replace(r"\}", "}"))), old, new)
        for old, new in names
    ]

    def translated(name: str) -> str:
        for pattern, old, new in pairs:
            if found := pattern.match(name):
                return _counted(old, new, found.groups()) + name[found.end() :]
        return name

    found: dict[str, Tensor] = {}
    for name, value in tensors.items():
        new = translated(name)
        found[name if new in found else new] = value  # the match reports the name of the second of two for one place
    return found


def _counted(old: str, new: str, numbers: Iterable[str]) -> str:
    """Return the beginning `new` with the numbers of a name that begins with `old`, as the new library counts them."""
    moved = (int(number) - int(start) for number, start in zip(numbers, COUNTED.findall(old), strict=True))
    return COUNTED.sub(lambda start: str(next(moved) + int(start[1])), new)


def _turned(names: Names) -> list[tuple[str, str]]:
    """Return a table for the other direction."""
    return [(theirs, timms) for timms, theirs in names]


def _joined(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with those of queries, keys and values as one, where a block has all three of one shape."""
    found = dict(tensors)
    for name in tensors:
        if PARTS[0] in name:
            names = [name.replace(PARTS[0], part) for part in PARTS]
            three = [tensors[other] for other in names if other in tensors]
            if len(three) == len(names) and len({x.shape for x in three}) == 1 and three[0].ndim:
                found[name.replace(PARTS[0], QKV)] = torch.cat(three)
                for other in names:
                    del found[other]
    return found
