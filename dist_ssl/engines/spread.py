"""Pieces in the canonical state: sharded buffers of a method (`Spread`), and what a rank takes of a loaded state."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dist_ssl.engines.average import EMA
from dist_ssl.errors import CheckpointError
from dist_ssl.protocols.engine import Piece, Spread, State


def place_of(name: str) -> tuple[str, str, str]:
    """Return `model` or `optim`, the parameter or buffer, and the moment that a canonical name consists of.

    The moment is empty in `model`, where an average goes by the name of what it averages: it is sharded as that is.
    """
    kind, _, rest = name.partition("/")
    if kind == "model":
        return kind, rest.removeprefix(EMA), ""
    parameter, _, moment = rest.rpartition("/")
    return kind, parameter, moment


def spread_of(module: nn.Module) -> Mapping[str, Piece]:
    """Return this rank's pieces of all sharded buffers, by the buffer's full name."""
    return {
        f"{at}.{name}".removeprefix("."): piece
        for at, part in module.named_modules()
        if isinstance(part, Spread)
        for name, piece in part.pieces().items()
    }


def whole(value: Tensor | Piece) -> Tensor:
    """Return a value of a state as a tensor, which it must be: every rank has all of it."""
    assert isinstance(value, Tensor)
    return value


def held_here(value: Tensor | Piece, own: Tensor | Piece) -> Tensor:
    """Return the elements of a loaded value that a rank holding `own` keeps, in the shape of `own`."""
    if isinstance(own, Tensor):
        return whole(value)
    assert isinstance(value, Piece)
    assert value.span == own.span
    return value.tensor.reshape(own.tensor.shape)


def laid_out(value: Tensor | Piece, own: Tensor | Piece, parameter: Tensor) -> Tensor:
    """Return a copy of what a rank holding `own` keeps of a moment, in the memory layout of its parameter."""
    held = held_here(value, own)
    return torch.empty_like(parameter, dtype=held.dtype).copy_(held)


def loaded_moments(state: State, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, dict[str, Tensor | Piece]]:
    """Return the moments of a state by parameter and name. Raises CheckpointError where they do not fit.

    `shapes`: those of all parameters, by name.
    """
    found: dict[str, dict[str, Tensor | Piece]] = {}
    for at in (name for name in state if name.startswith("optim/")):
        _, name, moment = place_of(at)
        if name not in shapes or (moment != "step" and state[at].shape != shapes[name]):
            raise CheckpointError(
                f"The checkpoint does not fit the optimizer: '{at}' is unknown or of another shape.",
                "Resume with the method and the encoder that wrote it.",
            )
        found.setdefault(name, {})[moment] = state[at]
    return found
