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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil

HANG_SECONDS = 120
"""An input takes milliseconds. One that takes longer than this ends the process, with the stacks of all threads."""
MORE_BYTES = 1 << 30
"""How much the memory of the process may grow over all inputs of a kind."""
INPUT_SECONDS = 5
"""Processor time that an input may take in `tried_in_child`."""


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


def tried(count: int, work: Callable[[random.Random], bool]) -> int:
    """Run the work with the random numbers of every input below `count`; return how many inputs it accepted.

    A failure names its input. What the longest one took is printed, for `make chaos`.
    """
    accepted, longest = 0, (0.0, 0)
    for number in range(count):
        faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
        start = time.perf_counter()
        try:
            accepted += work(random.Random(number))
        except Exception as error:
            raise AssertionError(f"input {number}: {error!r}") from error
        finally:
            faulthandler.cancel_dump_traceback_later()
        longest = max(longest, (time.perf_counter() - start, number))
    print(f"{count} inputs, {accepted} accepted; the longest was number {longest[1]}: {longest[0]:.3f} s")
    return accepted


def tried_in_child(count: int, work: Callable[[random.Random], bool]) -> int:
    """Do what `tried` does in a forked process, which ends at an input that takes MORE_BYTES or INPUT_SECONDS.

    A decoder that crashes ends that process alone, and the input is named.
    """
    place = mmap.mmap(-1, 16)
    child = os.fork()
    if not child:
        os._exit(_bounded(count, work, place))
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    number, accepted = (int.from_bytes(place[own : own + 8], "little") for own in (0, 8))
    assert ended == 0, f"input {number} ended its process: {signal.Signals(-ended).name if ended < 0 else 'see above'}"
    return accepted


def _bounded(count: int, work: Callable[[random.Random], bool], place: mmap.mmap) -> int:
    """Run the work of a child; return its exit code. `place`: where the input's number and the accepted ones go."""
    number = -1

    def next_input(chance: random.Random) -> bool:
        nonlocal number
        number += 1
        place[:8] = number.to_bytes(8, "little")
        signal.setitimer(signal.ITIMER_PROF, INPUT_SECONDS)  # its signal ends the process
        return work(chance)

    try:
        most = psutil.Process().memory_info().vms + MORE_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))
        place[8:] = tried(count, next_input).to_bytes(8, "little")
        return 0
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


@contextmanager
def bounded_memory() -> Iterator[None]:
    """Fail if the peak memory of the process grows by more than MORE_BYTES; print by how much it grew."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    print(f"peak memory grew by {grown / 2**20:.0f} MiB")
    assert grown < MORE_BYTES
