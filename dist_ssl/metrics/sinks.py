"""The sinks of rank 0: `metrics.jsonl`, the status file that progress bars read, and those for Prometheus."""

import contextlib
import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest

from dist_ssl.checkpoint.folder_names import LATEST
from dist_ssl.core.progress import Progress
from dist_ssl.errors import ConfigError, UserError
from dist_ssl.metrics.endpoint import Endpoint, Exported
from dist_ssl.metrics.evaluations import Evaluations
from dist_ssl.metrics.table import METRICS, series_of
from dist_ssl.runtime import jsonl
from dist_ssl.runtime.files import write_atomically
from dist_ssl.runtime.run_folder import RunFolder
from dist_ssl.runtime.strange_files import numbers, parsed_object, read_regular

log = logging.getLogger(__name__)
COUNTERS = "counters.json"
"""File of the run folder with what the counters have come to."""
MOST_TOTALS = 1 << 20
"""Bytes of that file, at most: it has a line for each counter."""


def finite(values: Mapping[str, float]) -> dict[str, float]:
    """Return the finite values only: JSON has neither NaN nor infinity."""
    return {key: value for key, value in values.items() if math.isfinite(value)}


def read_reports(path: Path) -> list[dict[str, float]]:
    """Return the reports of a `metrics.jsonl`, their finite numbers; what a kill or a lost disk left is none."""
    found = [numbers(row) for row in jsonl.read(path)]
    return [report for report in found if "step" in report]


def stands(report: Mapping[str, float], progress: Progress) -> bool:
    """Return whether a report stays valid: a run that resumes at the end of an epoch repeats the probe."""
    return report["step"] < progress.step or (report["step"] == progress.step and "knn_accuracy" not in report)


def read_totals(path: Path) -> dict[str, float]:
    """Return what the counters of earlier attempts have come to, by key; empty if there is no whole file of numbers."""
    try:
        found = parsed_object(read_regular(path, MOST_TOTALS)) or {}
    except (OSError, ValueError):
        return {}
    return {key: float(value) for key, value in numbers(found).items() if value >= 0}


More = Callable[[Progress], Mapping[str, float]]
"""Numbers that follow from the position, by keys of their own: they stand in files, and are no metrics."""


def nothing(_: Progress) -> Mapping[str, float]:
    """Return no numbers."""
    return {}


class JsonLines:
    """A file with one JSON line per report. A resume drops the lines beyond the restored step and repeats the steps."""

    def __init__(self, path: Path, more: More = nothing) -> None:
        self.path, self.more = path, more
        self._restored: Progress | None = None
        """The position whose later lines have still to be dropped."""

    def open(self, progress: Progress) -> None:
        """Keep the lines up to this step; drop also what a kill or a lost disk left that is no report.

        Raises OSError; the next report tries it again then, so that no step is reported twice.
        """
        self._restored = progress
        self._drop_later_lines()

    def _drop_later_lines(self) -> None:
        if self._restored:
            kept = [report for report in read_reports(self.path) if stands(report, self._restored)]
            write_atomically(self.path, "".join(map(jsonl.line_of, kept)))
            self._restored = None

    def write(self, progress: Progress, values: Mapping[str, float]) -> None:
        """Append the values and the time as one line. Raises OSError."""
        self._drop_later_lines()
        line = {"time": round(time.time(), 3), **finite(values), **self.more(progress)}
        with jsonl.open_to_append(self.path) as file:  # the last line may have been cut short by a full disk
            file.write(jsonl.line_of(line))

    def close(self) -> None:
        """Do nothing: the file is not held open."""


class Status:
    """The newest values in one small file, which progress bars show.

    `total_samples`, `total_steps`: of the run; `queries`: number of images that its probe asks for, 0 without one.
    """

    def __init__(
        self, path: Path, total_samples: int, total_steps: int, queries: int = 0, more: More = nothing
    ) -> None:
        self.path, self.more = path, more
        self.values: dict[str, float] = {"total_samples": total_samples, "total_steps": total_steps}
        self.values |= {"queries": queries} if queries else {}

    def open(self, progress: Progress) -> None:
        """Write the position at once."""
        self.write(progress, {"step": progress.step, "epoch": progress.epoch, "samples": progress.samples})

    def write(self, progress: Progress, values: Mapping[str, float]) -> None:
        """Replace the file; a metric without a new value keeps its last one."""
        self.values |= {**finite(values), **self.more(progress)}
        self.values |= {"epochs": progress.epochs, "attempt": progress.attempt}
        write_atomically(self.path, json.dumps(self.values))

    def close(self) -> None:
        """Do nothing: the last status stays."""


class Series(Exported):
    """The metrics of a run with their values. `checkpoints`: the folder with LATEST, whose time is a metric.

    Counters continue over all attempts of a run: what they have come to is on disk before it is exported, so that none
    ever goes back, which Prometheus would take for a restart from 0.
    """

    def __init__(self, checkpoints: Path, labels: Mapping[str, str] | None = None) -> None:
        super().__init__(METRICS, labels)
        self.latest, self.totals = checkpoints / LATEST, checkpoints.parent / COUNTERS
        self.evaluations = Evaluations(RunFolder(checkpoints.parent).evaluations)

    def open(self, progress: Progress) -> None:
        """Continue the counters of the attempt before, and set the position."""
        for key, value in read_totals(self.totals).items():
            with contextlib.suppress(UserError):  # another version's
                metric, label = series_of(key)
                if metric.increments:
                    self.values[metric.key, label] = value
        self.write({"step": progress.step, "attempt": progress.attempt})

    def write(self, values: Mapping[str, float]) -> None:
        """Set the gauges and advance the counters; NaN stands for a value that is not known yet.

        A counter with a label has a series for each value that has been counted at all: few of many reasons ever are.
        """
        now = dict(self.values)
        for key, value in {**values, "report_timestamp": time.time()}.items():
            metric, label = series_of(key)
            never = metric.counter and label and not value and (metric.key, label) not in now
            if math.isnan(value) or never:
                continue
            before = now.get((metric.key, label), 0.0) if metric.increments else 0.0
            now[metric.key, label] = before + value
        self._keep(now)
        self.values = now

    def _keep(self, values: Mapping[tuple[str, str], float]) -> None:
        """Write what the counters have come to."""
        increments = {metric.key for metric in METRICS if metric.increments}
        totals = {"/".join(filter(None, pair)): value for pair, value in values.items() if pair[0] in increments}
        try:
            write_atomically(self.totals, json.dumps(totals))
        except OSError as error:
            log.warning("The counters cannot be written to %s: %s", self.totals, error)

    def current(self) -> Mapping[tuple[str, str], float]:
        """Return the values of the last reports, and of the disk now."""
        return {**self.values, **self._on_disk()}

    def _on_disk(self) -> dict[tuple[str, str], float]:
        """Return what the disk says at this moment; less where it cannot be read."""
        found: dict[tuple[str, str], float] = {}
        with contextlib.suppress(OSError):
            found["free_disk", ""] = float(shutil.disk_usage(self.latest.parent.parent).free)
            found["checkpoint_timestamp", ""] = self.latest.stat().st_mtime
        with contextlib.suppress(OSError):
            found |= self.evaluations.values()
        return found


class Prometheus(Endpoint):
    """A scrape endpoint of this run; see `Endpoint`, and `Series` for `checkpoints`.

    All attempts of a run are one target by its labels, so that its series continue wherever it is resumed.
    """

    def __init__(
        self,
        labels: Mapping[str, str],
        address: str,
        port: int,
        target: Path,
        checkpoints: Path,
        *,
        bind: str | None = None,
    ) -> None:
        self.series = Series(checkpoints)
        super().__init__(self.series, {**labels, "instance": labels["run"]}, address, port, target, bind)

    def open(self, progress: Progress) -> None:
        """Start to listen and write the target file. Raises ConfigError where the port cannot be used.

        A target that cannot be written is a warning: whose the folder is must not decide whether a run trains.
        """
        self.series.open(progress)
        try:
            self.start()
        except OSError as error:
            log.warning("No Prometheus finds this run: %s cannot be written: %s", self.target, error)

    def write(self, progress: Progress, values: Mapping[str, float]) -> None:
        """Update the series."""
        self.series.write(values)

    def close(self) -> None:
        """Remove the target file and stop listening."""
        self.stop()


class TextFile:
    """The series in a file `NAME.prom` for node_exporter's textfile collector, where no endpoint can be reached.

    Every report replaces it; one that cannot is a warning. An orderly end removes it; a lost node leaves it, and its
    last report grows old.
    """

    def __init__(self, path: Path, labels: Mapping[str, str], checkpoints: Path) -> None:
        self.path, self.series, self.registry = path, Series(checkpoints, labels), CollectorRegistry()
        self.registry.register(self.series)

    def open(self, progress: Progress) -> None:
        """Write the file with the position. Raises ConfigError where that is not possible."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.series.open(progress)
            self._replace()
        except OSError as error:
            raise ConfigError(
                f"metrics.textfile={self.path.parent} cannot be written to: {error}.",
                "Name the folder that node_exporter's --collector.textfile.directory names, or leave it out.",
            ) from error

    def write(self, progress: Progress, values: Mapping[str, float]) -> None:
        """Replace the file."""
        self.series.write(values)
        try:
            self._replace()
        except OSError as error:
            log.warning("The metrics of step %s cannot be written to %s: %s", progress.step, self.path, error)

    def _replace(self) -> None:
        write_atomically(self.path, generate_latest(self.registry))

    def close(self) -> None:
        """Remove the file; where that is not possible, its last report grows old."""
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s cannot be removed: %s", self.path, error)
