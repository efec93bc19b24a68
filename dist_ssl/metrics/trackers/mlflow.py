"""The tracker MLflow: one of its runs for all attempts of a run, in a folder or on a server."""

import shlex
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from dist_ssl.errors import DataError
from dist_ssl.metrics.trackers.detached import Tracker, require
from dist_ssl.metrics.trackers.sent import Sent, config_of
from dist_ssl.runtime.strange_files import close_to_others, is_ones_own

LONGEST = 500
"""Characters of a parameter's value that every version of MLflow takes."""
AT_ONCE = 100
"""Parameters that MLflow takes in one call."""


class MLflow(Tracker):
    """A run of MLflow. `folder`: of the run; `experiment`: the name under which MLflow groups runs.

    `uri`: of the tracking server, or of a folder; null: the folder `mlflow` beside the runs. Raises ConfigError where
    mlflow is not installed.
    """

    def __init__(self, folder: Path, experiment: str, uri: str | None = None) -> None:
        require("mlflow")
        self.folder, self.experiment = folder, experiment
        self.uri = uri or (folder.parent / "mlflow").absolute().as_uri()
        self.sent = Sent(folder / "mlflow.json")
        self.client: Any = None

    def open(self, step: int) -> None:
        """Create the run with the config as its parameters, or continue it. Raises DataError for another's folder."""
        if place := local_folder(self.uri):
            make_own(place)
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


def local_folder(uri: str) -> Path | None:
    """Return the folder that a URI names, None where it names a server or a database."""
    parts = urlsplit(uri)
    if parts.scheme not in ("", "file") or uri == "databricks":  # this word means the server of that name
        return None
    return Path(url2pathname(parts.path))


def make_own(folder: Path) -> None:
    """Make a folder in which no other user can write, or check that it is one. Raises DataError, OSError.

    MLflow reads whatever is in it, and writes through links: another user could make it append to any file.
    """
    try:
        folder.mkdir(mode=0o755, parents=True)
        close_to_others(folder)
    except FileExistsError:
        for path in (folder, *(folder.iterdir() if is_ones_own(folder) else ())):
            if not is_ones_own(path):
                raise DataError(
                    f"{path} belongs to another user, or others can change it.",
                    f"Take the right from them, chmod -R go-w {shlex.quote(str(folder))}, or name a folder of your own "
                    "or a server: tracker.mlflow.uri=URI",
                ) from None


def flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the keys of a config with dots, and their values."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
