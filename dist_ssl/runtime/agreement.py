"""The agreement of all ranks, at every step, on four flags: save now, stop now, news to share, and a save under way.

Each rank gives its own flags. A host-side all-reduce (maximum) is started after every step and read after the next, so
no rank waits for it and all ranks act at the same step. Events that a single rank knows of (a signal, rank 0's clock, a
sample that cannot be read) enter the run only through this agreement; signal handlers only set a flag.
"""

import time
from dataclasses import dataclass

from dist_ssl.config.durations import Duration
from dist_ssl.core.progress import Progress
from dist_ssl.distributed.world import Pending, World
from dist_ssl.runtime.signals import Signals

MOST_SHARE = 0.05
"""Share of the time for which training waits for timed saves, within MOST_FACTOR; counted ones are made as asked."""
MOST_FACTOR = 4
"""A timed interval is lengthened to so many times of what was asked for, at most: a crash loses no more than that."""


@dataclass(frozen=True)
class Decision:
    """The actions that all ranks take after this step."""

    save: bool
    stop: bool
    news: bool = False
    """True if a rank reported news at the previous step that all ranks must exchange."""


class Agreement:
    """The agreement, called once per step. `save_every`: counted in steps or epochs, or timed by rank 0's clock.

    A timed interval begins at the end of the save before it, on the rank that writes longest: however slow the disk is,
    the ranks train that long between two saves, and none waits for a timed save to make room for the next one. It is
    lengthened, to MOST_FACTOR times at most, where copying the state would take more than MOST_SHARE of the time.
    `keep_every`: counted; permanent checkpoints are saved at these positions too.
    """

    def __init__(
        self, world: World, signals: Signals, save_every: Duration, keep_every: Duration | None = None
    ) -> None:
        self.world = world
        self.signals = signals
        self.save_every, self.keep_every = save_every, keep_every
        self._pending: Pending | None = None
        self._saved_at = time.monotonic()
        self._stall = 0.0

    def step(self, progress: Progress, news: bool = False, saving: bool = False, stall: float = 0.0) -> Decision:
        """Return the decision on the requests of the previous step; those of this step are decided at the next one.

        `news`: this rank has found something that all ranks must exchange. `saving`: it is writing a checkpoint.
        `stall`: seconds for which it has waited while the newest save copied the state.
        """
        self._stall = stall
        save, stop, reported, busy = self._pending.result() if self._pending else (0, 0, 0, 0)
        due = bool(save) or self.save_every.due(progress)
        due = due or (self.keep_every is not None and self.keep_every.due(progress))
        if due or busy or saving:
            self._saved_at = time.monotonic()
        self._pending = self.world.agree_later(*self._requests(), int(news), int(saving))
        return Decision(save=due, stop=bool(stop), news=bool(reported))

    def stopping(self) -> bool:
        """Return whether any rank has been asked to stop. Waits for all ranks; for use between long pieces of work."""
        return bool(self.world.agree(self._requests()[1]))

    def drain(self) -> None:
        """Wait for the pending all-reduce, if any: none may be pending when the process groups are destroyed."""
        if self._pending:
            self._pending.result()
            self._pending = None

    def _requests(self) -> tuple[int, int]:
        """Return this rank's requests to save and to stop, 0 or 1 each."""
        if self.signals.received is not None:
            return 1, 1
        asked = self.save_every.amount
        interval = min(max(asked, self._stall / MOST_SHARE), MOST_FACTOR * asked)
        late = time.monotonic() - self._saved_at >= interval
        return int(self.save_every.timed and self.world.rank == 0 and late), 0
