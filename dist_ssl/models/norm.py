"""Batch normalisation with statistics of the whole job, or of groups of a fixed number of its samples.

The module receives sums over the ranks as functions (`Scope`), so its results are the same at every world size, on CPU
and GPU. Every rank reduces its own samples to mean and squared differences; one small float64 vector is all-reduced
(Chan et al. 1979, merged in float64), and one more in the backward pass. A batch of several consecutive views is
normalised view by view, still with one exchange.

A forward pass changes no buffer: it records its statistics, and `update_running_statistics` updates the running
statistics once per step, towards the mean over all groups of the job.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dist_ssl.core.collectives import Sum
from dist_ssl.models import norm_cuda
from dist_ssl.models.moments import moments, wide
from dist_ssl.models.named_weights import COUNTERS
from dist_ssl.models.norm_cpu import NormaliseCPU

M = TypeVar("M", bound=nn.Module)


def alone(x: Tensor) -> Tensor:
    """Return x: the sum over the ranks in a job of one rank."""
    return x


def no_blocks(ranks: int) -> Sum:
    """Raise AssertionError: in a job of one rank no group spans several ranks."""
    raise AssertionError(f"a block of {ranks} ranks in a job of one")


@dataclass(frozen=True)
class Scope:
    """The samples over which batch-norm statistics are taken, and the sums that this needs.

    `total`: the sum over all ranks. `block`: returns the sum over blocks of a given number of neighbouring ranks.
    `samples`: number of consecutive samples of the global batch in a group, a divisor or a multiple of the samples of a
    rank; None: the whole job is one group.
    """

    total: Sum = alone
    block: Callable[[int], Sum] = no_blocks
    samples: int | None = None

    def of(self, rows: int) -> tuple[int, Sum]:
        """Return the number of groups in a rank's `rows` samples of a view, and the sum that completes each of them."""
        if self.samples is None:
            return 1, self.total
        if rows % self.samples == 0:
            return rows // self.samples, alone
        assert self.samples % rows == 0, f"groups of {self.samples} samples do not fit {rows} samples a rank"
        return 1, self.block(self.samples // rows)


ONE_RANK = Scope()


class Normalise(torch.autograd.Function):
    """x [G, B, C, ...] -> weight * (x - mean) / sqrt(var + eps) + bias, mean and var [G, C] over the job's samples.

    Also returned, as targets of the running statistics: mean and unbiased variance, [C], averaged over the groups.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, total: Sum
    ) -> tuple[Tensor, Tensor, Tensor]:
        dims = (1, *range(3, x.dim()))
        count = x.numel() // (x.shape[0] * x.shape[2])
        mean, squares = moments(x)
        packed = torch.stack([torch.ones_like(mean) * count, count * mean, squares + count * mean * mean])
        n, first, second = total(packed)
        mean = first / n
        var = (second / n - mean * mean).clamp_min(0)
        scale = (var + eps).rsqrt()
        ctx.save_for_backward(x, mean, scale, n, weight)
        ctx.dims, ctx.total = dims, total
        slope = scale if weight is None else scale * weight
        shift = -mean * slope if bias is None else bias - mean * slope
        running = [values.mean(0).to(x.dtype) for values in (mean, var * (n / (n - 1).clamp_min(1)))]
        ctx.mark_non_differentiable(*running)
        return torch.addcmul(wide(shift, x), x, wide(slope, x)), running[0], running[1]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None, None]:
        """Return dx = weight * scale * (dy - mean(dy) - xhat * mean(dy * xhat)), the means over the job.

        The gradients of weight and bias are this rank's share, like those of any other parameter.
        """
        x, mean, scale, n, weight = ctx.saved_tensors
        dy = grads[0]
        own_dy = dy.sum(ctx.dims).double()
        own_along = scale * ((dy * x).sum(ctx.dims).double() - mean * own_dy)
        mean_dy, mean_along = ctx.total(torch.stack([own_dy, own_along])) / n
        slope = scale if weight is None else scale * weight
        bend = -slope * scale * mean_along
        dx = torch.addcmul(wide(-bend * mean - slope * mean_dy, x), x, wide(bend, x))
        dx.addcmul_(dy, wide(slope, x))
        if weight is None:
            return dx, None, None, None, None
        return dx, own_along.sum(0).to(weight.dtype), own_dy.sum(0).to(weight.dtype), None, None


class BatchNorm(nn.Module):
    """Batch norm over a scope: [V * B, C] or [V * B, C, H, W], each of the V views separately.

    Parameter and buffer names are those of torch's batch norm. It computes in the precision of its statistics for any
    input dtype; the output has the input's dtype.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self,
        num_features: int,
        *,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = True,
        scope: Scope = ONE_RANK,
    ) -> None:
        super().__init__()
        self.eps, self.momentum, self.scope = eps, momentum, scope
        self.views, self.rows = 1, 1
        self.seen: list[tuple[Tensor, Tensor] | norm_cuda.Statistics] = []
        self.then: nn.Module = nn.Identity()  # timm fuses the activation into the norm
        self.weight = nn.Parameter(torch.ones(num_features)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_features)) if affine else None
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def forward(self, x: Tensor) -> Tensor:
        own = x if norm_cuda.serves(x, self.running_mean.dtype) else x.to(self.running_mean.dtype)
        y = self._normalise(own, *self._affine()) if self.training else self._apply_running(own, *self._affine())
        out: Tensor = self.then(y.to(x.dtype))
        return out

    def _affine(self) -> tuple[Tensor | None, Tensor | None]:
        """Return scale and shift in the statistics' precision; an engine may provide them in a lower one."""
        if self.weight is None or self.bias is None:
            return None, None
        return self.weight.to(self.running_mean.dtype), self.bias.to(self.running_mean.dtype)

    def _apply_running(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, weight, bias, False, 0.0, self.eps)

    def _normalise(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        groups, total = self.scope.of(len(x) // (self.views * self.rows))
        if norm_cuda.serves(x, self.running_mean.dtype):
            several = None if total is alone else total
            fused, seen = norm_cuda.normalise(x, weight, bias, self.eps, several, self.views * groups)
            self.seen.append(seen)
            return fused
        grouped = x.view(self.views * groups, -1, *x.shape[1:])
        normalise = NormaliseCPU if x.device.type == "cpu" else Normalise
        y, mean, var = normalise.apply(grouped, weight, bias, self.eps, total)
        self.seen.append((mean, var))
        whole: Tensor = y.view(x.shape)
        return whole


Seen = dict[BatchNorm, Tensor]
"""Recorded statistics of batch norms: mean and variance, averaged over groups and forward passes, [2, C] each."""


@torch.no_grad()
def update_running_statistics(module: nn.Module, mean: Sum = alone) -> None:
    """Update all running statistics towards the mean of those recorded since the last call; called once per step.

    `mean`: the mean over the ranks, called once if groups are smaller than the job.
    """
    seen = taken(module)
    if any(child.scope.samples is not None for child in seen):
        seen = unpacked(seen, mean(packed(seen)))
    move(seen)


def taken(module: nn.Module) -> Seen:
    """Return the statistics recorded since the last call, and clear the records."""
    norms = [child for child in module.modules() if isinstance(child, BatchNorm) and child.seen]
    seen = [list(child.seen) for child in norms]
    for child in norms:
        child.seen.clear()
    return dict(zip(norms, _means_of(seen), strict=True))


def packed(seen: Seen) -> Tensor:
    """Return all statistics in one tensor, [2, sum of C]."""
    return torch.cat(list(seen.values()), dim=1)


def unpacked(like: Seen, values: Tensor) -> Seen:
    """Return the statistics of the same batch norms from one tensor; inverse of `packed`."""
    return dict(zip(like, torch.split(values, [x.shape[1] for x in like.values()], dim=1), strict=True))


@torch.no_grad()
def move(seen: Seen) -> None:
    """Update running statistics towards these, by the momentum of each batch norm."""
    for momentum in {child.momentum for child in seen}:
        some = [(child, *found) for child, found in seen.items() if child.momentum == momentum]
        now = [running for child, *_ in some for running in (child.running_mean, child.running_var)]
        torch._foreach_lerp_(now, [value for _, *pair in some for value in pair], momentum)


def _means_of(seen: list[list[tuple[Tensor, Tensor] | norm_cuda.Statistics]]) -> list[Tensor]:
    """Return mean and variance, [2, C], of each batch norm, averaged over groups and forward passes."""
    fused = [[one for one in own if isinstance(one, norm_cuda.Statistics)] for own in seen]
    pairs = [[torch.stack(one) for one in own if not isinstance(one, norm_cuda.Statistics)] for own in seen]
    if all(pairs):
        return [torch.stack(own).mean(0) for own in pairs]
    assert all(fused)
    assert not any(pairs)
    return norm_cuda.averaged(fused)


def convert(module: M, scope: Scope) -> M:
    """Return the module with every torch batch norm replaced by one over the scope; weights and statistics are kept.

    A module that is itself a torch batch norm becomes a `BatchNorm`, whatever its annotation says.
    """
    for name, child in module.named_children():
        setattr(module, name, convert(child, scope))
    if not isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        return module
    momentum = 0.1 if module.momentum is None else module.momentum
    own = BatchNorm(module.num_features, eps=module.eps, momentum=momentum, affine=module.affine, scope=scope)
    state = {name: value for name, value in module.state_dict().items() if name != COUNTERS}
    own.to(state["running_mean"].dtype).load_state_dict(state)
    own.requires_grad_(all(p.requires_grad for p in module.parameters()))
    after = [getattr(module, name) for name in ("drop", "act") if hasattr(module, name)]
    if after:
        own.then = nn.Sequential(*after)
    return own.train(module.training)  # type: ignore[return-value]


def set_views(module: nn.Module, views: int, rows: int = 1) -> None:
    """Set the layout of the following batches of this module: `views` views, one after the other.

    `rows`: number of consecutive rows that belong to one sample (its tiles or patches) and share statistics.
    """
    for child in module.modules():
        if isinstance(child, BatchNorm):
            child.views, child.rows = views, rows


def again(module: nn.Module) -> AbstractContextManager[None]:
    """Return a context for recomputation: it restores the current view layout and records no statistics."""
    return _repeating([(child, child.views, child.rows) for child in module.modules() if isinstance(child, BatchNorm)])


@contextmanager
def _repeating(then: list[tuple[BatchNorm, int, int]]) -> Iterator[None]:
    before = [(child.views, child.rows, len(child.seen)) for child, *_ in then]
    for child, views, rows in then:
        child.views, child.rows = views, rows
    try:
        yield
    finally:
        for (child, *_), (views, rows, noted) in zip(then, before, strict=True):
            child.views, child.rows = views, rows
            del child.seen[noted:]
