"""A run may change its engine on the way, and with it the number of its ranks."""

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

LONG = (*ENDLESS, "precision=fp64", "save_every=3 steps", "engine.clip=1.0")


def test_killed_in_shards_and_resumed_whole_on_more_nodes_it_has_the_same_losses(
    demo_shards: Path, tmp_path: Path
) -> None:
    alone, run = tmp_path / "alone", tmp_path / "moved"
    sharded = ("engine=fsdp", "engine.block_parameters=100", "engine.reshard=false")
    launch = Launch(*words(demo_shards, tmp_path, "nodes=2", "name=moved", *sharded, *LONG))
    await_that(lambda: status(run)["step"] > 5, "some steps")
    launch.kill_all()
    last = int(status(run)["step"])
    stop_by_ctrl_c(Launch(f"resume={run}", "engine=ddp", "nodes=4", forked=True), run, last + 12)
    train_undisturbed(demo_shards, alone, last + 12, "nodes=1", *LONG)
    step = compared_at(run, alone, last)
    assert until(step - 1, delivered(run)) == until(step - 1, delivered(alone))
    assert until(step, losses(run)) == pytest.approx(until(step, losses(alone)), rel=0, abs=1e-9)
