"""Host memory that holds a copy of the state until it is written, while training continues; allocated once.

It is pinned where there is CUDA. A tensor is copied in its own memory layout, which is fastest, and by several threads,
because one thread cannot use the full memory bandwidth; the writer puts it into row-major order. GPU tensors are copied
in a side stream: the next weight update must wait for these copies (`Staged.await_device`, `Engine.hold_updates`).
"""

import ctypes
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dist_ssl.protocols.engine import Piece

ALIGNED_BYTES = 64
"""Alignment of every tensor in the staging memory."""
COPIERS = 4
"""Number of threads that copy host tensors."""
RUN_BYTES = 1 << 23
"""Bytes that one thread copies at a time."""


@dataclass(frozen=True)
class Staged:
    """A staged copy of a state, in memory that the next one overwrites."""

    own: Mapping[str, Piece]
    """Pieces from which it was copied, by name."""
    memory: Tensor
    """[bytes] uint8; each tensor begins at a multiple of ALIGNED_BYTES, in the order of `own`."""
    done: Any = None
    """CUDA event after the copies from the device; None if there are none."""

    @property
    def await_device(self) -> Callable[[], None] | None:
        """A function that makes the current stream wait for the copies; None if there is nothing to wait for."""
        return None if self.done is None else lambda: torch.cuda.current_stream().wait_event(self.done)

    def pieces(self) -> dict[str, Piece]:
        """Return the copies; waits until they are complete."""
        if self.done is not None:
            with torch.cuda.device(self.done.device):  # else on GPU 0, where a context takes memory
                self.done.synchronize()
        found, begin = {}, 0
        for name, piece in self.own.items():
            found[name] = Piece(place(self.memory, begin, piece.tensor), piece.shape, piece.start)
            begin += room(piece.tensor)
        return found


class Staging:
    """The staging memory of one rank; it grows to the size of the largest state."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._stream: Any = None
        self._copiers = ThreadPoolExecutor(COPIERS, "stage")

    def take(self, own: Mapping[str, Piece]) -> Staged:
        """Copy the pieces that a rank writes; the previous staged copy is lost."""
        self._hold(sum(room(piece.tensor) for piece in own.values()))
        begin, address = 0, self._memory.data_ptr()
        far: list[tuple[int, Tensor]] = []
        near: list[tuple[int, int, int]] = []
        for piece in own.values():
            x = piece.tensor
            if not x.is_cpu:
                far.append((begin, x.detach()))
            elif dense(x):
                near.append((address + begin, x.data_ptr(), x.nbytes))
            else:
                place(self._memory, begin, x).copy_(x.detach())
            begin += room(x)
        self._copy(near)
        return Staged(own, self._memory, self._copy_beside(far) if far else None)

    def _hold(self, count: int) -> None:
        """Allocate at least `count` bytes of memory."""
        if len(self._memory) < count:
            self._memory = torch.empty(0, dtype=torch.uint8)  # never both at once
            self._memory = torch.empty(count, dtype=torch.uint8, pin_memory=self.device.type == "cuda")

    def _copy(self, near: list[tuple[int, int, int]]) -> None:
        """Copy host memory, given as (to, from, bytes), in runs that are distributed over the threads."""
        runs: list[list[tuple[int, int, int]]] = [[]]
        size = 0
        for to, begin, count in near:
            for at in range(0, count, RUN_BYTES):
                part = min(RUN_BYTES, count - at)
                if size + part > RUN_BYTES and runs[-1]:
                    runs.append([])
                    size = 0
                runs[-1].append((to + at, begin + at, part))
                size += part
        list(self._copiers.map(_move, runs))

    def _copy_beside(self, far: list[tuple[int, Tensor]]) -> Any:
        """Copy from the device in a side stream, after all work queued so far; return the event at the end."""
        self._stream = self._stream or torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            for begin, x in far:
                place(self._memory, begin, x).copy_(x, non_blocking=True)
                x.record_stream(self._stream)
            return self._stream.record_event()


def _move(run: list[tuple[int, int, int]]) -> None:
    for to, begin, count in run:
        ctypes.memmove(to, begin, count)


def room(x: Tensor) -> int:
    """Return the bytes that a tensor takes in staging memory, rounded up to ALIGNED_BYTES."""
    return -(-x.nbytes // ALIGNED_BYTES) * ALIGNED_BYTES


def place(memory: Tensor, begin: int, x: Tensor) -> Tensor:
    """Return a view of `memory` for a tensor's elements, with the strides of `x` if that is dense, else row-major."""
    flat = memory[begin : begin + x.nbytes].view(x.dtype)
    return flat.as_strided(x.shape, x.stride()) if dense(x) else flat.view(x.shape)


def dense(x: Tensor) -> bool:
    """Return whether a tensor's elements fill a run of memory without holes, in row-major or channels-last order."""
    return x.is_contiguous() or (x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last))
