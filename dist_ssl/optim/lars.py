"""LARS: SGD with momentum and layer-wise scaled steps (You, Gitman, Ginsburg 2017), in the variants of three papers.

    u = g + wd p;   u <- f u;   buffer <- momentum buffer + u;   p <- p - lr buffer
    f = trust |p| / |u|                        `update`: MoCo v3
    f = trust |p| / (|g| + wd |p| + 1e-8)      `parts`: SwAV; with `clip`, f = min(f / lr, 1): EMP-SSL

Parameters without weight decay (biases, scales of norms) are not scaled either. A layer of zeros takes a plain SGD step.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

Ratio = Literal["update", "parts"]
Norms = Callable[[Sequence[Tensor]], Tensor]
"""Returns the norms of n tensors, [n]; where ranks hold pieces of a tensor, the norm over all its pieces."""


def local_norms(tensors: Sequence[Tensor]) -> Tensor:
    """Return the norms, [n], of tensors that are whole on every rank."""
    return torch.stack(torch._foreach_norm(list(tensors)))


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

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        moved = [(group, [p for p in group["params"] if p.grad is not None]) for group in self.param_groups]
        scaled = [(group, params) for group, params in moved if group["decays"] and params]
        plain = [(group, params) for group, params in moved if not group["decays"] and params]
        for group, params in plain:
            self._descend(group, params, [p.grad for p in params])
        updates = [
            torch._foreach_add([p.grad for p in params], params, alpha=group["weight_decay"])
            for group, params in scaled
        ]
        sizes = self._sizes([params for _, params in scaled], updates)
        for (group, params), update, (layer, measured) in zip(scaled, updates, sizes, strict=True):
            factors = self._factors(layer, measured, group["lr"], group["weight_decay"])
            torch._foreach_mul_(update, factors.unbind())
            self._descend(group, params, update)

    def _sizes(self, layers: list[list[Tensor]], updates: list[Any]) -> list[tuple[Tensor, Tensor]]:
        """Return per group the norms of its layers, and of the gradients or updates that they are compared with."""
        if not layers:
            return []
        grads = [p.grad for params in layers for p in params]
        whole = [u for update in updates for u in update]
        measured = grads if self.ratio == "parts" else whole
        own, other = self.norms([*(p for params in layers for p in params), *measured]).chunk(2)
        lengths = [len(params) for params in layers]
        return list(zip(torch.split(own, lengths), torch.split(other, lengths), strict=True))

    def _factors(self, layer: Tensor, measured: Tensor, lr: float, weight_decay: float) -> Tensor:
        below = measured if self.ratio == "update" else measured + weight_decay * layer + 1e-8
        local = self.trust * layer / below
        factors = (local / lr).clamp_max(1) if self.clip else local
        factors = torch.where(layer > 0, factors, 1)
        # with a zero gradient `parts` leaves a layer unchanged; a zero `update` only needs a finite factor
        return torch.where(measured > 0, factors, 0)

    def _descend(self, group: dict[str, Any], params: list[Tensor], updates: Any) -> None:
        buffers = [self._buffer(p) for p in params]
        torch._foreach_mul_(buffers, self.momentum)
        torch._foreach_add_(buffers, updates)
        steps = torch._foreach_add(updates, buffers, alpha=self.momentum) if self.nesterov else buffers
        torch._foreach_add_(params, steps, alpha=-group["lr"])

    def _buffer(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer: Tensor = state["momentum_buffer"]
        return buffer
