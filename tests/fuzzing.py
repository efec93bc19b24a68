"""Inputs that a stranger may have written, and how a reader is tried with thousands of them.

Every input comes from its number alone, so the number that a failure names repeats it.
"""

import faulthandler
import mmap
import os
import random
import resource
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.confined import confine

ALL = 20_000
HANG_SECONDS = 120
"""After so many seconds of the clock on the wall a process that waits for ever ends, with the stacks of all threads."""
MORE_BYTES = 1 << 30
"""How much memory an input may take."""
INPUT_SECONDS = 10.0
"""How long an input may take, by default."""


PEAK = Path("/proc/self/clear_refs")
"""Where a process of Linux says that the peak of its memory is to begin anew."""


class Told(IntEnum):
    """The numbers that a process of `tried` shares with its parent."""

    NUMBER = 0
    """Of the newest input."""
    ACCEPTED = 1
    LONGEST = 2
    MICROSECONDS = 3
    """Those of input LONGEST."""
    LARGEST = 4
    BYTES = 5
    """Those of input LARGEST."""


def nested(depth: int) -> Any:
    """A list in a list in a list ..., so many of them."""
    value: Any = []
    for _ in range(depth - 1):
        value = [value]
    return value


NASTY: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 2**31, 2**40, 2**63, 2**64, -(2**63), 0.5, 1e308, float("nan"), float("inf")),
    *("", ".", "..", "../../thesis", "/etc/passwd", "a\x00b", "\x1b[2J", "\u00b2", "x" * 100_000, "pipe:touch x"),
    *("http://elsewhere/x", "0" * 64, "f" * 32, "rank_00000.safetensors", [], {}, [[]], [0] * 1000, {"": {}}),
    *("../../thesis/x", "\ud800", "\udcff", 2**59, nested(99), nested(300)),
)
"""Values of other types, out of every range, and names that lead elsewhere."""
DEEP = (b"[" * 100_000, b'{"a":' * 100_000, b"[" * 300 + b"]" * 300, b"[[]," * 100_000)
"""Nesting that recursion does not get through, or only just."""
NUMBERS = (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\x01", b"\x80\0\0\0")


def mutated(data: bytes, chance: random.Random) -> bytes:
    """Return the bytes after one to four changes: flips, other numbers, pieces cut out, doubled or put in, nesting."""
    for _ in range(chance.randint(1, 4)):
        if not data:
            return chance.randbytes(16)
        first = chance.randrange(len(data))
        end = min(len(data), first + chance.choice([1, 2, 4, 16, 256, 4096]))
        piece, kind = data[first:end], chance.randrange(8)
        new = {
            0: bytes([piece[0] ^ (1 << chance.randrange(8))]) + piece[1:],
            1: chance.choice(NUMBERS),
            2: b"",
            3: piece + piece,
            4: chance.randbytes(len(piece)),
            5: piece + chance.randbytes(chance.randint(1, 64)),
            7: chance.choice(DEEP),
        }
        data = data[:first] if kind == 6 else data[:first] + new[kind] + data[end:]
    return data


def edited(value: Any, chance: random.Random) -> Any:
    """Return a JSON value in which something, at any depth, is of another kind, missing, doubled or new."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        key = chance.choice(sorted(value))
        rest = {name: own for name, own in value.items() if name != key}
        new = {0: rest, 1: {**value, str(chance.choice(NASTY))[:50]: chance.choice(NASTY)}}
        return new.get(chance.randrange(8), {**value, key: edited(value[key], chance)})
    if isinstance(value, list) and value and chance.random() < 0.9:
        place = chance.randrange(len(value))
        new = {0: value[:place], 1: [*value, value[place]], 2: value[::-1]}
        inner = [*value[:place], edited(value[place], chance), *value[place + 1 :]]
        return new.get(chance.randrange(8), inner)
    return chance.choice(NASTY)


def shares(count: int) -> list[Any]:
    """Return the inputs of a test, as parameters: the first `count` in the suite, all of them under `make chaos`.

    FUZZ_INPUTS=FIRST:LAST in the environment, LAST left out, repeats one of all or goes on where some were tried.
    """
    first, _, last = os.environ.get("FUZZ_INPUTS", f"0:{ALL}").partition(":")
    chosen = range(int(first), int(last))
    return [pytest.param(range(count), id=str(count)), pytest.param(chosen, id=str(ALL), marks=pytest.mark.chaos)]


def some(accepted: int, inputs: range) -> bool:
    """Return whether inputs were accepted and others were not, where there were enough of them to tell."""
    return 0 < accepted < len(inputs) or len(inputs) < 100


def tried(inputs: range, work: Callable[[random.Random], bool], *inside: Path, seconds: float | None = None) -> int:
    """Run the work with the random numbers of every input in a forked process; return how many inputs it accepted.

    That process ends at an input that raises, takes more than `seconds` (by default INPUT_SECONDS), needs MORE_BYTES,
    changes a file outside of the folders `inside`, starts a command or leaves this machine; the input is named. The
    seconds are those of the processor and those of waiting, not those in which other processes ran.
    """
    tally = memoryview(mmap.mmap(-1, 8 * len(Told))).cast("q")
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings(action="ignore"):  # a server of the test may have threads
        child = os.fork()
    if not child:
        os._exit(_of_child(inputs, work, inside, INPUT_SECONDS if seconds is None else seconds, tally))
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    how = signal.Signals(-ended).name if ended < 0 else "see above"
    assert ended == 0, f"input {tally[Told.NUMBER]} ended its process: {how}"
    _say(tally, len(inputs))
    return tally[Told.ACCEPTED]


def _say(tally: memoryview, count: int) -> None:
    """Print what the inputs have cost, for `make chaos`."""
    print(
        f"{count} inputs to {tally[Told.NUMBER]}, {tally[Told.ACCEPTED]} accepted; "
        f"the longest was {tally[Told.LONGEST]}: {tally[Told.MICROSECONDS] / 1e6:.3f} s; "
        f"the largest was {tally[Told.LARGEST]}: {tally[Told.BYTES] / 2**20:.0f} MiB",
        flush=True,
    )


def _of_child(
    inputs: range, work: Callable[[random.Random], bool], inside: Sequence[Path], seconds: float, tally: memoryview
) -> int:
    """Try the inputs in the forked process; return its exit code."""
    try:
        most = psutil.Process().memory_info().vms + MORE_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))
        refused = confine([*inside, PEAK])
        for count, number in enumerate(inputs, 1):
            tally[Told.NUMBER] = number
            faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
            signal.setitimer(signal.ITIMER_PROF, seconds)  # its signal ends the process
            cost = Cost()
            tally[Told.ACCEPTED] += work(random.Random(number))
            _add(cost, tally, seconds)
            assert not refused, refused
            if count % 1000 == 0:
                _say(tally, count)
        return 0
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _add(cost: "Cost", tally: memoryview, seconds: float) -> None:
    """Enter what the newest input has cost. Raises AssertionError where it has waited for too long."""
    taken, grown = cost.seconds(), cost.bytes()
    assert taken <= seconds, f"it took {taken:.1f} s, of which it may have waited for most"
    if taken * 1e6 > tally[Told.MICROSECONDS]:
        tally[Told.LONGEST], tally[Told.MICROSECONDS] = tally[Told.NUMBER], int(taken * 1e6)
    if grown > tally[Told.BYTES]:
        tally[Told.LARGEST], tally[Told.BYTES] = tally[Told.NUMBER], grown


class Cost:
    """What this process has used since the object was made."""

    def __init__(self) -> None:
        if PEAK.exists():
            PEAK.write_text("5")  # it begins anew
        self.begun, self.before = _times(), _memory("VmRSS")

    def seconds(self) -> float:
        """Return those of all its threads on a processor, or those in which its first one was not kept from running."""
        processor, mine = (after - before for after, before in zip(_times(), self.begun, strict=True))
        return max(processor, mine)

    def bytes(self) -> int:
        """Return by how much the peak of the process's memory was above its start."""
        return max(0, _memory("VmHWM") - self.before)


def _times() -> tuple[float, float]:
    """Return the processor time of this process, and a clock that stops while others keep its thread from running."""
    told = Path("/proc/thread-self/schedstat")  # not every kernel has it, or PEAK
    delayed = int(told.read_text().split()[1]) if told.exists() else 0
    return time.process_time(), time.monotonic() - delayed / 1e9


def _memory(key: str) -> int:
    """Return a number of bytes that Linux tells of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:")), 0)


@contextmanager
def bounded_memory() -> Iterator[None]:
    """Fail if the peak memory of the process grows by more than MORE_BYTES; print by how much it grew."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    print(f"peak memory grew by {grown / 2**20:.0f} MiB")
    assert grown < MORE_BYTES
