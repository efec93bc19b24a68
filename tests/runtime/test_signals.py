"""Which signals count as requests to stop: each of a person's, but a closed terminal only as the first one."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dist_ssl.runtime.signals import STOPPING, Signals

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def listening() -> Iterator[Signals]:
    before = {number: signal.getsignal(number) for number in (*STOPPING, signal.SIGHUP)}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also where tests run below nohup
    yield Signals().listen()
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("sent", "count", "hung_up"),
    [
        ((signal.SIGINT,), 1, False),
        ((signal.SIGINT, signal.SIGTERM), 2, False),
        ((signal.SIGHUP, signal.SIGHUP), 1, True),  # of the shell, and of the kernel
        ((signal.SIGINT, signal.SIGHUP), 1, True),
        ((signal.SIGHUP, signal.SIGTERM), 2, True),
    ],
)
def test_requests_are_counted(listening: Signals, sent: tuple[signal.Signals, ...], count: int, hung_up: bool) -> None:
    for number in sent:
        os.kill(os.getpid(), number)
    assert (listening.received, listening.count, listening.hung_up) == (sent[0], count, hung_up)


def test_a_process_below_nohup_does_not_hear_that_its_terminal_is_gone(listening: Signals) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    below = Signals().listen()
    os.kill(os.getpid(), signal.SIGHUP)
    assert (below.received, below.count, below.hung_up) == (None, 0, False)


LATE = """
import os, signal
from dist_ssl.runtime.signals import Signals

class Late:
    def __del__(self):  # the interpreter has removed all handlers when it ends its objects
        os.kill(os.getpid(), signal.SIGHUP)

signals, late = Signals().listen(), Late()
os.kill(os.getpid(), signal.SIGHUP)
assert signals.hung_up
"""


def test_a_terminal_that_closed_kills_no_process_that_is_ending() -> None:
    # below a SIGHUP that is not ignored, also where tests run below nohup
    code = f"import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL)\n{LATE}"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
