"""Nodes that a job should not get again, because it has just lost something there.

A node that has died is left out by Slurm itself only once Slurm has noticed that, minutes later, and one whose GPU has
failed is given to the job again and again.
"""

import os

from launch import scheduler
from launch.ending import Ending
from launch.lost_signs import gpu_is_lost
from launch.run_dir import AttemptDir

NOTHING = ("", "(null)")
"""Values in Slurm's record of a key for which nothing is asked."""
OWN_NODES = "SLURM_JOB_NODELIST"


def suspect_numbers(attempt: AttemptDir, nodes: int) -> list[int]:
    """Return the numbers of the nodes where a lost attempt was lost; none where that is not known.

    These are the nodes whose ranks have lost their GPU; else those that have left no report while others have.
    """
    endings = [Ending.read(attempt.node(node)) for node in range(nodes)]
    broken = [node for node, ending in enumerate(endings) if ending and gpu_is_lost(ending.reason)]
    silent = [node for node, ending in enumerate(endings) if ending is None]
    return broken or (silent if len(silent) < nodes else [])


def suspect_names(attempt: AttemptDir, nodes: int) -> list[str]:
    """Return the names of these nodes of this job."""
    numbers = suspect_numbers(attempt, nodes)
    names = scheduler.hosts(os.environ.get(OWN_NODES, "")) if numbers else []
    return [names[number] for number in numbers] if len(names) == nodes else []


def excluded_now(record: dict[str, str]) -> list[str] | None:
    """Return the nodes that the job excludes, as its record says; None if that is not known."""
    written = record.get("ExcNodeList")
    if written in NOTHING:
        return []
    return scheduler.hosts(written or "") or None


def exclusion(record: dict[str, str], suspects: list[str], nodes: int, earlier: list[str]) -> list[str]:
    """Return the nodes that the job must exclude so that it gets no suspect: those that it excludes now, and these.

    Empty where it would never start then, or where that is not known. Where too few nodes remain, those that were
    excluded for `earlier` attempts are not any more.
    """
    excluded = excluded_now(record)
    if excluded is None or record.get("ReqNodeList") not in NOTHING:
        return []
    usable = nodes_alike(record)
    for kept in (excluded, [name for name in excluded if name not in earlier]):
        chosen = list(dict.fromkeys([*kept, *suspects]))
        if len(usable.difference(chosen)) >= nodes:
            return chosen
    return []


def nodes_alike(record: dict[str, str]) -> set[str]:
    """Return the nodes of the job's partition and reservation that have the same as one that the job has now.

    What else a job can ask for is not compared: a node that has the same fits as well.
    """
    found = scheduler.nodes_of(record.get("Partition", ""))
    kinds = {found[name] for name in scheduler.hosts(os.environ.get(OWN_NODES, "")) if name in found}
    usable = {name for name, kind in found.items() if kind in kinds}
    reservation = record.get("Reservation", "")
    return usable if reservation in NOTHING else usable.intersection(scheduler.reserved(reservation))
