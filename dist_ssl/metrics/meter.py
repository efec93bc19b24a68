"""The meter: collects metrics without waiting for the device, reduces them over the ranks, and feeds the sinks."""

import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dist_ssl.core.progress import Progress
from dist_ssl.distributed.world import World
from dist_ssl.metrics.table import check_keys, series_of
from dist_ssl.protocols.sink import Sink


class Meter:
    """The metrics recorded since the last flush. `total_samples`: of the whole run; `sinks`: used by rank 0 only."""

    def __init__(self, world: World, sinks: Sequence[Sink], total_samples: int) -> None:
        self.world, self.sinks, self.total_samples = world, sinks, total_samples
        self._clear()

    def open(self, progress: Progress) -> None:
        """Open the sinks at the position from which training continues, and drop what was recorded before."""
        for sink in self._own_sinks():
            sink.open(progress)
        self._clear()

    def record(self, values: Mapping[str, Tensor | float]) -> None:
        """Add the metrics of one step or one probe, by the keys of the metric table; the same keys on every rank.

        Raises UserError where a key has no row in the table.
        """
        check_keys(key for key in values if key not in self._values)
        for key, value in values.items():
            own = value.detach() if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
            self._values.setdefault(key, []).append(own)

    def flush(self, progress: Progress) -> None:
        """Reduce over steps and ranks, add position and speed, write all of it to the sinks, and start again."""
        keys = sorted(self._values)
        stacked = [self._reduce_steps(key) for key in keys]
        values: dict[str, float] = {}
        if keys:
            rows = self.world.gather_const(torch.stack([s.to(self.world.device) for s in stacked])[None])
            for key, column in zip(keys, rows.T.tolist(), strict=True):
                values[key] = self._reduce_ranks(key, column)
        values |= self._position(progress) | self._speed(progress)
        for sink in self._own_sinks():
            sink.write(progress, values)
        self._clear()

    def close(self) -> None:
        """Close the sinks at the orderly end of an attempt."""
        for sink in self._own_sinks():
            sink.close()

    def _own_sinks(self) -> Sequence[Sink]:
        return self.sinks if self.world.rank == 0 else ()

    def _clear(self) -> None:
        self._values: dict[str, list[Tensor]] = {}
        self._clock = time.monotonic()

    def _reduce_steps(self, key: str) -> Tensor:
        steps = torch.stack(self._values[key]).double()
        match series_of(key)[0].reduction:
            case "mean":
                return steps.mean()
            case "max":
                return steps.max()
            case "sum":
                return steps.sum()
            case "last":
                return steps[-1]

    def _reduce_ranks(self, key: str, column: list[float]) -> float:
        match series_of(key)[0].reduction:
            case "mean":
                return sum(column) / len(column)
            case "max":
                return max(column)
            case "sum":
                return sum(column)
            case "last":
                return column[0]

    def _position(self, progress: Progress) -> dict[str, float]:
        p = progress
        return {"epoch": p.epoch, "step": p.step, "samples": p.samples, "attempt": p.attempt}

    def _speed(self, progress: Progress) -> dict[str, float]:
        """Return the speed since the last flush; nothing if no step was made."""
        steps = len(self._values.get("loss", ()))
        if not steps:
            return {}
        seconds = time.monotonic() - self._clock
        rate = steps * progress.plans[-1].batch_size / seconds
        left = (self.total_samples - progress.samples) / rate
        return {"images_per_second": rate, "step_seconds": seconds / steps, "seconds_left": left}
