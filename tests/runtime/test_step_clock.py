"""The parts of a step add up to the step, on a device too, whose times are read once it has passed them."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dist_ssl.metrics.table import check_keys
from dist_ssl.runtime.step_clock import HELD, LAST, LONGEST, PARTS, DeviceMarker, HostMarker, Part, StepClock

ONE_STEP: tuple[Part, ...] = ("data", "copy", "other", "forward", "loss", "backward", "optimizer", "memory")


class Now:
    """A clock that a test turns."""

    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


class Gpu:
    """A device that passes events when a test says so, each at the time at which it was recorded, in seconds."""

    def __init__(self, now: Now) -> None:
        self.now, self.passed, self.made, self.waits = now, 0.0, 0, 0

    def event(self) -> "Event":
        self.made += 1
        return Event(self)


class Event:
    """An event as torch has it."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu, self.time = gpu, math.nan

    def record(self) -> None:
        self.time = self.gpu.now()

    def query(self) -> bool:
        return self.time <= self.gpu.passed

    def elapsed_time(self, end: "Event") -> float:
        assert end.query(), "torch would raise: the device has not come to it"
        return 1000 * (end.time - self.time)


def parts(found: dict[str, float]) -> dict[str, float]:
    """The parts on which something was spent."""
    return {key.removeprefix("step_parts/"): value for key, value in found.items() if "/" in key and value}


def stepped(clock: StepClock, now: Now, seconds: float, laps: tuple[Part, ...] = ONE_STEP) -> None:
    for part in laps:
        now.time += seconds
        clock.lap(part)


@given(st.lists(st.tuples(st.sampled_from(PARTS), st.floats(0, 1e4)), max_size=60))
def test_the_parts_add_up_to_the_time_of_the_whole_steps(laps: list[tuple[Part, float]]) -> None:
    now = Now()
    clock = StepClock(HostMarker(now))
    clock.start()
    start = end = now.time
    for part, seconds in laps:
        now.time += seconds
        clock.lap(part)
        end = now.time if part == LAST else end
    assert sum(parts(clock.metrics()).values()) == pytest.approx(end - start)


def test_time_counts_for_the_part_that_it_ends_with() -> None:
    now = Now()
    clock = StepClock(HostMarker(now))
    clock.start()
    for seconds, part in ((2, "data"), (1, "copy"), (4, "forward"), (8, "backward"), (1, "forward"), (3, "memory")):
        now.time += seconds
        clock.lap(part)  # type: ignore[arg-type]
    found = clock.metrics()
    assert parts(found) == {"data": 2, "copy": 1, "forward": 5, "backward": 8, "memory": 3}
    assert found["rank_work_seconds"] == found["slowest_rank_work_seconds"] == 8
    stepped(clock, now, 1)
    stepped(clock, now, 3)
    found = clock.metrics()
    assert parts(found) == dict.fromkeys(ONE_STEP, 4), "what was reported is not reported again"
    assert found["rank_work_seconds"] == 6, "a step's, on average"


def test_a_pause_between_epochs_and_a_pass_without_steps_count_nowhere() -> None:
    now = Now()
    clock = StepClock(HostMarker(now))
    clock.start()
    stepped(clock, now, 5, ("data", "copy", "other"))  # the pass over the data that fills a bank
    for _ in range(2):
        now.time += 1000
        clock.start()
        stepped(clock, now, 1)
        clock.lap("other")
    assert parts(clock.metrics()) == dict.fromkeys(ONE_STEP, 2)


def test_the_marks_of_a_long_pass_without_steps_do_not_pile_up() -> None:
    now = Now()
    clock = StepClock(HostMarker(now))
    clock.start()
    for _ in range(2 * LONGEST):
        stepped(clock, now, 1, ("data", "copy", "other"))
    assert len(clock._laps) <= LONGEST


def test_an_engine_that_is_driven_by_hand_needs_no_start() -> None:
    now = Now()
    clock = StepClock(HostMarker(now))
    stepped(clock, now, 1, ("other", "forward", "memory"))
    assert parts(clock.metrics()) == {"forward": 1, "memory": 1}


def test_a_rank_reports_its_share_of_the_mean_under_keys_of_the_table() -> None:
    now = Now()
    clock = StepClock(HostMarker(now), ranks=4)
    before = clock.metrics()
    assert math.isnan(before["rank_work_seconds"]), "no step was made"
    clock.start()
    stepped(clock, now, 1)
    found = clock.metrics()
    assert parts(found) == dict.fromkeys(ONE_STEP, 0.25)
    assert found["rank_work_seconds"] == 3
    check_keys(found)
    assert before.keys() == found.keys(), "ranks exchange them by position"


def test_events_are_read_once_the_device_has_passed_them_and_used_again() -> None:
    now = Now()
    gpu = Gpu(now)
    clock = StepClock(DeviceMarker(gpu.event))
    clock.start()
    stepped(clock, now, 1)
    assert parts(clock.metrics()) == {}, "the device has not come so far"
    first = now.time
    stepped(clock, now, 2)
    gpu.passed = first
    assert parts(clock.metrics()) == dict.fromkeys(ONE_STEP, 1)
    gpu.passed = now.time
    assert parts(clock.metrics()) == dict.fromkeys(ONE_STEP, 2)
    made = gpu.made
    for _ in range(5):
        stepped(clock, now, 1)
        gpu.passed = now.time
        assert parts(clock.metrics()) == dict.fromkeys(ONE_STEP, 1)
    assert gpu.made <= made


def test_a_pause_does_not_spoil_steps_that_the_device_has_still_to_do() -> None:
    now = Now()
    gpu = Gpu(now)
    clock = StepClock(DeviceMarker(gpu.event))
    clock.start()
    stepped(clock, now, 1)
    now.time += 500
    clock.start()
    stepped(clock, now, 3)
    gpu.passed = now.time
    assert parts(clock.metrics()) == dict.fromkeys(ONE_STEP, 4)


def test_without_reports_no_marks_pile_up() -> None:
    now = Now()
    gpu = Gpu(now)
    clock = StepClock(DeviceMarker(gpu.event))
    clock.start()
    for _ in range(20 * HELD):
        stepped(clock, now, 1)
        gpu.passed = now.time
    assert gpu.made <= 2 * HELD * len(ONE_STEP)
    assert sum(parts(clock.metrics()).values()) == 20 * HELD * len(ONE_STEP)


def test_the_clock_of_a_device_is_chosen_by_its_kind() -> None:
    assert isinstance(StepClock.of(torch.device("cpu"), 1).marker, HostMarker)
    assert isinstance(StepClock.of(torch.device("cuda"), 1).marker, DeviceMarker)
