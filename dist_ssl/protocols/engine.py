"""What an engine is: it wraps a method, turns a loss into a weight update, and knows its state in one canonical form.

The canonical state names every tensor of a run: `model/<parameter or buffer>`, `optim/<parameter>/<moment>`. Any
engine reads what any other wrote, at any world size. What is the same on every rank is given whole; what is spread over
the ranks is given by every rank as its own `Piece`, and asked for in the same way.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from dist_ssl.core.batch import Batch
from dist_ssl.core.plan import Hyperparameters


@dataclass(frozen=True)
class Piece:
    """One rank's part of a tensor that is spread over the ranks: a run of its elements, counted row by row.

    Rows of a bank, a shard along the first dimension and a part of a flattened parameter are all such runs.
    """

    tensor: Tensor
    """The elements, in any shape."""
    shape: tuple[int, ...]
    """Of the whole tensor."""
    start: int
    """Number of the first element within the whole tensor."""

    @property
    def span(self) -> range:
        """The numbers of its elements."""
        return range(self.start, self.start + self.tensor.numel())

    @classmethod
    def of_rows(cls, rows: Tensor, first: int, count: int) -> "Piece":
        """`rows`: [n, ...], the rows from number `first` on of a tensor of `count` rows."""
        inner = rows.shape[1:]
        return cls(rows, (count, *inner), first * math.prod(inner))


State = Mapping[str, Tensor | Piece]
"""Canonical names to whole tensors, the same on every rank, or to this rank's piece of them.

All ranks name the same tensors. Pieces overlap nowhere and leave nothing out; a rank may have an empty one.
"""


class Spread(ABC):
    """A module some of whose buffers are spread over the ranks: a rank holds and saves its own piece of each."""

    @abstractmethod
    def pieces(self) -> Mapping[str, Piece]:
        """This rank's piece by the buffer's name; its tensor is the buffer itself."""


Who = Literal["student", "teacher"]


@dataclass(frozen=True)
class StepOutput:
    """What one weight update leaves for the meter: [] tensors, detached, on the device, this rank's share."""

    metrics: dict[str, Tensor]


class Engine(Protocol):
    """Owns wrapping, precision, optimizer and teacher."""

    @property
    def needs_initial_pass(self) -> bool:
        """Whether the method's memory is filled by a pass over the data before the first step."""
        ...

    def initialise_memory(self, batch: Batch) -> None:
        """One batch of that pass; no weight moves."""
        ...

    def step(self, batch: Batch, hyper: Hyperparameters) -> StepOutput:
        """One weight update: embed, loss, backward, guard, clip, update, follow, remember."""
        ...

    def embed(self, view: Tensor, who: Who) -> Tensor:
        """[B, 3, S, S] -> pooled features [B, D] fp32, in eval mode, without gradients."""
        ...

    def state(self) -> State:
        """The canonical state, as this rank holds it."""
        ...

    def hold_updates(self, until: Callable[[], None]) -> None:
        """Call `until` within the next step, before anything of the state changes: it is still being copied."""
        ...

    def wants(self, name: str, shape: tuple[int, ...]) -> range | None:
        """The elements of a canonical tensor of this shape that `load` needs on this rank; None where all of them."""
        ...

    def load(self, state: State) -> None:
        """Take over a canonical state that holds what this rank `wants`.

        Raises CheckpointError where names or shapes differ.
        """
        ...
