"""The problems that a rank may have with a save, and the error that each is on all ranks.

A disk without room costs one checkpoint, a newer attempt ends this one, and a fault ends the run.
"""

import os
from pathlib import Path

from dist_ssl.checkpoint.rank_file import NO_ROOM
from dist_ssl.errors import CheckpointError

NONE, DISK, SUPERSEDED, FAULT = range(4)
"""Kinds of problem, the worst last: where ranks have several, that one counts."""


class SupersededError(CheckpointError):
    """A newer attempt of the run has started: this one must not write any more."""


def failure_of(kind: int, problem: str, folder: Path) -> Exception:
    """Return the error for a problem of this kind with a save to `folder`; a CheckpointError unless it is a fault."""
    if kind == FAULT:
        return RuntimeError(f"The checkpoint could not be written to {folder}: {problem}")
    if kind == SUPERSEDED:
        return SupersededError(problem, "Nothing is lost: the newer attempt goes on.")
    full = any(os.strerror(number) in problem for number in NO_ROOM)
    first = "Free some space" if full else "See that it can be written"
    return CheckpointError(
        f"The checkpoint could not be written to {folder}: {problem}.",
        f"The checkpoint before it is whole. {first}; if the run has ended, resume it then.",
    )
