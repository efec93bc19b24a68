"""The arithmetic of `norm` on a CPU: torch's fused kernels for what is large, numpy for what is small.

On a CPU every tensor operation has an overhead of microseconds, and the vectors of a batch norm are short: the
operations that `norm` uses on a GPU take two to four times as long here for the same formulas.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from dist_ssl.core.collectives import Sum
from dist_ssl.core.draws import Doubles
from dist_ssl.models.moments import moments, wide

FAR = 8.0
"""Largest |mean| / standard deviation for which torch's single-precision sums are accurate enough."""


class NormaliseCPU(torch.autograd.Function):
    """The function of `norm.Normalise`, with equal results up to rounding."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, total: Sum
    ) -> tuple[Tensor, Tensor, Tensor]:
        n, mean, var = _job_moments(x, total)
        scale = 1 / np.sqrt(var + eps)
        slope = scale if weight is None else scale * _doubles(weight)
        shift = -mean * slope if bias is None else _doubles(bias) - mean * slope
        ctx.save_for_backward(x, weight)
        ctx.n, ctx.mean, ctx.scale, ctx.slope, ctx.total = n, mean, scale, slope, total
        unbiased = var * (n / np.maximum(n - 1, 1))
        running = [torch.from_numpy(values.mean(0)).to(x.dtype) for values in (mean, unbiased)]
        ctx.mark_non_differentiable(*running)
        return torch.addcmul(_wide(shift, x), x, _wide(slope, x)), running[0], running[1]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None, None]:
        """Return the gradients that `norm.Normalise` returns, up to rounding."""
        x, weight = ctx.saved_tensors
        n, mean, scale, slope = ctx.n, ctx.mean, ctx.scale, ctx.slope
        dy = grads[0]
        own = _own_sums(x, dy, mean, scale)
        mean_dy, mean_along = ctx.total(torch.from_numpy(own)).numpy() / n
        bend = -slope * scale * mean_along
        dx = torch.addcmul(_wide(-bend * mean - slope * mean_dy, x), x, _wide(bend, x))
        dx.addcmul_(dy, _wide(slope, x))
        if weight is None:
            return dx, None, None, None, None
        for_bias, for_weight = torch.from_numpy(own.sum(1)).to(weight.dtype)
        return dx, for_weight, for_bias, None, None


def _job_moments(x: Tensor, total: Sum) -> tuple[Doubles, Doubles, Doubles]:
    """Return number of values, mean and biased variance over the job, [G, C] each."""
    count = x.numel() // (x.shape[0] * x.shape[2])
    own = np.stack([_view_moments(view, count) for view in x], axis=1)
    packed = np.stack([np.full_like(own[0], count), count * own[0], count * (own[1] + own[0] ** 2)])
    n, first, second = total(torch.from_numpy(packed)).numpy()
    mean = first / n
    return n, mean, np.maximum(second / n - mean * mean, 0)


def _view_moments(view: Tensor, count: int) -> tuple[Doubles, Doubles]:
    """Return mean and biased variance of one view's channels, [C] each."""
    mean, var = (values.double().numpy() for values in torch.batch_norm_update_stats(view, None, None, 0.0))
    if not (mean**2 > FAR**2 * var).any():
        return mean, var
    centre, squares = moments(view[None])
    return centre[0].numpy(), squares[0].numpy() / count


def _own_sums(x: Tensor, dy: Tensor, mean: Doubles, scale: Doubles) -> Doubles:
    """Return this rank's sums of dy and of dy * xhat, [2, G, C]."""
    own = np.empty((2, *mean.shape))
    given = (_like(mean, x), _like(1 / scale**2, x), None, None, False, 0.0, [False, True, True])
    for group, (view, dy_view) in enumerate(zip(x, dy, strict=True)):
        centre, var = given[0][group], given[1][group]
        _, along, plain = torch.ops.aten.native_batch_norm_backward(dy_view, view, None, centre, var, *given[2:])
        own[0, group], own[1, group] = plain.numpy(), along.numpy()
    return own


def _doubles(parameter: Tensor) -> Doubles:
    """Return a float64 copy: engines free gathered weights, which fails for memory that a numpy array shares."""
    values: Doubles = parameter.detach().to(torch.float64, copy=True).numpy()
    return values


def _like(values: Doubles, x: Tensor) -> Tensor:
    return torch.from_numpy(values).to(x.dtype)


def _wide(per_channel: Doubles, x: Tensor) -> Tensor:
    return wide(torch.from_numpy(per_channel), x)
