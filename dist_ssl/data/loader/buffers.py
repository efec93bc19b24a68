"""Reusable memory for views: uint8 buffers that views are cut into, and float memory that returns by itself."""

import weakref
from collections import deque
from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from dist_ssl.data.images.image_rules import ImageRules, Pixels

Shapes = list[tuple[int, ...]]
"""Shapes of the views of a batch in bytes, (B, side, side, C times the bytes of a number) each."""
KEPT = 2
"""Largest number of unused blocks of memory that `Returning` keeps."""


def shapes_of(count: int, sides: Iterable[int], rules: ImageRules) -> Shapes:
    """Return the shape of each view of `count` images; `sides`: of the views, in px."""
    return [(count, side, side, rules.channels * rules.dtype.itemsize) for side in sides]


def typed(views: list[Pixels], dtype: "np.dtype[Any]") -> list[Pixels]:
    """Return buffers of bytes, [B, side, side, n] each, as numbers of this type in the same memory."""
    return [view.view(dtype) for view in views]


class Buffers(Protocol):
    """A source of buffers that views are cut into."""

    def take(self, shapes: Shapes) -> list[Pixels]:
        """Return buffers of bytes of these shapes, with arbitrary contents."""
        ...

    def give(self, views: list[Pixels]) -> None:
        """Give back buffers that are no longer read, for reuse."""
        ...


class Spare:
    """Buffers in memory of this process, reused for the same shapes, of which a load has few."""

    def __init__(self) -> None:
        self._spare: deque[list[Pixels]] = deque()

    def take(self, shapes: Shapes) -> list[Pixels]:
        """See `Buffers`."""
        for place, found in enumerate(self._spare):
            if [view.shape for view in found] == shapes:
                del self._spare[place]
                return found
        return [np.empty(shape, dtype=np.uint8) for shape in shapes]

    def give(self, views: list[Pixels]) -> None:
        """See `Buffers`."""
        self._spare.append(views)


class Returning:
    """Float memory that is reused once the last tensor in it is garbage-collected; it is never given back explicitly.

    The kernel zeroes new memory page by page, which takes as long as a few passes over it: reuse saves that.
    """

    def __init__(self) -> None:
        self._spare: deque[npt.NDArray[np.float32]] = deque(maxlen=KEPT)

    def take(self, size: int) -> torch.Tensor:
        """Return a float32 tensor [size] with arbitrary contents."""
        block = None
        while self._spare and block is None:
            found = self._spare.popleft()
            block = found if found.size == size else None
        if block is None:
            block = np.empty(size, dtype=np.float32)
        lent = block.view()  # only the tensor refers to it: NumPy views of it would refer to `block`
        weakref.finalize(lent, self._spare.append, block).atexit = False
        return torch.from_numpy(lent)
