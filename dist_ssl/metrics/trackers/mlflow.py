"""The tracker MLflow: one of its runs for all attempts of a run, in a folder or on a server."""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dist_ssl.metrics.trackers.detached import require
from dist_ssl.metrics.trackers.sent import Sent, config_of

LONGEST = 500
"""Characters of a parameter's value that every version of MLflow takes."""
AT_ONCE = 100
"""Parameters that MLflow takes in one call."""


class MLflow:
    """A run of MLflow. `folder`: of the run; `experiment`: the name under which MLflow groups runs.

    `uri`: of the tracking server; null: the folder `mlflow` beside the runs. Raises ConfigError where mlflow is not
    installed.
    """

    def __init__(self, folder: Path, experiment: str, uri: str | None = None) -> None:
        require("mlflow")
        self.folder, self.experiment = folder, experiment
        self.uri = uri or (folder.parent / "mlflow").resolve().as_uri()
        self.sent = Sent(folder / "mlflow.json")
        self.client: Any = None

    def open(self, step: int) -> None:
        """Create the run with the config as its parameters, or continue it."""
        from mlflow import environment_variables
        from mlflow.tracking import MlflowClient

        if permit := getattr(environment_variables, "MLFLOW_ALLOW_FILE_STORE", None):
            permit.set(True)  # versions that prefer a database ask for this before they use a folder
        self.client = MlflowClient(self.uri)
        self.sent.read()
        if self.sent.id:
            self.client.update_run(self.sent.id, status="RUNNING")
            return
        found = self.client.get_experiment_by_name(self.experiment)
        number = found.experiment_id if found else self.client.create_experiment(self.experiment)
        self.sent.register(self.client.create_run(number, run_name=self.folder.name).info.run_id)
        self._describe()

    def _describe(self) -> None:
        """Log the config."""
        from mlflow.entities import Param

        known = [Param(key, str(value)[:LONGEST]) for key, value in flat(config_of(self.folder))]
        for start in range(0, len(known), AT_ONCE):
            self.client.log_batch(self.sent.id, params=known[start : start + AT_ONCE])

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log the values that the run does not have yet, at this step of the run."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        new = self.sent.advance(step, values)
        if new:
            self.client.log_batch(self.sent.id, [Metric(name, value, now, step) for name, value in new.items()])

    def close(self) -> None:
        """Mark the run as ended."""
        self.client.set_terminated(self.sent.id)


def flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the keys of a config with dots, and their values."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
