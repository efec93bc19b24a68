"""Batch norm's kernels by Triton: all groups of an input in one launch, and nothing is copied to be put together.

    statistics   mean and sum of squared differences of a block of rows; then of all blocks of a group (2 launches)
    transform    the output (1 launch)
    sums         sums of dy and of dy * (x - mean) over a block of rows; then over all blocks of a group (2 launches)
    elements     the gradient of the input (1 launch)

An input is [G * B, C] or [G * B, C, H, W] in channels_last: in memory [G, rows, C]. Numbers are read and written in
their own precision, eight or more at once, and computed in single precision.

Blocks of rows are cut by the rows and the channels of a group alone, and no sum depends on the order in which programs
run: a group has the same bits in every batch and at every run.
"""

from functools import cache

import torch
import triton
from torch import Tensor

from dist_ssl.core.triton_tools import launch, works
from dist_ssl.models.norm_kernels import (
    MERGED,
    TILE,
    block_moments,
    block_sums,
    gradient_block,
    merge_moments,
    merge_sums,
    normalise_block,
)

PROGRAMS = 1024
"""Programs at most, all channels together, that share the rows of a group where they are added up."""


def statistics(x: Tensor, eps: float, groups: int) -> Tensor:
    """Return mean and 1 / sqrt(var + eps) of each group, [2, G, C] float32."""
    rows, channels = _size(x, groups)
    span, blocks, form = _blocks(rows, channels)
    partial = x.new_empty((2, groups, blocks, channels), dtype=torch.float32)
    found = x.new_empty((2, groups, channels), dtype=torch.float32)
    programs = blocks * triton.cdiv(channels, form["width"]), groups
    launch(block_moments, programs, x, partial[0], partial[1], rows, span, blocks, channels, **form)
    given = (partial[0], partial[1], found[0], found[1], rows, span, blocks, channels, eps)
    launch(merge_moments, (triton.cdiv(channels, MERGED.value), groups), *given, size=_padded(blocks), num_warps=8)
    return found


def transform(x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, scale: Tensor) -> Tensor:
    """Return weight * (x - mean) * scale + bias; weight and bias [C], mean and scale [G, C], all float32."""
    out, (rows, channels), form = torch.empty_like(x), _size(x, len(mean)), _form(x.shape[1], 2)
    affine, (span, width) = weight is not None and bias is not None, form.values()
    given = (x, weight if affine else mean, bias if affine else mean, mean, scale, out, rows, span, channels)
    programs = triton.cdiv(rows, span) * triton.cdiv(channels, width), len(mean)
    launch(normalise_block, programs, *given, affine=affine, **form)
    return out


def sums(dy: Tensor, x: Tensor, mean: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return sums of dy and of dy * (x - mean) of each group, [2, G, C]; gradients of weight and bias, [2, C]."""
    groups, (rows, channels) = len(mean), _size(x, len(mean))
    span, blocks, form = _blocks(rows, channels)
    partial = x.new_empty((2, groups, blocks, channels), dtype=torch.float32)
    own, learnt = partial.new_empty((2, groups, channels)), partial.new_empty((2, channels))
    programs = blocks * triton.cdiv(channels, form["width"]), groups
    launch(block_sums, programs, dy, x, mean, partial[0], partial[1], rows, span, blocks, channels, **form)
    given = (partial[0], partial[1], scale, own, learnt, blocks, groups, channels)
    launch(merge_sums, (triton.cdiv(channels, MERGED.value), 1), *given, size=_padded(blocks), num_warps=8)
    return own, learnt


def elements(
    dy: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, scale: Tensor, own: Tensor, count: float
) -> Tensor:
    """Return the gradient of x; own: [2, G, C] float32, sums over `count` values as `sums` returns them."""
    dx, (rows, channels), form = torch.empty_like(x), _size(x, len(mean)), _form(x.shape[1], 2)
    span, width = form.values()
    given = (dy, x, mean if weight is None else weight, mean, scale, own, dx, rows, span, len(mean), channels, count)
    programs = triton.cdiv(rows, span) * triton.cdiv(channels, width), len(mean)
    launch(gradient_block, programs, *given, affine=weight is not None, **form)
    return dx


def _size(x: Tensor, groups: int) -> tuple[int, int]:
    """Return the rows of a group, and the channels."""
    return x.numel() // (groups * x.shape[1]), x.shape[1]


def _form(channels: int, tiles: int) -> dict[str, int]:
    """Return rows and channels of a tile: 32 to 128 channels, a divisor of their number where that is possible."""
    width = channels & -channels
    width = min(width if width >= 32 else triton.next_power_of_2(channels), 128)
    return {"height": tiles * TILE.value // width, "width": width}


def _blocks(rows: int, channels: int) -> tuple[int, int, dict[str, int]]:
    """Return the rows of a block that are summed, how many blocks a group has, and the form of a tile."""
    form = _form(channels, 1)
    several = form["height"] * 4
    most = max(PROGRAMS // triton.cdiv(channels, form["width"]), 1)
    span = several * triton.cdiv(triton.cdiv(rows, most), several)
    return span, triton.cdiv(rows, span), form


def _padded(blocks: int) -> int:
    """Return how many blocks the program of a merge reads; few sizes, since each is compiled."""
    return 64 if blocks <= 64 else PROGRAMS


@cache
def usable(device: torch.device) -> bool:
    """Return whether the kernels compile and run here; where they do not, torch's kernels do the work."""

    def one_pass() -> None:
        x, weight = torch.zeros(4, 8, device=device), torch.ones(8, device=device)
        mean, scale = statistics(x, 1e-5, 2)
        y = transform(x, weight, weight, mean, scale)
        elements(y, x, weight, mean, scale, sums(y, x, mean, scale)[0], 2.0)

    return works(one_pass, "Batch norm runs without Triton's kernels, which is slower")
