"""A run may begin under ZeRO and go on without it, on other nodes."""

from pathlib import Path

import pytest

from tests.system.launching import (
    ENDLESS,
    Launch,
    await_that,
    compared_at,
    delivered,
    losses,
    status,
    stop_by_ctrl_c,
    train_undisturbed,
    until,
    words,
)

pytestmark = pytest.mark.chaos
SGD = ("optim=sgd", "optim.base_lr=0.01")  # Adam would make steps of rounding errors


def test_killed_under_zero_and_resumed_on_more_nodes_without_it_has_the_same_samples(
    demo_shards: Path, tmp_path: Path
) -> None:
    long = (*ENDLESS, "save_every=3 steps", "engine.clip=1.0", *SGD)
    alone, run = tmp_path / "alone", tmp_path / "moved"
    spread = ("engine=deepspeed", "engine.stage=3", "+engine.config.zero_optimization.reduce_bucket_size=1000")
    launch = Launch(*words(demo_shards, tmp_path, "nodes=2", "name=moved", *spread, *long))
    await_that(lambda: status(run)["step"] > 5, "some steps")
    launch.kill_all()
    last = int(status(run)["step"])
    stop_by_ctrl_c(Launch(f"resume={run}", "engine=ddp", "nodes=4"), run, last + 30)
    train_undisturbed(demo_shards, alone, last + 30, "nodes=1", *long)
    step = compared_at(run, alone, last)
    assert until(step - 1, delivered(run)) == until(step - 1, delivered(alone))
    assert until(step, losses(run)) == pytest.approx(until(step, losses(alone)), rel=0, abs=1e-3)
