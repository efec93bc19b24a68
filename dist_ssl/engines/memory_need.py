"""The least memory that a step of an epoch needs on one rank, known before anything is trained.

A step holds the most memory at one of two moments, when weights, optimizer state, buffers and views are there too:

    at the end of the forward pass     all that is kept for the backward pass (`saved_tensors`)
    at the end of the backward pass    all gradients

How weights, gradients and moments are shared out is the engine's (`shares`). It is an estimate from below. Not in it
are what operations need while they run, what allocators round up and cannot reuse, the libraries of the device, the
buffers of collectives, weights that an engine gathers, batches that are loaded ahead, and the process itself.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from torch import Tensor

from dist_ssl.config.bounds import RGB
from dist_ssl.core.plan import FROZEN, EpochPlan
from dist_ssl.engines.parallel import Parallel
from dist_ssl.engines.passes import check_parts
from dist_ssl.engines.saved_tensors import FakeMethod, sized
from dist_ssl.engines.units import checkpointed, units
from dist_ssl.errors import ConfigError, plural
from dist_ssl.protocols.method import Method

log = logging.getLogger(__name__)

GIB = 1 << 30
DOUBLE, COPIES, KEPT = 8, 8, 2
"""Bytes of the widest number, copies of weights, and numbers kept for a channel and a pixel: more than there are."""
GROWS = ("image_size", "views", "local_views", "local_size", "batch_size", "keep_tokens", "candidates")
"""Values of a plan with which the memory of a step grows."""


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes on one rank, by what holds them."""

    weights: int
    gradients: int
    moments: int
    """State of the optimizer."""
    buckets: int
    """Copies of the gradients, for their exchange."""
    buffers: int
    """Running statistics, queue, bank, and the average of the weights."""
    views: int
    """The batch, with candidates that are scored."""
    activations: int
    """Tensors that are kept for the backward pass."""
    accumulates: bool = False
    """Gradients of earlier parts of a batch are there while a later one is computed."""

    @property
    def total(self) -> int:
        """The bytes at the fuller one of the two moments."""
        always = self.weights + self.moments + self.buckets + self.buffers + self.views
        forward = self.activations + (self.gradients if self.accumulates else 0)
        return always + max(forward, self.gradients)


class MemoryEstimate:
    """Returns what an epoch of a plan needs; plans whose steps are alike are counted once.

    `engine`: a real one on the meta device in a world of one, whose method was made for `ranks` ranks; it is used up.
    `per_node`: ranks of a node. `scored`: bytes of the candidates of an image that wait for a choice by the model, for
    a plan and the bytes of a number in views. `channels`: of an image.
    """

    def __init__(
        self,
        engine: Parallel,
        ranks: int,
        per_node: int,
        scored: Callable[[EpochPlan, int], int] = lambda *_: 0,
        channels: int = RGB,
    ) -> None:
        self.engine, self.ranks, self.scored, self.channels = engine, ranks, scored, channels
        self.shares, method = engine.shares(ranks, per_node), engine.method
        numbers = engine.dtype.itemsize if self.shares.on_device else 0
        learnt = [p for p in method.parameters() if p.requires_grad]
        self.weights = numbers * divided(count(method.parameters()), self.shares.weights)
        self.gradients = numbers * divided(count(learnt), self.shares.gradients)
        self.moments = numbers * divided(self._moments(), self.shares.moments)
        self.buckets = numbers * count(learnt) if self.shares.buckets else 0
        averaged = sum(x.nbytes for x in engine.average.held.values()) if engine.average and numbers else 0
        self.buffers = sum(sized(method.buffers()).values()) + divided(averaged, self.shares.weights)
        if engine.compile and not engine.activation_checkpointing:  # a compiler keeps of a block what it likes
            checkpointed(method)
        gathered = self.shares.weights > 1
        self.fake = FakeMethod(method, dtype=engine.dtype, compute=engine.compute, gathered=gathered, channels=channels)
        self._known: dict[EpochPlan, MemoryNeed] = {}

    def __call__(self, plan: EpochPlan) -> MemoryNeed:
        """Return what a step of the plan needs."""
        kind = kind_of(plan)
        if kind not in self._known:
            self._known[kind] = self._need(kind)
        return self._known[kind]

    def _need(self, plan: EpochPlan) -> MemoryNeed:
        rows, two_passes = plan.batch_size // self.ranks, self.shares.two_passes
        itemsize = (self.engine.compute or self.engine.dtype).itemsize
        return MemoryNeed(
            weights=self.weights,
            gradients=self.gradients,
            moments=self.moments,
            buckets=self.buckets,
            buffers=self.buffers,
            views=rows * (self.channels * pixels_of(plan) * itemsize + self.scored(plan, itemsize)),
            activations=self.fake.kept(plan, rows // self.shares.parts, loss=not two_passes),
            accumulates=two_passes and self.engine.accumulate > 1,
        )

    def _moments(self) -> int:
        """Return how many numbers the optimizer remembers; parts that are frozen at first have none until later."""
        method, recipe = self.engine.method, self.engine.recipe
        frozen = tuple(f"{name.removeprefix(FROZEN)}." for name in method.curves if name.startswith(FROZEN))
        learnt = [p for name, p in method.named_parameters() if p.requires_grad and not name.startswith(frozen)]
        return sum(recipe.moments(p) * p.numel() for p in learnt)

    def remedy(self, need: MemoryNeed) -> str:
        """Return what would make a step smaller, of the options that this engine and this method have."""
        engine, found = self.engine, ["a smaller batch_size", "smaller or fewer views", "more machines (nodes)"]
        if engine.compute is None:
            found.append("precision=bf16")
        if not engine.activation_checkpointing and units(engine.method):
            found.append("engine.activation_checkpointing=true")
        with suppress(ConfigError):
            check_parts(engine.method, 2)
            if not self.shares.two_passes:
                found.append("engine.accumulate=2")
        if self.shares.weights == 1 < self.ranks and need.activations < need.total / 2:
            found.append("engine=fsdp")
        return f"Use {', '.join(found[:-1])} or {found[-1]}."


def kind_of(plan: EpochPlan) -> EpochPlan:
    """Return the plan without what does not change the memory of its steps."""
    return replace(plan, epoch=0, magnitude=1.0, scale=1.0, fixed=())


def largest(plans: Iterable[EpochPlan]) -> list[EpochPlan]:
    """Return, of plans of different kinds, those of which no other one has at least as much of everything."""
    distinct: dict[EpochPlan, EpochPlan] = {}
    for plan in plans:
        distinct.setdefault(kind_of(plan), plan)

    def outgrown(plan: EpochPlan, other: EpochPlan) -> bool:
        more = all(getattr(plan, key) <= getattr(other, key) for key in GROWS)
        return more and plan is not other and plan.patch_size == other.patch_size

    return [one for one in distinct.values() if not any(outgrown(one, other) for other in distinct.values())]


def is_small(method: Method, plans: Iterable[EpochPlan], ranks: int, room: int) -> bool:
    """Return whether the steps of all plans are so far below the `room` bytes of a rank that none need be counted.

    Nearly every channel has a bias or a scale. For each of these, networks keep from 0.01 numbers for a pixel of a view
    (ResNet-50) to 1.2 (a transformer whose patches are single pixels).
    """
    channels = sum(p.numel() for p in method.parameters() if p.ndim == 1 and p.requires_grad)
    stored = count([*method.parameters(), *method.buffers()])
    pixels = max((plan.candidates * plan.batch_size * pixels_of(plan) // ranks for plan in plans), default=0)
    return DOUBLE * (COPIES * stored + KEPT * channels * pixels) < room


def pixels_of(plan: EpochPlan) -> int:
    """Return the number of pixels in all views of an image."""
    return plan.views * plan.image_size**2 + plan.local_views * plan.local_size**2


def check_memory(estimate: MemoryEstimate, room: int, plans: Sequence[EpochPlan]) -> None:
    """Raise ConfigError for the first of the plans that needs more than the `room` bytes of a rank.

    Where the largest ones fit, all do, and the others are not counted: a count takes up to a second.
    """
    most = max(largest(plans), key=lambda plan: estimate(plan).total, default=None)
    if most is None:
        return
    if estimate(most).total <= room:
        least = f"epoch {most.epoch + 1} needs at least {gib(estimate(most).total)}"
        log.info("Memory: %s on each rank, which has %s.", least, gib(room))
        return
    for plan in plans:
        need = estimate(plan)
        if need.total > room:
            raise ConfigError(
                f"Epoch {plan.epoch + 1} does not fit into memory: its {plan.views_in_words}, "
                f"batch {plan.batch_size} on {plural(estimate.ranks, 'rank')}, need at least {gib(need.total)} on each "
                f"rank ({gib(need.activations)} of it activations), and a rank has {gib(room)}.",
                estimate.remedy(need),
            )


def gib(size: int) -> str:
    """Return a number of bytes in GiB, as text."""
    return f"{size / GIB:.3g} GiB"


def count(tensors: Iterable[Tensor]) -> int:
    """Return how many numbers the tensors have."""
    return sum(x.numel() for x in tensors)


def divided(number: int, ranks: int) -> int:
    """Return the largest part of a number that ranks share."""
    return -(-number // ranks)
