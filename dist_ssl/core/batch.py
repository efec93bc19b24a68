"""What flows from the stream into the engine: the views of one step's samples on one rank."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from dist_ssl.core.draws import Draws, SampleDraws


@dataclass
class Batch:
    """One rank's part of a global batch, lane-major, so that rank order is global sample order."""

    views: list[Tensor]
    """[B, 3, S, S] each, normalised, on the device; global views first, then local ones, of a side of their own."""
    ids: Tensor
    """[B] int64 on the host, the samples' numbers in the manifest."""
    valid: Tensor
    """[B] bool on the device; False where a replacement took the place of an unreadable sample."""
    labels: Tensor | None
    """[B] int64 on the host where the shards carry them; only probes may look."""
    draws: Draws
    """Randomness for the method, keyed by this epoch; `step` completes the key."""
    step: int
    """Number of this step within its epoch, from 0."""
    unreadable: Mapping[int, str] = field(default_factory=dict)
    """Why, by the number of the sample, a replacement took its place."""
    levels: Mapping[int, int] = field(default_factory=dict)
    """Of those, the level of the pyramid at which each was read, from 1 on, where it was not the original."""
    costs: Mapping[str, float] = field(default_factory=dict)
    """What loading it took, by the keys of the metric table."""

    def parts(self, number: int) -> list[tuple[list[Tensor], SampleDraws]]:
        """Views and draws of so many equal parts of the batch, neighbours together; `number` divides B."""
        size, rest = divmod(len(self.ids), number)
        assert not rest
        return [
            ([view[at : at + size] for view in self.views], self.draws.of(self.ids[at : at + size].numpy()))
            for at in range(0, len(self.ids), size)
        ]
