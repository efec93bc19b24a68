"""The kernels behind torch's synchronised batch norm as plain formulas on the CPU, refusing what a GPU would refuse."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch import Tensor

from dist_ssl.models import norm_cuda

F32 = torch.float32


def dims(x: Tensor) -> tuple[int, ...]:
    """All dimensions but that of channels."""
    return (0, *range(2, x.dim()))


def wide(row: Tensor, x: Tensor) -> Tensor:
    """[C] to broadcast over x, float32."""
    return row.float().view(1, -1, *[1] * (x.dim() - 2))


def channels_last(x: Tensor) -> bool:
    """Whether the kernels read x so; the other layout that they take is contiguous."""
    last = x.is_contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x.stride(1) == 1
    assert last or x.is_contiguous(), f"a slow form, or none, for strides {x.stride()}"
    return last


def check_rows(x: Tensor, *rows: Tensor | None) -> None:
    """Vectors of channels are float32 and contiguous, whatever x is."""
    for row in rows:
        assert row is None or (row.dtype == F32 and row.is_contiguous() and row.shape == (x.shape[1],))


def check_pair(dy: Tensor, x: Tensor) -> None:
    """The kernels read both by the strides of one, as one type."""
    assert dy.dtype == x.dtype
    assert dy.shape == x.shape
    assert channels_last(dy) == channels_last(x)


def stats(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and 1 / sqrt(var + eps)."""
    channels_last(x)
    var, mean = torch.var_mean(x.float(), dims(x), correction=0)
    return mean, (var + eps).rsqrt()


def elemt(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, scale: Tensor, eps: float, *, out: Tensor
) -> Tensor:
    """Normalise into `out`."""
    check_rows(x, weight, bias, mean, scale)
    check_pair(out, x)
    y = (x.float() - wide(mean, x)) * wide(scale, x)
    y = y if weight is None else y * wide(weight, x)
    return out.copy_(y if bias is None else y + wide(bias, x))


def backward_reduce(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    scale: Tensor,
    weight: Tensor | None,
    of_x: bool,
    of_weight: bool,
    of_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sums of dy and of dy * (x - mean), gradients of weight and bias."""
    check_rows(x, weight, mean, scale)
    check_pair(dy, x)
    assert of_x
    assert of_weight == of_bias == (weight is not None)
    plain = dy.float().sum(dims(x))
    along = (dy.float() * (x.float() - wide(mean, x))).sum(dims(x))
    nothing = mean.new_empty(0)
    return (plain, along, along * scale, plain.clone()) if of_weight else (plain, along, nothing, nothing)


def backward_elemt(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    scale: Tensor,
    weight: Tensor | None,
    plain: Tensor,
    along: Tensor,
    count: Tensor,
) -> Tensor:
    """The gradient of x."""
    check_rows(x, weight, mean, scale, plain, along)
    check_pair(dy, x)
    assert count.dtype == torch.int32
    n = count.sum().float()
    bend = wide(scale.square() * along / n, x)
    slope = wide(scale if weight is None else scale * weight, x)
    dx = (dy.float() - wide(plain / n, x) - (x.float() - wide(mean, x)) * bend) * slope
    return torch.empty_like(x).copy_(dx)


@contextmanager
def emulated(device: str = "cpu") -> Iterator[None]:
    """Inside it batch norms on this device, the CPU or torch's meta device, take the way of a GPU."""
    key = {"cpu": "CPU", "meta": "Meta"}[device]
    library = torch.library.Library("aten", "IMPL")
    library.impl("batch_norm_stats", stats, key)
    library.impl("batch_norm_elemt.out", elemt, key)
    library.impl("batch_norm_backward_reduce", backward_reduce, key)
    library.impl("batch_norm_backward_elemt", backward_elemt, key)
    try:
        with patch.object(norm_cuda, "DEVICES", ("cuda", device)):
            yield
    finally:
        library._destroy()
