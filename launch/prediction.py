"""The predicted time of a run: `launch/plan.py` writes it, and `launch/report.py` holds the run against it."""

import itertools
import json
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dist_ssl.errors import ConfigError, cannot_be_written
from dist_ssl.runtime import jsonl
from dist_ssl.runtime.files import write_atomically
from dist_ssl.runtime.strange_files import read_regular

MOST_BYTES = 1 << 24
"""Bytes of the file, at most: it has some points for each epoch."""


@dataclass(frozen=True)
class Prediction:
    """When a run will have come how far. `points`: samples seen and seconds of steps and probes, from (0, 0) on.

    `source`: where the costs come from, a sentence.
    """

    points: Sequence[tuple[float, float]]
    source: str

    def seconds(self, samples: float) -> float:
        """Return the seconds up to a number of samples; beyond the last point those of all."""
        after = bisect_right(self.points, samples, key=lambda point: point[0])
        if after == len(self.points):
            return self.points[-1][1]
        (first, begin), (last, end) = self.points[after - 1], self.points[after]
        return begin + (end - begin) * (samples - first) / (last - first)

    def write(self, path: Path) -> None:
        """Write the prediction as JSON. Raises UserError."""
        try:
            write_atomically(path, json.dumps({"source": self.source, "points": list(self.points)}) + "\n")
        except OSError as error:
            raise cannot_be_written(path, error, "Name another file: out=...") from error

    @classmethod
    def read(cls, path: Path) -> "Prediction":
        """Read what `write` wrote. Raises ConfigError where the file is something else."""
        try:
            found = jsonl.parsed(read_regular(path, MOST_BYTES))
            points = [(float(samples), float(seconds)) for samples, seconds in found["points"]]
            whole = cls(points, str(found["source"]))
        except (OSError, ValueError, TypeError, KeyError, OverflowError) as error:
            raise ConfigError(f"plan={path} is no prediction: {error!r}.", REMEDY) from error
        if not _rising(points):
            raise ConfigError(f"plan={path} is no prediction: its points do not rise from 0.", REMEDY)
        return whole


REMEDY = "Name the .json beside the picture of a plan, as python launch/plan.py writes it."


def _rising(points: Sequence[tuple[Any, Any]]) -> bool:
    """Return whether samples rise from 0, and seconds do not fall."""
    steps = list(itertools.pairwise(points))
    finite = all(math.isfinite(value) for point in points for value in point)
    return bool(steps) and points[0] == (0, 0) and finite and all(a[0] < b[0] and a[1] <= b[1] for a, b in steps)
