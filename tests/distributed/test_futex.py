"""Who waits on a bell sleeps until it rings, and misses no ring."""

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


def test_every_ring_counts_and_no_other_bell_moves(futexes: Futexes) -> None:
    for _ in range(3):
        futexes.ring(1)
    assert (futexes.read(0), futexes.read(1)) == (0, 3)


def test_the_count_goes_round(futexes: Futexes) -> None:
    futexes.words[0].value = 2**32 - 1
    futexes.ring(0)
    assert futexes.read(0) == 0


def test_nobody_sleeps_on_a_bell_that_rang_meanwhile(futexes: Futexes, monkeypatch: pytest.MonkeyPatch) -> None:
    futexes.nap.seconds = 600
    word = futexes.read(0)
    futexes.ring(0)
    futexes.wait(0, word)  # would take ten minutes


def test_a_ring_wakes_all_who_wait(futexes: Futexes) -> None:
    futexes.nap.seconds = 600
    woken = []

    def sleep(who: int) -> None:
        while futexes.read(0) == 0:
            futexes.wait(0, 0)
        woken.append(who)

    threads = [threading.Thread(target=sleep, args=(who,), daemon=True) for who in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    assert woken == []
    futexes.ring(0)
    for thread in threads:
        thread.join(timeout=60)
    assert sorted(woken) == [0, 1, 2]


def test_a_bell_that_does_not_ring_lets_one_look_again(futexes: Futexes) -> None:
    futexes.wait(1, 0)  # returns by itself, so that a lost rank is noticed
