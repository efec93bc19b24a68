"""Mean and sum of squared differences from it per channel of a batch, without cancellation."""

from torch import Tensor


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and sum of squared differences from it of x [G, B, C, ...], [G, C] float64 each, in two passes."""
    dims = (1, *range(3, x.dim()))
    count = x.numel() // (x.shape[0] * x.shape[2])
    mean = x.sum(dims) / count
    deviation = x - wide(mean, x)
    # the mean was rounded to x's precision: the mean of the remaining differences corrects it
    rest = deviation.sum(dims).double() / count
    squares = (deviation * deviation).sum(dims).double() - count * rest * rest
    return mean.double() + rest, squares


def wide(per_channel: Tensor, x: Tensor) -> Tensor:
    """Return per-channel values [G, C] as [G, 1, C, 1, ...] in x's dtype, to broadcast over x [G, B, C, ...]."""
    return per_channel.to(x.dtype).reshape(x.shape[0], 1, x.shape[2], *[1] * (x.dim() - 3))
