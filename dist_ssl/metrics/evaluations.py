"""The accuracies of evaluated checkpoints as metrics of the run, read from what `launch/evaluate.py` writes."""

from pathlib import Path

from dist_ssl.runtime import jsonl

ACCURACIES = {"knn": "knn_accuracy", "bag_of_patches": "knn_accuracy", "linear": "linear_accuracy"}
"""Protocols whose number is an accuracy, and its name in the file."""


class Evaluations:
    """The newest evaluation of each protocol and branch. `path`: of the run's evaluations.jsonl.

    The file grows while the run is scraped, and is read where it has changed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[tuple[str, str], float] = {}
        self._read: tuple[int, int] | None = None

    def values(self) -> dict[tuple[str, str], float]:
        """Return accuracies by key and label, and the step of the last checkpoint; of each the last evaluation.

        Raises OSError where the file cannot be read.
        """
        if not self.path.is_file():
            return {}
        state = self.path.stat()
        if self._read != (state.st_size, state.st_mtime_ns):
            rows = [row for row in jsonl.read(self.path) if ACCURACIES.get(row.get("protocol", "")) in row]
            known: dict[tuple[str, str], float] = {}
            for row in sorted(rows, key=lambda row: int(row["step"])):
                known["evaluation", f"{row['protocol']} {row['branch']}"] = float(row[ACCURACIES[row["protocol"]]])
                known["evaluated_step", ""] = float(row["step"])
            self._known, self._read = known, (state.st_size, state.st_mtime_ns)  # scrapes may meet: none sees a part
        return self._known
