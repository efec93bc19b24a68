"""The problems that a rank may have with a save, and the error that each is on all ranks.

A disk without room costs one checkpoint, a newer attempt ends this one, and a fault ends the run.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from dist_ssl.distributed.world import World
from dist_ssl.errors import CheckpointError
from dist_ssl.runtime.tries import NO_ROOM

T = TypeVar("T")

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


def on_all_ranks(world: World, folder: Path, work: Callable[[], T]) -> T:
    """Run a part of a save to `folder` on every rank; return its result on this one. Raises one error on all ranks.

    An error that is neither of a disk nor of a newer attempt is raised as it is where it arose, and as a RuntimeError
    on the other ranks: they would wait for this rank's answer for half an hour. What went wrong is exchanged only where
    something did.
    """
    found: list[T] = []
    problem, kind, own = "", NONE, None
    try:
        found.append(work())
    except SupersededError as error:
        problem, kind = error.problem, SUPERSEDED
    except OSError as error:
        problem, kind = f"Rank {world.rank}: {error}", DISK
    except Exception as error:
        problem, kind, own = f"Rank {world.rank}: {error!r}", FAULT, error
    worst = world.agree(kind)
    if worst == NONE:
        return found[0]
    answers = world.collect((problem, kind))
    if own:
        raise own
    raise failure_of(worst, next(problem for problem, kind in answers if kind == worst), folder)
