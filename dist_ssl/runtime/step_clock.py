"""Where the time of a step goes: seconds by part, of laps that follow one another without a gap.

On a CPU the laps are the host's time. On a GPU each lap ends with an event in the stream that trains, so it is the time
in which the GPU computes that part or waits for it; the events are read once the GPU has passed them, and no step
waits. Only whole steps count, and of each its laps since the step before: the parts add up to the time of all steps.
"""

import itertools
import math
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Literal, Protocol, get_args

import torch

Part = Literal["data", "copy", "forward", "loss", "backward", "optimizer", "memory", "other"]
"""`data`: wait for a batch; `copy`: to the device, and colours (on a GPU this happens beside training and costs nothing
here); `forward`: embeddings; `loss`; `backward`; `optimizer`: finite check, clipping, update, teacher; `memory`: queue
and bank; `other`: all the rest of the loop, such as agreement, reports and the start of a save."""
PARTS: tuple[Part, ...] = get_args(Part)
LAST: Part = "memory"
"""The part with which a step ends."""
OWN: tuple[Part, ...] = ("data", "copy", "forward")
"""The parts in which a rank waits for no other one, unless an engine gathers weights or a norm group spans ranks."""
HELD = 32
"""Number of steps whose marks are kept before they are read without being asked for."""
LONGEST = 4096
"""Number of laps after which they are taken for those of a pass without steps, and dropped."""
Mark = Any
Lap = Callable[[Part], None]


class Marker(Protocol):
    """A source of marks in time."""

    def mark(self) -> Mark:
        """Return a mark of this moment."""
        ...

    def passed(self, mark: Mark) -> bool:
        """Return whether the time up to a mark can be read without waiting."""
        ...

    def seconds(self, first: Mark, second: Mark) -> float:
        """Return the time from one mark to a later one."""
        ...

    def drop(self, mark: Mark) -> None:
        """Take a mark back that is not read any more."""
        ...


class HostMarker:
    """Marks in the host's time. `now`: returns seconds."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self.mark = now

    def passed(self, mark: float) -> bool:
        """Return True: the host has passed its own marks."""
        return True

    def seconds(self, first: float, second: float) -> float:
        """Return the difference."""
        return second - first

    def drop(self, mark: float) -> None:
        """Do nothing."""


class DeviceMarker:
    """Events in the current stream of the GPU. `make`: returns a new event that records its time."""

    def __init__(self, make: Callable[[], Any] | None = None) -> None:
        self.make = make or (lambda: torch.cuda.Event(enable_timing=True))  # type: ignore[no-untyped-call]
        self.free: list[Any] = []

    def mark(self) -> Any:
        """Return an event that is recorded behind all work issued so far."""
        event = self.free.pop() if self.free else self.make()
        event.record()
        return event

    def passed(self, mark: Any) -> bool:
        """Return whether the GPU has reached an event."""
        return bool(mark.query())

    def seconds(self, first: Any, second: Any) -> float:
        """Return the time between two events that the GPU has passed."""
        return float(first.elapsed_time(second)) / 1000

    def drop(self, mark: Any) -> None:
        """Keep the event for a later mark: to make one costs more than to record it."""
        self.free.append(mark)


class Work(Protocol):
    """The useful work of steps, against which their time is held."""

    def start(self) -> None:
        """Begin an epoch."""
        ...

    def seconds(self) -> float:
        """Return the least time in which the device could do the work since the last call."""
        ...


class StepClock:
    """The account of the steps of one rank. `ranks`: number of ranks that report theirs; `work`: None if not known."""

    work: Work | None = None

    def __init__(self, marker: Marker | None = None, ranks: int = 1) -> None:
        self.marker, self.ranks = marker or HostMarker(), ranks
        self._laps: list[tuple[Part, Mark]] = []
        """The laps of this step. The first mark is the end of the step before, or the start."""
        self._whole: deque[tuple[list[tuple[Part, Mark]], float]] = deque()
        """The laps of steps that are still to be read, and the least time that each could take."""
        self._clear()

    @classmethod
    def of(cls, device: torch.device, ranks: int) -> "StepClock":
        """Return the clock of a device."""
        return cls(DeviceMarker() if device.type == "cuda" else HostMarker(), ranks)

    def start(self) -> None:
        """Begin with the first step after a pause, whose time belongs to no step."""
        self._laps = [("other", self.marker.mark())]
        if self.work:
            self.work.start()

    def lap(self, part: Part) -> None:
        """Count the time since the last lap as time of a part."""
        self._laps.append((part, self.marker.mark()))
        if part == LAST:
            if len(self._laps) > 1:
                self._whole.append((self._laps, self.work.seconds() if self.work else math.nan))
            self._laps = [self._laps[-1]]
            if len(self._whole) > HELD:
                self._read()
        elif len(self._laps) > LONGEST:
            self._laps = self._laps[-1:]

    def metrics(self) -> dict[str, float]:
        """Return the seconds by part since the last call, a step's own work and the utilisation; NaN if not known.

        A rank reports its share of the mean over all ranks; the keys are always the same.
        """
        self._read()
        own = sum(self._spent[part] for part in OWN) / self._steps if self._steps else math.nan
        used = self._least / sum(self._spent.values()) if self._steps and any(self._spent.values()) else math.nan
        found = {f"step_parts/{part}": seconds / self.ranks for part, seconds in self._spent.items()}
        self._clear()
        return {**found, "rank_work_seconds": own, "slowest_rank_work_seconds": own, "flops_utilisation": used}

    def _clear(self) -> None:
        self._spent: dict[Part, float] = dict.fromkeys(PARTS, 0.0)
        self._steps, self._least = 0, 0.0

    def _read(self) -> None:
        """Account for the whole steps that are over, on the device too."""
        while self._whole and self.marker.passed(self._whole[0][0][-1][1]):
            laps, least = self._whole.popleft()
            for (_, first), (part, second) in itertools.pairwise(laps):
                self._spent[part] += self.marker.seconds(first, second)
                self.marker.drop(first)
            self._steps, self._least = self._steps + 1, self._least + least


def no_lap(part: Part) -> None:
    """Count nothing."""
