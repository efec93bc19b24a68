"""What a method spreads over the ranks, as engines put it into the canonical state and take it out again."""

from collections.abc import Mapping

from torch import Tensor, nn

from dist_ssl.protocols.engine import Piece, Spread


def spread_of(module: nn.Module) -> Mapping[str, Piece]:
    """This rank's pieces of what is spread over the ranks, by the buffer's full name."""
    return {
        f"{at}.{name}".removeprefix("."): piece
        for at, part in module.named_modules()
        if isinstance(part, Spread)
        for name, piece in part.pieces().items()
    }


def whole(value: Tensor | Piece) -> Tensor:
    """A tensor of a state that this engine has on every rank."""
    assert isinstance(value, Tensor)
    return value


def held_here(value: Tensor | Piece, own: Tensor | Piece) -> Tensor:
    """What a rank that holds `own` keeps of a value of the same shape."""
    if isinstance(own, Tensor):
        return whole(value)
    assert isinstance(value, Piece)
    assert value.span == own.span
    return value.tensor.reshape(own.tensor.shape)
