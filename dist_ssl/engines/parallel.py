"""The base class of all engines: one weight update, and the canonical state.

An engine defines how modules are wrapped and which elements of every parameter a rank holds: all, or a piece.
Optimizer, clipping and EMA update work on these local elements, so they exchange nothing but norms.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from dist_ssl.config.validation import positive
from dist_ssl.core.batch import Batch
from dist_ssl.core.draws import SampleDraws
from dist_ssl.core.plan import FROZEN, Hyperparameters
from dist_ssl.distributed.devices import choose_algorithms, set_single_precision
from dist_ssl.distributed.world import World
from dist_ssl.engines import units
from dist_ssl.engines.average import average_of
from dist_ssl.engines.canonical import Canonical
from dist_ssl.engines.hard_views import with_chosen_views
from dist_ssl.engines.passes import at_once, check_parts, in_parts, plain, seed
from dist_ssl.engines.shares import Shares
from dist_ssl.engines.utilisation import UsefulWork, peak
from dist_ssl.models import ema, norm
from dist_ssl.optim.recipes import OptimizerRecipe, apply_hyperparameters
from dist_ssl.protocols.engine import Branch, StepOutput
from dist_ssl.protocols.method import Embeddings, LossOutput, Method
from dist_ssl.runtime.finite_check import FiniteCheck
from dist_ssl.runtime.step_clock import StepClock

T = TypeVar("T")


@dataclass(eq=False, repr=False)
class Parallel(Canonical):
    """Data parallel training of `method` on the world's devices; an engine adds its own options.

    Raises ConfigError where the method cannot be computed in parts, or an option is outside its range.
    """

    method: Method
    recipe: OptimizerRecipe
    """Recipe of the optimizer."""
    _: KW_ONLY
    world: World
    dtype: torch.dtype = torch.float32
    """Dtype of parameters, optimizer state and loss: float32 or float64."""
    compute: torch.dtype | None = None
    """Dtype of matrix products and convolutions: bfloat16, or None for `dtype`."""
    tf32: bool = False
    """Let those in float32 round their inputs to TF32, on GPUs that have it."""
    clip: float | None = None
    """Largest norm of the averaged gradient, more than 0."""
    accumulate: int = 1
    """Number of parts in which a rank's batch is computed, at least 1."""
    deterministic: bool = True
    """Use deterministic algorithms: equal bits at the same world size."""
    compile: bool = False
    """Compile the blocks of the encoders."""
    activation_checkpointing: bool = False
    """Recompute the activations of blocks in the backward pass instead of keeping them."""
    ema: float | None = None
    """Momentum of the average of the encoder's weights that is kept for evaluation; None: none is kept."""
    clock: StepClock = field(init=False)
    root: Callable[..., Embeddings] = field(init=False)
    """The wrapped method, called like the method in training."""

    def __post_init__(self) -> None:
        check_parts(self.method, self.accumulate)
        self.clock = StepClock.of(self.world.device, self.world.size)
        if self.clip is not None:
            positive("engine", clip=self.clip)
        choose_algorithms(self.world.device, deterministic=self.deterministic, compiled=self.compile)
        set_single_precision(self.world.device, tf32=self.tf32)
        self.method.to(self.world.device, self.dtype).train()
        self._until: Callable[[], None] | None = None
        most = None if self.compile else peak(self.world.device, self.dtype, self.compute, self.tf32)
        self.clock.work = UsefulWork.of(self.method, most)
        self.finite = FiniteCheck(self.world.device)
        self.saved_buffers = self.method.state_dict().keys() - dict(self.method.named_parameters()).keys()
        if self.compile:
            units.compiled(self.method, self.world.device)
        if self.activation_checkpointing:
            units.checkpointed(self.method)
        self.own = self.wrap()
        self.optimizer = self.recipe.build(self.own.items(), self.norms)
        self.average = average_of(self.method, self.own, self.saved_buffers, self.ema)

    @abstractmethod
    def wrap(self) -> Mapping[str, nn.Parameter]:
        """Set `root`; return the local elements of every parameter, by its name in the method."""

    @abstractmethod
    def hold(self) -> AbstractContextManager[None]:
        """Return a context that accumulates gradients; the next backward pass after it exchanges them too."""

    @abstractmethod
    def through(self, part: Callable[..., T], *args: Any) -> T:
        """Call a part of the method outside of training."""

    @abstractmethod
    def norms(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return the norms, [n], of whole tensors (parameters, gradients, ...), given their local elements."""

    @abstractmethod
    def refresh(self) -> None:
        """Make the next use of the weights see local elements that have changed."""

    def shares(self, ranks: int, per_node: int) -> Shares:
        """Return how `ranks` ranks, `per_node` on each node, would share out weights, gradients and moments."""
        return Shares(parts=self.accumulate, two_passes=self.accumulate > 1)

    def seen(self, batch: Batch) -> Batch:
        """Return the batch that loss and memory receive: this rank's part of the global batch."""
        return batch

    @property
    def needs_initial_pass(self) -> bool:
        """Return whether the method's memory is initialised by a pass over the data before the first step."""
        return self.method.needs_initial_pass

    def initialise_memory(self, batch: Batch) -> None:
        """Process one batch of the pass before the first step; no weight changes."""
        seed(batch, self.world.rank)
        with self._computing():
            self.through(self.method.initialise_memory, batch)
        norm.update_running_statistics(self.method, self._mean)

    def step(self, batch: Batch, hyper: Hyperparameters) -> StepOutput:
        """Make one weight update; return this rank's share of the loss, the gradient norm and the method's metrics."""
        lap = self.clock.lap
        lap("other")
        batch, difficulty = with_chosen_views(lambda views: self.embed(views, "student"), batch, self.accumulate)
        self.optimizer.zero_grad(set_to_none=True)
        out = self.gradients(batch, hyper)
        lap("backward")
        self.await_copies()
        norm.update_running_statistics(self.method, self._mean)
        length = self._check_and_clip(out.loss.detach())
        self._freeze(hyper)
        apply_hyperparameters(self.optimizer, hyper)
        self.update()
        self._keep_length()
        if self.average:
            self.average.update()
        distance = self._update_teacher(hyper)
        lap("optimizer")
        self.method.remember(out, self.seen(batch), hyper)
        lap("memory")
        return StepOutput({"loss": out.loss.detach(), "gradient_norm": length, **distance, **difficulty, **out.metrics})

    def gradients(self, batch: Batch, hyper: Hyperparameters) -> LossOutput:
        """Return the loss; leave its gradients, averaged over the ranks, in the local parameters."""

        def loss(embeddings: Embeddings) -> LossOutput:
            return self.method.loss(embeddings, self.seen(batch), hyper)

        if self.accumulate == 1:
            return at_once(self._embeddings, loss, batch, self.world.rank, self.backward, self.clock.lap)
        parts, hold, lap = self.accumulate, self.hold, self.clock.lap
        return in_parts(self._embeddings, loss, batch, self.world.rank, parts, hold, self.backward, lap)

    def backward(self, loss: Tensor) -> None:
        """Run the backward pass of a loss of `root`'s outputs; gradients are added to those of the parameters."""
        plain(loss)

    def update(self) -> None:
        """Run the optimizer step."""
        self.optimizer.step()

    def _embeddings(self, views: list[Tensor], draws: SampleDraws, **which: bool) -> Embeddings:
        """Return the method's embeddings in `dtype`, so that the loss is computed in full precision."""
        if self.world.device.type == "cuda":  # at any layout of the weights, which engines split or flatten
            views = [view.contiguous(memory_format=torch.channels_last) for view in views]
        with self._computing():
            found = self.root(views, draws, **which)
        return {name: x.to(self.dtype) if x.is_floating_point() else x for name, x in found.items()}

    def _computing(self) -> AbstractContextManager[Any]:
        if self.compute is None:
            return nullcontext()
        return torch.autocast(self.world.device.type, self.compute)

    def _mean(self, x: Tensor) -> Tensor:
        return self.world.sum_const(x) / self.world.size

    def _check_and_clip(self, loss: Tensor) -> Tensor:
        parameters = [p for p in self.own.values() if p.grad is not None]
        length: Tensor = torch.linalg.vector_norm(self.norms([p.grad for p in parameters if p.grad is not None]))
        self.finite.ask(length, loss)
        if self.clip is not None:
            nn.utils.clip_grads_with_norm_(parameters, self.clip, length)
        return length

    def _freeze(self, hyper: Hyperparameters) -> None:
        """Drop the gradients of frozen parts, so that neither their weights nor their moments change."""
        for name in hyper.values:
            if name.startswith(FROZEN) and hyper.number(name) > 0:
                for parameter in self._branch(f"{name.removeprefix(FROZEN)}.").values():
                    parameter.grad = None

    @torch.no_grad()
    def _keep_length(self) -> None:
        """Normalise the rows of `unit_rows` parameters; a rank holds whole rows."""
        for name in self.method.unit_rows:
            self.own[name].copy_(nn.functional.normalize(self.own[name], dim=1))

    def _update_teacher(self, hyper: Hyperparameters) -> Mapping[str, Tensor]:
        """Make the EMA update; return the distance between teacher and student, over the local elements."""
        if self.method.teacher is None:
            return {}
        teacher, student = self._branch("teacher."), self._branch("student.")
        ema.update(teacher, student, hyper.number("momentum"))
        return {"teacher_distance": ema.distance(teacher, student)}

    def _branch(self, prefix: str) -> dict[str, nn.Parameter]:
        return {name.removeprefix(prefix): p for name, p in self.own.items() if name.startswith(prefix)}

    @torch.no_grad()
    def embed(self, view: Tensor, branch: Branch) -> Tensor:
        """Return pooled features of a branch's encoder, [B, 3, S, S] -> [B, D] fp32, in eval mode."""
        encoder = self.method.encoder_of(branch)
        weights: AbstractContextManager[None] = nullcontext()
        if branch == "ema":
            assert self.average is not None
            self.await_copies()
            weights = self.average.in_use(self.refresh)
        encoder.eval()
        with weights, self._computing():
            features: Tensor = self.through(encoder, view)
        encoder.train()
        return features.float()

    def hold_updates(self, until: Callable[[], None]) -> None:
        """Call `until` in the next step once it has its gradients; it changes no part of the state before."""
        self._until = until

    def await_copies(self) -> None:
        """Call the function given to `hold_updates`, if any, because the state changes from here on."""
        if self._until:
            self._until()
            self._until = None
