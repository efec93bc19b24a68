"""One agreed answer, at every step, to "save? stop? news?".

Each rank puts in a flag for each. An all-reduce on the host is started at every beat and read at the next, so it
costs no waiting and all ranks act at the same step. Whatever a single rank knows (a signal, rank 0's clock, a sample
that cannot be read) enters the run through this one door; signal handlers only set a flag.
"""

import time
from dataclasses import dataclass

from dist_ssl.config.durations import Duration
from dist_ssl.core.progress import Progress
from dist_ssl.distributed.world import Pending, World
from dist_ssl.runtime.signals import Signals


@dataclass(frozen=True)
class Decision:
    """What all ranks do now."""

    save: bool
    stop: bool
    news: bool = False
    """Some rank knew something at the last step that all must hear of."""


class Agreement:
    """Beats once a step. `save_every`: counted in steps or epochs, or timed by rank 0's clock.

    `keep_every`: counted; what is to be kept for ever is saved at these positions too.
    """

    def __init__(
        self, world: World, signals: Signals, save_every: Duration, keep_every: Duration | None = None
    ) -> None:
        self.world = world
        self.signals = signals
        self.save_every, self.keep_every = save_every, keep_every
        self._pending: Pending | None = None
        self._saved_at = time.monotonic()

    def step(self, progress: Progress, news: bool = False) -> Decision:
        """What was agreed since the last beat; the wishes and news of now are answered at the next."""
        save, stop, heard = self._pending.result() if self._pending else (0, 0, 0)
        due = bool(save) or self.save_every.due(progress)
        due = due or (self.keep_every is not None and self.keep_every.due(progress))
        if due:
            self._saved_at = time.monotonic()
        self._pending = self.world.agree_later(*self._wish(), int(news))
        return Decision(save=due, stop=bool(stop), news=bool(heard))

    def stopping(self) -> bool:
        """Whether any rank has been asked to stop; waits for all, for use between long pieces of work."""
        return bool(self.world.agree(self._wish()[1]))

    def drain(self) -> None:
        """Wait for the last agreement under way; none may be open when the groups are destroyed."""
        if self._pending:
            self._pending.result()
            self._pending = None

    def _wish(self) -> tuple[int, int]:
        """To save, to stop: 0 or 1 each."""
        if self.signals.received is not None:
            return 1, 1
        late = time.monotonic() - self._saved_at >= self.save_every.amount
        return int(self.save_every.timed and self.world.rank == 0 and late), 0
