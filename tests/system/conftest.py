"""A finished run that several files of tests look at, in whichever process: it is trained once."""

import fcntl
import os
import shutil
from pathlib import Path

import pytest

from launch import evaluate
from tests.system.launching import PRINTED, Launch, await_that, words


@pytest.fixture(scope="session")
def followed(demo_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs of a method with a teacher, by the literal command, followed by its evaluation; read-only.

    The processes among which xdist divides the tests share it: the first that needs it makes it.
    """
    own = tmp_path_factory.getbasetemp()
    runs = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "shared_runs"
    runs.mkdir(exist_ok=True)
    with (runs / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (runs / PRINTED).exists():
            shutil.rmtree(runs / "followed", ignore_errors=True)  # of a process that failed
            (runs / PRINTED).write_text(_made(demo_shards, runs))
    return runs / "followed"


def _made(data: Path, runs: Path) -> str:
    """Train the run and follow it; what its command printed."""
    launch = Launch(*words(data, runs, "name=followed", "epochs=2", "keep_last=5", "nodes=1"))
    await_that((runs / "followed" / "config.yaml").is_file, "the run folder")
    measure = ("watch=all", "threads=1", "protocol=unlabelled", "queries=8")
    assert evaluate.main([f"run={runs / 'followed'}", *measure]) == 0
    code, text = launch.finish()
    assert code == 0, text
    return text
