"""A sink that feeds an experiment tracker: training never waits for the tracker, and no failure of it ends a run."""

import logging
import math
import queue
import threading
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from dist_ssl.config.instantiate import instantiate
from dist_ssl.core.progress import Progress
from dist_ssl.errors import ConfigError
from dist_ssl.metrics.sinks import COUNTERS, read_totals
from dist_ssl.metrics.table import series_of

MOST_WAITING = 1000
"""Reports that wait for a slow tracker; further ones are given up."""
PATIENCE = 60.0
"""Seconds that the end of an attempt waits for a tracker."""
log = logging.getLogger(__name__)


class Tracker(Protocol):
    """A tool that keeps the curves of runs. All calls come from one thread; what they raise becomes a warning."""

    def open(self, step: int) -> None:
        """Start, or resume at this step: what was written beyond it is void."""
        ...

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Keep finite values by their names in the tracker, such as `learning_rate/student`."""
        ...

    def close(self) -> None:
        """Write out what waits."""
        ...


def require(package: str) -> None:
    """Raise ConfigError where the package of a tracker is not installed. Nothing is imported."""
    if find_spec(package) is None:
        raise ConfigError(
            f"tracker={package} needs the package {package}, which is not installed.",
            f"Install it, pip install 'dist_ssl[{package}]', or leave tracker={package} out.",
        )


def name_of(key: str) -> str:
    """Return a metric's name in a tracker: the exported name without prefix, then the value of its label, if any."""
    metric, label = series_of(key)
    return f"{metric.stem}/{label}" if label else metric.stem


class Detached:
    """The sink of one tracker, whose calls are made by a thread. `name`: of the tracker, for warnings.

    Counters continue over all attempts, from what `counters`, a file of the run folder, says of the earlier ones. A
    tracker that cannot be opened is left out of this attempt; a report that it refuses is lost. Either is one warning,
    also where it happens again.
    """

    def __init__(self, tracker: Tracker, name: str, counters: Path) -> None:
        self.tracker, self.name, self.counters = tracker, name, counters
        self.totals: dict[str, float] = {}
        self._calls: queue.Queue[Callable[[], None] | None] = queue.Queue(MOST_WAITING)
        self._thread = threading.Thread(target=self._work, name=f"tracker {name}", daemon=True)
        self._warned: set[str] = set()

    def open(self, progress: Progress) -> None:
        """Start the thread and have it open the tracker."""
        self.totals = read_totals(self.counters)
        self._calls.put(lambda: self.tracker.open(progress.step))
        self._thread.start()

    def write(self, progress: Progress, values: Mapping[str, float]) -> None:
        """Hand a report over; where too many wait already it is given up."""
        named: dict[str, float] = {}
        for key, value in values.items():
            if math.isfinite(value):
                known = self.totals.get(key, 0.0) if series_of(key)[0].increments else 0.0
                named[name_of(key)] = self.totals[key] = known + value
        try:
            self._calls.put_nowait(lambda: self.tracker.write(progress.step, named))
        except queue.Full:
            self._warn(f"is too slow: reports are given up, the first at step {progress.step}.")

    def close(self) -> None:
        """Wait until the tracker has written what waits, a minute at the longest."""
        if not self._thread.is_alive():
            return
        try:
            self._calls.put(None, timeout=PATIENCE)
        except queue.Full:
            self._warn("does not answer: the reports that wait are given up.")
            return
        self._thread.join(PATIENCE)
        if self._thread.is_alive():
            self._warn("does not end: the reports that wait are given up.")

    def _work(self) -> None:
        """Make the calls in their order, until the end or until the tracker cannot be opened."""
        for number, call in enumerate(iter(self._calls.get, None)):
            try:
                call()
            except Exception as error:  # whatever a foreign package raises
                self._warn("cannot be opened and is left out" if number == 0 else "refuses reports", error)
                if number == 0:
                    return
        try:
            self.tracker.close()
        except Exception as error:
            self._warn("cannot be closed", error)

    def _warn(self, problem: str, error: Exception | None = None) -> None:
        """Warn of a problem the first time that it occurs."""
        if problem not in self._warned:
            self._warned.add(problem)
            reason = f": {type(error).__name__}: {str(error).rstrip('.')}" if error else ""
            log.warning("The tracker %s %s%s Training goes on.", self.name, problem, f"{reason}." if reason else "")


def trackers(chosen: Mapping[str, Mapping[str, Any]], folder: Path) -> list[Detached]:
    """Return the sinks of the trackers that are chosen, by their names, for the run in `folder`. Raises ConfigError."""
    made = {name: instantiate(node, f"tracker.{name}", folder=folder) for name, node in chosen.items()}
    return [Detached(tracker, name, folder / COUNTERS) for name, tracker in made.items()]
