"""The engine protocol: an engine wraps a method, turns a loss into a weight update, and saves and loads the state.

The canonical state names every tensor of a run: `model/<parameter or buffer>`, `optim/<parameter>/<moment>`. Any
engine reads what any other wrote, at any world size. Tensors that are equal on every rank are given whole; of a tensor
that is sharded over the ranks, every rank gives its own `Piece`, and requests its own piece when it loads.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from dist_ssl.core.batch import Batch
from dist_ssl.core.plan import Hyperparameters
from dist_ssl.runtime.step_clock import StepClock


@dataclass(frozen=True)
class Piece:
    """One rank's part of a tensor that is sharded over the ranks: a run of its elements in row-major order.

    Rows of a bank, a shard along the first dimension and a part of a flattened parameter are all such runs.
    """

    tensor: Tensor
    """The elements, in any shape."""
    shape: tuple[int, ...]
    """Shape of the whole tensor."""
    start: int
    """Index of the first element within the flattened whole tensor."""

    @property
    def span(self) -> range:
        """The indices of its elements within the flattened whole tensor."""
        return range(self.start, self.start + self.tensor.numel())

    @classmethod
    def of_rows(cls, rows: Tensor, first: int, count: int) -> "Piece":
        """Return the piece of `rows` [n, ...], which are the rows from `first` on of a tensor of `count` rows."""
        inner = rows.shape[1:]
        return cls(rows, (count, *inner), first * math.prod(inner))


State = Mapping[str, Tensor | Piece]
"""Canonical names to whole tensors, equal on every rank, or to this rank's piece of a sharded tensor.

All ranks have the same names. The pieces of a tensor neither overlap nor leave a gap; a rank's piece may be empty.
"""


class Spread(ABC):
    """A module with buffers that are sharded over the ranks: a rank holds and saves its own piece of each."""

    @abstractmethod
    def pieces(self) -> Mapping[str, Piece]:
        """Return this rank's pieces by the buffers' names; a piece's tensor is the buffer itself."""


Branch = Literal["student", "teacher", "ema"]
"""The encoder that computes features; `ema` is the average of the student's weights that an engine keeps."""


@dataclass(frozen=True)
class StepOutput:
    """Metrics of one weight update for the meter: [] tensors, detached, on the device, this rank's values."""

    metrics: dict[str, Tensor]


class Engine(Protocol):
    """The owner of wrapping, precision, optimizer and teacher."""

    clock: StepClock
    """The account of where the time of a step goes."""

    @property
    def needs_initial_pass(self) -> bool:
        """Return whether the method's memory is initialised by a pass over the data before the first step."""
        ...

    def initialise_memory(self, batch: Batch) -> None:
        """Process one batch of that pass; no weight changes."""
        ...

    def step(self, batch: Batch, hyper: Hyperparameters) -> StepOutput:
        """Make one weight update: embed, loss, backward, finite check, clip, optimizer step, EMA update, remember.

        Raises TrainingError on every rank where the gradient is not finite.
        """
        ...

    def embed(self, view: Tensor, branch: Branch) -> Tensor:
        """Return pooled features, [B, 3, S, S] -> [B, D] fp32, in eval mode, without gradients."""
        ...

    def state(self) -> State:
        """Return the canonical state as this rank holds it. Raises TrainingError after a step that was not finite."""
        ...

    def hold_updates(self, until: Callable[[], None]) -> None:
        """Call `until` in the next step before any part of the state changes, since the state is still being copied."""
        ...

    def wants(self, name: str, shape: tuple[int, ...]) -> range | None:
        """Return the elements of a canonical tensor of this shape that `load` needs on this rank; None for all."""
        ...

    def load(self, state: State) -> None:
        """Load a canonical state that contains at least the elements this rank `wants`.

        Raises CheckpointError if names or shapes differ.
        """
        ...
