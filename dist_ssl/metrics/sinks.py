"""Where rank 0 hands the numbers: `metrics.jsonl`, the status that progress bars read, and a Prometheus endpoint."""

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Gauge, start_http_server

from dist_ssl.core.progress import Progress
from dist_ssl.errors import ConfigError
from dist_ssl.metrics.table import METRICS, metric_of


def write_whole(path: Path, text: str) -> None:
    """Replace a file in one move, so that no reader sees half of it."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(text)
    part.replace(path)


def finite(values: Mapping[str, float]) -> dict[str, float]:
    """What JSON can say: NaN and infinity are no numbers there, so they are left out."""
    return {key: value for key, value in values.items() if math.isfinite(value)}


class JsonLines:
    """One line per report. After a resume, lines beyond the restored step are dropped: those steps are made again."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def open(self, progress: Progress) -> None:
        """Keep the lines up to this step; a line cut short by a kill goes too."""
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        kept = [line for line in lines if line.endswith("}") and self._stands(json.loads(line), progress)]
        write_whole(self.path, "".join(f"{line}\n" for line in kept))

    def _stands(self, report: Mapping[str, float], progress: Progress) -> bool:
        """Whether a report is not made again: a run that goes on where an epoch ended probes again."""
        return report["step"] < progress.step or (report["step"] == progress.step and "knn_accuracy" not in report)

    def write(self, progress: Progress, values: Mapping[str, float]) -> None:
        """Append the numbers."""
        with self.path.open("a") as file:
            file.write(json.dumps({"time": round(time.time(), 3), **finite(values)}) + "\n")

    def close(self) -> None:
        """Nothing is held open."""


class Status:
    """The newest numbers in one small file: what a progress bar shows."""

    def __init__(self, path: Path, total_samples: int) -> None:
        self.path = path
        self.values: dict[str, float] = {"total_samples": total_samples}

    def open(self, progress: Progress) -> None:
        """Show the position at once."""
        self.write(progress, {"step": progress.step, "epoch": progress.epoch, "samples": progress.samples})

    def write(self, progress: Progress, values: Mapping[str, float]) -> None:
        """Replace the file; a number that is not new keeps its last value."""
        plan = progress.plans[-1] if progress.plans else None
        self.values |= {**finite(values), "epochs": progress.epochs, "attempt": progress.attempt}
        if plan:
            self.values["total_steps"] = self.values["total_samples"] // plan.batch_size
        write_whole(self.path, json.dumps(self.values))

    def close(self) -> None:
        """The last status stays."""


class Prometheus:
    """A scrape endpoint of this run, and the file-SD target by which a Prometheus finds it.

    `port`: 0 takes a free one. `target`: the file that names the endpoint; an orderly end removes it, a lost node
    leaves it, so that "target missing" fires.
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
        """Start to listen, and announce it."""
        try:
            self.server, _ = start_http_server(self.port, registry=self.registry)
        except OSError as error:
            raise ConfigError(
                f"metrics.port={self.port} cannot be listened on: {error}.", "metrics.port=0 takes a free one."
            ) from error
        self.target.parent.mkdir(parents=True, exist_ok=True)
        place = f"{self.address}:{self.server.server_port}"
        self.announcement = json.dumps([{"targets": [place], "labels": {"run": self.run}}])
        write_whole(self.target, self.announcement)
        self.gauges["attempt"].set(progress.attempt)

    def write(self, progress: Progress, values: Mapping[str, float]) -> None:
        """Set the gauges."""
        for key, value in values.items():
            metric = metric_of(key)
            gauge = self.gauges[metric.key]
            (gauge.labels(key.removeprefix(f"{metric.key}/")) if metric.label else gauge).set(value)

    def close(self) -> None:
        """Withdraw the target and stop listening."""
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
