"""Bitwise mode for as long as a run takes to drift apart, and across kills of real processes."""

from pathlib import Path

import pytest
import torch

from tests.engines.test_bitwise import CASES, assert_equal_bits
from tests.ranks import Ranks
from tests.system.launching import Launch, await_that, delivered, losses, status, weights, words

SHORT = ("epochs=8", "probe.every=200 epochs", "save_every=2 steps", "engine.bitwise=true", "engine.virtual_ranks=4")


@pytest.mark.chaos
def test_50_steps_have_equal_bits_on_1_2_and_4_ranks(ranks: Ranks) -> None:
    assert_equal_bits(ranks, {2: list(CASES), 4: list(CASES)}, 50)


@pytest.mark.chaos
def test_killed_and_resumed_on_4_2_and_1_ranks_it_has_the_weights_of_one_that_never_was(
    demo_shards: Path, tmp_path: Path
) -> None:
    code, text = Launch(*words(demo_shards, tmp_path, "nodes=1", "name=alone", *SHORT)).finish()
    assert code == 0, text
    alone, run = tmp_path / "alone", tmp_path / "moved"
    command = words(demo_shards, tmp_path, "nodes=4", "name=moved", *SHORT)
    for nodes, least in ((4, 5), (2, 15), (4, 25)):
        launch = Launch(*(command if least == 5 else [f"resume={run}", f"nodes={nodes}"]))
        await_that(lambda least=least: status(run)["step"] > least, f"step {least} on {nodes} ranks")
        launch.kill_all()
        assert status(run)["step"] < 40, "it is not killed too late"
    code, text = Launch(f"resume={run}", "nodes=1").finish()
    assert code == 0, text
    assert delivered(run) == delivered(alone)
    assert losses(run) == losses(alone)
    found, wanted = weights(run), weights(alone)
    assert found.keys() == wanted.keys()
    assert not [name for name in wanted if not torch.equal(found[name], wanted[name])]
