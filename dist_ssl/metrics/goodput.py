"""Where the wall clock of a run goes: seconds by cause over all its attempts, which add up to the age of the run.

* `start`: from the start of rank 0's process until training can start; `restore`: of that, reading a checkpoint;
* `data`: training waits for a batch; `save`: it waits for a checkpoint; `probe`: it waits for the evaluation;
* `train`: all other time after the start;
* `lost`: work of these four kinds that an attempt threw away, because it resumes from before it;
* `queue`: between the last report of an attempt and the start of the next one; not before a fork or an extension.

Every report holds the seconds so far (`spent_seconds/CAUSE`), and an attempt makes its first one as soon as it has
restored. So the next attempt finds in `metrics.jsonl` what was known last, and what was known at the step from which it
resumes. What lies between the last report before a checkpoint and the checkpoint counts as lost too.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil

from dist_ssl.core.progress import Progress
from dist_ssl.metrics.sinks import read_reports, stands
from dist_ssl.metrics.table import BY_KEY
from dist_ssl.runtime.run_folder import RunFolder

AT_WORK = {"data_wait_seconds": "data", "save_stall_seconds": "save", "probe_seconds": "probe"}
"""Keys of metrics that measure how long training waited, and the causes they stand for."""
COSTS = (*AT_WORK, "restore_seconds")
WORK = ("train", *AT_WORK.values())
CAUSES = BY_KEY["spent_seconds"].values


class Goodput:
    """The account that rank 0 keeps. `reports`: the run's metrics.jsonl; `clock`: returns the time, by default that of
    `steady_clock`: while an attempt trains, nobody's correction of the system's clock is time that was spent.

    `created`, `started`: when the run was created and when this process started. Times are seconds since 1970.
    `restarts`: number of restarts by cause, which every report holds too.
    """

    def __init__(
        self,
        reports: Path,
        created: float,
        started: float,
        clock: Callable[[], float] | None = None,
        restarts: Mapping[str, int] | None = None,
    ) -> None:
        self.reports, self.created, self.started, self.clock = reports, created, started, clock or steady_clock()
        self.restarts = {f"restarts/{cause}": float(count) for cause, count in (restarts or {}).items()}
        self.spent = dict.fromkeys(CAUSES, 0.0)
        self.lost_steps = 0
        self._until = started

    @classmethod
    def of(cls, folder: Path, restarts: Mapping[str, int]) -> "Goodput":
        """Return the account of the run in `folder`, which is as old as its config, kept by this process."""
        started, run = psutil.Process().create_time(), RunFolder(folder)
        created = run.config_file.stat().st_mtime if run.config_file.is_file() else started
        return cls(run.metrics, created, started, restarts=restarts)

    def open(self, progress: Progress) -> None:
        """Take over the account of the earlier attempts, before the reports beyond this position are dropped."""
        reports = read_reports(self.reports)
        last = reports[-1] if reports else {}
        kept = [report for report in reports if stands(report, progress)]
        valid = kept[-1] if kept else {}
        self.spent = {cause: _seconds(last, cause) for cause in CAUSES}
        for cause in WORK:
            self.spent["lost"] += max(0.0, _seconds(last, cause) - _seconds(valid, cause))
            self.spent[cause] = _seconds(valid, cause)
        self.lost_steps = int(last.get("lost_steps", 0) + max(0, last.get("step", 0) - progress.step))
        now = self.clock()  # the clock of an earlier attempt may have been ahead of it
        ended = min(max(last.get("time", self.created), self.created), now)  # forks and extensions did not wait before
        started = min(max(ended, self.started), now)
        self._until = now
        self.spent["queue"] += started - ended
        self.spent["start"] += self._until - started

    def spend(self, costs: Mapping[str, float]) -> dict[str, float]:
        """Account for the time since the last call; return the metrics so far.

        `costs`: rank 0's sums over this time of the metrics in COSTS, as far as there are any.
        """
        now = max(self._until, self.clock())
        elapsed, self._until = now - self._until, now
        restored = min(costs.get("restore_seconds", 0.0), self.spent["start"])
        self.spent["restore"] += restored
        self.spent["start"] -= restored
        for key, cause in AT_WORK.items():
            waited = min(costs.get(key, 0.0), elapsed)
            self.spent[cause] += waited
            elapsed -= waited
        self.spent["train"] += elapsed
        return {f"spent_seconds/{cause}": seconds for cause, seconds in self.spent.items()} | {
            "lost_steps": float(self.lost_steps),
            **self.restarts,
        }


def steady_clock() -> Callable[[], float]:
    """Return a clock that starts with the present time, in seconds since 1970, and that is never set."""
    start = time.time() - time.monotonic()
    return lambda: start + time.monotonic()


def _seconds(report: Mapping[str, Any], cause: str) -> float:
    """Return what a report says was spent on a cause; 0 where it says nothing."""
    return float(report.get(f"spent_seconds/{cause}", 0.0))
