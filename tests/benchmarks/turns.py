"""Measurements in turns (A, B, A, B, ...): medians, and the ratio of two with its 95 % interval."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""97.5 % quantiles of Student's distribution by degrees of freedom; beyond, the 2.2 is on the safe side."""


@dataclass(frozen=True)
class Quotient:
    """The geometric mean of quotients, and its 95 % interval."""

    mean: float
    low: float
    high: float


def quotient(a: Sequence[float], b: Sequence[float]) -> Quotient:
    """Of measurements that were made in pairs."""
    logs = [math.log(x / y) for x, y in zip(a, b, strict=True)]
    mean, half = statistics.fmean(logs), 0.0
    if len(logs) > 1:
        half = STUDENT.get(len(logs) - 1, 2.2) * statistics.stdev(logs) / math.sqrt(len(logs))
    return Quotient(*(math.exp(value) for value in (mean, mean - half, mean + half)))


def seconds(work: Callable[[], object]) -> float:
    """How long some work takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def rate(work: Callable[[], int]) -> float:
    """How many things a second some work does; it returns their number."""
    started = time.perf_counter()
    count = work()
    return count / (time.perf_counter() - started)


def in_turns(rounds: int, *works: Callable[[], float]) -> list[list[float]]:
    """What each work measures, in so many rounds of all of them after one that is not counted."""
    found: list[list[float]] = [[] for _ in works]
    for turn in range(rounds + 1):
        for work, kept in zip(works, found, strict=True):
            kept += [work()] * (turn > 0)
    return found


def verdict(value: float, bar: float, star: float = 0.0) -> str:
    """Against the bar, in a word."""
    if not bar:
        return ""
    return "MISSED" if value < bar else "star" if star and value >= star else "ok"
