"""Pieces in the canonical state: those of a method's sharded buffers (`Spread`), and the loading of any."""

from collections.abc import Mapping

from torch import Tensor, nn

from dist_ssl.errors import CheckpointError
from dist_ssl.protocols.engine import Piece, Spread, State


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


def moments_of(state: State, parameters: State) -> dict[str, dict[str, Tensor | Piece]]:
    """Return the moments of a canonical state by parameter and name.

    Raises CheckpointError where they do not fit the parameters.
    """
    found: dict[str, dict[str, Tensor | Piece]] = {}
    for at in (name for name in state if name.startswith("optim/")):
        name, _, moment = at.removeprefix("optim/").rpartition("/")
        if name not in parameters or (moment != "step" and state[at].shape != parameters[name].shape):
            raise CheckpointError(
                f"The checkpoint does not fit the optimizer: '{at}' is unknown or of another shape.",
                "Resume with the method and the encoder that wrote it.",
            )
        found.setdefault(name, {})[moment] = state[at]
    return found
