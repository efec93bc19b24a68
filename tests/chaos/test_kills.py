"""The longer proof: dozens of kills on changing numbers of nodes, a new sequence of moments each time."""

import random
import time
from pathlib import Path

import pytest

from launch.run_dir import RunDir
from tests.jobs import same_bits
from tests.system.launching import Launch, await_that, delivered, losses, weights, words
from tests.system.test_kill import kill_again_and_again

KILLS = 40
LENGTH = ("epochs=300", "probe.every=400 epochs", "save_every=3 steps")


@pytest.mark.chaos
@pytest.mark.parametrize("nodes", [1, 2, 4])
def test_forty_kills_change_no_bit(nodes: int, demo_shards: Path, tmp_path: Path) -> None:
    seed = int(time.time())
    print(f"seed {seed}, {nodes} nodes")
    size = f"nodes={nodes}"
    code, text = Launch(*words(demo_shards, tmp_path, size, "name=undisturbed", *LENGTH)).finish()
    assert code == 0, text
    run, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    launch = Launch(*words(demo_shards, tmp_path, size, "name=killed", *LENGTH))
    await_that(lambda: RunDir(run).newest_attempt() == 1, "a first attempt")
    kill_again_and_again(launch, run, KILLS, random.Random(seed), cold=KILLS)
    assert same_bits(weights(run), weights(undisturbed))
    assert losses(run) == losses(undisturbed)
    assert delivered(run) == delivered(undisturbed)
