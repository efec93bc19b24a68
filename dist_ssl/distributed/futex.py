"""Words in shared memory on which processes wait for each other without polling: futexes of Linux.

A rank rings its own bell by changing its word and waking who sleeps on it. Whoever waits has read the word before he
looked for what the bell announces, and the kernel lets him sleep only if the word still is what he read, so no ring
is missed. Where there are no futexes, to wait is to sleep for a moment.
"""

import ctypes
import mmap
import platform
import sys
import time

LINE_BYTES = 64
"""Of a bell: a cache line, so that ringing one does not disturb who looks at another."""
PAUSE_SECONDS = 100e-6
NAP_SECONDS = 0.05
SYSCALL = {"x86_64": 202, "aarch64": 98}.get(platform.machine()) if sys.platform == "linux" else None
WAIT, WAKE, EVERYBODY = 0, 1, 1 << 30


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class Futexes:
    """The bells of `size` ranks in the first `size * LINE_BYTES` bytes of shared `memory`."""

    def __init__(self, memory: mmap.mmap, size: int) -> None:
        self.words = [ctypes.c_uint32.from_buffer(memory, rank * LINE_BYTES) for rank in range(size)]
        self.addresses = [ctypes.c_void_p(ctypes.addressof(word)) for word in self.words]
        self.nap = _Timespec(0, int(NAP_SECONDS * 1e9))
        self.futex = ctypes.CDLL(None).syscall if SYSCALL else None

    def read(self, rank: int) -> int:
        """The bell's word: how often it was rung, modulo 2**32."""
        return self.words[rank].value

    def ring(self, rank: int) -> None:
        """Wake all who wait for this rank; only the rank itself does so."""
        self.words[rank].value = (self.words[rank].value + 1) % 2**32
        if self.futex:
            self.futex(SYSCALL, self.addresses[rank], WAKE, EVERYBODY, None, None, 0)

    def wait(self, rank: int, word: int) -> None:
        """Sleep until a bell whose word was `word` is rung, or for a moment; may return early."""
        if self.futex:
            self.futex(SYSCALL, self.addresses[rank], WAIT, ctypes.c_uint32(word), ctypes.byref(self.nap), None, 0)
        else:
            time.sleep(PAUSE_SECONDS)
