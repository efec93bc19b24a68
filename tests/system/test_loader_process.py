"""Runs whose ranks load in processes of their own: the same bits, and an attempt that ends in order without one."""

import random
import signal
from pathlib import Path

import pytest

from dist_ssl.data.loader.loader_process import MAIN
from launch import slurm
from launch.ending import Ending
from launch.run_dir import AttemptDir, RunDir
from tests.system.launching import (
    ENDLESS,
    Launch,
    assert_same_training,
    await_that,
    nothing_left,
    status,
    stop_by_ctrl_c,
    train_undisturbed,
    words,
)

LONG = (*ENDLESS, "nodes=2", "save_every=3 steps")


def test_a_killed_loader_process_ends_the_attempt_which_says_so_and_the_run_goes_on_with_the_same_bits(
    demo_shards: Path, tmp_path: Path
) -> None:
    undisturbed, run = tmp_path / "threads", tmp_path / "killed"
    named = set(Path("/dev/shm").iterdir())
    launch = Launch(*words(demo_shards, tmp_path, "name=killed", *LONG, "data.loader_process=true"))
    await_that(lambda: status(run)["step"] > 5, "some steps")
    found = launch.processes(MAIN)
    assert len(found) == 2, "one for each rank"
    for process in found:  # they are the ranks' to answer
        process.send_signal(signal.SIGTERM)
    random.Random(3).choice(found).kill()
    code, text = launch.finish()
    assert code == 1, text
    assert "was killed (SIGKILL): by a user, or by the system because memory ran out." in text
    await_that(lambda: nothing_left(run), "no process left behind")
    ending = Ending.read(AttemptDir(RunDir(run), 1).folder / "outcome.json")
    assert ending is not None
    assert ending.outcome == "failed"

    last = int(status(run)["step"])
    stop_by_ctrl_c(Launch(f"resume={run}", forked=True), run, last + 5)
    assert set(Path("/dev/shm").iterdir()) <= named
    train_undisturbed(demo_shards, undisturbed, last + 5, *LONG, "data.loader_process=false")
    assert_same_training(run, undisturbed, last)


def test_what_stops_a_run_is_said_as_ever(
    demo_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = words(demo_shards, tmp_path, "nodes=1", "epochs=2", "data.loader_process=true")
    code, text = Launch(*given, "name=odd", "data.max_pixels=10", "data.max_bad=100%", forked=True).finish()
    assert code == 2, text
    assert "and every candidate to replace it are unreadable in" in text
    assert "Check the shards: they hold no images." in text
    assert "Traceback" not in text
    assert slurm.main([*given, "name=wrong", "data.loader_process=maybe"]) == 2
    text = capsys.readouterr().out
    assert "data.loader_process='maybe' is not possible.\n  Valid names: False, True, auto." in text
