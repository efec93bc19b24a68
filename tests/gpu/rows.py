"""Rows of the script for GPUs: each is printed as soon as it is known, and no row's failure stops the others.

A part is a script with claims. `main(claims)` runs them one by one until its time is over and prints

    name | right | seen         # or WRONG: it is not so; FAILED: an error, shown above; SKIPPED; seen: a plain number
    # key=value                 # a measurement that the final table compares with its bar

so that whatever has been printed counts, even if the process is killed in the next row.
"""

import argparse
import contextlib
import gc
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch.utils._python_dispatch import TorchDispatchMode

RIGHT, WRONG, FAILED, SKIPPED, SEEN = "right", "WRONG", "FAILED", "SKIPPED", "seen"
TRACE_LINES = 15
MARGIN_SECONDS = 3.0
"""Before its limit a part starts no further claim."""


@dataclass(frozen=True)
class Row:
    """One line of the table. `measures`: numbers by the keys of the bars."""

    name: str
    verdict: str
    seen: str
    measures: dict[str, float] = field(default_factory=dict)

    def say(self) -> None:
        """Print it, at once."""
        print(self.name, self.verdict, " ".join(self.seen.split()), sep=" | ", flush=True)
        for key, value in self.measures.items():
            print(f"# {key}={value!r}", flush=True)


def judged(name: str, holds: bool, seen: str, **measures: float) -> Row:
    """A row whose claim holds or does not."""
    return Row(name, RIGHT if holds else WRONG, seen, measures)


def seen(name: str, text: str, **measures: float) -> Row:
    """A row that claims nothing."""
    return Row(name, SEEN, text, measures)


@dataclass(frozen=True)
class Setting:
    """Where a part runs. `only`: the subjects it is limited to, where it has several. `bars`: only what bars need."""

    device: torch.device
    until: float
    only: tuple[str, ...] = ()
    bars: bool = False

    @property
    def gpu(self) -> bool:
        """On a CPU everything is small."""
        return self.device.type == "cuda"

    @property
    def left(self) -> float:
        """Seconds until nothing more is started."""
        return self.until - time.monotonic()

    @property
    def card(self) -> str:
        """The device's name."""
        return torch.cuda.get_device_name() if self.gpu else "cpu"

    def wait(self) -> float:
        """The time at which the device has done all it was given."""
        if self.gpu:
            torch.cuda.synchronize()
        return time.perf_counter()

    def forget(self) -> None:
        """Give memory back, and start the count of its peak anew."""
        gc.collect()
        if self.gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    @property
    def peak(self) -> str:
        """The most memory that tensors took since `forget`."""
        return f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB" if self.gpu else "no GPU memory"


Claim = tuple[str, Callable[[], Iterable[Row]]]
"""What is found out, and how."""


def claim(name: str, find_out: Callable[[], tuple[bool, str]]) -> Claim:
    """A claim of one row. `find_out` returns whether it holds, and what was seen."""
    return name, lambda: [judged(name, *find_out())]


def lasting(work: Callable[[], Any], setting: Setting, times: int) -> float:
    """The seconds that the work takes, done so many times.

    The device is not waited for in between: the host may run ahead of it, as in training.
    """
    start = setting.wait()
    for _ in range(times):
        work()
    return setting.wait() - start


def speed(work: Callable[[], Any], setting: Setting, seconds: float, warm: int = 3) -> float:
    """How often a second the work is done, after so many times of warming up; on a CPU it is done once."""
    for _ in range(warm if setting.gpu else 1):
        work()
    once = lasting(work, setting, 1)
    times = max(2, int(seconds / max(once, 1e-4))) if setting.gpu else 1
    return times / lasting(work, setting, times)


class Reads(TorchDispatchMode):
    """Inside it, counts how often the host asks for a number of the device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += "_local_scalar_dense" in func.__name__
        return func(*args, **(kwargs or {}))


def host_stops(work: Callable[[], Any], setting: Setting) -> tuple[int, str]:
    """How often the host waits for the device in the work, and the lines of Python in which it does."""
    if not setting.gpu:
        with Reads() as reads:
            work()
        return reads.count, "numbers that the host asked for"
    setting.wait()
    torch.set_warn_always(True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
            torch.set_warn_always(False)
    stops = [w for w in caught if "called a synchronizing" in str(w.message)]  # and not the mode's own warning
    places = [f"{w.filename.rpartition('/')[2]}:{w.lineno}" for w in stops]
    return len(stops), ", ".join(f"{places.count(place)} x {place}" for place in sorted(set(places)))


def attempted(claims: Iterable[Claim], setting: Setting) -> Iterator[Row]:
    """The rows of all claims; of one that raises, that it failed, with the end of the error's trace printed before."""
    for name, find_out in claims:
        if setting.left < 0:
            yield Row(name, SKIPPED, "no time was left")
            continue
        start = time.monotonic()
        try:
            yield from find_out()
        except torch.OutOfMemoryError as error:
            yield Row(name, SKIPPED, f"out of memory: {error}"[:200])
        except Exception as error:
            lines = traceback.format_exc().rstrip().splitlines()
            print(*(f"    {line}" for line in lines[-TRACE_LINES:]), sep="\n", flush=True)
            yield Row(name, FAILED, f"after {time.monotonic() - start:.1f} s: {type(error).__name__}: {error}"[:400])
        with contextlib.suppress(Exception):  # a fault of the device would be raised here once more
            setting.forget()


def leave(code: int) -> NoReturn:
    """End the process at once: pools of compilers and drivers have been seen to hold one that has said all it knows."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main(
    claims: Callable[[Setting], Iterable[Claim]], subjects: Sequence[str] = (), words: Sequence[str] | None = None
) -> int:
    """Run the part that these claims are, as the command line says; 1 where a claim does not hold.

    `words`: those of the command line that the part has not taken itself; by default all.
    """
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--seconds", type=float, default=600.0, help="after which no further claim is started")
    parser.add_argument("--only", default="", help=f"some of {', '.join(subjects)}, as in A+B")
    parser.add_argument("--bars", action="store_true", help="only what bars need")
    asked = parser.parse_args(words)
    only = tuple(filter(None, asked.only.split("+")))
    if unknown := set(only) - set(subjects):
        parser.error(f"--only: {', '.join(sorted(unknown))} is not known")
    if asked.device == "cuda" and not torch.cuda.is_available():
        print("no GPU is here: --device cpu runs small sizes without one")
        return 0
    until = time.monotonic() + asked.seconds - MARGIN_SECONDS
    setting, bad = Setting(torch.device(asked.device), until, only, asked.bars), 0
    for row in attempted(claims(setting), setting):
        row.say()
        bad += row.verdict in (WRONG, FAILED)
    return int(bad > 0)
