"""The memory that a rank can use at most: its GPU's, or a share of what this machine's processes may use together."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

from dist_ssl.distributed.world import World
from dist_ssl.runtime.control_groups import GROUPS, OWN_GROUPS, memory_files


def memory_size(world: World) -> int:
    """Return the bytes that this rank can use at most.

    On a GPU that is all of its memory. On a CPU the ranks of a machine share its memory and swap, or what their control
    group may use.
    """
    if world.device.type == "cuda":
        return torch.cuda.get_device_properties(world.device).total_memory
    return host_memory() // (world.size if world.shared_memory else world.local_size)


def host_memory(groups: Path = GROUPS, own: Path = OWN_GROUPS) -> int:
    """Return the bytes of memory and swap that this process and its relatives may use together."""
    swap = 0
    with contextlib.suppress(OSError, RuntimeError):  # some systems do not say
        swap = psutil.swap_memory().total
    return min([psutil.virtual_memory().total, *limits(groups, own)]) + swap


def limits(groups: Path, own: Path) -> Iterator[int]:
    """Yield the limits of this process's control group and of those above it, in bytes; none where there is none."""
    for files in memory_files("memory.limit_in_bytes", "memory.max", groups, own):
        for file in files:
            with contextlib.suppress(OSError, ValueError):  # not seen from here, or no limit: max
                yield int(file.read_text())
