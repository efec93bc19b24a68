"""Memory that two processes share: views are cut into it in one and looked at in the other.

It has no name, so the kernel frees it with the last process that has it open, however that one ends.
"""

import math
import mmap
import os

import numpy as np

from dist_ssl.data.loader.buffers import Pixels, Shapes


def new_memory(size: int) -> int:
    """A descriptor of so many bytes; they take up memory once they are written."""
    handle = os.memfd_create("views")
    os.truncate(handle, size)
    return handle


def mapped(handle: int, shapes: Shapes) -> list[Pixels]:
    """The arrays of views of these shapes in it, one behind the other; unmapped with the last of them."""
    ends = np.cumsum([math.prod(shape) for shape in shapes])
    parts = np.split(np.frombuffer(mmap.mmap(handle, int(ends[-1])), dtype=np.uint8), ends[:-1])
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


class Slots:
    """Numbered slots of shared memory, used again while the shapes stay; `Buffers` for a course."""

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}
        """Of the slots that there are, by the address of their first view."""
        self._spare: list[list[Pixels]] = []
        self._handles: dict[int, int] = {}
        self._made = 0

    def take(self, shapes: Shapes) -> list[Pixels]:
        """See `Buffers`."""
        while self._spare:
            found = self._spare.pop()
            if [view.shape for view in found] == shapes:
                return found
            del self._numbers[found[0].ctypes.data]
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
        """The number of the slot in which these views lie."""
        return self._numbers[views[0].ctypes.data]

    def unsent_handle(self, number: int) -> int | None:
        """The descriptor of a slot whose other process does not know it yet; close it once it was sent."""
        return self._handles.pop(number, None)

    def close(self) -> None:
        """Close the descriptors that were never sent; the memory goes with the arrays."""
        for handle in self._handles.values():
            os.close(handle)
        self._handles.clear()
