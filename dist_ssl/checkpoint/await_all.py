"""Waiting for work that takes each rank as long as its disk does, but not for a rank that is gone."""

from dist_ssl.checkpoint.background import Background
from dist_ssl.distributed.world import World

LOOK_SECONDS = 0.5
"""Seconds between two exchanges, at most: far less than the run's `timeout`, which bounds each of them."""


def await_on_all(world: World, work: Background) -> None:
    """Wait until this work has ended on every rank, with or without an error; all ranks call it.

    The ranks tell each other meanwhile that they are there, so that the work may take longer than an exchange. Raises
    what an exchange raises where a rank is gone.
    """
    while world.agree(int(not work.ended)):
        work.wait(LOOK_SECONDS)
