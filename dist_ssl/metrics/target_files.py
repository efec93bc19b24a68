"""The files by which Prometheus finds a run: targets (file_sd) beside the run folders, and text files of its series."""

import re
from pathlib import Path

TARGETS = "targets"
"""Folder of the target files, beside the folders of the runs."""
OF_A_NODE = re.compile(r"(.*)\.node_(\d{4,})")
"""Names of the target files of nodes, without `.json`: the run's, and the node's number."""


def target_of(run: Path, node: int | None = None) -> Path:
    """Return the target file of the run with this folder, or that of one of its nodes."""
    own = "" if node is None else f".node_{node:04d}"
    return run.parent / TARGETS / f"{run.name}{own}.json"


def textfile_of(run: Path, folder: str | None) -> Path | None:
    """Return the text file of the run's series in the folder `metrics.textfile`; None where that is not set."""
    return Path(folder) / f"{run.name}.prom" if folder else None
