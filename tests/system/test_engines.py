"""A run may change its engine on the way, and with it the number of its ranks."""

from pathlib import Path

import pytest

from dist_ssl.world import World
from tests.jobs import run_job, small_config
from tests.system.launching import Launch, await_that, delivered, losses, status, words

SHORT = ("precision=fp64", "epochs=12", "probe.every=200 epochs", "save_every=3 steps", "engine.clip=1.0")


def test_killed_in_shards_and_resumed_whole_on_more_nodes_it_has_the_same_losses(
    demo_shards: Path, tmp_path: Path
) -> None:
    alone, run = tmp_path / "alone", tmp_path / "moved"
    run_job(World(), small_config(demo_shards, *SHORT), alone)
    sharded = ("engine=fsdp", "engine.block_parameters=100", "engine.reshard=false")
    launch = Launch(*words(demo_shards, tmp_path, "nodes=2", "name=moved", *sharded, *SHORT))
    await_that(lambda: status(run)["step"] > 5, "some steps")
    launch.kill_all()
    assert status(run)["step"] < 60, "it is not killed too late"
    code, text = Launch(f"resume={run}", "engine=ddp", "nodes=4").finish()
    assert code == 0, text
    assert delivered(run) == delivered(alone)
    assert losses(run) == pytest.approx(losses(alone), rel=0, abs=1e-9)
