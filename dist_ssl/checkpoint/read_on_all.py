"""Reading of a checkpoint by all ranks: what one of them cannot read is known to all, and all go on together.

A slow file system may take minutes longer on one rank than on another. So a thread reads, and the ranks tell each other
meanwhile that they are there: a rank that has read early waits as long as it takes.
"""

from collections.abc import Callable
from typing import TypeVar

from dist_ssl.checkpoint.await_all import await_on_all
from dist_ssl.checkpoint.background import Background
from dist_ssl.checkpoint.damage import DamagedError, MissingError
from dist_ssl.distributed.world import World
from dist_ssl.errors import CheckpointAwayError, CheckpointError

T = TypeVar("T")
NONE, DAMAGED, MISSING, AWAY, UNREADABLE = range(5)
"""Kinds of problem, the worst last: where ranks have several, that one counts."""


def read_on_all(world: World, read: Callable[[], T]) -> T:
    """Return what `read` returns, called on every rank, in a thread; a problem of one rank is raised on all of them.

    Raises DamagedError, its MissingError, CheckpointError.
    """
    found: list[T] = []
    reading = Background(lambda: found.append(read()), "restore")
    await_on_all(world, reading)
    own = NONE, "", ""
    try:
        reading.result()
    except DamagedError as error:
        own = MISSING if isinstance(error, MissingError) else DAMAGED, str(error), ""
    except CheckpointError as error:
        own = AWAY if error.transient else UNREADABLE, error.problem, error.remedy
    worst = world.agree(own[0])
    if worst == NONE:
        return found[0]
    problem, remedy = next((problem, remedy) for kind, problem, remedy in world.collect(own) if kind == worst)
    if worst in (AWAY, UNREADABLE):
        raise (CheckpointAwayError if worst == AWAY else CheckpointError)(problem, remedy)
    raise (MissingError if worst == MISSING else DamagedError)(problem)
