"""Stop requests as a flag: SIGTERM (preemption), SIGUSR2 (time limit approaching), SIGINT (a person), SIGHUP.

Nothing is saved, sent or logged inside a handler; the agreement of the ranks carries the flag into the run. This module
imports nothing heavy, so that a worker can install the handlers before torch is loaded.
"""

import signal
from dataclasses import dataclass
from types import FrameType

STOPPING = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)


@dataclass
class Signals:
    """The first signal that asked this process to stop, and the number of such signals."""

    received: signal.Signals | None = None
    count: int = 0

    def listen(self) -> "Signals":
        """Install the handlers and return self; call it in the main thread."""
        heeded = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN  # ignored below nohup
        for number in (*STOPPING, *([signal.SIGHUP] if heeded else [])):
            signal.signal(number, self._remember)
        return self

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        if self.received is None:
            self.received = signal.Signals(number)
