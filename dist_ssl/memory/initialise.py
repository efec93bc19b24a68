"""Before the first step: one pass over the data for methods whose memory begins with every sample."""

from collections.abc import Callable, Iterable
from dataclasses import replace

from dist_ssl.core.batch import Batch
from dist_ssl.core.plan import EpochPlan
from dist_ssl.protocols.engine import Engine

EPOCH = (1 << 32) - 1
"""Of the pass: no epoch of training has its order and its views."""


def plan_of_initial_pass(first: EpochPlan) -> EpochPlan:
    """The pass is read like the first epoch, in another order."""
    return replace(first, epoch=EPOCH)


def run_initial_pass(engine: Engine, batches: Iterable[Batch], stopping: Callable[[], bool]) -> bool:
    """Show the engine's method all batches, if it wants any; False where the cluster wants its nodes back before that.

    What was filled is then lost: the pass begins anew, with the same draws, when the run goes on.
    """
    for batch in batches if engine.needs_initial_pass else ():
        if stopping():
            return False
        engine.initialise_memory(batch)
    return True
