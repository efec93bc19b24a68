"""The cores that this process may run on: what a scheduler or a container has given it, not all of the machine."""

import os


def own_cores() -> int:
    """Return the number of cores that this process may run on; where the system does not say, all, at least 1."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
