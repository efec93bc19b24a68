"""A process that waits on a counter sleeps until it is incremented, and misses no notification."""

import mmap
import threading
import time

import pytest

from dist_ssl.distributed import futex
from dist_ssl.distributed.futex import LINE_BYTES, Futexes


@pytest.fixture(params=["futex", "pause"])
def futexes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Futexes:
    if request.param == "pause":
        monkeypatch.setattr(futex, "SYSCALL", None)
    elif futex.SYSCALL is None:
        pytest.skip("no futexes here")
    return Futexes(mmap.mmap(-1, 2 * LINE_BYTES), 2)


def test_every_notification_counts_and_no_other_counter_moves(futexes: Futexes) -> None:
    for _ in range(3):
        futexes.notify(1)
    assert (futexes.read(0), futexes.read(1)) == (0, 3)


def test_the_count_goes_round(futexes: Futexes) -> None:
    futexes.counters[0].value = 2**32 - 1
    futexes.notify(0)
    assert futexes.read(0) == 0


def test_no_process_sleeps_on_a_counter_that_has_changed_meanwhile(
    futexes: Futexes, monkeypatch: pytest.MonkeyPatch
) -> None:
    futexes.nap.seconds = 600
    seen = futexes.read(0)
    futexes.notify(0)
    futexes.wait(0, seen)  # would take ten minutes


def test_a_notification_wakes_all_waiters(futexes: Futexes) -> None:
    futexes.nap.seconds = 600
    woken = []

    def sleep(number: int) -> None:
        while futexes.read(0) == 0:
            futexes.wait(0, 0)
        woken.append(number)

    threads = [threading.Thread(target=sleep, args=(number,), daemon=True) for number in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    assert woken == []
    futexes.notify(0)
    for thread in threads:
        thread.join(timeout=60)
    assert sorted(woken) == [0, 1, 2]


def test_a_wait_without_a_notification_ends(futexes: Futexes) -> None:
    futexes.wait(1, 0)  # returns by itself, so that a lost rank is noticed
