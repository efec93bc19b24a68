"""Continues with the code that a run started with: newer code may have other keys, or another network."""

import os
import sys
from fnmatch import fnmatch
from pathlib import Path

from rich.console import Console

from dist_ssl.config.command_names import subcommand
from dist_ssl.errors import ConfigError, printable
from dist_ssl.runtime.strange_files import read_regular
from launch import credentials
from launch.compiled_code import copy_compiled
from launch.private_cache import private_caches
from launch.run_dir import PROJECT, RunDir
from launch.source_commit import LEFT_OUT, SNAPSHOT, SOURCE, lost_files

MOST_CODE = 1 << 24
"""Bytes of a file of code, at most."""
INSTALLED = "launch.subcommands"
"""Module of the installed command."""


def hand_over(run: RunDir, arguments: list[str], console: Console, script: str = "slurm.py") -> None:
    """Replace this process by the same script in the run folder, if that folder's code differs from this code.

    `arguments`: the complete command line; `script`: name of the script in `launch/`. Returns only if the code is the
    same, or older than the script; the same code is given what is compiled of it here. Logins in addresses go by the
    environment. Where the installed command started this process, that of the run's code is used, so that messages name
    it as before. Raises ConfigError where files of the run's code are missing.
    """
    present = files(run.code)
    if present == files(PROJECT):
        mine = run.folder.stat().st_uid == os.geteuid() and not run.code.is_symlink()
        if mine and run.code.resolve() != PROJECT:
            copy_compiled(PROJECT, run.code)
        return
    if lost := lost_files(run.folder, present):
        more = f", and {len(lost) - 1} more" if lost[1:] else ""
        raise ConfigError(
            f"{run.code} is not complete: {printable(lost[0])} is missing{more}.",
            f"Put it back from a copy of the run, or from another run of the same code ({SOURCE} names its commit).",
        )
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
    words = credentials.set_aside(arguments)  # other users can read the words, and not the environment
    command = [sys.executable, "-P", *start, *words]  # -P: its packages are found through PYTHONPATH only
    sys.stdout.flush()
    variables = {**private_caches(run.code), "PYTHONPATH": run.python_path()}
    os.execve(sys.executable, command, {**os.environ, **variables})


def files(folder: Path) -> dict[Path, bytes]:
    """Return the contents of all files that a run copies from a project, by their path in `folder`.

    Of a file that is too large to be code the size stands for the content; what links lead to is left out.
    """
    own = [folder / name for name in SNAPSHOT if not (folder / name).is_symlink()]
    paths = (path for place in own for path in place.rglob("*") if path.is_file() and not path.is_symlink())
    inside = {path.relative_to(folder): path for path in paths}
    left_out = {place for place in inside for part in place.parts if any(fnmatch(part, rule) for rule in LEFT_OUT)}
    return {place: _content(path) for place, path in inside.items() if place not in left_out}


def _content(path: Path) -> bytes:
    try:
        return read_regular(path, MOST_CODE)
    except ValueError:
        return f"{path.stat().st_size} bytes".encode()
