"""Optimizer recipes: parameter groups, weight decay, learning rates of a method's parts, and the torch optimizer.

A recipe declares the hyperparameters that the schedule sets (`lr`, `weight_decay`) and builds the torch optimizer over
named parameters. The learning rate follows the linear rule, lr = base_lr * batch / 256.

The parts of a method are given by the first component of its parameters' names (`student`, `predictor`). A part has the
learning rate `lr/<part>` if a method or an optimizer declares that hyperparameter, and `lr` otherwise.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from dist_ssl.config.validation import at_least, positive, require, shares
from dist_ssl.core.plan import Curve, Hyperparameters
from dist_ssl.errors import ConfigError, nearest
from dist_ssl.optim.joined import Joined
from dist_ssl.optim.kernel_muon import KernelMuon
from dist_ssl.optim.lars import LayerwiseSGD, Norms, Ratio, local_norms

REFERENCE_BATCH = 256
RATE_OF = "lr/"
"""Prefix of the learning rate of one part."""
PREDICTOR = "predictor"
MATRIX, KERNEL = 2, 4
"""Numbers of dimensions of parameters that Muon updates: of a linear layer and, if it is asked to, of a convolution."""
MOMENTUM = "from 0 to less than 1"


def parameter_groups(named: Iterable[tuple[str, nn.Parameter]], decay_1d: bool) -> list[dict[str, Any]]:
    """Return trainable parameters grouped by part and by weight decay; `decay_1d`: decay 1-d parameters too.

    1-d parameters are biases and the scales of norms. Each group carries `part` and `decays`, the factor (0 or 1) of
    the weight decay.
    """
    groups: dict[tuple[str, float], list[nn.Parameter]] = {}
    for name, parameter in named:
        if parameter.requires_grad:
            decays = float(parameter.ndim > 1 or decay_1d)
            groups.setdefault((name.partition(".")[0], decays), []).append(parameter)
    return [{"params": params, "part": part, "decays": decays} for (part, decays), params in groups.items()]


def apply_hyperparameters(optimizer: torch.optim.Optimizer, hyper: Hyperparameters) -> None:
    """Set the learning rate and weight decay of every group for the next step."""
    for group in optimizer.param_groups:
        own = RATE_OF + group["part"]
        group["lr"] = hyper.number(own if own in hyper.values else "lr")
        group["weight_decay"] = hyper.number("weight_decay") * group["decays"]


@dataclass(frozen=True)
class OptimizerRecipe(ABC):
    """The options of all optimizers. `base_lr`: learning rate per 256 samples; `decay_1d`: decay biases and norms too.

    `weight_decay`: weight decay at the start of the run; `decay_to`: at its end; None: the same. `rises_from`,
    `falls_to`: learning rate at the start of the warm-up and at the end of the run, as fractions of the peak, 0 to 1.
    `constant`: parts that have the peak learning rate in every step. `predictor_rate`: factor of the predictor's
    learning rate, from 0.
    """

    base_lr: float
    weight_decay: float
    decay_1d: bool = False
    rises_from: float = 0.0
    falls_to: float = 0.0
    constant: list[str] = field(default_factory=list)
    decay_to: float | None = None
    predictor_rate: float = 1.0

    def __post_init__(self) -> None:
        at_least("optim", 0, base_lr=self.base_lr, weight_decay=self.weight_decay, decay_to=self.decay_at_the_end)
        at_least("optim", 0, predictor_rate=self.predictor_rate)
        shares("optim", rises_from=self.rises_from, falls_to=self.falls_to)

    @property
    def decay_at_the_end(self) -> float:
        """The weight decay at the end of the run."""
        return self.weight_decay if self.decay_to is None else self.decay_to

    def curves(self, batch_size: int) -> Mapping[str, Curve]:
        """Return the curves of learning rates, warmed up and annealed, and of weight decay, along half a cosine.

        `batch_size`: samples per step that the rates are for; the schedule scales them in epochs with another one.
        """
        lr = self.base_lr * batch_size / REFERENCE_BATCH
        own = {PREDICTOR: self._annealed(lr * self.predictor_rate)} if self.predictor_rate != 1 else {}
        for part in self.constant:
            peak = lr * (self.predictor_rate if part == PREDICTOR else 1)
            own[part] = Curve(peak, peak)
        rates = {"lr": self._annealed(lr), **{RATE_OF + part: curve for part, curve in own.items()}}
        return {
            **{name: replace(curve, batch_size=batch_size) for name, curve in rates.items()},
            "weight_decay": Curve(self.weight_decay, self.decay_at_the_end),
        }

    def _annealed(self, peak: float) -> Curve:
        return Curve(peak, peak * self.falls_to, warms_up=True, rises_from=peak * self.rises_from)

    def groups(self, named: Iterable[tuple[str, nn.Parameter]]) -> list[dict[str, Any]]:
        """Return the groups of the trainable parameters. Raises ConfigError where a part with its own rate has none."""
        groups = parameter_groups(named, self.decay_1d)
        parts = {group["part"] for group in groups}
        for part in self.constant:
            if part not in parts:
                raise ConfigError(
                    f"optim.constant names '{part}', which has no trainable parameters.", nearest(part, parts)
                )
        if self.predictor_rate != 1 and PREDICTOR not in parts:
            raise ConfigError(
                f"optim.predictor_rate={self.predictor_rate:g} changes nothing: this method has no predictor.",
                "Set optim.predictor_rate=1, or use byol, simsiam, mocov3 or fast_moco.",
            )
        return groups

    @abstractmethod
    def build(self, named: Iterable[tuple[str, nn.Parameter]], norms: Norms = local_norms) -> torch.optim.Optimizer:
        """Return the optimizer over the trainable parameters; `norms` computes their norms. Raises ConfigError."""

    @abstractmethod
    def moments(self, parameter: nn.Parameter) -> int:
        """Return how many tensors of a trainable parameter's shape the optimizer keeps from step to step."""


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
        """Return the optimizer over the trainable parameters; `norms` is not used. Raises ConfigError."""
        return self._adamw(self.groups(named))

    def moments(self, parameter: nn.Parameter) -> int:
        """Return 2: the means of gradients and of their squares."""
        return 2

    def _adamw(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        betas = (self.betas[0], self.betas[1])
        # the fused kernel computes parts of a float64 update in single precision, and does not exist on the meta device
        parameters = [parameter for group in groups for parameter in group["params"]]
        fused = all(p.dtype == torch.float32 and p.device.type != "meta" for p in parameters)
        return torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=self.eps, fused=fused, foreach=not fused)


@dataclass(frozen=True)
class Muon(AdamW):
    """Muon (Jordan et al. 2024) for matrices, AdamW for all other parameters: positions, biases, norms, convolutions.

        B <- momentum B + (1 - momentum) g;   p <- p - lr (wd p + 0.2 sqrt(max(rows, columns)) NS(momentum B + ...))

    It is torch's own: NS is its Newton-Schulz iteration in bfloat16, `newton_schulz` times (1 to 99), which makes all
    singular values of an update nearly 1, with Nesterov's momentum (`momentum`: 0 to less than 1). The factor gives
    updates the size of AdamW's (Liu et al. 2025, arXiv 2502.16982, section 2.2), so both learn at the same rate. With
    `convolutions` their kernels are updated alike, as matrices [out, in * h * w], in the precision that they have.
    """

    momentum: float = 0.95
    newton_schulz: int = 5
    convolutions: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require("optim", MOMENTUM, lambda value: 0 <= value < 1, momentum=self.momentum)
        require("optim", "from 1 to 99", lambda value: 1 <= value <= 99, newton_schulz=self.newton_schulz)

    def build(self, named: Iterable[tuple[str, nn.Parameter]], norms: Norms = local_norms) -> torch.optim.Optimizer:
        """Return the optimizer over the trainable parameters; `norms` is not used. Raises ConfigError."""
        groups = self.groups(named)
        matrices, kernels = _those(groups, lambda p: p.ndim == MATRIX), _those(groups, self._kernel)
        if not matrices and not kernels:
            raise ConfigError("optim=muon has nothing to work on: no parameter is a matrix.", "Use optim=adamw.")
        parts: list[torch.optim.Optimizer] = []
        if matrices:
            of_matrices = {"momentum": self.momentum, "ns_steps": self.newton_schulz, "adjust_lr_fn": "match_rms_adamw"}
            parts.append(torch.optim.Muon(matrices, lr=0.0, **of_matrices))  # type: ignore[arg-type]
        if kernels:
            parts.append(KernelMuon(kernels, momentum=self.momentum, iterations=self.newton_schulz))
        rest = _those(groups, lambda p: p.ndim != MATRIX and not self._kernel(p))
        return Joined(*parts, *([self._adamw(rest)] if rest else []))

    def moments(self, parameter: nn.Parameter) -> int:
        """Return 1 for a matrix or a kernel that Muon updates, and 2 for others."""
        return 1 if parameter.ndim == MATRIX or self._kernel(parameter) else super().moments(parameter)

    def _kernel(self, parameter: nn.Parameter) -> bool:
        """Return whether a parameter is a convolution's kernel that Muon updates."""
        return self.convolutions and parameter.ndim == KERNEL


def _those(groups: list[dict[str, Any]], belongs: Callable[[nn.Parameter], bool]) -> list[dict[str, Any]]:
    """Return the groups with those of their parameters that belong; no empty ones."""
    found = [{**group, "params": [p for p in group["params"] if belongs(p)]} for group in groups]
    return [group for group in found if group["params"]]


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
                "optim.nesterov=true is not possible with optim.momentum=0: it needs a momentum.",
                "Set optim.momentum=0.9, say, or optim.nesterov=false.",
            )

    def build(self, named: Iterable[tuple[str, nn.Parameter]], norms: Norms = local_norms) -> torch.optim.Optimizer:
        """Return the optimizer over the trainable parameters; `norms` is not used. Raises ConfigError."""
        return torch.optim.SGD(self.groups(named), lr=0.0, momentum=self.momentum, nesterov=self.nesterov, fused=True)

    def moments(self, parameter: nn.Parameter) -> int:
        """Return 1, or 0 without momentum."""
        return int(self.momentum > 0)


@dataclass(frozen=True)
class LARS(OptimizerRecipe):
    """LARS as in MoCo v3, SwAV and EMP-SSL (see `lars`). With `decay_1d` biases and norms are scaled too."""

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
        """Return the optimizer over the trainable parameters; `norms` computes their norms. Raises ConfigError."""
        return LayerwiseSGD(
            self.groups(named),
            momentum=self.momentum,
            nesterov=self.nesterov,
            trust=self.trust,
            ratio=self.ratio,
            clip=self.clip,
            norms=norms,
        )

    def moments(self, parameter: nn.Parameter) -> int:
        """Return 1."""
        return 1
