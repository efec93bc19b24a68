"""Kill it anywhere: the run goes on with the same samples, and ends with the same bits on the same world size."""

import random
import signal
import time
from pathlib import Path

import pytest

from dist_ssl.data.loader_process import MAIN
from launch.run_dir import RunDir
from tests.jobs import same_bits
from tests.system.launching import (
    END_SECONDS,
    Launch,
    await_that,
    delivered,
    losses,
    nothing_left,
    status,
    weights,
    words,
)

LONG = ("epochs=80", "probe.every=200 epochs", "save_every=3 steps")
KINDS = ("rank", "all", "agent")
MODULES = {"rank": "launch.worker", "agent": "launch.agent", "loader": MAIN}


def kill(launch: Launch, kind: str, chance: random.Random) -> None:
    """`kill -9` one rank, one agent, one loader process, as soon as there is one; or everything."""
    if kind == "all":
        launch.kill_all()
        return
    await_that(lambda: launch.processes(MODULES[kind]) or launch.process.poll() is not None, "a process to kill")
    victims = launch.processes(MODULES[kind])
    if victims:
        chance.choice(victims).send_signal(signal.SIGKILL)


def disturb(launch: Launch, run: Path, kind: str, chance: random.Random) -> None:
    """Wait for a random moment of the attempt (from before the first step to some 3 s later), then kill."""
    before = status(run)["step"]
    if chance.random() < 0.8:
        await_that(lambda: status(run)["step"] > before or launch.process.poll() is not None, "a new step")
    time.sleep(chance.uniform(0, 2))
    kill(launch, kind, chance)
    if kind != "all":
        code, text = launch.finish(END_SECONDS)
        assert code in (0, 1), text


def kill_again_and_again(launch: Launch, run: Path, kills: int, chance: random.Random) -> None:
    """Kill a run that has an attempt under way so many times, resume it after each, and let it end."""
    for number in range(kills):
        disturb(launch, run, KINDS[number % len(KINDS)], chance)
        await_that(lambda: nothing_left(run), "no process left behind", END_SECONDS)
        attempts = RunDir(run).newest_attempt()
        launch = Launch(f"resume={run}")
        await_that(lambda: RunDir(run).newest_attempt() > attempts, "a new attempt")  # noqa: B023
    code, text = launch.finish()
    assert code == 0, text


def stop_by_ctrl_c(launch: Launch, run: Path) -> None:
    """Ctrl-C after a few steps: it saves its last step, says how to go on, and leaves no process."""
    await_that(lambda: status(run)["step"] > 5, "some steps")
    launch.interrupt()
    code, text = launch.finish()
    assert code == 0, text
    assert f"Go on with: python launch/slurm.py resume={run}" in text
    latest = (run / "checkpoints" / "LATEST").read_text().strip()
    assert int(latest.removeprefix("step_")) == status(run)["step"], "the last step made is the step saved"
    assert nothing_left(run)


def test_stopped_by_ctrl_c_and_killed_at_ten_random_moments_it_ends_with_the_same_bits(
    demo_shards: Path, tmp_path: Path
) -> None:
    undisturbed, run = tmp_path / "undisturbed", tmp_path / "killed"
    beside = Launch(*words(demo_shards, tmp_path, "nodes=2", "name=undisturbed", *LONG))
    stop_by_ctrl_c(Launch(*words(demo_shards, tmp_path, "nodes=2", "name=killed", *LONG)), run)
    launch = Launch(f"resume={run}")
    await_that(lambda: RunDir(run).newest_attempt() == 2, "a second attempt")
    kill_again_and_again(launch, run, 10, random.Random(7))
    code, text = beside.finish()
    assert code == 0, text
    assert same_bits(weights(run), weights(undisturbed))
    assert losses(run) == losses(undisturbed)
    assert delivered(run) == delivered(undisturbed)


def test_killed_and_resumed_on_other_world_sizes_it_sees_the_same_samples_and_losses(
    demo_shards: Path, tmp_path: Path
) -> None:
    more = ("precision=fp64", "epochs=24", "probe.every=200 epochs", "save_every=3 steps")
    alone, run = tmp_path / "alone", tmp_path / "moved"
    beside = Launch(*words(demo_shards, tmp_path, "nodes=1", "name=alone", *more))
    launch = Launch(*words(demo_shards, tmp_path, "nodes=2", "name=moved", *more))
    for nodes in (4, 1):
        before = status(run)["step"]
        await_that(lambda: status(run)["step"] > before + 10, "some steps")  # noqa: B023
        launch.kill_all()
        launch = Launch(f"resume={run}", f"nodes={nodes}")
    for each in (launch, beside):
        code, text = each.finish()
        assert code == 0, text
    assert delivered(run) == delivered(alone)
    assert losses(run) == pytest.approx(losses(alone), rel=0, abs=1e-9)
