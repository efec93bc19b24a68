"""Reading of a checkpoint by all ranks: what one of them cannot read is known to all, and all go on together.

A slow file system may take minutes longer on one rank than on another. So a thread reads, and the ranks tell each other
meanwhile that they are there: a rank that has read early waits as long as it takes.
"""

from collections.abc import Callable
from typing import TypeVar

from dist_ssl.checkpoint.await_all import await_on_all
from dist_ssl.checkpoint.background import Background
from dist_ssl.checkpoint.rank_file import DamagedError, MissingError
from dist_ssl.distributed.world import World
from dist_ssl.errors import CheckpointError

T = TypeVar("T")
UNREADABLE, MISSING, DAMAGED = range(3)
"""Kinds of problem; where ranks have several, the first one counts."""


def read_on_all(world: World, read: Callable[[], T]) -> T:
    """Return what `read` returns, called on every rank, in a thread; a problem of one rank is raised on all of them.

    Raises DamagedError, its MissingError, CheckpointError.
    """
    found: list[T] = []
    reading = Background(lambda: found.append(read()), "restore")
    await_on_all(world, reading)
    own: tuple[int, str, str] | None = None
    try:
        reading.result()
    except DamagedError as error:
        own = MISSING if isinstance(error, MissingError) else DAMAGED, str(error), ""
    except CheckpointError as error:
        own = UNREADABLE, error.problem, error.remedy
    if problems := [problem for problem in world.collect(own) if problem]:
        kind, problem, remedy = min(problems, key=lambda other: other[0])
        if kind == UNREADABLE:
            raise CheckpointError(problem, remedy)
        raise (MissingError if kind == MISSING else DamagedError)(problem)
    return found[0]
