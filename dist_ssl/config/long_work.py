"""The progress of long work: a bar with the time left on a terminal, and a line now and then everywhere else."""

import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from dist_ssl.config.durations import clock

LINE_SECONDS = 30.0
"""Least time between two lines about the same work."""


class LongWork(Progress):
    """The display of how far the tasks of a command are; a context manager, within which tasks are added and advanced.

    On a terminal each task is a bar, which disappears at the end. Elsewhere, as in the log of a job, a task that takes
    longer than LINE_SECONDS prints a line that often. Threads may advance the same task. `now`: returns the seconds.
    """

    def __init__(self, console: Console, now: Callable[[], float] = time.monotonic) -> None:
        shown = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
        drawn = console.is_terminal and not console.quiet
        super().__init__(
            *shown, TimeRemainingColumn(), console=console, transient=True, disable=not drawn, get_time=now
        )
        self.said: dict[TaskID, float] = {}

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """Count what was done of a task."""
        with self._lock:
            super().advance(task_id, advance)
            if self.disable:
                self._say(task_id)

    def _say(self, task_id: TaskID) -> None:
        """Print how far a task is, unless that was done just now."""
        task, now = self._tasks[task_id], self.get_time()
        if now < self.said.setdefault(task_id, now if task.start_time is None else task.start_time) + LINE_SECONDS:
            return
        self.said[task_id] = now
        left = "" if task.time_remaining is None else f", {clock(task.time_remaining)} left"
        total = "" if task.total is None else f" of {task.total:,.0f}"
        line = f"{task.description.strip()}: {task.completed:,.0f}{total}{left}"
        self.console.print(line, highlight=False, markup=False)


def unseen_work() -> LongWork:
    """Return work that shows nothing."""
    return LongWork(Console(quiet=True))
