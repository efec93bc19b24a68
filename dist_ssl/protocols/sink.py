"""What a sink is: a place where rank 0 hands the run's numbers."""

from collections.abc import Mapping
from typing import Protocol

from dist_ssl.core.progress import Progress


class Sink(Protocol):
    """Takes reduced numbers by the keys of the metric table."""

    def open(self, progress: Progress) -> None:
        """The run goes on from this position; what was written beyond it is void."""
        ...

    def write(self, progress: Progress, values: Mapping[str, float]) -> None:
        """The numbers at this position."""
        ...

    def close(self) -> None:
        """The attempt ends in order."""
        ...
