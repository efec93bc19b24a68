"""Continues with the code that a run started with: newer code may have other keys, or another network."""

import os
import sys
from fnmatch import fnmatch
from pathlib import Path

from rich.console import Console

from dist_ssl.config.command_names import subcommand
from launch.private_cache import private_caches
from launch.run_dir import PROJECT, SNAPSHOT, RunDir
from launch.source_commit import LEFT_OUT

INSTALLED = "launch.subcommands"
"""Module of the installed command."""


def hand_over(run: RunDir, arguments: list[str], console: Console, script: str = "slurm.py") -> None:
    """Replace this process by the same script in the run folder, if that folder's code differs from this code.

    `arguments`: the complete command line; `script`: name of the script in `launch/`. Returns only if the code is the
    same, or older than the script. Where the installed command started this process, that of the run's code is used,
    so that messages name it as before.
    """
    if files(run.code) == files(PROJECT):
        return
    own = run.code.resolve() / "launch" / script
    if not own.is_file():
        console.print(f"{run.folder} was started with code that has no {script}: this code is used.", highlight=False)
        return
    goes_on = "it resumes with" if script == "slurm.py" else "this uses"
    console.print(
        f"{run.folder} was started with different code: {goes_on} the code in its own folder.", highlight=False
    )
    name = subcommand(f"launch/{script}")
    start = ["-m", INSTALLED, name] if name and own.with_name("subcommands.py").is_file() else [str(own)]
    command = [sys.executable, "-P", *start, *arguments]  # -P: its packages are found through PYTHONPATH only
    sys.stdout.flush()
    variables = {**private_caches(run.code), "PYTHONPATH": run.python_path()}
    os.execve(sys.executable, command, {**os.environ, **variables})


def files(folder: Path) -> dict[Path, bytes]:
    """Return the contents of all files that a run copies from a project, by their path in `folder`."""
    paths = (path for name in SNAPSHOT for path in (folder / name).rglob("*") if path.is_file())
    inside = {path.relative_to(folder): path for path in paths}
    left_out = {place for place in inside for part in place.parts if any(fnmatch(part, rule) for rule in LEFT_OUT)}
    return {place: path.read_bytes() for place, path in inside.items() if place not in left_out}
