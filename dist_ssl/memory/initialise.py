"""The pass over the data before the first step, for methods whose memory starts with every sample."""

from collections.abc import Callable, Iterable
from dataclasses import replace

from dist_ssl.core.batch import Batch
from dist_ssl.core.plan import EpochPlan
from dist_ssl.protocols.engine import Engine

EPOCH = (1 << 32) - 1
"""Epoch number of the pass, so that its order and views differ from those of every epoch of training."""


def plan_of_initial_pass(first: EpochPlan) -> EpochPlan:
    """Return the plan of the pass: that of the first epoch, in another order and without candidate views."""
    return replace(first, epoch=EPOCH, candidates=1)


def run_initial_pass(engine: Engine, batches: Iterable[Batch], stopping: Callable[[], bool]) -> bool:
    """Initialise the memory from all batches, if the method needs it; return False if the run must stop before the end.

    A stopped pass is lost: it starts again from the beginning, with the same draws, when the run resumes.
    """
    for batch in batches if engine.needs_initial_pass else ():
        if stopping():
            return False
        engine.initialise_memory(batch)
    return True
