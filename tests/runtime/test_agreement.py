"""One decision a step: requests of this step are decided at the next one, in a world of one too."""

import signal
from collections.abc import Callable
from unittest.mock import patch

import pytest

from dist_ssl.config.durations import Duration
from dist_ssl.core.progress import Progress
from dist_ssl.distributed.world import World
from dist_ssl.runtime import agreement
from dist_ssl.runtime.agreement import Agreement, Decision
from dist_ssl.runtime.signals import STOPPING, Signals
from tests.ranks import Ranks

QUIET = Decision(save=False, stop=False)
NEVER = Duration.parse("1000000 steps")


def at(step: int) -> Progress:
    """A position within the first epoch."""
    return Progress(epochs=9, step=step, lane_offset=step)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the time that the agreement sees, in seconds; it stands still until it is set again."""
    now = [1000.0]
    monkeypatch.setattr(agreement.time, "monotonic", lambda: now[0])

    def set_to(seconds: float) -> None:
        now[0] = 1000.0 + seconds

    return set_to


def test_without_a_request_nothing_happens() -> None:
    agreed = Agreement(World(), Signals(), NEVER)
    assert [agreed.step(at(step)) for step in range(1, 5)] == [QUIET] * 4


def test_a_signal_is_answered_at_the_next_decision_by_saving_and_stopping() -> None:
    signals = Signals()
    agreed = Agreement(World(), signals, NEVER)
    agreed.step(at(1))
    signals.received = signal.SIGTERM
    assert agreed.step(at(2)) == QUIET
    assert agreed.step(at(3)) == Decision(save=True, stop=True)


def test_stopping_is_seen_at_once_between_pieces_of_work() -> None:
    signals = Signals()
    agreed = Agreement(World(), signals, NEVER)
    assert not agreed.stopping()
    signals.received = signal.SIGUSR2
    assert agreed.stopping()


def test_a_counted_interval_saves_at_its_very_step() -> None:
    agreed = Agreement(World(), Signals(), Duration.parse("3 steps"))
    assert [step for step in range(1, 10) if agreed.step(at(step)).save] == [3, 6, 9]


def test_a_counted_interval_never_stops() -> None:
    agreed = Agreement(World(), Signals(), Duration.parse("1 step"))
    assert not any(agreed.step(at(step)).stop for step in range(1, 5))


def test_a_timed_interval_saves_once_each_time_it_runs_out(clock: Callable[[float], None]) -> None:
    agreed = Agreement(World(), Signals(), Duration.parse("10 seconds"))
    saved = []
    for step in range(1, 31):
        clock(step)
        if agreed.step(at(step)).save:
            saved.append(step)
    # requested at 10 s, decided at the next step; the next interval starts there
    assert saved == [11, 22]


def test_a_save_that_takes_longer_than_the_interval_leaves_the_interval_to_training(
    clock: Callable[[float], None],
) -> None:
    """Saves of 70 s, every 60 s, while steps take 0.5 s; a save that is requested waits until the last one is over."""
    agreed = Agreement(World(), Signals(), Duration.parse("60 seconds"))
    now, ends, waited, saves, steps = 0.0, 0.0, 0.0, 0, 0
    while now < 3600:
        now, steps = now + 0.5, steps + 1
        clock(now)
        if agreed.step(at(steps), saving=now < ends).save:
            waited += max(0.0, ends - now)
            now = max(now, ends)
            ends, saves = now + 70, saves + 1
    assert waited == 0
    assert steps == 7200
    assert saves == 1 + (3600 - 61) // 131  # each takes 70 s, 60 s pass after it, and two steps until the ranks agree


@pytest.mark.parametrize(
    ("interval", "expected"), [("60 seconds", [200, 401, 602]), ("300 seconds", [300, 601]), ("250 steps", [250, 500])]
)
def test_training_waits_for_timed_saves_for_a_twentieth_of_the_time_at_most(
    clock: Callable[[float], None], interval: str, expected: list[int]
) -> None:
    agreed = Agreement(World(), Signals(), Duration.parse(interval))
    found = []
    for step in range(1, 700):
        clock(step)
        if agreed.step(at(step), stall=10.0).save:
            found.append(step)
    late = 0 if "steps" in interval else 1  # a timed save is decided a step after it is due
    assert found == [step + late for step in expected]


def test_a_timed_interval_is_lengthened_to_four_times_at_most(clock: Callable[[float], None]) -> None:
    agreed = Agreement(World(), Signals(), Duration.parse("20 seconds"))
    found = []
    for step in range(1, 250):
        clock(step)
        if agreed.step(at(step), stall=100.0).save:
            found.append(step)
    assert found == [81, 162, 243]


def slowest_writer(world: World) -> list[int]:
    """The steps at which a save is decided, where only rank 1 is still writing at steps 5 to 9."""
    with patch.object(agreement.time, "monotonic", lambda: 1e9):
        agreed = Agreement(world, Signals(), Duration.parse("3 seconds"))
    found = []
    for step in range(1, 20):
        with patch.object(agreement.time, "monotonic", lambda step=step: 1e9 + step):
            decision = agreed.step(at(step), saving=world.rank == 1 and 5 <= step < 10)
        if decision.save:
            found.append(step)
    agreed.drain()
    return found


def test_a_rank_that_still_writes_holds_the_clock_of_rank_0(ranks: Ranks) -> None:
    for found in ranks.run(slowest_writer, 2):
        assert not [step for step in found if 6 <= step < 12]
        assert len([step for step in found if step >= 12]) >= 1


def test_a_timed_interval_that_has_not_run_out_saves_nothing(clock: Callable[[float], None]) -> None:
    agreed = Agreement(World(), Signals(), Duration.parse("10 seconds"))
    clock(9.5)
    assert agreed.step(at(1)) == QUIET
    assert agreed.step(at(2)) == QUIET


def test_only_rank_0_looks_at_the_clock(clock: Callable[[float], None]) -> None:
    requests = {}
    for rank in (0, 1):
        agreed = Agreement(World(rank=rank, size=2), Signals(), Duration.parse("10 seconds"))
        clock(100 * (rank + 1))
        requests[rank] = agreed._requests()
    assert requests == {0: (1, 0), 1: (0, 0)}


def test_news_are_reported_at_the_next_decision_and_once() -> None:
    agreed = Agreement(World(), Signals(), NEVER)
    assert agreed.step(at(1), news=True) == QUIET
    assert agreed.step(at(2)) == Decision(save=False, stop=False, news=True)
    assert agreed.step(at(3)) == QUIET


def decisions(world: World) -> list[Decision]:
    signals = Signals()
    agreed = Agreement(world, signals, NEVER)
    found = [agreed.step(at(1), news=world.rank == 2)]
    signals.received = signal.SIGTERM if world.rank == 1 else None
    found += [agreed.step(at(2), news=world.rank == 3), agreed.step(at(3))]
    agreed.drain()
    return found


def test_news_of_one_rank_and_the_request_of_another_reach_all_at_the_same_step(ranks: Ranks) -> None:
    for found in ranks.run(decisions, 4):
        assert found == [QUIET, Decision(save=False, stop=False, news=True), Decision(save=True, stop=True, news=True)]


def test_draining_forgets_the_agreement_under_way() -> None:
    signals = Signals()
    agreed = Agreement(World(), signals, NEVER)
    signals.received = signal.SIGINT
    agreed.step(at(1))
    agreed.drain()
    signals.received = None
    assert agreed.step(at(2)) == QUIET


def test_draining_before_the_first_decision_does_nothing() -> None:
    Agreement(World(), Signals(), NEVER).drain()


def test_the_first_signal_is_remembered_and_all_are_counted() -> None:
    before = {number: signal.getsignal(number) for number in STOPPING}
    try:
        signals = Signals().listen()
        signal.raise_signal(signal.SIGUSR2)
        signal.raise_signal(signal.SIGTERM)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert (signals.received, signals.count) == (signal.SIGUSR2, 2)


def test_what_is_to_be_kept_for_ever_is_saved_at_its_very_step() -> None:
    agreed = Agreement(World(), Signals(), NEVER, Duration.parse("4 steps"))
    assert [step for step in range(1, 10) if agreed.step(at(step)).save] == [4, 8]
