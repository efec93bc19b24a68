"""One agreed answer a step: wishes of now are answered at the next beat, in a world of one."""

import signal
from collections.abc import Callable

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


def test_without_a_wish_nothing_happens() -> None:
    heart = Agreement(World(), Signals(), NEVER)
    assert [heart.step(at(step)) for step in range(1, 5)] == [QUIET] * 4


def test_a_signal_is_answered_at_the_next_decision_by_saving_and_stopping() -> None:
    signals = Signals()
    heart = Agreement(World(), signals, NEVER)
    heart.step(at(1))
    signals.received = signal.SIGTERM
    assert heart.step(at(2)) == QUIET
    assert heart.step(at(3)) == Decision(save=True, stop=True)


def test_stopping_is_seen_at_once_between_pieces_of_work() -> None:
    signals = Signals()
    heart = Agreement(World(), signals, NEVER)
    assert not heart.stopping()
    signals.received = signal.SIGUSR2
    assert heart.stopping()


def test_a_counted_interval_saves_at_its_very_step() -> None:
    heart = Agreement(World(), Signals(), Duration.parse("3 steps"))
    assert [step for step in range(1, 10) if heart.step(at(step)).save] == [3, 6, 9]


def test_a_counted_interval_never_stops() -> None:
    heart = Agreement(World(), Signals(), Duration.parse("1 step"))
    assert not any(heart.step(at(step)).stop for step in range(1, 5))


def test_a_timed_interval_saves_once_each_time_it_runs_out(clock: Callable[[float], None]) -> None:
    heart = Agreement(World(), Signals(), Duration.parse("10 seconds"))
    saved = []
    for step in range(1, 31):
        clock(step)
        if heart.step(at(step)).save:
            saved.append(step)
    # asked for at 10 s, agreed at the next beat; the next interval begins there
    assert saved == [11, 22]


def test_a_timed_interval_that_has_not_run_out_saves_nothing(clock: Callable[[float], None]) -> None:
    heart = Agreement(World(), Signals(), Duration.parse("10 seconds"))
    clock(9.5)
    assert heart.step(at(1)) == QUIET
    assert heart.step(at(2)) == QUIET


def test_only_rank_0_looks_at_the_clock(clock: Callable[[float], None]) -> None:
    wishes = {}
    for rank in (0, 1):
        heart = Agreement(World(rank=rank, size=2), Signals(), Duration.parse("10 seconds"))
        clock(100 * (rank + 1))
        wishes[rank] = heart._wish()
    assert wishes == {0: (1, 0), 1: (0, 0)}


def test_news_are_heard_at_the_next_decision_and_once() -> None:
    heart = Agreement(World(), Signals(), NEVER)
    assert heart.step(at(1), news=True) == QUIET
    assert heart.step(at(2)) == Decision(save=False, stop=False, news=True)
    assert heart.step(at(3)) == QUIET


def decisions(world: World) -> list[Decision]:
    signals = Signals()
    heart = Agreement(world, signals, NEVER)
    heard = [heart.step(at(1), news=world.rank == 2)]
    signals.received = signal.SIGTERM if world.rank == 1 else None
    heard += [heart.step(at(2), news=world.rank == 3), heart.step(at(3))]
    heart.drain()
    return heard


def test_news_of_one_rank_and_the_wish_of_another_reach_all_at_the_same_step(ranks: Ranks) -> None:
    for heard in ranks.run(decisions, 4):
        assert heard == [QUIET, Decision(save=False, stop=False, news=True), Decision(save=True, stop=True, news=True)]


def test_draining_forgets_the_agreement_under_way() -> None:
    signals = Signals()
    heart = Agreement(World(), signals, NEVER)
    signals.received = signal.SIGINT
    heart.step(at(1))
    heart.drain()
    signals.received = None
    assert heart.step(at(2)) == QUIET


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
    heart = Agreement(World(), Signals(), NEVER, Duration.parse("4 steps"))
    assert [step for step in range(1, 10) if heart.step(at(step)).save] == [4, 8]
