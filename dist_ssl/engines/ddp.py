"""The engine for models that fit on one device: torch's DistributedDataParallel, or plain modules in a world of one.

With `deterministic` the buckets of the gradient exchange stay as they are built, because the order of summation
inside an exchange depends on them: torch's own rebuilding after the first step would make a resumed run differ from
one that was never stopped.
"""

import inspect
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import GradBucket  # type: ignore[attr-defined]
from torch.nn.parallel import DistributedDataParallel

from dist_ssl.batch import Batch
from dist_ssl.engine import Piece, State, StepOutput, Who
from dist_ssl.engines.passes import at_once, in_parts
from dist_ssl.engines.spread import held_here, spread_of, whole
from dist_ssl.errors import CheckpointError, ConfigError
from dist_ssl.guard import check_finite
from dist_ssl.method import Embeddings, LossOutput, Method
from dist_ssl.models import ema, norm
from dist_ssl.optim import Recipe, apply_knobs
from dist_ssl.plan import Knobs
from dist_ssl.world import World


def check_accumulate(method: Method, parts: int) -> None:
    """Raise ConfigError where a batch of this method cannot be computed in so many parts."""
    if parts < 1:
        raise ConfigError(f"engine.accumulate={parts} is not possible: it is at least 1.", "Set engine.accumulate=1.")
    if parts > 1 and method.needs_whole_batch:
        raise ConfigError(
            f"engine.accumulate={parts} cannot be had with {method.needs_whole_batch}: it needs all samples at once.",
            "Use one of the two.",
        )
    norms = [child for child in method.modules() if isinstance(child, norm.BatchNorm)]
    if parts > 1 and any(child.scope.samples is None for child in norms):
        raise ConfigError(
            f"engine.accumulate={parts} cannot be had with batch norm over the whole job: its statistics need all "
            "samples at once.",
            "Set method.norm_group (and aux.norm_group) to a divisor of the samples in a part, or use an encoder "
            "without batch norm.",
        )


def average(world: World, bucket: GradBucket) -> torch.futures.Future[Tensor]:
    """Average a bucket of gradients through the world's own sum, which adds in rank order."""
    done: torch.futures.Future[Tensor] = torch.futures.Future()
    done.set_result(world.sum_const(bucket.buffer()) / world.size)
    return done


class DDP:
    """Data parallel training of `method` on the world's devices.

    `dtype`: of parameters and activations, float32 or float64. `clip`: largest norm of the averaged gradient, or
    None. `accumulate`: parts that a rank's batch is computed in, at least 1. `deterministic`: same bits on the same
    world size. Raises ConfigError where the method cannot be computed in parts.
    """

    def __init__(
        self,
        method: Method,
        optimizer: Recipe,
        *,
        world: World,
        dtype: torch.dtype = torch.float32,
        clip: float | None = None,
        accumulate: int = 1,
        deterministic: bool = True,
    ) -> None:
        self.world, self.clip, self.accumulate = world, clip, accumulate
        check_accumulate(method, accumulate)
        if deterministic:
            torch.use_deterministic_algorithms(True)
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        method.to(world.device, dtype).to(memory_format=torch.channels_last)
        self.method = method.train()
        self.optimizer = optimizer.build(method.named_parameters())
        self.root = self._wrap(deterministic)

    def _wrap(self, deterministic: bool) -> nn.Module:
        if self.world.size == 1:
            return self.method
        # torch would overwrite every rank's own piece with rank 0's
        leave_alone: Any = DistributedDataParallel._set_params_and_buffers_to_ignore_for_model
        leave_alone(self.method, list(spread_of(self.method)))
        devices = [self.world.device] if self.world.device.type == "cuda" else None
        # buffers are equal on all ranks by construction; newer versions of torch have renamed the option
        known = inspect.signature(DistributedDataParallel).parameters
        sync_buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        options: dict[str, Any] = {sync_buffers: False, "find_unused_parameters": deterministic}
        wrapped = DistributedDataParallel(self.method, device_ids=devices, **options)
        if self.world.device.type == "cpu":  # the same order of summation however the ranks are placed
            wrapped.register_comm_hook(self.world, average)
        return wrapped

    @property
    def wants_filling(self) -> bool:
        """As the method."""
        return self.method.wants_filling

    def fill(self, batch: Batch) -> None:
        """Show the method one batch of the pass before the first step; no weight moves."""
        self.method.fill(batch)
        norm.settle(self.method, self._mean)

    def step(self, batch: Batch, knobs: Knobs) -> StepOutput:
        """One weight update; the metrics are this rank's share of the loss and the gradient's norm."""
        self.optimizer.zero_grad(set_to_none=True)
        out = self._gradients(batch, knobs)
        norm.settle(self.method, self._mean)
        length = self._check_and_clip(out.loss.detach())
        apply_knobs(self.optimizer, knobs)
        self.optimizer.step()
        self._follow(knobs)
        self.method.remember(out, batch, knobs)
        return StepOutput({"loss": out.loss.detach(), "gradient_norm": length, **out.metrics})

    def _gradients(self, batch: Batch, knobs: Knobs) -> LossOutput:
        """The loss, and its gradients averaged over the ranks."""

        def loss(embeddings: Embeddings) -> LossOutput:
            return self.method.loss(embeddings, batch, knobs)

        if self.accumulate == 1:
            return at_once(self.root, loss, batch, self.world.rank)
        hold = self.root.no_sync if isinstance(self.root, DistributedDataParallel) else nullcontext
        return in_parts(self.root, loss, batch, self.world.rank, self.accumulate, hold)

    def _mean(self, x: Tensor) -> Tensor:
        return self.world.sum_const(x) / self.world.size

    def _check_and_clip(self, loss: Tensor) -> Tensor:
        parameters = [p for p in self.method.parameters() if p.grad is not None]
        length = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        check_finite(float(length), float(loss))
        if self.clip is not None:
            nn.utils.clip_grads_with_norm_(parameters, self.clip, length)
        return length

    def _follow(self, knobs: Knobs) -> None:
        if self.method.teacher is not None:
            ema.follow(self.method.teacher, self.method.student, knobs.number("momentum"))

    @torch.no_grad()
    def embed(self, view: Tensor, who: Who) -> Tensor:
        """[B, 3, S, S] -> pooled features of the student's or the teacher's encoder, [B, D] fp32, in eval mode."""
        branch = self.method.student if who == "student" else self.method.teacher
        assert branch is not None
        encoder = self.method.encoder if who == "student" else branch.get_submodule("encoder")
        encoder.eval()
        features: Tensor = encoder(view)
        encoder.train()
        return features.float()

    def state(self) -> State:
        """Parameters and buffers as `model/...`, the optimizer's moments and steps as `optim/<parameter>/...`."""
        tensors: dict[str, Tensor | Piece] = {f"model/{name}": value for name, value in self._model().items()}
        for name, parameter in self.method.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                if value is not None:
                    tensors[f"optim/{name}/{key}"] = value.detach()
        return tensors

    def wants(self, name: str, shape: tuple[int, ...]) -> range | None:
        """This rank's part of what is spread over the ranks, all of the rest; nothing of what does not fit anyway."""
        own = spread_of(self.method).get(name.removeprefix("model/")) if name.startswith("model/") else None
        if own is None:
            return None
        return own.span if own.shape == shape else range(0)

    def _model(self) -> dict[str, Tensor | Piece]:
        """Parameters and buffers; of what is spread over the ranks, this rank's piece."""
        held = {name: value.detach() for name, value in self.method.state_dict().items()}
        return {**held, **spread_of(self.method)}

    def load(self, state: State) -> None:
        """Copy a canonical state into model and optimizer."""
        model = {name.removeprefix("model/"): state[name] for name in state if name.startswith("model/")}
        own = self._model()
        if wrong := sorted(own.keys() ^ model.keys()) or [n for n in own if own[n].shape != model[n].shape]:
            raise CheckpointError(
                f"The checkpoint does not fit the model: '{wrong[0]}' is missing, unknown or of another shape.",
                "Resume with the method, the encoder and the data that wrote it.",
            )
        moments_of = self._moments(state)
        self.method.load_state_dict({name: held_here(value, own[name]) for name, value in model.items()})
        self.optimizer.state.clear()
        for name, parameter in self.method.named_parameters():
            if moments := moments_of.get(name):
                self.optimizer.state[parameter] = {
                    key: self._moment(whole(state[at]), at) for key, at in moments.items()
                }

    def _moments(self, state: State) -> dict[str, dict[str, str]]:
        """Parameter -> moment -> canonical name, for a state whose moments fit the parameters."""
        parameters = dict(self.method.named_parameters())
        found: dict[str, dict[str, str]] = {}
        for at in (name for name in state if name.startswith("optim/")):
            name, _, moment = at.removeprefix("optim/").rpartition("/")
            if name not in parameters or (moment != "step" and state[at].shape != parameters[name].shape):
                raise CheckpointError(
                    f"The checkpoint does not fit the optimizer: '{at}' is unknown or of another shape.",
                    "Resume with the method and the encoder that wrote it.",
                )
            found.setdefault(name, {})[moment] = at
        return found

    def _moment(self, value: Tensor, name: str) -> Tensor:
        """A moment in the place where the optimizer keeps it: step counters on the host, the rest like parameters."""
        if name.endswith("/step"):
            return value.clone()
        layout = torch.channels_last if value.ndim == 4 else torch.contiguous_format
        return value.to(self.world.device).clone(memory_format=layout)
