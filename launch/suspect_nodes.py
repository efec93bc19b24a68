"""Nodes that a job should not get again, because it has just lost something there.

A node that has died is left out by Slurm itself only once Slurm has noticed that, minutes later, and one whose GPU has
failed is given to the job again and again.
"""

import os
import re

from launch import scheduler
from launch.ending import Ending
from launch.run_dir import AttemptDir

GPU_LOST = re.compile(r"uncorrectable ECC|fallen off the bus|GPU is lost")
"""Messages of CUDA that say that the GPU of the rank that quotes them is gone."""


def suspect_numbers(attempt: AttemptDir, nodes: int) -> list[int]:
    """Return the numbers of the nodes where a lost attempt was lost; none where that is not known.

    These are the nodes whose ranks have lost their GPU; else those that have left no report while others have.
    """
    endings = [Ending.read(attempt.node(node)) for node in range(nodes)]
    broken = [node for node, ending in enumerate(endings) if ending and GPU_LOST.search(ending.reason)]
    silent = [node for node, ending in enumerate(endings) if ending is None]
    return broken or (silent if len(silent) < nodes else [])


def suspect_names(attempt: AttemptDir, nodes: int) -> list[str]:
    """Return the names of these nodes of this job."""
    numbers = suspect_numbers(attempt, nodes)
    names = scheduler.hosts(os.environ.get("SLURM_JOB_NODELIST", "")) if numbers else []
    return [names[number] for number in numbers] if len(names) == nodes else []
