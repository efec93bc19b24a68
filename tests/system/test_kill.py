"""Kill it anywhere: the run goes on with the same samples, and ends with the same bits on the same world size."""

import os
import random
import signal
import time
from pathlib import Path

import pytest

from dist_ssl.data.loader.loader_process import MAIN
from dist_ssl.runtime import jsonl
from dist_ssl.runtime.end_names import STOPPED
from launch.ending import STOPPED_CODE
from launch.run_dir import RunDir
from launch.run_state import RUNNING, RunState
from tests.system.launching import (
    ENDLESS,
    Launch,
    assert_same_training,
    await_that,
    compared_at,
    delivered,
    losses,
    nothing_left,
    saved,
    serving,
    status,
    stop_by_ctrl_c,
    targets,
    train_undisturbed,
    until,
    words,
)

LONG = (*ENDLESS, "nodes=2", "save_every=3 steps")
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
        code, text = launch.finish()
        assert code in (0, 1), text


def kill_again_and_again(
    launch: Launch, run: Path, kills: int, chance: random.Random, *, cold: int = len(KINDS)
) -> Launch:
    """Kill a run that has an attempt under way so many times, and resume it after each; the attempt under way then.

    `cold`: after how many of them the command is executed as a person would; after the others it is forked.
    """
    for number in range(kills):
        disturb(launch, run, KINDS[number % len(KINDS)], chance)
        await_that(lambda: nothing_left(run), "no process left behind")
        attempts = RunDir(run).newest_attempt()
        launch = Launch(f"resume={run}", forked=number >= cold)
        await_that(lambda: RunDir(run).newest_attempt() > attempts, "a new attempt")  # noqa: B023
    return launch


def test_stopped_by_ctrl_c_and_killed_at_ten_random_moments_it_has_the_same_bits(
    demo_shards: Path, tmp_path: Path
) -> None:
    undisturbed, run = tmp_path / "undisturbed", tmp_path / "killed"
    stop_by_ctrl_c(Launch(*words(demo_shards, tmp_path, "name=killed", *LONG)), run)
    launch = Launch(f"resume={run}")
    await_that(lambda: RunDir(run).newest_attempt() == 2, "a second attempt")
    launch = kill_again_and_again(launch, run, 10, random.Random(7))
    last = int(status(run)["step"])
    stop_by_ctrl_c(launch, run, last + 5)
    train_undisturbed(demo_shards, undisturbed, last + 5, *LONG)
    assert_same_training(run, undisturbed, last)


def test_killed_and_resumed_on_other_world_sizes_it_sees_the_same_samples_and_losses(
    demo_shards: Path, tmp_path: Path
) -> None:
    more = (*ENDLESS, "precision=fp64", "save_every=3 steps")
    alone, run = tmp_path / "alone", tmp_path / "moved"
    launch, nodes = Launch(*words(demo_shards, tmp_path, "nodes=2", "name=moved", *more)), 2
    for fewer_or_more in (4, 1):
        before = status(run)["step"]
        await_that(lambda: status(run)["step"] > before + 10, "some steps")  # noqa: B023
        own = {None: "dist_ssl_step", **dict.fromkeys(range(nodes), "dist_ssl_node_workers")}
        await_that(lambda: serving(run, own), "the metrics of the run and of its nodes")  # noqa: B023
        launch.kill_all()
        assert targets(run).keys() == {*range(nodes), None}, "what was lost stays to be missed"
        launch, nodes = Launch(f"resume={run}", f"nodes={fewer_or_more}", forked=nodes == 2), fewer_or_more
    last = int(status(run)["step"])
    await_that(lambda: targets(run).keys() == {0, None}, "the other nodes are forgotten")
    stop_by_ctrl_c(launch, run, last + 5)
    assert not targets(run)
    last_report = jsonl.read(run / "metrics.jsonl")[-1]
    assert last_report["restarts/node lost"] == 2, "nobody was left to say how these attempts ended"
    assert not [
        key for key, count in last_report.items() if key.startswith("restarts/") and count and "lost" not in key
    ]
    train_undisturbed(demo_shards, alone, last + 5, "nodes=1", *more)
    step = compared_at(run, alone, last)
    assert until(step - 1, delivered(run)) == until(step - 1, delivered(alone))
    assert until(step, losses(run)) == pytest.approx(until(step, losses(alone)), rel=0, abs=1e-9)


def test_a_run_that_trains_here_is_not_resumed_beside_itself_and_a_closed_terminal_stops_it(
    demo_shards: Path, tmp_path: Path
) -> None:
    run = tmp_path / "here"
    launch = Launch(*words(demo_shards, tmp_path, "nodes=2", "name=here", *ENDLESS))
    await_that(lambda: status(run)["step"] > 3, "some steps")
    code, text = Launch(f"resume={run}").finish()
    assert code == 2, text
    assert f"{run} is being trained already, by process {launch.process.pid} of this machine." in text
    assert RunState.of(RunDir(run)).state == RUNNING
    for _ in range(2):  # the shell and the kernel both say that a terminal is gone
        os.kill(launch.process.pid, signal.SIGHUP)
        time.sleep(0.5)
    code, text = launch.finish()
    assert code == STOPPED_CODE, text
    assert max(saved(run)) == status(run)["step"], "the last step made is the step saved"
    assert RunState.of(RunDir(run)).state == STOPPED
