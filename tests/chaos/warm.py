"""Processes that a test may kill, each at the other end of a line."""

from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from tests import forks

WAIT_SECONDS = 120


def start(function: Callable[..., None], *arguments: Any, **variables: Any) -> tuple[BaseProcess, Connection]:
    """Begin `function(line, *arguments)` in a process of its own; the process, and our end of the line to it."""
    ours, theirs = forks.pipe()
    process = forks.start(function, theirs, *arguments, **{name: str(value) for name, value in variables.items()})
    theirs.close()
    return process, ours


def heard(line: Connection) -> Any:
    """What the process says next. Raises EOFError where it has ended instead."""
    assert line.poll(WAIT_SECONDS), f"no word in {WAIT_SECONDS} s"
    return line.recv()


def end(process: BaseProcess, line: Connection) -> None:
    """Kill a process, if it is still there, and wait until it is gone."""
    process.kill()
    process.join()
    line.close()
