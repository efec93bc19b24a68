"""A run may begin under ZeRO and go on without it, on other nodes."""

from pathlib import Path

import pytest

from tests.system.launching import Launch, await_that, delivered, losses, status, words

pytestmark = pytest.mark.chaos
SHORT = ("epochs=12", "probe.every=200 epochs", "save_every=3 steps", "engine.clip=1.0")
SGD = ("optim=sgd", "optim.base_lr=0.01")  # Adam would make steps of rounding errors


def test_killed_under_zero_and_resumed_on_more_nodes_without_it_has_the_same_samples(
    demo_shards: Path, tmp_path: Path
) -> None:
    single = (*SHORT, *SGD)
    code, text = Launch(*words(demo_shards, tmp_path, "nodes=1", "name=alone", *single)).finish()
    assert code == 0, text
    alone, run = tmp_path / "alone", tmp_path / "moved"
    spread = ("engine=deepspeed", "engine.stage=3", "+engine.config.zero_optimization.reduce_bucket_size=1000")
    launch = Launch(*words(demo_shards, tmp_path, "nodes=2", "name=moved", *spread, *single))
    await_that(lambda: status(run)["step"] > 5, "some steps")
    launch.kill_all()
    assert status(run)["step"] < 60, "it is not killed too late"
    code, text = Launch(f"resume={run}", "engine=ddp", "nodes=4").finish()
    assert code == 0, text
    assert delivered(run) == delivered(alone)
    assert losses(run) == pytest.approx(losses(alone), rel=0, abs=1e-3)
