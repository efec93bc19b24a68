"""Muon for the kernels of convolutions, as matrices [out, in * h * w]; torch's own takes no convolutions."""

import math
from typing import Any

import torch
from torch import Tensor

ITERATION = (3.4445, -4.7750, 2.0315)
"""Coefficients a, b, c of one iteration X <- a X + (b A + c A A) X with A = X X^T (Jordan et al. 2024)."""
ADAMW = 0.2
"""Root mean square of an update of AdamW (Liu et al. 2025, arXiv 2502.16982), which updates here have too."""


def orthogonal(update: Tensor, iterations: int) -> Tensor:
    """Return a matrix [R, C] with its singular values moved near 1, 0.7 to 1.2; it computes in the update's dtype.

    What an iteration multiplies X by is a polynomial of A. So it is [R, R] matrices that are iterated, R the shorter
    side, and X is multiplied once: P = a I + b A + c A A, then A <- P A P, and the result is P_n ... P_2 P_1 X.
    """
    a, b, c = ITERATION
    x: Tensor = update if update.shape[0] <= update.shape[1] else update.mT
    x = x / x.norm().clamp_min(1e-7)
    gram = x @ x.mT
    product = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    for number in range(iterations):
        step = torch.addmm(b * gram, gram, gram, alpha=c)
        step.diagonal().add_(a)
        product = step @ product
        if number < iterations - 1:
            gram = step @ gram @ step
    x = product @ x
    return x if update.shape[0] <= update.shape[1] else x.mT


class KernelMuon(torch.optim.Optimizer):
    """The update of torch.optim.Muon with Nesterov's momentum and `match_rms_adamw`, of kernels of any number of axes.

    `momentum`: 0 to less than 1. `iterations`: of `orthogonal`. Groups carry `lr` and `weight_decay`.
    """

    def __init__(self, groups: list[dict[str, Any]], *, momentum: float, iterations: int) -> None:
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0})
        self.momentum, self.iterations = momentum, iterations

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every kernel that has a gradient."""
        for group in self.param_groups:
            for kernel in group["params"]:
                if kernel.grad is not None:
                    kernel.mul_(1 - group["lr"] * group["weight_decay"])
                    kernel.add_(self._direction(kernel), alpha=-group["lr"])

    def _direction(self, kernel: Tensor) -> Tensor:
        """Return what is subtracted at a learning rate of 1, and move the mean of the gradients."""
        assert kernel.grad is not None
        state = self.state[kernel]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(kernel.grad)
        mean = state["momentum_buffer"]
        mean.lerp_(kernel.grad, 1 - self.momentum)
        update = kernel.grad.lerp(mean, self.momentum).flatten(1)
        size = ADAMW * math.sqrt(max(update.shape))
        return size * orthogonal(update, self.iterations).reshape(kernel.shape)
