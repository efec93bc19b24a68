"""The meter: collects metrics without waiting for the device, reduces them over the ranks, and feeds the sinks."""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import psutil
import torch
from torch import Tensor

from dist_ssl.core.progress import Progress
from dist_ssl.distributed.world import World
from dist_ssl.metrics.goodput import COSTS, Goodput
from dist_ssl.metrics.table import check_keys, series_of
from dist_ssl.metrics.table_row import Reduction
from dist_ssl.protocols.sink import Sink

LOOK_SECONDS = 10.0
"""Seconds between two looks for a newer attempt, while reports are written."""
log = logging.getLogger(__name__)


class Meter:
    """The metrics recorded since the last flush. `total_samples`: of the whole run.

    `sinks` and `goodput`, the account of the wall clock, are used by rank 0 only. `newest`: returns whether no newer
    attempt has started: one that was forgotten, and has slept, must not write into the files of the newer one.
    """

    def __init__(
        self,
        world: World,
        sinks: Sequence[Sink],
        total_samples: int,
        goodput: Goodput | None = None,
        newest: Callable[[], bool] = lambda: True,
    ) -> None:
        self.world, self.sinks, self.total_samples, self.newest = world, sinks, total_samples, newest
        self._looked = -LOOK_SECONDS
        self._superseded = False
        self.goodput = goodput if world.rank == 0 else None
        self._process = psutil.Process()
        self._clear()

    def open(self, progress: Progress) -> None:
        """Open the sinks at the position from which training continues, and drop what was recorded before."""
        if self.goodput:
            self.goodput.open(progress)
        for sink in self._own_sinks():
            with _reported(sink):
                sink.open(progress)
        self._clear()
        if self.goodput:
            self._send(progress, {})

    def record(self, values: Mapping[str, Tensor | float]) -> None:
        """Add the metrics of one step or one probe, by the keys of the metric table; the same keys on every rank.

        Raises UserError where a key has no row in the table.
        """
        check_keys(key for key in values if key not in self._values)
        for key, value in values.items():
            kept = value if type(value) is float else without_graph(value)
            self._values.setdefault(key, []).append(kept)

    def flush(self, progress: Progress) -> None:
        """Reduce over steps and ranks, add position and speed, write all of it to the sinks, and start again."""
        self.record(self._memory())
        keys = sorted(self._values)
        rows = self.world.gather_const(self._row([self._reduce_steps(key) for key in keys])[None])
        columns = dict(zip(keys, rows.T.tolist(), strict=True))
        values = {key: self._reduce_ranks(key, column) for key, column in columns.items()}
        self._send(progress, values | self._slowest(columns) | self._speed(progress))
        self._clear()

    def close(self) -> None:
        """Close the sinks at the orderly end of an attempt."""
        for sink in self._own_sinks():
            with _reported(sink):
                sink.close()

    def _send(self, progress: Progress, values: Mapping[str, float]) -> None:
        """Write a report to the sinks, with the position and the account of the wall clock; not of an old attempt."""
        if self._is_superseded():
            return
        spent = self.goodput.spend(self._own_costs()) if self.goodput else {}
        for sink in self._own_sinks():
            with _reported(sink):
                sink.write(progress, {**values, **self._position(progress), **spent})

    def _is_superseded(self) -> bool:
        """Return whether a newer attempt has started; looked up by rank 0, now and then.

        Where the file server does not say, the answer before it stays.
        """
        now = time.monotonic()
        if self.world.rank == 0 and not self._superseded and now - self._looked >= LOOK_SECONDS:
            self._looked = now
            try:
                self._superseded = not self.newest()
            except OSError as error:
                log.warning("It could not be looked up whether a newer attempt of this run has started: %s", error)
            if self._superseded:
                log.warning("A newer attempt of this run has started: this one reports nothing any more.")
        return self._superseded

    def _own_costs(self) -> dict[str, float]:
        """Return this rank's sums of the metrics that say for what training waited."""
        return {key: float(sum(self._values[key])) for key in COSTS if key in self._values}

    def _own_sinks(self) -> Sequence[Sink]:
        return self.sinks if self.world.rank == 0 else ()

    def _clear(self) -> None:
        self._values: dict[str, list[Tensor | float]] = {}
        self._clock = time.monotonic()

    def _row(self, found: Sequence[Tensor | float]) -> Tensor:
        """Return numbers of the host and scalars of the device as one row on the device, float64."""
        numbers = [0.0 if isinstance(value, Tensor) else value for value in found]
        row = torch.tensor(numbers, dtype=torch.float64, device=self.world.device)
        scalars = {place: value for place, value in enumerate(found) if isinstance(value, Tensor)}
        if scalars:
            row[list(scalars)] = torch.stack([value.to(self.world.device) for value in scalars.values()])
        return row

    def _reduce_steps(self, key: str) -> Tensor | float:
        reduction, values = series_of(key)[0].reduction, self._values[key]
        if reduction == "last":
            return values[-1].double() if isinstance(values[-1], Tensor) else values[-1]
        if {*map(type, values)} != {float}:
            scalars = (
                value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64) for value in values
            )
            return reduced(torch.stack([*scalars]).double(), reduction)
        total = float(sum(values))
        if reduction == "max":
            return total if math.isnan(total) else float(max(values))
        return total / len(values) if reduction == "mean" else total

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

    def _slowest(self, columns: Mapping[str, Sequence[float]]) -> dict[str, float]:
        """Return the number of the node of the rank that works longest at a step; nothing where that is not known."""
        work = columns.get("slowest_rank_work_seconds", ())
        if not work or any(math.isnan(seconds) for seconds in work):
            return {}
        return {"slowest_node": work.index(max(work)) // self.world.local_size}

    def _position(self, progress: Progress) -> dict[str, float]:
        p = progress
        share = p.samples / self.total_samples
        place = {"epoch": p.epoch, "step": p.step, "samples": p.samples, "progress": share}
        return {**place, "attempt": p.attempt, "ranks": self.world.size}

    def _memory(self) -> dict[str, float]:
        """Return the memory of this rank's process and, on a GPU, the largest share of the GPU's so far."""
        values = {"host_memory": float(self._process.memory_info().rss)}
        if self.world.device.type == "cuda":
            whole = torch.cuda.get_device_properties(self.world.device).total_memory
            values["device_memory"] = torch.cuda.max_memory_allocated(self.world.device) / whole
        return values

    def _speed(self, progress: Progress) -> dict[str, float]:
        """Return the speed since the last flush; nothing if no step was made."""
        steps = len(self._values.get("loss", ()))
        if not steps:
            return {}
        seconds, plan = time.monotonic() - self._clock, progress.plans[-1]
        rate = steps * plan.batch_size / seconds
        speed = {"images_per_second": rate, "views_per_second": rate * (plan.views + plan.local_views)}
        left = (self.total_samples - progress.samples) / rate
        return {**speed, "step_seconds": seconds / steps, "seconds_left": left}


@contextmanager
def _reported(sink: Sink) -> Iterator[None]:
    """Log an error of the file system within as a warning: no number is worth a run that could go on."""
    try:
        yield
    except OSError as error:
        log.warning("A report could not be written by %s: %s", type(sink).__name__, error)


def without_graph(value: Tensor | float) -> Tensor | float:
    """Return a number, or a tensor that keeps no graph alive."""
    if isinstance(value, Tensor):
        return value.detach() if value.requires_grad else value
    return float(value)


def reduced(steps: Tensor, reduction: Reduction) -> Tensor:
    """Return one scalar of those of several steps."""
    match reduction:
        case "mean":
            return steps.mean()
        case "max":
            return steps.max()
        case "sum":
            return steps.sum()
        case "last":
            return steps[-1]
