"""A finished run that several files of tests look at."""

from pathlib import Path

import pytest

from launch import evaluate
from tests.system.launching import Launch, await_that, words


@pytest.fixture(scope="session")
def followed(demo_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs of a method with a teacher, followed by its evaluation; treat it as read-only."""
    runs = tmp_path_factory.mktemp("runs")
    length = ("epochs=2", "probe.every=9 epochs", "keep_last=5", "nodes=1")
    launch = Launch(*words(demo_shards, runs, "name=followed", *length))
    await_that((runs / "followed" / "config.yaml").is_file, "the run folder")
    measure = ("watch=all", "threads=1", "protocol=unlabelled", "queries=8")
    assert evaluate.main([f"run={runs / 'followed'}", *measure]) == 0
    code, text = launch.finish()
    assert code == 0, text
    return runs / "followed"
