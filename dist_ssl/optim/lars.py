"""LARS: SGD with momentum and layer-wise scaled steps (You, Gitman, Ginsburg 2017), in the variants of three papers.

    u = g + wd p;   u <- f u;   buffer <- momentum buffer + u;   p <- p - lr buffer
    f = trust |p| / |u|                        `update`: MoCo v3
    f = trust |p| / (|g| + wd |p| + 1e-8)      `parts`: SwAV; with `clip`, f = min(f / lr, 1): EMP-SSL

Parameters without weight decay (biases, scales of norms) are not scaled either. A layer of zeros takes an SGD step.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import Any, Literal

import torch
from torch import Tensor

Ratio = Literal["update", "parts"]
Norms = Callable[[Sequence[Tensor]], Tensor]
"""Returns the norms of n tensors, [n]; where ranks hold pieces of a tensor, the norm over all its pieces."""
Group = tuple[dict[str, Any], list[Tensor]]
"""Options of a group of parameters, and those of its parameters that have a gradient."""

ONE_BY_ONE = ("cpu",)
"""Devices on which starting an operation for each layer costs next to nothing."""
WIDTH = 1024


def local_norms(tensors: Sequence[Tensor]) -> Tensor:
    """Return the norms, [n], of tensors that are whole on every rank."""
    return torch.stack(torch._foreach_norm(list(tensors)))


class Rows:
    """Memory for one tensor per parameter, each from the start of a row of WIDTH elements.

    One operation multiplies every tensor by a number of its own, which only the device knows.
    """

    def __init__(self, params: Sequence[Tensor]) -> None:
        self.params = list(params)
        counts = [-(-p.numel() // WIDTH) for p in params]
        self.rows = params[0].new_zeros((sum(counts), WIDTH))
        starts = [WIDTH * end for end in accumulate(counts, initial=0)]
        places = zip(params, starts[:-1], strict=True)
        self.tensors = [self.rows.view(-1)[at : at + p.numel()].as_strided(p.shape, strides(p)) for p, at in places]
        owners = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts), output_size=sum(counts))
        self.owners = owners.to(self.rows.device, non_blocking=True)

    def scale(self, factors: Tensor) -> None:
        """Multiply each tensor by its factor, [n]."""
        self.rows.mul_(factors[self.owners][:, None])


def strides(p: Tensor) -> tuple[int, ...]:
    """Return the strides of a dense tensor with the memory order of this one."""
    return torch.empty_like(p, device="meta").stride()


class LayerwiseSGD(torch.optim.Optimizer):
    """SGD with momentum and LARS. Groups carry `lr`, `weight_decay` and `decays`: 0 for no decay and no scaling.

    `momentum`: 0 to less than 1; `trust` > 0; `clip`: no layer takes larger steps than plain SGD with `lr`. All norms
    are computed in one call of `norms`.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        momentum: float,
        nesterov: bool,
        trust: float,
        ratio: Ratio,
        clip: bool,
        norms: Norms = local_norms,
    ) -> None:
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0, "decays": 1.0})
        self.momentum, self.nesterov = momentum, nesterov
        self.trust, self.ratio, self.clip, self.norms = trust, ratio, clip, norms
        self._rows: Rows | None = None

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        moved = [(group, [p for p in group["params"] if p.grad is not None]) for group in self.param_groups]
        scaled = [(group, params) for group, params in moved if group["decays"] and params]
        plain = [(group, params) for group, params in moved if not group["decays"] and params]
        updates = [p.grad for _, params in plain for p in params if p.grad is not None]
        updates += self._scaled(scaled) if scaled else []
        if updates:
            self._descend([*plain, *scaled], updates)

    def _scaled(self, groups: list[Group]) -> list[Tensor]:
        """Return the scaled updates of all layers, one group after the other."""
        layers = [p for _, params in groups for p in params]
        updates, rows = self._updates(groups, layers)
        measured = [p.grad for p in layers if p.grad is not None] if self.ratio == "parts" else updates
        own, other = self.norms([*layers, *measured]).chunk(2)
        if self.ratio == "update" and not self.clip:  # no group differs from another then
            groups = [({"lr": 1.0, "weight_decay": 0.0}, layers)]
        lengths = [len(params) for _, params in groups]
        sizes = zip(groups, torch.split(own, lengths), torch.split(other, lengths), strict=True)
        parts = [self._factors(a, b, group["lr"], group["weight_decay"]) for (group, _), a, b in sizes]
        factors = torch.cat(parts) if len(parts) > 1 else parts[0]
        if rows is None:
            torch._foreach_mul_(updates, factors.unbind())
        else:
            rows.scale(factors)
        return updates

    def _updates(self, groups: list[Group], layers: list[Tensor]) -> tuple[list[Tensor], Rows | None]:
        """Return gradients plus decay of all layers; in rows on a device that is slow to start operations."""
        grads = [p.grad for p in layers if p.grad is not None]
        if layers[0].device.type in ONE_BY_ONE:
            rows, updates = None, [g.clone(memory_format=torch.preserve_format) for g in grads]
        else:
            if self._rows is None or list(map(id, self._rows.params)) != list(map(id, layers)):
                self._rows = Rows(layers)  # the first step, or one in which more or fewer layers learn
            rows, updates = self._rows, self._rows.tensors
            torch._foreach_copy_(updates, grads)
        first = 0
        for group, params in groups:
            torch._foreach_add_(updates[first : first + len(params)], params, alpha=group["weight_decay"])
            first += len(params)
        return updates, rows

    def _factors(self, layer: Tensor, measured: Tensor, lr: float, weight_decay: float) -> Tensor:
        below = measured if self.ratio == "update" else measured + weight_decay * layer + 1e-8
        local = self.trust * layer / below
        factors = (local / lr).clamp_max(1) if self.clip else local
        factors = factors.masked_fill(layer <= 0, 1)
        # with a zero gradient `parts` leaves a layer unchanged; a zero `update` only needs a finite factor
        return factors.masked_fill_(measured <= 0, 0)

    def _descend(self, groups: list[Group], updates: Any) -> None:
        buffers = [self._buffer(p) for _, params in groups for p in params]
        torch._foreach_mul_(buffers, self.momentum)
        torch._foreach_add_(buffers, updates)
        steps = torch._foreach_add(updates, buffers, alpha=self.momentum) if self.nesterov else buffers
        first = 0
        for group, params in groups:
            torch._foreach_add_(params, steps[first : first + len(params)], alpha=-group["lr"])
            first += len(params)

    def _buffer(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer: Tensor = state["momentum_buffer"]
        return buffer
