"""Where views are cut into: memory that is used again and again."""

import weakref
from collections import deque
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

Pixels = npt.NDArray[np.uint8]
Shapes = list[tuple[int, ...]]
"""Of views."""


KEPT = 2
"""Spare pieces of memory that are kept at most."""


class Buffers(Protocol):
    """Where views are cut into."""

    def take(self, shapes: Shapes) -> list[Pixels]:
        """Buffers of views of these shapes, [B, side, side, 3] each, whatever is in them."""
        ...

    def give(self, views: list[Pixels]) -> None:
        """Buffers that are no longer looked at."""
        ...


class Spare:
    """Memory of this process, used again while the shapes stay."""

    def __init__(self) -> None:
        self._spare: deque[list[Pixels]] = deque()

    def take(self, shapes: Shapes) -> list[Pixels]:
        """See `Buffers`."""
        while self._spare:
            found = self._spare.popleft()
            if [view.shape for view in found] == shapes:
                return found
        return [np.empty(shape, dtype=np.uint8) for shape in shapes]

    def give(self, views: list[Pixels]) -> None:
        """See `Buffers`."""
        self._spare.append(views)


class Returning:
    """Memory for floats that is used again once the last tensor that lies in it is gone: nobody gives it back.

    New memory is emptied by the kernel page by page, which takes as long as a few passes over it.
    """

    def __init__(self) -> None:
        self._spare: deque[npt.NDArray[np.float32]] = deque(maxlen=KEPT)

    def take(self, size: int) -> torch.Tensor:
        """So many floats, [size], whatever is in them."""
        block = None
        while self._spare and block is None:
            found = self._spare.popleft()
            block = found if found.size == size else None
        if block is None:
            block = np.empty(size, dtype=np.float32)
        lent = block.view()  # the tensor alone has it, as arrays that are made of it would not
        weakref.finalize(lent, self._spare.append, block).atexit = False
        return torch.from_numpy(lent)
