"""The arithmetic of `norm` on a GPU, on the input as it comes, in single precision.

The kernels behind torch's synchronised batch norm take one launch each per group for statistics, output, sums of the
gradient and its elements. On TRITON_DEVICES the kernels of `norm_triton` take six launches for all groups instead, for
an input in channels_last. A bfloat16 input is read and written as bfloat16 and kept so for the
backward pass. Where ranks share a group, their short vectors are merged in float64, as in `norm`. Nothing waits for the
device, and nothing is copied to it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from dist_ssl.core.collectives import Sum

DEVICES = ("cuda",)
TRITON_DEVICES: tuple[str, ...] = ()
"""Devices on which Triton's kernels are tried: none before a GPU has shown them right and faster than torch's."""
DTYPES = (torch.bfloat16, torch.float32)
"""Inputs whose statistics these kernels keep in single precision."""


def serves(x: Tensor, dtype: torch.dtype) -> bool:
    """Return whether these kernels normalise x where statistics have this precision."""
    return x.device.type in DEVICES and x.dtype in DTYPES and dtype == torch.float32


def by_triton(x: Tensor) -> bool:
    """Return whether Triton's kernels normalise x, which lies dense in memory; otherwise torch's do."""
    last = _layout(x) is torch.channels_last if x.dim() == 4 else x.dim() == 2
    return last and x.numel() > 0 and x.device.type in TRITON_DEVICES and _has_triton(x.device)


@cache
def _has_triton(device: torch.device) -> bool:
    if not find_spec("triton"):
        return False
    from dist_ssl.models.norm_triton import usable

    return usable(device)


Rows = Sequence[Tensor] | Tensor
"""One [C] tensor per group, or all in one [G, C]."""


@dataclass(frozen=True)
class Statistics:
    """One [C] tensor per group, float32 each, in what a batch norm saw: `scales` are 1 / sqrt(var + eps).

    `bessel`: n / (n - 1) for the n values that a group's statistics are of, over all ranks. `counts`: n [G, C] in
    float64, where ranks share groups.
    """

    means: Rows
    scales: Rows
    bessel: Rows
    eps: float
    counts: Tensor | None = None

    @property
    def tables(self) -> tuple[Tensor, Tensor]:
        """Means and scales where they are [G, C] each, as Triton's kernels return and read them."""
        assert isinstance(self.means, Tensor)
        assert isinstance(self.scales, Tensor)
        return self.means, self.scales


def normalise(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, total: Sum | None, groups: int
) -> tuple[Tensor, Statistics]:
    """Return x [G * B, C, ...] with each of the G groups normalised, and its statistics.

    `total`: the sum over the ranks that share the groups; None where no other rank has a part in them. `weight` and
    `bias`: [C] float32.
    """
    x = x if _dense(x) else x.contiguous(memory_format=_layout(x))
    with torch.no_grad():
        seen = _statistics(x, eps, total, groups)
    y: Tensor = _Normalise.apply(x, weight, bias, seen, total)
    return y, seen


class _Normalise(torch.autograd.Function):
    """x -> weight * (x - mean) * scale + bias, group by group, with mean and scale given."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, seen: Statistics, total: Sum | None
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.seen, ctx.total = seen, total
        if by_triton(x):
            from dist_ssl.models.norm_triton import transform

            return transform(x, weight, bias, *seen.tables)
        y = torch.empty_like(x)
        groups = len(seen.means)
        for part, out, mean, scale in zip(x.chunk(groups), y.chunk(groups), seen.means, seen.scales, strict=True):
            torch.batch_norm_elemt(part, weight, bias, mean, scale, seen.eps, out=out)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None, None]:
        """dx = weight * scale * (dy - mean(dy) - xhat * mean(dy * xhat)), the means over the group's ranks.

        The gradients of weight and bias are this rank's share, as those of any other parameter.
        """
        x, weight = ctx.saved_tensors
        dy = grads[0].contiguous(memory_format=_layout(x))
        work = _backward_by_triton if by_triton(x) else _backward_by_torch
        return *work(dy, x, weight, ctx.seen, ctx.total), None, None


Gradients = tuple[Tensor, Tensor | None, Tensor | None]
"""Gradients of the input, the weight and the bias."""


def _backward_by_triton(dy: Tensor, x: Tensor, weight: Tensor | None, seen: Statistics, total: Sum | None) -> Gradients:
    from dist_ssl.models.norm_triton import elements, sums

    own, learnt = sums(dy, x, *seen.tables)
    count = float(_count(x, len(own[0])))
    if total is not None:
        own, count = _over_ranks(own, seen, total), 1.0
    dx = elements(dy, x, weight, *seen.tables, own, count)
    return (dx, None, None) if weight is None else (dx, learnt[0], learnt[1])


def _backward_by_torch(dy: Tensor, x: Tensor, weight: Tensor | None, seen: Statistics, total: Sum | None) -> Gradients:
    groups, affine = len(seen.means), weight is not None
    parts = list(zip(dy.chunk(groups), x.chunk(groups), seen.means, seen.scales, strict=True))
    sums = [torch.batch_norm_backward_reduce(*part, weight, True, affine, affine) for part in parts]
    along, count = _shared([own[:2] for own in sums], seen, total, x)
    dx = [torch.batch_norm_backward_elemt(*part, weight, *own, count) for part, own in zip(parts, along, strict=True)]
    of_weight, of_bias = _added([own[2:] for own in sums]) if affine else (None, None)
    return torch.cat(dx) if groups > 1 else dx[0], of_weight, of_bias


def _statistics(x: Tensor, eps: float, total: Sum | None, groups: int) -> Statistics:
    means, scales = _own_statistics(x, eps, groups)
    count = _count(x, groups)
    if total is None:
        bessel = _constant(x.shape[1], count / max(count - 1, 1), torch.float32, x.device)
        return Statistics(means, scales, [bessel] * groups, eps)
    mean, scale = torch.stack([*means, *scales]).double().view(2, groups, -1)
    squares = torch.addcmul(scale.pow(-2) - eps, mean, mean)
    n, first, second = total(torch.stack([torch.ones_like(mean), mean, squares]) * count)
    mean = first / n
    var = torch.addcmul(second / n, mean, mean, value=-1).clamp_min_(0)
    merged = torch.stack([mean, (var + eps).rsqrt(), n / (n - 1).clamp_min_(1)]).float()
    return Statistics(merged[0], merged[1], merged[2], eps, counts=n)


def _own_statistics(x: Tensor, eps: float, groups: int) -> tuple[Rows, Rows]:
    """Return the means and scales of this rank's share of each group."""
    if by_triton(x):
        from dist_ssl.models.norm_triton import statistics

        found = statistics(x, eps, groups)
        return found[0], found[1]
    own = [torch.batch_norm_stats(part, eps) for part in x.chunk(groups)]
    return [mean for mean, _ in own], [scale for _, scale in own]


def _shared(
    own: list[tuple[Tensor, Tensor]], seen: Statistics, total: Sum | None, x: Tensor
) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """Return what the kernel divides by the count, per group over all ranks: sums of dy, dy * (x - mean); the count."""
    if total is None:
        return own, _constant(1, _count(x, len(own)), torch.int32, x.device)
    packed = torch.stack([row for kind in zip(*own, strict=True) for row in kind]).view(2, len(own), -1)
    plain, along = (rows.unbind() for rows in _over_ranks(packed, seen, total))
    return list(zip(plain, along, strict=True)), _constant(1, 1, torch.int32, x.device)


def _over_ranks(own: Tensor, seen: Statistics, total: Sum) -> Tensor:
    """Return the means over the values of all ranks, where `own` are this rank's sums, [2, G, C]."""
    assert seen.counts is not None
    return (total(own.double()) / seen.counts).float()  # counts may differ: divided here, where they are exact


def _added(own: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return the sums over groups of each of two tensors."""
    first, *others = own
    found = list(first)
    for other in others:
        torch._foreach_add_(found, list(other))
    return found[0], found[1]


def averaged(seen: Sequence[Sequence[Statistics]]) -> list[Tensor]:
    """Return mean and unbiased variance, [2, C], of each batch norm, averaged over groups and passes."""
    rows = [[row for s in own for row in zip(s.means, s.scales, s.bessel, strict=True)] for own in seen]
    alike: dict[tuple[int, float], list[int]] = {}
    for place, own in enumerate(seen):
        alike.setdefault((len(rows[place]), own[0].eps), []).append(place)
    found: dict[int, Tensor] = {}
    for (groups, eps), places in alike.items():
        kinds = [rows[place][group][kind] for kind in range(3) for group in range(groups) for place in places]
        mean, scale, bessel = torch.cat(kinds).view(3, groups, -1)
        var = (scale.pow(-2) - eps).clamp_min_(0) * bessel
        both = torch.stack([mean, var]).mean(1)
        found |= zip(places, torch.split(both, [len(rows[place][0][0]) for place in places], dim=1), strict=True)
    return [found[place] for place in range(len(seen))]


def _count(x: Tensor, groups: int) -> int:
    """Return how many values of this rank a channel of a group has."""
    return x.numel() // (groups * x.shape[1])


@cache
def _constant(size: int, value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a cached [size] tensor of a value: filling one anew costs a launch each time."""
    return torch.full((size,), value, dtype=dtype, device=device)


def _layout(x: Tensor) -> torch.memory_format:
    """Return the memory format of x as these kernels know it."""
    dense = x.is_contiguous() and not x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if x.dim() == 4 and not dense else torch.contiguous_format


def _dense(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=_layout(x))
