"""Optimizers: which parameters decay, and the torch optimizer that moves them.

An optimizer here is a small recipe: it declares the knobs that the schedule sets (`lr`, `weight_decay`) and builds
the torch optimizer over named parameters. The learning rate follows the linear rule, lr = base_lr * batch / 256.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dist_ssl.plan import Knob, Knobs

REFERENCE_BATCH = 256


def parameter_groups(named: Iterable[tuple[str, nn.Parameter]], decay_1d: bool) -> list[dict[str, Any]]:
    """Two groups of trainable parameters, with and without weight decay; `decay_1d` puts all into the first.

    1-d parameters are biases and the scales of norms. Each group carries `decays`, by which the knob is multiplied.
    """
    trainable = [p for _, p in named if p.requires_grad]
    decayed = [p for p in trainable if p.ndim > 1 or decay_1d]
    rest = [p for p in trainable if p.ndim <= 1 and not decay_1d]
    groups: list[dict[str, Any]] = [{"params": decayed, "decays": 1.0}, {"params": rest, "decays": 0.0}]
    return [group for group in groups if group["params"]]


def apply_knobs(optimizer: torch.optim.Optimizer, knobs: Knobs) -> None:
    """Set learning rate and weight decay of the next step."""
    for group in optimizer.param_groups:
        group["lr"] = knobs.number("lr")
        group["weight_decay"] = knobs.number("weight_decay") * group["decays"]


@dataclass(frozen=True)
class Recipe:
    """What all optimizers share. `base_lr` per 256 samples; `weight_decay`; `decay_1d`: decay biases and norms too."""

    base_lr: float
    weight_decay: float
    decay_1d: bool = False

    def knobs(self, batch_size: int) -> Mapping[str, Knob]:
        """The learning rate, warmed up and annealed to 0, and the weight decay, constant."""
        lr = self.base_lr * batch_size / REFERENCE_BATCH
        return {
            "lr": Knob(lr, 0.0, warms_up=True),
            "weight_decay": Knob(self.weight_decay, self.weight_decay),
        }


@dataclass(frozen=True)
class AdamW(Recipe):
    """AdamW (Loshchilov and Hutter 2019)."""

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def build(self, named: Iterable[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """The optimizer over the trainable of these parameters."""
        groups = parameter_groups(named, self.decay_1d)
        # not fused: that kernel computes in single precision what belongs to a double
        return torch.optim.AdamW(groups, lr=0.0, betas=(self.betas[0], self.betas[1]), eps=self.eps, foreach=True)


@dataclass(frozen=True)
class SGD(Recipe):
    """Stochastic gradient descent with momentum."""

    momentum: float = 0.9
    nesterov: bool = False

    def build(self, named: Iterable[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """The optimizer over the trainable of these parameters."""
        groups = parameter_groups(named, self.decay_1d)
        return torch.optim.SGD(groups, lr=0.0, momentum=self.momentum, nesterov=self.nesterov, fused=True)
