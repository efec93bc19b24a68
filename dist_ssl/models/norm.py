"""Batch normalisation whose statistics are those of the whole job, on CPU and GPU, at every world size.

The module is handed a `sum` over the ranks and knows nothing else of them. Every rank reduces its own samples to
mean and squared deviations; one small float64 vector is summed over the job (Chan et al. 1979, merged in float64), one
more in the backward pass. A batch that holds several views one after the other is normalised view by view (`groups`),
still with one exchange.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dist_ssl.models.moments import moments, wide
from dist_ssl.models.norm_cpu import NormaliseCPU, Sum


def alone(x: Tensor) -> Tensor:
    """The sum over the ranks of a job of one rank."""
    return x


class Normalise(torch.autograd.Function):
    """x [G, B, C, ...] -> weight * (x - mean) / sqrt(var + eps) + bias, mean and var [G, C] over the job's samples.

    Beside it what the running statistics move towards: mean and unbiased variance, [C], averaged over the groups.
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
        """dx = weight * scale * (dy - mean(dy) - xhat * mean(dy * xhat)), the means over the job.

        The gradients of weight and bias are this rank's share, as those of any other parameter.
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
    """Batch norm over the whole job: [G * B, C] or [G * B, C, H, W], each of the G groups on its own.

    Running statistics are the mean over the groups. Parameter and buffer names are those of torch's batch norm.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self, num_features: int, *, eps: float = 1e-5, momentum: float = 0.1, affine: bool = True, total: Sum = alone
    ) -> None:
        super().__init__()
        self.eps, self.momentum, self.total, self.groups = eps, momentum, total, 1
        self.then: nn.Module = nn.Identity()  # timm fuses the activation into the norm
        self.weight = nn.Parameter(torch.ones(num_features)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_features)) if affine else None
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.then(self._normalise(x) if self.training else self._apply_running(x))
        return out

    def _apply_running(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)

    def _normalise(self, x: Tensor) -> Tensor:
        grouped = x.view(self.groups, -1, *x.shape[1:])
        normalise = NormaliseCPU if x.device.type == "cpu" else Normalise
        y, mean, var = normalise.apply(grouped, self.weight, self.bias, self.eps, self.total)
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var, self.momentum)
        whole: Tensor = y.view(x.shape)
        return whole


def convert(module: nn.Module, total: Sum) -> nn.Module:
    """The module with every torch batch norm replaced by one over the whole job, weights and statistics kept."""
    for name, child in module.named_children():
        setattr(module, name, convert(child, total))
    if not isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        return module
    momentum = 0.1 if module.momentum is None else module.momentum
    own = BatchNorm(module.num_features, eps=module.eps, momentum=momentum, affine=module.affine, total=total)
    state = {name: value for name, value in module.state_dict().items() if name != "num_batches_tracked"}
    own.to(state["running_mean"].dtype).load_state_dict(state)
    own.requires_grad_(all(p.requires_grad for p in module.parameters()))
    after = [getattr(module, name) for name in ("drop", "act") if hasattr(module, name)]
    if after:
        own.then = nn.Sequential(*after)
    return own.train(module.training)


def group(module: nn.Module, groups: int) -> None:
    """From now on the batches of this module hold so many views, one after the other."""
    for child in module.modules():
        if isinstance(child, BatchNorm):
            child.groups = groups
