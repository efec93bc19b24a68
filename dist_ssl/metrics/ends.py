"""How the newest attempt of a run ended, where Prometheus still looks once every process of the run is gone.

A target that its attempt could not take away gets the label `end`, so that `up` of a run that does not answer says why;
a text file holds `dist_ssl_ended` alone from then on, for its other numbers were those of a run that trains. The next
attempt replaces both. This module does not import torch, so that a launcher can use it.
"""

import json
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest

from dist_ssl.metrics.endpoint import Exported, read_target
from dist_ssl.metrics.table_row import Metric
from dist_ssl.runtime import jsonl
from dist_ssl.runtime.end_names import ENDS
from dist_ssl.runtime.files import write_atomically

ENDED = Metric(
    "ended",
    "ended",
    "1 where the newest attempt ended with an error, by how; in text files only.",
    "How attempts ended",
    "last",
    label="end",
    values=ENDS,
)
END_METRICS: tuple[Metric, ...] = (ENDED,)
"""The table of what is exported of a run that has ended; it takes the place of all series of the run."""
OWN = ("run", "method")
"""Labels of the target that the series of a text file have."""


def note_end(target: Path, end: str, textfile: Path | None = None) -> None:
    """Add how an attempt ended to the target and the text file that it left, where they are there.

    Raises OSError; ValueError where the target file is damaged.
    """
    try:
        [group] = jsonl.parsed(read_target(target))
        labels = {**group["labels"], "end": end}
    except FileNotFoundError:
        return
    except (TypeError, KeyError) as error:
        raise ValueError(f"{target} is no target file") from error
    if not all(isinstance(value, str) for value in labels.values()):
        raise ValueError(f"{target} has a label that is no text")
    write_atomically(target, json.dumps([{**group, "labels": labels}]))
    if textfile and textfile.exists():
        series = Exported(END_METRICS, {key: value for key, value in labels.items() if key in OWN})
        series.values = {(ENDED.key, end): 1.0}
        registry = CollectorRegistry()
        registry.register(series)
        write_atomically(textfile, generate_latest(registry))


def withdraw(target: Path, textfile: Path | None = None) -> None:
    """Remove the target and the text file of an attempt that was ended by request before it could. Raises OSError."""
    for path in filter(None, (target, textfile)):
        path.unlink(missing_ok=True)
