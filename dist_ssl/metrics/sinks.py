"""The sinks of rank 0: `metrics.jsonl`, the status file that progress bars read, and a Prometheus endpoint."""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Gauge, start_http_server

from dist_ssl.core.progress import Progress
from dist_ssl.errors import ConfigError
from dist_ssl.metrics.table import METRICS, series_of
from dist_ssl.runtime.files import write_atomically


def finite(values: Mapping[str, float]) -> dict[str, float]:
    """Return the finite values only: JSON has neither NaN nor infinity."""
    return {key: value for key, value in values.items() if math.isfinite(value)}


class JsonLines:
    """A file with one JSON line per report. A resume drops the lines beyond the restored step and repeats the steps."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def open(self, progress: Progress) -> None:
        """Keep the lines up to this step; drop also a line that a kill cut short."""
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        kept = [line for line in lines if line.endswith("}") and self._stands(json.loads(line), progress)]
        write_atomically(self.path, "".join(f"{line}\n" for line in kept))

    def _stands(self, report: Mapping[str, float], progress: Progress) -> bool:
        """Return whether a report stays valid: a run that resumes at the end of an epoch repeats the probe."""
        return report["step"] < progress.step or (report["step"] == progress.step and "knn_accuracy" not in report)

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


class Prometheus:
    """A scrape endpoint of this run, and the target file with which a Prometheus discovers it (file_sd).

    `port`: 0 takes a free one. `target`: the file that names the endpoint; an orderly end removes it, a lost node
    leaves it, so that a "target missing" alert fires. `checkpoints`: the folder with LATEST, whose age is reported.
    """

    def __init__(self, run: str, address: str, port: int, target: Path, checkpoints: Path) -> None:
        self.run, self.address, self.port, self.target = run, address, port, target
        self.latest = checkpoints / "LATEST"
        self.registry = CollectorRegistry()
        self.gauges = {m.key: Gauge(m.name, m.help, [m.label] * bool(m.label), registry=self.registry) for m in METRICS}
        self.gauges["checkpoint_age_seconds"].set_function(self._checkpoint_age)
        self.server: Any = None
        self.announcement = ""

    def open(self, progress: Progress) -> None:
        """Start to listen and write the target file. Raises ConfigError where the port cannot be used."""
        try:
            self.server, _ = start_http_server(self.port, registry=self.registry)
        except OSError as error:
            raise ConfigError(
                f"metrics.port={self.port} cannot be listened on: {error}.", "metrics.port=0 takes a free one."
            ) from error
        self.target.parent.mkdir(parents=True, exist_ok=True)
        place = f"{self.address}:{self.server.server_port}"
        self.announcement = json.dumps([{"targets": [place], "labels": {"run": self.run}}])
        write_atomically(self.target, self.announcement)
        self.gauges["attempt"].set(progress.attempt)

    def write(self, progress: Progress, values: Mapping[str, float]) -> None:
        """Set the gauges."""
        for key, value in values.items():
            metric, label = series_of(key)
            gauge = self.gauges[metric.key]
            (gauge.labels(label) if metric.label else gauge).set(value)

    def close(self) -> None:
        """Remove the target file and stop listening."""
        if self.server:
            if self.target.is_file() and self.target.read_text() == self.announcement:  # not a newer attempt's
                self.target.unlink()
            self.server.shutdown()
            self.server.server_close()

    def _checkpoint_age(self) -> float:
        try:
            return time.time() - self.latest.stat().st_mtime
        except FileNotFoundError:
            return float("nan")
