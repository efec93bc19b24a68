"""What a probe is: a number that says how good the features are, measured while training pauses."""

from collections.abc import Mapping
from typing import Protocol

from dist_ssl.core.progress import Progress
from dist_ssl.protocols.engine import Engine


class Probe(Protocol):
    """Asked between epochs."""

    def epoch(self, engine: Engine, progress: Progress) -> Mapping[str, float]:
        """Numbers by the keys of the metric table, the same on every rank; none where the probe is not due."""
        ...
