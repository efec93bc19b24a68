"""Values of the `cluster` keys: the number of GPUs per node, and durations in seconds."""

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


def seconds(cluster: dict[str, Any], key: str) -> float:
    """Return a duration option of the cluster in seconds. Raises ConfigError if its unit is not one of time."""
    duration = Duration.parse(cluster[key])
    if not duration.timed:
        raise ConfigError(
            f"cluster.{key}={cluster[key]} is not a time.", f"Write cluster.{key}='2 hours', for example."
        )
    return duration.amount
