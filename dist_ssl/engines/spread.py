"""Sharded buffers of a method (`Spread`) in the canonical state: saving and loading this rank's pieces."""

from collections.abc import Mapping

from torch import Tensor, nn

from dist_ssl.protocols.engine import Piece, Spread


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
