"""The sink protocol: a destination of the run's metrics, used by rank 0."""

from collections.abc import Mapping
from typing import Protocol

from dist_ssl.core.progress import Progress


class Sink(Protocol):
    """A destination of reduced metrics, by the keys of the metric table."""

    def open(self, progress: Progress) -> None:
        """Start or resume at this position; reports from beyond it are void."""
        ...

    def write(self, progress: Progress, values: Mapping[str, float]) -> None:
        """Write the metrics at this position."""
        ...

    def close(self) -> None:
        """Close the sink at the orderly end of an attempt."""
        ...
