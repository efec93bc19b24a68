"""Host memory in which a state waits to be written while training goes on: allocated once, pinned where there is CUDA.

A tensor is copied as it lies in its own memory, which is the fastest there is, by several threads, because one alone
cannot use all that memory has to give; whoever writes it puts it in order. What lies on a GPU is copied beside what the
GPU computes: `settled` is to be called before the next weight update, which then waits for the copies.
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
COPIERS = 4
"""Threads that copy on a host."""
RUN_BYTES = 1 << 23
"""Of one thread at a time."""


@dataclass(frozen=True)
class Staged:
    """What was staged, in memory that is written over by the next."""

    own: Mapping[str, Piece]
    """What it was copied from."""
    memory: Tensor
    """[bytes] uint8; each tensor begins at a multiple of ALIGNED_BYTES, in the order of `own`."""
    done: Any = None
    """The event after the device's copies; None where it makes none."""

    @property
    def await_device(self) -> Callable[[], None] | None:
        """What makes the device wait, with all that it is told to compute from then on, until its copies are made."""
        return None if self.done is None else lambda: torch.cuda.current_stream().wait_event(self.done)

    def pieces(self) -> dict[str, Piece]:
        """The copies, once they are made."""
        if self.done is not None:
            with torch.cuda.device(self.done.device):  # else a thread's is the first, where it would take memory
                self.done.synchronize()
        found, begin = {}, 0
        for name, piece in self.own.items():
            found[name] = Piece(place(self.memory, begin, piece.tensor), piece.shape, piece.start)
            begin += room(piece.tensor)
        return found


class Staging:
    """The memory of one rank; it grows to the largest state that it is given."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._stream: Any = None
        self._copiers = ThreadPoolExecutor(COPIERS, "stage")

    def take(self, own: Mapping[str, Piece]) -> Staged:
        """Copy what a rank writes; what was staged before is lost."""
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
        """Have at least so many bytes of memory."""
        if len(self._memory) < count:
            self._memory = torch.empty(0, dtype=torch.uint8)  # never both at once
            self._memory = torch.empty(count, dtype=torch.uint8, pin_memory=self.device.type == "cuda")

    def _copy(self, near: list[tuple[int, int, int]]) -> None:
        """Copy within the host, (to, from, bytes) each, in runs that the threads share."""
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
        """Copy from the device in a stream of its own, after what the device was told before; the event at its end."""
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
    """The bytes that a tensor takes in staging memory."""
    return -(-x.nbytes // ALIGNED_BYTES) * ALIGNED_BYTES


def place(memory: Tensor, begin: int, x: Tensor) -> Tensor:
    """Memory for a tensor's elements, in the order in which they lie in its own where there are no holes in that."""
    flat = memory[begin : begin + x.nbytes].view(x.dtype)
    return flat.as_strided(x.shape, x.stride()) if dense(x) else flat.view(x.shape)


def dense(x: Tensor) -> bool:
    """Whether the elements of a tensor fill a run of memory, in whatever order."""
    return x.is_contiguous() or (x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last))
