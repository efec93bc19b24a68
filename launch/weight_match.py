"""The match of existing weights with the encoder that starts from them: its tensors are all found, or named.

Two kinds of tensors may have another size, as the encoder itself resizes them during training: learnt positions of
patches (antialiased bicubic interpolation), and the projection of the patches (the pseudo-inverse of FlexiViT). A first
layer for RGB is adapted to images of other channels. A
classifier on top is left out. Everything else that is missing, left over or of another shape is named.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from dist_ssl.config.bounds import RGB
from dist_ssl.data.images.image_rules import counted
from dist_ssl.models.first_layer import for_channels
from dist_ssl.models.fixed_positions import Patches, stored_positions
from dist_ssl.models.named_weights import without_counters
from dist_ssl.models.patches import resized_projection
from dist_ssl.models.resampling import resized
from dist_ssl.saved_encoder import POSITIONS

PROJECTION = "patch_embed.proj.weight"
HEADS = ("fc.", "head.", "head_dist.", "heads.", "classifier.", "pooler.", "pre.")
"""Beginnings of names of classifiers and of what feeds them alone: timm's, torchvision's and Hugging Face's.

The last is the layer that EMP-SSL adds to an encoder, which a method brings anew.
"""
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Types of numbers that weights may have; integers and smaller floats are meant to be scaled by something else."""
FIXED = 1e-3
"""Largest difference of positions that are still the fixed ones: they may have been stored in half precision."""


@dataclass
class Match:
    """The weights that fit, by the encoder's names, and what must be said of the others."""

    total: int
    """Tensors of the encoder, without counters of batch norms."""
    weights: dict[str, Tensor] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    """Sentences about what was resized or computed."""
    head: list[str] = field(default_factory=list)
    """Names of tensors that are left out."""
    missing: list[str] = field(default_factory=list)
    left_over: list[str] = field(default_factory=list)
    of_another_shape: list[str] = field(default_factory=list)
    of_another_type: list[str] = field(default_factory=list)
    not_finite: list[str] = field(default_factory=list)

    @property
    def count(self) -> str:
        """The number of tensors that match, in words."""
        return f"matched {len(self.weights)} of {self.total} tensors"

    @property
    def problems(self) -> list[str]:
        """One line for each kind of tensors that do not match, with their names; none where everything fits."""
        kinds = {
            "missing": self.missing,
            "left over": self.left_over,
            "of another shape": self.of_another_shape,
            "of another type": self.of_another_type,
            "not finite": self.not_finite,
        }
        return [f"{kind}: {', '.join(names)}" for kind, names in kinds.items() if names]


def match(encoder: nn.Module, tensors: Mapping[str, Tensor]) -> Match:
    """Return the match of tensors by timm's names with an encoder, of which only names and shapes are used."""
    own = without_counters(encoder.state_dict())
    found = without_counters(tensors)
    result = Match(len(own))
    if has_fixed_positions(encoder, found):
        del found[POSITIONS]
        result.notes.append(f"{POSITIONS}: this encoder computes the same positions.")
    for name, tensor in own.items():
        if name not in found:
            result.missing.append(name)
            continue
        if found[name].dtype not in (FLOATS if tensor.is_floating_point() else (tensor.dtype,)):
            result.of_another_type.append(f"{name} {_type(found[name])}, in the encoder {_type(tensor)}")
            continue
        value, note = fitted(encoder, name, found[name], tensor.shape)
        value = value.to(tensor.dtype)  # which may turn large numbers into infinity
        if value.shape != tensor.shape:
            result.of_another_shape.append(f"{name} {list(value.shape)}, in the encoder {list(tensor.shape)}")
        elif not value.isfinite().all():
            result.not_finite.append(name)
        else:
            result.weights[name] = value.contiguous()
            result.notes += [note] if note else []
    rest = sorted(found.keys() - own.keys())  # files have no order
    result.head = [name for name in rest if name.startswith(HEADS)]
    result.left_over = [name for name in rest if not name.startswith(HEADS)]
    return result


def fitted(encoder: nn.Module, name: str, value: Tensor, shape: torch.Size) -> tuple[Tensor, str]:
    """Return a tensor in this shape if it may be resized, and a sentence about that; another one as it is.

    `shape`: that of the encoder's tensor.
    """
    if value.shape == shape or not value.is_floating_point() or value.ndim != len(shape):
        return value, ""
    if len(shape) == 4 and value.shape[1] == RGB != shape[1] and value.shape[0] == shape[0]:  # only a first layer has 3
        adapted, note = fitted(encoder, name, for_channels(value.float(), shape[1]), shape)
        return adapted, f"{name}: adapted from RGB to images of {counted(shape[1])}. {note}".rstrip()
    square = len(shape) == 4 and value.shape[2] == value.shape[3] and shape[2] == shape[3]
    if name == PROJECTION and square and value.shape[:2] == shape[:2]:
        sides = f"{value.shape[3]} px to {shape[3]} px"
        return resized_projection(value.float(), shape[3]), f"{name}: resized from patches of {sides}."
    grid = getattr(getattr(encoder, "patch_embed", None), "grid_size", None)
    if name == POSITIONS and grid and value.ndim == 3 and (value.shape[0], value.shape[2]) == (shape[0], shape[2]):
        first = shape[1] - grid[0] * grid[1]  # positions of the class token and of registers
        side = math.isqrt(max(0, value.shape[1] - first))
        if side and side * side == value.shape[1] - first:
            learnt = resized(value[:, first:].float(), (side, side), tuple(grid))
            note = f"{name}: resized from {side} x {side} to {grid[0]} x {grid[1]} patches."
            return torch.cat([value[:, :first].float(), learnt], dim=1), note
    return value, ""


def has_fixed_positions(encoder: nn.Module, tensors: Mapping[str, Tensor]) -> bool:
    """Return whether the tensors include positions that this encoder computes by itself, for any grid."""
    patches, value = getattr(encoder, "patch_embed", None), tensors.get(POSITIONS)
    if not isinstance(patches, Patches) or value is None or value.ndim != 3 or value.dtype not in FLOATS:
        return False
    own = stored_positions(math.isqrt(max(0, value.shape[1] - 1)), patches.width)
    return value.shape == own.shape and torch.allclose(value.float(), own, rtol=0, atol=FIXED)


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def heads_of(module: nn.Module) -> list[int]:
    """Return the number of heads of every attention in a module: no shape of a tensor shows it."""
    found = (getattr(child, "num_heads", None) for child in module.modules())
    return [heads for heads in found if isinstance(heads, int)]
