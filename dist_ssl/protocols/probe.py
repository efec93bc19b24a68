"""The probe protocol: a probe measures the quality of the features between epochs, while training pauses."""

from collections.abc import Mapping
from typing import Protocol

from dist_ssl.core.progress import Progress
from dist_ssl.protocols.engine import Engine


class Probe(Protocol):
    """A measurement between epochs."""

    def epoch(self, engine: Engine, progress: Progress) -> Mapping[str, float]:
        """Return metrics by the keys of the metric table, the same on every rank; none if the probe is not due."""
        ...
