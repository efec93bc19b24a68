"""Counters in shared memory on which processes wait for each other without polling: Linux futexes.

A rank notifies the others by incrementing its own counter and waking the processes that sleep on it. A waiter reads
the counter before it checks the data; the kernel lets it sleep only if the counter is unchanged, so no wake-up is
lost. Where there are no futexes, to wait is to sleep for a short time.
"""

import ctypes
import mmap
import platform
import sys
import time

LINE_BYTES = 64
"""Distance between two counters: a cache line, so that writing one does not slow down readers of another."""
PAUSE_SECONDS = 100e-6
"""Sleep of a wait where there are no futexes."""
NAP_SECONDS = 0.05
"""Longest sleep of a wait on a futex; the caller then checks whether the other rank still runs."""
SYSCALL = {"x86_64": 202, "aarch64": 98}.get(platform.machine()) if sys.platform == "linux" else None
WAIT, WAKE, EVERY_WAITER = 0, 1, 1 << 30


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class Futexes:
    """The counters of `size` ranks, in the first `size * LINE_BYTES` bytes of shared `memory`."""

    def __init__(self, memory: mmap.mmap, size: int) -> None:
        self.counters = [ctypes.c_uint32.from_buffer(memory, rank * LINE_BYTES) for rank in range(size)]
        self.addresses = [ctypes.c_void_p(ctypes.addressof(counter)) for counter in self.counters]
        self.nap = _Timespec(0, int(NAP_SECONDS * 1e9))
        self.futex = ctypes.CDLL(None).syscall if SYSCALL else None

    def read(self, rank: int) -> int:
        """Return a rank's counter: its number of notifications, modulo 2**32."""
        return self.counters[rank].value

    def notify(self, rank: int) -> None:
        """Increment a rank's counter and wake all processes that wait on it; called by that rank only."""
        self.counters[rank].value = (self.counters[rank].value + 1) % 2**32
        if self.futex:
            self.futex(SYSCALL, self.addresses[rank], WAKE, EVERY_WAITER, None, None, 0)

    def wait(self, rank: int, seen: int) -> None:
        """Sleep until a rank's counter, last read as `seen`, changes; at most NAP_SECONDS, and it may return early."""
        if self.futex:
            self.futex(SYSCALL, self.addresses[rank], WAIT, ctypes.c_uint32(seen), ctypes.byref(self.nap), None, 0)
        else:
            time.sleep(PAUSE_SECONDS)
