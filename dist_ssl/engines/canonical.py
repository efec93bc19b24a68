"""The canonical state of an engine that holds local elements of parameters: names to global tensors, or to pieces.

Any engine reads what any other one wrote, at any number of ranks.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dist_ssl.engines.average import EMA, Average, fitting
from dist_ssl.engines.spread import held_here, laid_out, loaded_moments, spread_of, whole
from dist_ssl.errors import CheckpointError
from dist_ssl.models.named_weights import misfits
from dist_ssl.protocols.engine import Piece, State
from dist_ssl.protocols.method import Method
from dist_ssl.runtime.finite_check import FiniteCheck


class Canonical(ABC):
    """Writing and reading of the canonical state by an engine, which has these attributes."""

    method: Method
    own: Mapping[str, nn.Parameter]
    """Local elements of every parameter, by its name in the method."""
    optimizer: Optimizer
    average: Average | None
    finite: FiniteCheck
    saved_buffers: set[str]

    @abstractmethod
    def part(self, name: str, value: Tensor) -> Tensor | Piece:
        """Return the local elements of a parameter or of one of its moments in the form of the canonical state."""

    def spread(self) -> Mapping[str, Piece]:
        """Return this rank's pieces of the method's sharded buffers."""
        return spread_of(self.method)

    def state(self) -> State:
        """Return parameters, buffers (`model/...`), moments (`optim/<parameter>/...`). Raises TrainingError."""
        self.finite.answer()
        tensors: dict[str, Tensor | Piece] = {f"model/{name}": value for name, value in self._model().items()}
        for name in self.own:
            tensors |= {f"optim/{name}/{key}": value for key, value in self.moments(name).items()}
        return tensors

    def moments(self, name: str) -> Mapping[str, Tensor | Piece]:
        """Return the optimizer's state of a parameter in the form of the canonical state."""
        kept = self.optimizer.state.get(self.own[name], {})
        held = {key: value.detach() for key, value in kept.items() if value is not None}
        return {key: value if key == "step" else self.part(name, value) for key, value in held.items()}

    def wants(self, name: str, shape: tuple[int, ...]) -> range | None:
        """Return the elements that `load` needs: this rank's piece, None for all; none where the shape differs."""
        own = self.piece(name)
        return None if own is None else own.span if own.shape == shape else range(0)

    def piece(self, name: str) -> Piece | None:
        """Return this rank's piece of a canonical tensor; None if every rank has all of it."""
        return self.spread().get(name.removeprefix("model/")) if name.startswith("model/") else None

    def _model(self) -> dict[str, Tensor | Piece]:
        """Return parameters and buffers; of sharded ones this rank's piece."""
        held = {name: self.part(name, parameter.detach()) for name, parameter in self.own.items()}
        buffers = {name: value for name, value in self.method.named_buffers() if name in self.saved_buffers}
        kept = self.average.held.items() if self.average else ()
        averaged = {EMA + name: self.part(name, value) if name in self.own else value for name, value in kept}
        return {**held, **buffers, **self.spread(), **averaged}

    @torch.no_grad()
    def load(self, state: State) -> None:
        """Load a canonical state into model and optimizer. Raises CheckpointError where names or shapes differ."""
        self.finite.forget()
        found = {name.removeprefix("model/"): state[name] for name in state if name.startswith("model/")}
        model = fitting(found, self.average)
        own = self._model()
        if wrong := misfits(own, model):
            raise CheckpointError(
                f"The checkpoint does not fit the model: '{wrong[0]}' is missing, unknown or of another shape.",
                "Resume with the method, the encoder and the data that wrote it.",
            )
        moments = loaded_moments(state, {name: own[name].shape for name in self.own})
        for name, held in own.items():
            to = held.tensor if isinstance(held, Piece) else held
            to.copy_(held_here(model[name], held))
        self.optimizer.state.clear()
        self.take(moments)

    def take(self, moments: Mapping[str, Mapping[str, Tensor | Piece]]) -> None:
        """Fill the optimizer's empty state with moments by the names of parameters."""
        for name, values in moments.items():
            own = self.part(name, self.own[name])
            self.optimizer.state[self.own[name]] = {
                key: whole(value).clone() if key == "step" else laid_out(value, own, self.own[name])
                for key, value in values.items()
            }
