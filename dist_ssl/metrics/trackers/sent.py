"""The record of how far a tracker has a run, for trackers that cannot take back what they were given."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from dist_ssl.runtime import jsonl
from dist_ssl.runtime.files import write_atomically
from dist_ssl.runtime.run_folder import RunFolder
from dist_ssl.runtime.strange_files import read_regular

MOST_SENT, MOST_CONFIG = 1 << 20, 1 << 18
"""Bytes of the record and of a config, at most: both have some thousand."""


class Sent:
    """The newest step that a tracker has, with the names that it has of it, and the run's id in the tracker.

    Kept in a file of the run folder, written before a report is handed over: no step is given twice, so that curves
    never overlap, and those of a resumed run continue where the tracker has new steps. Where an attempt repeats steps,
    the tracker keeps their first values; on the same number of ranks they are the same.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.id, self.step, self.names = "", -1, set[str]()

    def read(self) -> None:
        """Read the file, where there is one."""
        if self.path.is_file():
            known = jsonl.parsed(read_regular(self.path, MOST_SENT))
            self.id, self.step, self.names = known["id"], known["step"], set(known["names"])

    def register(self, identity: str) -> None:
        """Record the run's id in the tracker."""
        self.id = identity
        self._write()

    def advance(self, step: int, values: Mapping[str, float]) -> dict[str, float]:
        """Return those of the values that the tracker does not have yet, and count them as sent."""
        if step < self.step:
            return {}
        known = self.names if step == self.step else set()
        new = {name: value for name, value in values.items() if name not in known}
        if new:
            self.step, self.names = step, known | new.keys()
            self._write()
        return new

    def _write(self) -> None:
        write_atomically(self.path, json.dumps({"id": self.id, "step": self.step, "names": sorted(self.names)}))


def config_of(folder: Path) -> dict[str, Any]:
    """Return the config as the run folder shows it, which has no credentials; empty where it has none."""
    path = RunFolder(folder).config_file
    return dict(yaml.safe_load(read_regular(path, MOST_CONFIG))) if path.is_file() else {}
