"""The sinks of rank 0: `metrics.jsonl`, the status file that progress bars read, and those for Prometheus."""

import contextlib
import json
import logging
import math
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from dist_ssl.core.progress import Progress
from dist_ssl.errors import ConfigError
from dist_ssl.metrics.evaluations import Evaluations
from dist_ssl.metrics.table import METRICS, series_of
from dist_ssl.runtime.files import write_atomically

Family = CounterMetricFamily | GaugeMetricFamily
EVERYWHERE = "0.0.0.0"
"""The address that stands for all addresses of a machine."""
log = logging.getLogger(__name__)
PORTS = 10
"""Number of ports that are tried, from the configured one on."""


def finite(values: Mapping[str, float]) -> dict[str, float]:
    """Return the finite values only: JSON has neither NaN nor infinity."""
    return {key: value for key, value in values.items() if math.isfinite(value)}


def stands(report: Mapping[str, float], progress: Progress) -> bool:
    """Return whether a report stays valid: a run that resumes at the end of an epoch repeats the probe."""
    return report["step"] < progress.step or (report["step"] == progress.step and "knn_accuracy" not in report)


class JsonLines:
    """A file with one JSON line per report. A resume drops the lines beyond the restored step and repeats the steps."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def open(self, progress: Progress) -> None:
        """Keep the lines up to this step; drop also a line that a kill cut short."""
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        kept = [line for line in lines if line.endswith("}") and stands(json.loads(line), progress)]
        write_atomically(self.path, "".join(f"{line}\n" for line in kept))

    def write(self, progress: Progress, values: Mapping[str, float]) -> None:
        """Append the values and the time as one line."""
        with self.path.open("a") as file:
            file.write(json.dumps({"time": round(time.time(), 3), **finite(values)}) + "\n")

    def close(self) -> None:
        """Do nothing: the file is not held open."""


class Status:
    """The newest values in one small file, which progress bars show. `total_samples`, `total_steps`: of the run."""

    def __init__(self, path: Path, total_samples: int, total_steps: int) -> None:
        self.path = path
        self.values: dict[str, float] = {"total_samples": total_samples, "total_steps": total_steps}

    def open(self, progress: Progress) -> None:
        """Write the position at once."""
        self.write(progress, {"step": progress.step, "epoch": progress.epoch, "samples": progress.samples})

    def write(self, progress: Progress, values: Mapping[str, float]) -> None:
        """Replace the file; a metric without a new value keeps its last one."""
        self.values |= {**finite(values), "epochs": progress.epochs, "attempt": progress.attempt}
        write_atomically(self.path, json.dumps(self.values))

    def close(self) -> None:
        """Do nothing: the last status stays."""


class Series(Collector):
    """The metrics of the table with their values, as prometheus_client collects them.

    `labels`: of every series. `checkpoints`: the folder with LATEST, whose time is a metric. A gauge without a value
    has no series; a counter without a label starts from 0.
    """

    def __init__(self, checkpoints: Path, labels: Mapping[str, str] | None = None) -> None:
        self.labels, self.latest = dict(labels or {}), checkpoints / "LATEST"
        self.evaluations = Evaluations(checkpoints.parent / "evaluations.jsonl")
        self.values = {(m.key, ""): 0.0 for m in METRICS if m.counter and not m.label}

    def write(self, values: Mapping[str, float]) -> None:
        """Set the gauges and advance the counters; NaN stands for a value that is not known yet."""
        for key, value in {**values, "report_timestamp": time.time()}.items():
            metric, label = series_of(key)
            if math.isnan(value):
                continue
            before = self.values.get((metric.key, label), 0.0) if metric.increments else 0.0
            self.values[metric.key, label] = before + value

    def collect(self) -> Iterator[Family]:
        """Yield every metric of the table with its series, as they are now."""
        series: dict[str, list[tuple[str, float]]] = {}
        for (key, label), value in {**self.values, **self._on_disk()}.items():
            series.setdefault(key, []).append((label, value))
        for metric in METRICS:
            kind: type[Family] = CounterMetricFamily if metric.counter else GaugeMetricFamily
            family = kind(metric.name, metric.help, labels=[*self.labels, *([metric.label] if metric.label else [])])
            for label, value in series.get(metric.key, ()):
                family.add_metric([*self.labels.values(), *([label] if label else [])], value)
            yield family

    def _on_disk(self) -> dict[tuple[str, str], float]:
        """Return what the disk says at this moment; less where it cannot be read."""
        found: dict[tuple[str, str], float] = {}
        with contextlib.suppress(OSError):
            found["free_disk", ""] = float(shutil.disk_usage(self.latest.parent.parent).free)
            found["checkpoint_timestamp", ""] = self.latest.stat().st_mtime
        with contextlib.suppress(OSError):
            found |= self.evaluations.values()
        return found


class Prometheus:
    """A scrape endpoint of this run, and the target file with which a Prometheus discovers it (file_sd).

    `address`: of this machine, for the Prometheus; `bind`: the address to listen on. `port`: 0 takes a free one; one
    that is taken is passed over for one of the next. `target`: the file that names the endpoint; an orderly end removes
    it, a lost node leaves it, so that an alert fires. All attempts of a run are one target by its labels, so that its
    series continue wherever it is resumed. `checkpoints`: see `Series`.
    """

    def __init__(
        self,
        labels: Mapping[str, str],
        address: str,
        port: int,
        target: Path,
        checkpoints: Path,
        *,
        bind: str = EVERYWHERE,
    ) -> None:
        self.labels = {**labels, "instance": labels["run"]}
        self.address, self.bind, self.port, self.target = address, bind, port, target
        self.series, self.registry = Series(checkpoints), CollectorRegistry()
        self.registry.register(self.series)
        self.server: Any = None
        self.announcement = ""

    def open(self, progress: Progress) -> None:
        """Start to listen and write the target file. Raises ConfigError where the port cannot be used."""
        self.series.write({"step": progress.step, "attempt": progress.attempt})
        self._listen()
        self.target.parent.mkdir(parents=True, exist_ok=True)
        place = f"{self.address}:{self.server.server_port}"
        self.announcement = json.dumps([{"targets": [place], "labels": self.labels}])
        write_atomically(self.target, self.announcement)

    def _listen(self) -> None:
        problem = ""
        for port in range(self.port, self.port + PORTS) if self.port else (0,):
            try:
                self.server, _ = start_http_server(port, self.bind, registry=self.registry)
                return
            except (OSError, OverflowError) as error:  # taken, not allowed, no address of this machine, no port
                problem = problem or str(error)
        raise ConfigError(
            f"metrics.port={self.port} on metrics.bind={self.bind} cannot be listened on: {problem}.",
            "metrics.port=0 takes a free one; metrics.bind=0.0.0.0 takes all addresses of the machine.",
        )

    def write(self, progress: Progress, values: Mapping[str, float]) -> None:
        """Update the series."""
        self.series.write(values)

    def close(self) -> None:
        """Remove the target file and stop listening."""
        if self.server:
            if self.target.is_file() and self.target.read_text() == self.announcement:  # not a newer attempt's
                self.target.unlink()
            self.server.shutdown()
            self.server.server_close()


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
            self.series.write({"step": progress.step, "attempt": progress.attempt})
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
        """Remove the file."""
        self.path.unlink(missing_ok=True)
