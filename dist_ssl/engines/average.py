"""An average of the encoder's weights that is kept for evaluation, beside the weights that are trained.

    average <- momentum * average + (1 - momentum) * weights        after every step, from the first weights on

It holds this rank's local elements of every parameter, in the precision in which weights are stored, and the floating
buffers (batch-norm statistics), which are averaged alike. It does not influence the training.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dist_ssl.models import ema
from dist_ssl.protocols.engine import Piece
from dist_ssl.protocols.method import Method

EMA = "ema."
"""Prefix, in the canonical state, of the names of averaged parameters and buffers."""


class Average:
    """The average of a method's encoder. `own`: local elements of all parameters, `saved`: names of saved buffers.

    `momentum`: more than 0, less than 1.
    """

    def __init__(
        self, method: Method, own: Mapping[str, nn.Parameter], saved: Collection[str], momentum: float
    ) -> None:
        self.momentum = momentum
        place = next(name for name, module in method.named_modules() if module is method.encoder)
        buffers = {name: x for name, x in method.named_buffers() if name in saved and x.is_floating_point()}
        everything: dict[str, Tensor] = {**{name: p.detach() for name, p in own.items()}, **buffers}
        self.weights = {name: x for name, x in everything.items() if name.startswith(f"{place}.")}
        self.held = {name: x.clone() for name, x in self.weights.items()}

    def update(self) -> None:
        """Average the weights that a step has made."""
        ema.update(self.held, self.weights, self.momentum)

    @contextmanager
    def in_use(self, refresh: Callable[[], None]) -> Iterator[None]:
        """Exchange weights and average, and exchange them back; `refresh`: called after each time."""
        self._exchange()
        refresh()
        try:
            yield
        finally:
            self._exchange()
            refresh()

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, weight in self.weights.items():
            before = weight.clone()
            weight.copy_(self.held[name])
            self.held[name].copy_(before)


def average_of(
    method: Method, own: Mapping[str, nn.Parameter], saved: Collection[str], momentum: float | None
) -> Average | None:
    """Return the average, or None where there is no momentum."""
    return None if momentum is None else Average(method, own, saved, momentum)


def fitting(model: Mapping[str, Tensor | Piece], average: Average | None) -> Mapping[str, Tensor | Piece]:
    """Return a loaded model with an average if the engine keeps one: that of the model, or else its weights."""
    if average is None:
        return {name: value for name, value in model.items() if not name.startswith(EMA)}
    if any(name.startswith(EMA) for name in model):
        return model
    return {**model, **{EMA + name: model[name] for name in average.held if name in model}}
