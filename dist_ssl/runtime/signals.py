"""Stop requests as a flag: SIGTERM (preemption), SIGUSR2 (time limit approaching), SIGINT (a person), SIGHUP.

Nothing is saved, sent or logged inside a handler; the agreement of the ranks carries the flag into the run. This module
imports nothing heavy, so that a worker can install the handlers before torch is loaded.
"""

import signal
from dataclasses import dataclass
from types import FrameType

TIME_LIMIT = signal.SIGUSR2
"""The signal that Slurm sends `cluster.stop_ahead` before the limit."""
STOPPING = (signal.SIGTERM, TIME_LIMIT, signal.SIGINT)


@dataclass
class Signals:
    """The first signal that asked this process to stop, and the number of such signals; whether its terminal is gone.

    A terminal that closes is no second request, which would kill the ranks while they save: the shell and the kernel
    both send SIGHUP then, and perhaps after a Ctrl-C.
    """

    received: signal.Signals | None = None
    count: int = 0
    hung_up: bool = False

    def listen(self) -> "Signals":
        """Install the handlers and return self; call it in the main thread."""
        heeded = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN  # ignored below nohup
        for number in (*STOPPING, *([signal.SIGHUP] if heeded else [])):
            signal.signal(number, self._remember)
        return self

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            self.hung_up = True
            signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a handler is gone before the interpreter is
            if self.count:
                return
        self.count += 1
        if self.received is None:
            self.received = signal.Signals(number)
