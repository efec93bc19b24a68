"""The engine over DeepSpeed's ZeRO (Rajbhandari et al. 2020, arXiv 1910.02054): the stage determines what is sharded.

    0  nothing, as DDP      1  moments      2  and gradients      3  and weights, including the teacher's

DeepSpeed concatenates the weights of a parameter group and gives every rank an equal run of elements, of the group
(stages 1, 2) or of every parameter (stage 3), without regard to rows and layers. A `Part` describes which elements of a
parameter these are, so that moments, and weights at stage 3, are saved and loaded as pieces. The gradient norm is that
of the whole gradient, computed before DeepSpeed's update; clipping is done here. In a world of one nothing is wrapped.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import deepspeed
import torch
from torch import Tensor, nn

from dist_ssl.core.plan import Hyperparameters
from dist_ssl.engines.average import average_of
from dist_ssl.engines.deepspeed_config import Stage, check, written
from dist_ssl.engines.deepspeed_parts import Part, parts_of_groups, parts_of_parameters
from dist_ssl.engines.parallel import Parallel, T
from dist_ssl.engines.shares import Shares
from dist_ssl.engines.shell import Shell
from dist_ssl.engines.spread import held_here, place_of, whole
from dist_ssl.errors import CheckpointError
from dist_ssl.optim.lars import local_norms
from dist_ssl.protocols.engine import Piece

SHARED_MEMORY = "deepspeed_shm_comm"
"""An inference extension that DeepSpeed would compile at its first start on a CPU."""


@dataclass(eq=False, repr=False)
class DeepSpeed(Parallel):
    """Training with DeepSpeed; `compile` is not available. Raises ConfigError."""

    compile: bool = field(default=False, init=False)
    stage: Stage = 2
    """ZeRO stage, 0 to 3."""
    config: Mapping[str, Any] | None = None
    """Keys of DeepSpeed's config that override those derived from our options."""

    def __post_init__(self) -> None:
        check(self.stage, self.method, self.recipe, self.dtype)
        self.parts: dict[str, Part] = {}
        self.shell = Shell(self.method)
        self.root = partial(self.shell, self.method)
        self.engine: Any = None
        weights = sum(p.numel() for p in self.method.parameters())
        self.config = written(self.stage, self.config or {}, weights=weights, compute=self.compute)
        super().__post_init__()
        if not self.world.alone:
            self._initialize()
            self.average = average_of(self.method, self.own, self.saved_buffers, self.ema)

    def wrap(self) -> Mapping[str, nn.Parameter]:
        """Return the parameters unwrapped: DeepSpeed wraps method and optimizer together later."""
        return dict(self.method.named_parameters())

    def shares(self, ranks: int, per_node: int) -> Shares:
        """Return what all ranks share, by the stage."""
        moments, gradients, weights = (ranks if self.stage >= least else 1 for least in (1, 2, 3))
        return replace(super().shares(ranks, per_node), weights=weights, gradients=gradients, moments=moments)

    def _initialize(self) -> None:
        """Pass method and optimizer to DeepSpeed; find which elements of them this rank holds."""
        deepspeed.ops.__compatible_ops__[SHARED_MEMORY] = False
        self.engine, *_ = deepspeed.initialize(model=self.shell, optimizer=self.optimizer, config=self.config)
        self.root = partial(self.engine, self.method)
        zero = self.engine.optimizer
        if self.stage in (1, 2):
            self.parts = parts_of_groups(self.own, zero)
        if self.stage == 3:
            self.parts = parts_of_parameters(self.own, zero, self.world)
            named: Mapping[str, Any] = self.own
            shards = {name: p.ds_tensor.detach()[: self.parts[name].count] for name, p in named.items()}
            self.own = {name: nn.Parameter(shard, named[name].requires_grad) for name, shard in shards.items()}

    def _computing(self) -> Any:
        """Return no autocast context with DeepSpeed, which applies its own."""
        return super()._computing() if self.engine is None else nullcontext()

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Accumulate gradients: the following backward passes do not complete the step."""
        if self.engine is None:
            yield
            return
        self.engine.set_gradient_accumulation_boundary(False)
        yield
        self.engine.set_gradient_accumulation_boundary(True)

    def through(self, part: Callable[..., T], *args: Any) -> T:
        """Call the part through the root module."""
        found: T = self.shell(part, *args) if self.engine is None else self.engine(part, *args)
        return found

    def backward(self, loss: Tensor) -> None:
        """Run the backward pass through DeepSpeed, which averages and shards gradients during it."""
        if self.engine is None:
            super().backward(loss)
        else:
            self.engine.backward(loss)

    def update(self) -> None:
        """Run DeepSpeed's step, which gathers the updated weights where all ranks need them."""
        if self.engine is None:
            super().update()
        else:
            self.engine.step()

    def norms(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return the norms, [n], of tensors that are whole on every rank; not called where they are sharded."""
        assert not self.parts
        return local_norms(tensors)

    def _check_and_clip(self, loss: Tensor) -> Tensor:
        """Return the norm of the whole gradient, of which DeepSpeed holds this rank's elements; clip these."""
        if not self.parts:
            return super()._check_and_clip(loss)
        gradients = [g for group in self.engine.optimizer.averaged_gradients.values() for g in group]
        square = local_norms(gradients).double().square().sum()
        length = self.world.sum_const(square).sqrt().to(self.dtype)
        self.finite.ask(length, loss)
        if self.clip is not None:
            torch._foreach_mul_(gradients, (self.clip / (length + 1e-6)).clamp_max(1.0))
        return length

    def _keep_length(self) -> None:
        super()._keep_length()
        if self.parts and self.method.unit_rows:
            self.engine.optimizer.refresh_fp32_params()

    def _update_teacher(self, hyper: Hyperparameters) -> Mapping[str, Tensor]:
        distance = super()._update_teacher(hyper)
        self._free("teacher.")
        return distance

    def refresh(self) -> None:
        """Free gathered parameters."""
        self._free()

    def _free(self, prefix: str = "") -> None:
        """Free the gathered parameters with this prefix, so that the next use gathers the updated shards."""
        if self.stage < 3 or self.engine is None:
            return
        named: Iterable[tuple[str, Any]] = self.method.named_parameters()
        for name, parameter in named:
            if name.startswith(prefix):
                parameter.partition()

    def part(self, name: str, value: Tensor) -> Tensor | Piece:
        """Return this rank's piece at stage 3, else the whole value."""
        if self.stage < 3 or not self.parts:
            return value
        own = self.parts[name]
        return Piece(value, own.shape, own.start)

    def moments(self, name: str) -> Mapping[str, Tensor | Piece]:
        """Return the moments of a parameter, as pieces where they are sharded."""
        own = self.parts.get(name)
        if own is None:
            return super().moments(name)
        kept = self.optimizer.state.get(own.flat, {})
        held = {key: value.detach() for key, value in kept.items() if value is not None}
        # DeepSpeed has one step count per group; every parameter gets a copy of it
        return {key: value.clone() if key == "step" else own.of(value) for key, value in held.items()}

    def piece(self, name: str) -> Piece | None:
        """Return this rank's piece of a canonical tensor, parameters and moments included; None if it is whole."""
        kind, parameter, moment = place_of(name)
        sharded = self.stage == 3 if kind == "model" else moment != "step"
        own = self.parts.get(parameter) if sharded else None
        return own.of(own.flat) if own else super().piece(name)

    def load(self, state: Any) -> None:
        """Load a canonical state that contains at least the elements this rank `wants`. Raises CheckpointError."""
        self._free()
        super().load(state)
        if not self.parts:
            return
        if self.stage < 3:
            self.engine.optimizer.refresh_fp32_params()
            return
        for name, own in self.parts.items():
            own.of(own.flat).tensor.copy_(self.own[name])

    def take(self, moments: Mapping[str, Mapping[str, Tensor | Piece]]) -> None:
        """Fill the optimizer's state; where DeepSpeed has concatenated parameters, their moments too."""
        if not self.parts:
            super().take(moments)
            return
        for name, values in moments.items():
            own = self.parts[name]
            kept = self.optimizer.state[own.flat]
            for key, value in values.items():
                if key == "step":
                    check_step(name, kept.setdefault(key, whole(value).clone()), whole(value))
                    continue
                held = held_here(value, own.of(own.flat))
                own.of(kept.setdefault(key, torch.zeros_like(own.flat))).tensor.copy_(held)


def check_step(name: str, kept: Tensor, expected: Tensor) -> None:
    """Raise CheckpointError where parameters of one group, which share a step count, had different ones."""
    if not torch.equal(kept.cpu(), expected.cpu()):
        raise CheckpointError(
            f"'{name}' was updated {int(expected)} times, others of its group {int(kept)}: ZeRO has one count for all.",
            "Resume with engine=ddp, engine=fsdp or engine.stage=0.",
        )


def quiet() -> None:
    """Restrict DeepSpeed's log to warnings: it logs every step of its initialisation."""
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)


quiet()
