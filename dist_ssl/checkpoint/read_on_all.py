"""Reading of a checkpoint by all ranks: what one of them cannot read is known to all, and none waits for the others."""

from collections.abc import Callable
from typing import TypeVar

from dist_ssl.checkpoint.rank_file import DamagedError, MissingError
from dist_ssl.distributed.world import World
from dist_ssl.errors import CheckpointError

T = TypeVar("T")
UNREADABLE, MISSING, DAMAGED = range(3)
"""Kinds of problem; where ranks have several, the first one counts."""


def read_on_all(world: World, read: Callable[[], T]) -> T:
    """Return what `read` returns, called on every rank; a problem of one rank is raised on all of them.

    Raises DamagedError, its MissingError, CheckpointError.
    """
    found: T | None = None
    own: tuple[int, str, str] | None = None
    try:
        found = read()
    except DamagedError as error:
        own = MISSING if isinstance(error, MissingError) else DAMAGED, str(error), ""
    except CheckpointError as error:
        own = UNREADABLE, error.problem, error.remedy
    if problems := [problem for problem in world.collect(own) if problem]:
        kind, problem, remedy = min(problems, key=lambda other: other[0])
        if kind == UNREADABLE:
            raise CheckpointError(problem, remedy)
        raise (MissingError if kind == MISSING else DamagedError)(problem)
    assert found is not None
    return found
