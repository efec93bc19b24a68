"""Where views are cut into: memory that is used again and again."""

from collections import deque
from typing import Protocol

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
Shapes = list[tuple[int, ...]]
"""Of views."""


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
