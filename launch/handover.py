"""Resumes a run with the code it started with, launcher included: newer code may have other keys."""

import os
import sys
from fnmatch import fnmatch
from pathlib import Path

from rich.console import Console

from launch.run_dir import LEFT_OUT, PROJECT, SNAPSHOT, RunDir


def hand_over(run: RunDir, arguments: list[str], console: Console) -> None:
    """Replace this process by the launcher in the run folder, if that folder's code differs from this code.

    `arguments`: the complete command line. Returns only if the code is the same.
    """
    if files(run.code) == files(PROJECT):
        return
    console.print(
        f"{run.folder} was started with different code: it resumes with the code in its own folder.", highlight=False
    )
    script = run.code.resolve() / "launch" / "slurm.py"
    command = [sys.executable, "-P", str(script), *arguments]  # -P: its packages are found through PYTHONPATH only
    sys.stdout.flush()
    os.execve(sys.executable, command, {**os.environ, "PYTHONPATH": run.python_path()})


def files(folder: Path) -> dict[Path, bytes]:
    """Return the contents of all files that a run copies from a project, by their path in `folder`."""
    paths = (path for name in SNAPSHOT for path in (folder / name).rglob("*") if path.is_file())
    inside = {path.relative_to(folder): path for path in paths}
    left_out = {place for place in inside for part in place.parts if any(fnmatch(part, rule) for rule in LEFT_OUT)}
    return {place: path.read_bytes() for place, path in inside.items() if place not in left_out}
