"""The costs of saving and restoring on one rank, as the metric table names them."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

UNKNOWN = float("nan")


@dataclass
class SaveCosts:
    """Times in seconds. `stall`: that training waited since the last report; `staged`: in which the newest
    save copied the state, 0 for the first one, which allocates the memory for it; `written`: of the last save.

    `size`: bytes of the newest checkpoint, known to rank 0; `failed`, `damaged`: saves that failed and checkpoints that
    a restore passed over since the last report; `restored`: of the restore, until it has been reported.
    """

    stall: float = 0.0
    staged: float | None = None
    written: float = UNKNOWN
    size: float = UNKNOWN
    failed: int = 0
    damaged: int = 0
    restored: float | None = None

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time within as a stall of training."""
        started = time.monotonic()
        yield
        self.stall += time.monotonic() - started

    @contextmanager
    def staging(self) -> Iterator[None]:
        """Measure the time within as that in which the state is copied."""
        started = time.monotonic()
        yield
        self.staged = 0.0 if self.staged is None else time.monotonic() - started

    @contextmanager
    def restoring(self) -> Iterator[None]:
        """Measure the time within as that of a restore."""
        started = time.monotonic()
        yield
        self.restored = time.monotonic() - started

    def report(self) -> dict[str, float]:
        """Return the costs by the keys of the metric table; what is counted starts again from 0."""
        restored = {} if self.restored is None else {"restore_seconds": self.restored}
        values = {"save_stall_seconds": self.stall, "save_seconds": self.written, "checkpoint_bytes": self.size}
        counts = {"failed_saves": float(self.failed), "damaged_checkpoints": float(self.damaged)}
        self.stall, self.failed, self.damaged, self.restored = 0.0, 0, 0, None
        return {**values, **counts, **restored}
