"""One agreed answer, at every step, to "save? stop?".

Each rank puts in a small integer: 0, SAVE, or SAVE + STOP. An all-reduce on the host is started at every beat and
read at the next, so it costs no waiting and all ranks act at the same step. Whatever a single rank knows (a signal,
rank 0's clock) enters the run through this one door; signal handlers only set a flag.
"""

import time
from dataclasses import dataclass

from dist_ssl.durations import Duration
from dist_ssl.progress import Progress
from dist_ssl.signals import Signals
from dist_ssl.world import Pending, World

SAVE = 1
STOP = 2


@dataclass(frozen=True)
class Beat:
    """What all ranks do now."""

    save: bool
    stop: bool


class Pulse:
    """Beats once a step. `save_every`: counted in steps or epochs, or timed by rank 0's clock."""

    def __init__(self, world: World, signals: Signals, save_every: Duration) -> None:
        self.world = world
        self.signals = signals
        self.save_every = save_every
        self._pending: Pending | None = None
        self._saved_at = time.monotonic()

    def beat(self, progress: Progress) -> Beat:
        """What was agreed since the last beat; the wishes of now are answered at the next."""
        agreed = self._pending.result() if self._pending else 0
        save = bool(agreed & SAVE) or self.save_every.due(progress)
        if save:
            self._saved_at = time.monotonic()
        self._pending = self.world.agree_later(self._wish())
        return Beat(save=save, stop=bool(agreed & STOP))

    def stopping(self) -> bool:
        """Whether any rank has been asked to stop; waits for all, for use between long pieces of work."""
        return bool(self.world.agree(self._wish()) & STOP)

    def drain(self) -> None:
        """Wait for the last agreement under way; none may be open when the groups are destroyed."""
        if self._pending:
            self._pending.result()
            self._pending = None

    def _wish(self) -> int:
        if self.signals.received is not None:
            return SAVE | STOP
        late = time.monotonic() - self._saved_at >= self.save_every.amount
        return SAVE if self.save_every.timed and self.world.rank == 0 and late else 0
