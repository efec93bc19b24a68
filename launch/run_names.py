"""Names and paths that a run folder can have: they stand in batch scripts, in PYTHONPATH and in labels of metrics."""

import re
from pathlib import Path

from dist_ssl.errors import ConfigError
from dist_ssl.metrics.target_files import OF_A_NODE, TARGETS

NAME = re.compile(r"\w[\w .@=+,?%~-]*")
IMPOSSIBLE = re.compile(r"[:\x00-\x1f\x7f]")
"""Characters that a run folder's path cannot have.

A colon would end its place in PYTHONPATH, so that other code would run; a control character, a line of a batch script.
"""


LONGEST = 200
"""Bytes of a name, at most: file systems allow 255, and names of files are made of it."""
BESIDE_RUNS = (TARGETS, "mlflow")
"""Folders that runs share, beside their own: of the addresses of metrics, and of MLflow's files."""


def check_name(runs: Path, name: str) -> None:
    """Raise ConfigError where no run of this name can be in this folder."""
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"name={name!r} cannot be the name of a run.",
            "It names a folder and a job: use A to Z, a to z, 0 to 9, then also spaces and . _ - + = @ , ? % ~.",
        )
    if len(name.encode()) > LONGEST:
        raise ConfigError(f"name={name[:20]}... is too long for a folder.", f"Use at most {LONGEST} bytes.")
    if OF_A_NODE.fullmatch(name):
        raise ConfigError(
            f"name={name} cannot be the name of a run: the metrics of another run's nodes have such names.",
            f"Choose another one: name={name}-1, say.",
        )
    if name in BESIDE_RUNS:
        raise ConfigError(
            f"name={name} cannot be the name of a run: its folder would be one that all runs in {runs} share.",
            f"Choose another one: name={name}-1, say.",
        )
    _check_path((runs / name).absolute(), "Choose another name=... or runs=...")


def check_place(folder: Path) -> None:
    """Raise ConfigError where no process of a run could be started in this folder: it may have been renamed."""
    _check_path(folder.resolve(), "Give the folder, or the one that it is in, another name.")


def _check_path(path: Path, remedy: str) -> None:
    if IMPOSSIBLE.search(whole := str(path)):
        raise ConfigError(f"{whole!r} cannot be a run folder: its path has a colon or a control character.", remedy)
