"""The accuracies of evaluated checkpoints as metrics of the run, read from what `launch/evaluate.py` writes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dist_ssl.runtime import jsonl
from dist_ssl.runtime.strange_files import numbers

ACCURACIES = {"knn": "knn_accuracy", "bag_of_patches": "knn_accuracy", "linear": "linear_accuracy"}
"""Protocols whose number is an accuracy, and its name in the file."""


class Evaluations:
    """The accuracies of the newest checkpoint that has been evaluated. `path`: of the run's evaluations.jsonl.

    The file grows while the run is scraped, and is read where it has changed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[tuple[str, str], float] = {}
        self._read: tuple[int, int] | None = None

    def values(self) -> dict[tuple[str, str], float]:
        """Return the accuracies by key and label: of kNN and linear classifiers, each the best of the newest step.

        An evaluation that was made again counts as it was the last time. Raises OSError where the file cannot be read.
        """
        if not self.path.is_file():
            return {}
        state = self.path.stat()
        if self._read != (state.st_size, state.st_mtime_ns):
            rows = [row for row in jsonl.read(self.path) if _of_a_classifier(row)]
            newest: dict[str, tuple[int, dict[str, float]]] = {}
            for row in sorted(rows, key=lambda row: row["step"]):
                name = ACCURACIES[row["protocol"]]
                step, found = newest.get(name, (0, {}))
                kept = found if step == row["step"] else {}
                newest[name] = row["step"], {**kept, f"{row['protocol']} {row['branch']}": float(row[name])}
            known = {
                ("evaluation", name.removesuffix("_accuracy")): max(found.values())
                for name, (_, found) in newest.items()
            }
            self._known, self._read = known, (state.st_size, state.st_mtime_ns)  # scrapes may meet: none sees a part
        return self._known


def _of_a_classifier(row: Mapping[str, Any]) -> bool:
    """Return whether a line of the file has an accuracy; one that a person has edited may lack anything."""
    name = ACCURACIES.get(str(row.get("protocol")), "")
    return isinstance(row.get("step"), int) and name in numbers(row) and isinstance(row.get("branch"), str)
