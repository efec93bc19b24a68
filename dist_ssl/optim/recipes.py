"""Optimizers: which parameters decay, at which rate the parts of a method learn, and what moves them.

An optimizer here is a small recipe: it declares the hyperparameters that the schedule sets (`lr`, `weight_decay`) and
builds the torch optimizer over named parameters. The learning rate follows the linear rule, lr = base_lr * batch / 256.

A part of a method is what the first word of its parameters' names says (`student`, `predictor`). It learns at the
rate `lr/<part>` where a method or an optimizer declares that hyperparameter, and at `lr` elsewhere.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from dist_ssl.config.validation import at_least, positive, require, shares
from dist_ssl.core.plan import Curve, Hyperparameters
from dist_ssl.errors import ConfigError, nearest
from dist_ssl.optim.lars import LayerwiseSGD, Norms, Ratio, local_norms

REFERENCE_BATCH = 256
RATE_OF = "lr/"
"""Before the name of a part."""
MOMENTUM = "0 to less than 1"


def parameter_groups(named: Iterable[tuple[str, nn.Parameter]], decay_1d: bool) -> list[dict[str, Any]]:
    """Trainable parameters by part, with and without weight decay; `decay_1d` makes all of them decay.

    1-d parameters are biases and the scales of norms. Each group carries `part` and `decays`, the factor of the weight
    decay.
    """
    groups: dict[tuple[str, float], list[nn.Parameter]] = {}
    for name, parameter in named:
        if parameter.requires_grad:
            decays = float(parameter.ndim > 1 or decay_1d)
            groups.setdefault((name.partition(".")[0], decays), []).append(parameter)
    return [{"params": params, "part": part, "decays": decays} for (part, decays), params in groups.items()]


def apply_hyperparameters(optimizer: torch.optim.Optimizer, hyper: Hyperparameters) -> None:
    """Set learning rate and weight decay of the next step."""
    for group in optimizer.param_groups:
        own = RATE_OF + group["part"]
        group["lr"] = hyper.number(own if own in hyper.values else "lr")
        group["weight_decay"] = hyper.number("weight_decay") * group["decays"]


@dataclass(frozen=True)
class OptimizerRecipe(ABC):
    """What all optimizers share. `base_lr` per 256 samples; `decay_1d`: decay biases and norms too.

    `weight_decay`: at the start, `decay_to`: at the end of the run, None: the same. `rises_from`, `falls_to`: shares of
    the peak, 0 to 1, where the warm-up begins and the run ends. `constant`: parts that learn at the peak from the
    first step to the last.
    """

    base_lr: float
    weight_decay: float
    decay_1d: bool = False
    rises_from: float = 0.0
    falls_to: float = 0.0
    constant: list[str] = field(default_factory=list)
    decay_to: float | None = None

    def __post_init__(self) -> None:
        at_least("optim", 0, base_lr=self.base_lr, weight_decay=self.weight_decay, decay_to=self.decay_at_the_end)
        shares("optim", rises_from=self.rises_from, falls_to=self.falls_to)

    @property
    def decay_at_the_end(self) -> float:
        """The weight decay at the end of the run."""
        return self.weight_decay if self.decay_to is None else self.decay_to

    def curves(self, batch_size: int) -> Mapping[str, Curve]:
        """The learning rate, warmed up and annealed, and the weight decay, constant or along half a cosine."""
        lr = self.base_lr * batch_size / REFERENCE_BATCH
        return {
            "lr": Curve(lr, lr * self.falls_to, warms_up=True, rises_from=lr * self.rises_from),
            "weight_decay": Curve(self.weight_decay, self.decay_at_the_end),
            **{RATE_OF + part: Curve(lr, lr) for part in self.constant},
        }

    def groups(self, named: Iterable[tuple[str, nn.Parameter]]) -> list[dict[str, Any]]:
        """The groups of the trainable of these parameters. Raises ConfigError where a constant part has none."""
        groups = parameter_groups(named, self.decay_1d)
        parts = {group["part"] for group in groups}
        for part in self.constant:
            if part not in parts:
                raise ConfigError(f"optim.constant names '{part}': nothing learns there.", nearest(part, parts))
        return groups

    @abstractmethod
    def build(self, named: Iterable[tuple[str, nn.Parameter]], norms: Norms = local_norms) -> torch.optim.Optimizer:
        """The optimizer over the trainable of these parameters, which `norms` measures. Raises ConfigError."""


@dataclass(frozen=True)
class AdamW(OptimizerRecipe):
    """AdamW (Loshchilov and Hutter 2019). `betas`: 0 to less than 1 each; `eps` > 0."""

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        for beta in self.betas:
            require("optim", f"two numbers, each {MOMENTUM}", lambda value: 0 <= value < 1, betas=beta)
        positive("optim", eps=self.eps)

    def build(self, named: Iterable[tuple[str, nn.Parameter]], norms: Norms = local_norms) -> torch.optim.Optimizer:
        """The optimizer over the trainable of these parameters; it measures none. Raises ConfigError."""
        betas = (self.betas[0], self.betas[1])
        # not fused: that kernel computes in single precision what belongs to a double
        return torch.optim.AdamW(self.groups(named), lr=0.0, betas=betas, eps=self.eps, foreach=True)


@dataclass(frozen=True)
class SGD(OptimizerRecipe):
    """Stochastic gradient descent with `momentum`, 0 to less than 1; more than 0 with `nesterov`."""

    momentum: float = 0.9
    nesterov: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require("optim", MOMENTUM, lambda value: 0 <= value < 1, momentum=self.momentum)
        if self.nesterov and self.momentum == 0:
            raise ConfigError(
                "optim.nesterov=true is not possible with optim.momentum=0: it looks ahead along the momentum.",
                "Set optim.momentum=0.9, say, or optim.nesterov=false.",
            )

    def build(self, named: Iterable[tuple[str, nn.Parameter]], norms: Norms = local_norms) -> torch.optim.Optimizer:
        """The optimizer over the trainable of these parameters; it measures none. Raises ConfigError."""
        return torch.optim.SGD(self.groups(named), lr=0.0, momentum=self.momentum, nesterov=self.nesterov, fused=True)


@dataclass(frozen=True)
class LARS(OptimizerRecipe):
    """LARS as MoCo v3, SwAV and EMP-SSL use it: see `lars`. With `decay_1d` biases and norms are scaled too."""

    momentum: float = 0.9
    nesterov: bool = False
    trust: float = 1e-3
    ratio: Ratio = "update"
    clip: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require("optim", MOMENTUM, lambda value: 0 <= value < 1, momentum=self.momentum)
        positive("optim", trust=self.trust)

    def build(self, named: Iterable[tuple[str, nn.Parameter]], norms: Norms = local_norms) -> torch.optim.Optimizer:
        """The optimizer over the trainable of these parameters; `norms` measures them. Raises ConfigError."""
        return LayerwiseSGD(
            self.groups(named),
            momentum=self.momentum,
            nesterov=self.nesterov,
            trust=self.trust,
            ratio=self.ratio,
            clip=self.clip,
            norms=norms,
        )
