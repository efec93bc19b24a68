"""A run goes on with the code that it began with, the launcher's included: a newer one may know other keys."""

import os
import sys
from pathlib import Path

from rich.console import Console

from launch.run_dir import PROJECT, SNAPSHOT, RunDir


def hand_over(run: RunDir, words: list[str], console: Console) -> None:
    """Become the launcher in the run's folder where its code is not this one; does not return then.

    `words`: the whole command line.
    """
    if files(run.code) == files(PROJECT):
        return
    console.print(f"{run.folder} was begun with other code than this: it goes on with its own.", highlight=False)
    code = run.code.resolve()
    path = os.pathsep.join([str(code), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-P", str(code / "launch" / "slurm.py"), *words]  # -P: PYTHONPATH finds its packages
    sys.stdout.flush()
    os.execve(sys.executable, command, {**os.environ, "PYTHONPATH": path})


def files(folder: Path) -> dict[Path, bytes]:
    """What a run keeps of a project, by the path within it."""
    paths = (path for name in SNAPSHOT for path in (folder / name).rglob("*") if path.is_file())
    return {path.relative_to(folder): path.read_bytes() for path in paths if "__pycache__" not in path.parts}
