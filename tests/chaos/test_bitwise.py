"""Bitwise mode for as long as a run takes to drift apart, and across kills of real processes."""

from pathlib import Path

import pytest

from tests.engines.test_bitwise import CASES, assert_equal_bits
from tests.ranks import Ranks
from tests.system.launching import (
    ENDLESS,
    Launch,
    assert_same_training,
    await_that,
    status,
    stop_by_ctrl_c,
    train_undisturbed,
    words,
)

LONG = (*ENDLESS, "save_every=2 steps", "engine.bitwise=true", "engine.virtual_ranks=4")


@pytest.mark.chaos
def test_50_steps_have_equal_bits_on_1_2_and_4_ranks(ranks: Ranks) -> None:
    assert_equal_bits(ranks, {2: list(CASES), 4: list(CASES)}, 50)


@pytest.mark.chaos
def test_killed_and_resumed_on_4_2_and_1_ranks_it_has_the_weights_of_one_that_never_was(
    demo_shards: Path, tmp_path: Path
) -> None:
    alone, run = tmp_path / "alone", tmp_path / "moved"
    command = words(demo_shards, tmp_path, "nodes=4", "name=moved", *LONG)
    last = 0
    for nodes in (4, 2, 4):
        launch = Launch(*(command if not last else [f"resume={run}", f"nodes={nodes}"]))
        await_that(lambda last=last: status(run)["step"] > last + 5, f"some steps on {nodes} ranks")
        launch.kill_all()
        last = int(status(run)["step"])
    stop_by_ctrl_c(Launch(f"resume={run}", "nodes=1"), run, last + 5)
    train_undisturbed(demo_shards, alone, last + 5, "nodes=1", *LONG)
    assert_same_training(run, alone, last)
