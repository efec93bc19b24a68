"""Whether a run folder's code may be executed: only where it is the user's own and no other user can change it.

A resume executes the code in the run folder, and its configs say what that code does. So a folder that belongs to
somebody else, or that others may write to, is refused unless the command says trust=true. Looking at such a folder
(follow, audit) executes nothing of it. What root owns is as safe as the machine. A run that starts from the weights of
such a folder executes nothing of it either, and asks for the same word: what it becomes depends on them.
"""

import contextlib
import os
import pwd
import shlex
import shutil
import stat
from collections.abc import Iterator
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

from dist_ssl.errors import ConfigError, shortened
from dist_ssl.runtime.strange_files import others_may_change
from launch.handover import files
from launch.run_dir import PROJECT, RunDir
from launch.source_commit import SNAPSHOT

KEY = "trust"
ROOT = 0
SHOWN = 5
"""Number of files that a message names."""
CACHED = "__pycache__"
"""Folder of what Python has compiled."""
MACHINE_CODE = tuple(EXTENSION_SUFFIXES)
TRIES = 5
FOLDERS = (
    *("attempts", "attempts/*", "slurm", "checkpoints", "checkpoints/*"),
    *("ledger", "tensorboard", "wandb", "evaluations", "exports"),
)
"""Folders of a run besides that of its code: who can put links there decides which files the run writes to."""
CONFIGS = ("config.yaml", "overrides.yaml", "submitted.yaml", "attempts/*/config.yaml")


def check(run: RunDir, trusted: bool) -> None:
    """Raise ConfigError unless the folder is the user's alone, or `trusted`, or its code is the one that runs here.

    What Python has compiled of the user's own copy of the code is removed: it is executed in place of the code, and a
    folder that was copied or unpacked may hold anything there.
    """
    if run.code.resolve() == PROJECT and not run.code.is_symlink():
        return  # this is the run's own code: it is executed already
    if not trusted and (problems := list(dangers(run))):
        own = run.folder.stat().st_uid == os.geteuid()
        close = f" To take the right from them: chmod -R go-w {shlex.quote(str(run.folder))}" if own else ""
        raise ConfigError(
            f"{run.folder} is not yours alone, and its code would run as you: {problems[0]}{_more(problems)}.",
            f"{_differences(run)} If you trust everybody who can write to it, add {KEY}=true.{close}",
        )
    if forgets_compiled(run):  # only now: others cannot exchange what is removed
        forget_compiled(run)
    if not trusted and (added := additions(run)):
        raise ConfigError(
            f"{added[0]} is no part of a run's code, and would be found in place of a module of that name.",
            f"Remove it, or add {KEY}=true.",
        )


def check_weights(run: RunDir, trusted: bool) -> None:
    """Raise ConfigError unless a run whose weights another one starts from is the user's alone, or `trusted`."""
    if not trusted and (problems := list(dangers(run))):
        raise ConfigError(
            f"{run.folder} is not yours alone, and a run would start from weights that others may have changed: "
            f"{problems[0]}{_more(problems)}.",
            f"If you trust everybody who can write to it, add {KEY}=true.",
        )


def _more(problems: list[str]) -> str:
    return f" ({len(problems)} such files)" if len(problems) > 1 else ""


def forgets_compiled(run: RunDir) -> bool:
    """Return whether what Python has compiled of the code is removed before the code is executed."""
    return run.folder.stat().st_uid == os.geteuid() and not run.code.is_symlink()


def is_compiled(path: Path) -> bool:
    """Return whether a path inside the code is something that `forget_compiled` removes."""
    return CACHED in path.parts or path.suffix == ".pyc"


def forget_compiled(run: RunDir) -> None:
    """Remove what Python has compiled of a run's code. Raises ConfigError where it cannot be removed."""
    for compiled in sorted({*run.code.rglob(CACHED), *run.code.rglob("*.pyc")}):
        for _ in range(TRIES):  # another process of the run may write there
            with contextlib.suppress(OSError):
                if compiled.is_symlink() or compiled.is_file():
                    compiled.unlink()
                else:
                    compiled.chmod(0o700)
                    shutil.rmtree(compiled)
            if not os.path.lexists(compiled):
                break
        else:
            raise ConfigError(
                f"{compiled} cannot be removed, and would be executed in place of the code beside it.", "Remove it."
            )


def dangers(run: RunDir) -> Iterator[str]:
    """Yield what another user owns or may change among the folder, its configs and its code.

    What Python has compiled is left out where it is never executed.
    """
    configs = [path for pattern in CONFIGS for path in run.folder.glob(pattern)]
    folders = [path for pattern in FOLDERS for path in run.folder.glob(pattern)]
    inside = [] if run.code.is_symlink() else run.code.rglob("*")  # it may lead anywhere
    forgets = forgets_compiled(run)
    for path in [run.folder, run.code, *folders, *configs, *inside]:
        if forgets and path.is_relative_to(run.code) and is_compiled(path.relative_to(run.code)):
            continue
        if path.is_symlink() and path.is_relative_to(run.code):
            yield f"{path} is a link, and a run's code has none"
            continue
        state = path.stat() if path.exists() else None
        if state is None:
            continue
        if state.st_uid not in (os.geteuid(), ROOT):
            yield f"{path} belongs to {_name(state.st_uid)}"
        elif others_may_change(path):
            yield f"{path} can be changed by others (mode {stat.S_IMODE(state.st_mode):o})"


def additions(run: RunDir) -> list[Path]:
    """Return what lies beside the code that a run copies, and machine code within it, which no run copies.

    The folder comes first where modules are searched, so a `torch/` in it would be imported in place of torch, and an
    `errors.so` in place of the `errors.py` beside it.
    """
    beside = (path for path in run.code.glob("[!.]*") if path.name not in (*SNAPSHOT, CACHED))
    return sorted({*beside, *(path for path in run.code.rglob("*") if path.name.endswith(MACHINE_CODE))})


def _name(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return f"user {user}"


def _differences(run: RunDir) -> str:
    """Return a sentence that names the files in which the run's code is not this code, extra ones included."""
    if run.code.is_symlink():
        return f"Its code is a link to {run.code.readlink()}."
    own, theirs = files(PROJECT), files(run.code)
    extra = {path.relative_to(run.code) for path in run.code.rglob("*") if path.is_file()} - theirs.keys()
    extra = {path for path in extra if not is_compiled(path)} if forgets_compiled(run) else extra
    places = sorted({place for place in own.keys() | theirs.keys() if own.get(place) != theirs.get(place)} | extra)
    if not places:
        return "Its code is the same as this code."
    return f"Its code differs from this code in {shortened([str(place) for place in places], SHOWN)}."


def parse(arguments: list[str]) -> tuple[bool, list[str]]:
    """Return whether the arguments say trust=true, and the other arguments. Raises ConfigError for another value."""
    found = [argument for argument in arguments if argument.startswith(f"{KEY}=")]
    for argument in found:
        if argument not in (f"{KEY}=true", f"{KEY}=false"):
            raise ConfigError(f"{argument} is not possible.", f"Write {KEY}=true, or leave it out.")
    return f"{KEY}=true" in found, [argument for argument in arguments if argument not in found]
