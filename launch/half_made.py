"""A run folder that is being made: nothing is in the way of the next command where one fails or is killed."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

NAME = ".making"
"""File of a folder that is being made, which the command that makes it holds locked."""
COMPLETE = ("config.yaml", "attempts/*/config.yaml")
"""The file of a run folder that is written last, and those of attempts, which no folder that is being made has."""


@contextlib.contextmanager
def being_made(folder: Path) -> Iterator[None]:
    """Mark a new folder until the block ends; remove it where the block raises an error, so that its name is free."""
    try:
        with (folder / NAME).open("wb") as file:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)
            yield
        (folder / NAME).unlink()
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def was_left(folder: Path) -> bool:
    """Return whether a folder was being made by a command that was killed, and is nobody's work."""
    if not folder.is_dir() or folder.is_symlink() or any(path for name in COMPLETE for path in folder.glob(name)):
        return False
    if not any(folder.iterdir()):
        return True
    try:
        mark = os.open(folder / NAME, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError:  # the command still runs, or nobody can say whether it does
        return False
    finally:
        os.close(mark)
