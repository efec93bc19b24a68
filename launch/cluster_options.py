"""Values of the `cluster` keys: the number of GPUs per node, memory in bytes, and durations in seconds."""

import re
from typing import Any

from dist_ssl.config.durations import Duration
from dist_ssl.errors import ConfigError


def gpus(cluster: dict[str, Any]) -> int:
    """Return the number of GPUs per node from `8`, `a100:4` or null. Raises ConfigError."""
    asked = str(cluster["gpus_per_node"] or 0)
    number = asked.rpartition(":")[2]
    if not number.isascii() or not number.isdigit():  # isdigit alone takes a superscript for a digit
        raise ConfigError(
            f"cluster.gpus_per_node={asked} has no number of GPUs.",
            "Write cluster.gpus_per_node=8 or cluster.gpus_per_node=a100:8.",
        )
    return int(number)


def memory_of_rank(config: dict[str, Any]) -> int | None:
    """Return the bytes that a rank of a Slurm job will have; None where the config does not say. Raises ConfigError.

    On GPUs that is what `gpu_memory` says, else a share of what the job requests for a node.
    """
    cluster = config["cluster"]
    if cluster["kind"] != "slurm":
        return None
    if gpus(cluster):
        size = cluster["gpu_memory"]
        if size is not None and _bytes(size) is None:
            raise ConfigError(
                f"cluster.gpu_memory={size} is not a size.", "Write cluster.gpu_memory=80G, say, or null."
            )
        return _bytes(size)
    whole = _bytes(cluster["mem"])
    return None if whole is None else whole // config["ranks_per_node"]


def _bytes(size: Any) -> int | None:
    """Return a size as Slurm writes it, `64G` (of 1024 each) or a number of megabytes, in bytes; None for another."""
    found = re.fullmatch(r"([0-9]*[1-9][0-9]*)([KMGT]?)", str(size), re.IGNORECASE)
    return int(found[1]) << 10 * (1 + "KMGT".index(found[2].upper() or "M")) if found else None


def seconds(cluster: dict[str, Any], key: str) -> float:
    """Return a duration option of the cluster in seconds. Raises ConfigError if its unit is not one of time."""
    duration = Duration.parse(cluster[key])
    if not duration.timed:
        raise ConfigError(
            f"cluster.{key}={cluster[key]} is not a time.", f"Write cluster.{key}='2 hours', for example."
        )
    return duration.amount
