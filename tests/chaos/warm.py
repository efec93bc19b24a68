"""Processes forked from one that has loaded everything already, so that a real `kill -9` costs milliseconds."""

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

LOADED = [
    *("dist_ssl.build", "dist_ssl.engines.ddp", "dist_ssl.methods.mocov3", "dist_ssl.models.encoders"),
    *("dist_ssl.schedules.steady", "sympy", "torch._dynamo", "tests.jobs", "tests.checkpoint.test_saver"),
]
"""With what torch's optimizers load at their first step."""
WAIT_SECONDS = 120


def begin(
    function: Callable[..., None], line: Connection, variables: dict[str, str], arguments: tuple[Any, ...]
) -> None:
    """What a new process does first."""
    import torch

    os.environ.update(variables)
    torch.set_num_threads(1)
    function(line, *arguments)


def start(function: Callable[..., None], *arguments: Any, **variables: Any) -> tuple[BaseProcess, Connection]:
    """Begin `function(line, *arguments)` in a process of its own; the process, and our end of the line to it."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(LOADED)
    ours, theirs = server.Pipe()
    given = {name: str(value) for name, value in variables.items()}
    process = server.Process(target=begin, args=(function, theirs, given, arguments), daemon=True)
    process.start()
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
