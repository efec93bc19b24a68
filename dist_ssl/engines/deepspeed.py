"""The engine over DeepSpeed's ZeRO (Rajbhandari et al. 2020, arXiv 1910.02054): what is spread is said by the stage.

    0  nothing, as DDP      1  moments      2  and gradients      3  and weights, those of the teacher too

DeepSpeed lays the weights of a group of parameters end to end and gives every rank an equal run of that (stages 1, 2),
or of every parameter (stage 3), without regard to rows and layers. A `Part` says which elements of a parameter these
are, so that moments, and weights at stage 3, are saved and loaded by the piece. Norms are those of the whole gradient,
taken before DeepSpeed moves anything; clipping is ours. In a world of one nothing is wrapped.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import deepspeed
import torch
from torch import Tensor, nn

from dist_ssl.core.plan import Hyperparameters
from dist_ssl.engines.deepspeed_config import Stage, check, written
from dist_ssl.engines.deepspeed_parts import Part, parts_of_groups, parts_of_parameters
from dist_ssl.engines.parallel import Parallel, T
from dist_ssl.engines.shell import Shell
from dist_ssl.engines.spread import held_here, whole
from dist_ssl.errors import CheckpointError
from dist_ssl.optim.lars import local_norms
from dist_ssl.protocols.engine import Piece

SHARED_MEMORY = "deepspeed_shm_comm"
"""An extension for inference that DeepSpeed would compile at every first start on a CPU."""


@dataclass(eq=False, repr=False)
class DeepSpeed(Parallel):
    """Over DeepSpeed, which compiles nothing for us. Raises ConfigError."""

    compile: bool = field(default=False, init=False)
    stage: Stage = 2
    """Of ZeRO."""
    config: Mapping[str, Any] | None = None
    """Keys of DeepSpeed's own over those that are written from ours."""

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

    def wrap(self) -> Mapping[str, nn.Parameter]:
        """Nothing yet: DeepSpeed wraps method and optimizer together."""
        return dict(self.method.named_parameters())

    def _initialize(self) -> None:
        """Hand method and optimizer to DeepSpeed; find what this rank has got of them."""
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
        """DeepSpeed says by itself what is computed in which precision."""
        return super()._computing() if self.engine is None else nullcontext()

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Tell DeepSpeed that there is more to come."""
        if self.engine is None:
            yield
            return
        self.engine.set_gradient_accumulation_boundary(False)
        yield
        self.engine.set_gradient_accumulation_boundary(True)

    def through(self, part: Callable[..., T], *args: Any) -> T:
        """Call the part from the root."""
        found: T = self.shell(part, *args) if self.engine is None else self.engine(part, *args)
        return found

    def backward(self, loss: Tensor) -> None:
        """Through DeepSpeed, which averages and spreads gradients as they come."""
        if self.engine is None:
            super().backward(loss)
        else:
            self.engine.backward(loss)

    def update(self) -> None:
        """DeepSpeed's step, which gathers what has moved where all ranks need it."""
        if self.engine is None:
            super().update()
        else:
            self.engine.step()

    def norms(self, tensors: Sequence[Tensor]) -> Tensor:
        """[n] the norms of tensors that are whole on every rank: nothing asks where they are not."""
        assert not self.parts
        return local_norms(tensors)

    def _check_and_clip(self, loss: Tensor) -> Tensor:
        """The norm of the whole gradient, of which DeepSpeed holds this rank's run."""
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

    def _free(self, prefix: str = "") -> None:
        """Free what is gathered of these parameters, so that the next use gathers what shards hold by then."""
        if self.stage < 3 or self.engine is None:
            return
        named: Iterable[tuple[str, Any]] = self.method.named_parameters()
        for name, parameter in named:
            if name.startswith(prefix):
                parameter.partition()

    def part(self, name: str, value: Tensor) -> Tensor | Piece:
        """At stage 3 a run of its elements."""
        if self.stage < 3 or not self.parts:
            return value
        own = self.parts[name]
        return Piece(value, own.shape, own.start)

    def moments(self, name: str) -> Mapping[str, Tensor | Piece]:
        """Pieces of the moments, where they are spread."""
        own = self.parts.get(name)
        if own is None:
            return super().moments(name)
        kept = self.optimizer.state.get(own.flat, {})
        held = {key: value.detach() for key, value in kept.items() if value is not None}
        # one count for the whole run, and a tensor of its own for every parameter
        return {key: value.clone() if key == "step" else own.of(value) for key, value in held.items()}

    def piece(self, name: str) -> Piece | None:
        """This rank's piece, of parameters and moments too."""
        kind, _, rest = name.partition("/")
        if kind == "model":
            own = self.parts.get(rest) if self.stage == 3 else None
            return own.of(own.flat) if own else super().piece(name)
        parameter, _, moment = rest.rpartition("/")
        own = self.parts.get(parameter) if moment != "step" else None
        return own.of(own.flat) if own else None

    def load(self, state: Any) -> None:
        """Copy a canonical state, or the pieces of it that this rank wants, into model and optimizer."""
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
        """Lay the moments end to end, where DeepSpeed has laid the parameters so."""
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


def check_step(name: str, kept: Tensor, wanted: Tensor) -> None:
    """Raise CheckpointError where parameters whose moments lie end to end have not moved equally often."""
    if not torch.equal(kept.cpu(), wanted.cpu()):
        raise CheckpointError(
            f"'{name}' has moved {int(wanted)} times and others of its group {int(kept)}: ZeRO has one count for all.",
            "Resume with engine=ddp, engine=fsdp or engine.stage=0.",
        )


def quiet() -> None:
    """DeepSpeed tells of every step of its start: warnings are enough."""
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)


quiet()
