"""Shared memory between two processes: one cuts views into it, the other reads them.

It is anonymous (memfd), so the kernel frees it with the last process that has it open, however that process ends.
"""

import math
import mmap
import os

import numpy as np

from dist_ssl.data.images.image_rules import Pixels
from dist_ssl.data.loader.buffers import Shapes


def new_memory(size: int) -> int:
    """Return a file descriptor of `size` bytes of new memory; pages are allocated when they are first written."""
    handle = os.memfd_create("views")
    os.truncate(handle, size)
    return handle


def mapped(handle: int, shapes: Shapes) -> list[Pixels]:
    """Map the memory of a descriptor; return uint8 arrays of these shapes, one after the other in it.

    It is unmapped with the last of them.
    """
    ends = np.cumsum([math.prod(shape) for shape in shapes])
    parts = np.split(np.frombuffer(mmap.mmap(handle, int(ends[-1])), dtype=np.uint8), ends[:-1])
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


class Slots:
    """`Buffers` of a `Pipeline` in numbered slots of shared memory, reused for the same shapes, of which it has few."""

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}
        """Number of every existing slot, by the address of its first view."""
        self._spare: list[list[Pixels]] = []
        self._handles: dict[int, int] = {}
        self._made = 0

    def take(self, shapes: Shapes) -> list[Pixels]:
        """See `Buffers`."""
        for place, found in enumerate(self._spare):
            if [view.shape for view in found] == shapes:
                return self._spare.pop(place)
        handle = new_memory(sum(map(math.prod, shapes)))
        arrays = mapped(handle, shapes)
        self._numbers[arrays[0].ctypes.data] = self._made
        self._handles[self._made] = handle
        self._made += 1
        return arrays

    def give(self, views: list[Pixels]) -> None:
        """See `Buffers`."""
        self._spare.append(views)

    def number(self, views: list[Pixels]) -> int:
        """Return the number of the slot that holds these views."""
        return self._numbers[views[0].ctypes.data]

    def unsent_handle(self, number: int) -> int | None:
        """Return the descriptor of a slot once, for sending it to the other process; None after that.

        The caller closes it after sending.
        """
        return self._handles.pop(number, None)

    def close(self) -> None:
        """Close the descriptors that were never sent; the memory is freed with the arrays."""
        for handle in self._handles.values():
            os.close(handle)
        self._handles.clear()
