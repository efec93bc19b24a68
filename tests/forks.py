"""Processes of tests that are forked from one that has imported everything: a start costs milliseconds, not seconds.

What an interpreter does before the first line of a program, and its imports, are left out; all else is as in a process
that was started anew.
"""

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

LOADED = [
    *("launch.slurm", "launch.agent", "launch.worker", "launch.audit", "launch.forking", "dist_ssl.build"),
    *("dist_ssl.train", "dist_ssl.saved_encoder", "dist_ssl.engines.ddp", "dist_ssl.engines.fsdp"),
    *("dist_ssl.engines.deepspeed", "launch.checkpoint_encoder", "launch.evaluation", "sympy", "torch._dynamo"),
]
"""What a command, an agent or a worker imports, with what torch's optimizers load at their first step."""
OF_TESTS = ["dist_ssl.methods.mocov3", "dist_ssl.models.vit", "dist_ssl.schedules.steady", "tests.jobs"]
"""What ranks of tests import beside that."""
CLEAN = dict(os.environ)
"""The environment before any test has changed it."""


def start(target: Callable[..., Any], *arguments: Any, **variables: str) -> BaseProcess:
    """Run `target(*arguments)` in a process of its own, in this environment and with these variables."""
    server = multiprocessing.get_context("forkserver")
    _ensure_running()
    environment = {**os.environ, **variables}
    process = server.Process(target=_begin, args=(environment, target, arguments), daemon=True)
    process.start()
    return process


def pipe() -> tuple[Connection, Connection]:
    """Our end of a line to a process, and its end."""
    return multiprocessing.get_context("forkserver").Pipe()


def _ensure_running() -> None:
    """Start the process from which all others are forked, if it is not there, in the environment of no test."""
    now = dict(os.environ)
    root = str(Path(__file__).resolve().parents[1])
    forkserver.set_forkserver_preload([*LOADED, *OF_TESTS])
    own = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": root}
    try:
        os.environ.clear()
        os.environ.update({**CLEAN, **own})
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(now)


def _begin(environment: dict[str, str], target: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    import torch

    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    target(*arguments)
