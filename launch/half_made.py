"""Marks a run folder while it is made, so that a command that fails or is killed blocks no later one."""

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from dist_ssl.errors import ConfigError
from dist_ssl.runtime.files import hidden_beside
from dist_ssl.runtime.strange_files import close_to_others

NAME = ".making"
"""File of a folder that is being made, which the command that makes it holds locked."""
MOST_ALIKE = 1000
"""A name is followed by a number below this one."""
COMPLETE = ("config.yaml", "attempts/*/config.yaml")
"""The file of a run folder that is written last, and those of attempts, which no folder that is being made has."""


@contextlib.contextmanager
def being_made(folder: Path) -> Iterator[None]:
    """Mark a new folder until the block ends; remove it where the block raises an error, so that its name is free."""
    own = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)  # kept open, so that no other folder gets its number
    try:
        with (folder / NAME).open("wb") as file:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)
            if not _same(own, folder):
                raise ConfigError(f"{folder} was removed by another command while it was made.", "Start the run again.")
            yield
        with contextlib.suppress(OSError):  # the folder is complete, whatever becomes of its mark
            (folder / NAME).unlink()
    except BaseException:
        if _same(own, folder):
            shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        os.close(own)


def new_folder(parent: Path, name: str, *, alone: bool = False) -> Path:
    """Create the folder NAME in `parent`, or the first of NAME-2, NAME-3, ... that is not there, and return it.

    `alone`: only NAME will do. Nobody but the owner may change what is in it: a job executes that. A folder that was
    left half-made is replaced. Raises FileExistsError where none of these names is free; OSError.
    """
    for number in range(1, 2 if alone else MOST_ALIKE):
        folder = parent / (name if number == 1 else f"{name}-{number}")
        with contextlib.suppress(FileExistsError):
            remove_left(folder)
            folder.mkdir(mode=0o755, parents=True)
            close_to_others(folder)
            return folder
    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(parent / name))


def was_left(folder: Path) -> bool:
    """Return whether a folder was being made by a command that was killed, and is nobody's work."""
    if (mark := _locked_mark(folder)) is None:
        return False
    os.close(mark)
    return True


def remove_left(folder: Path) -> None:
    """Remove a folder that was left half-made; do nothing to any other. Raises OSError."""
    if (mark := _locked_mark(folder)) is not None:
        try:
            aside = hidden_beside(folder)
            folder.rename(aside)  # so that the next folder of this name is never taken for this one
            shutil.rmtree(aside)
        finally:
            os.close(mark)


def _same(own: int, folder: Path) -> bool:
    """Return whether a path leads to the folder of a descriptor."""
    try:
        return os.path.samestat(os.fstat(own), folder.lstat())
    except OSError:
        return False


def _locked_mark(folder: Path) -> int | None:
    """Return the descriptor of the mark of a folder that was left half-made, locked; None for any other folder."""
    if folder.is_symlink() or any(path for name in COMPLETE for path in folder.glob(name)):
        return None
    try:
        mark = os.open(folder / NAME, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(mark), (folder / NAME).stat()):
            return mark
    except OSError:  # the command still runs, or has just ended, or there are no locks that could say so
        pass
    os.close(mark)
    return None
