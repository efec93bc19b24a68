"""The command of torchrun that the launcher prints: torchrun restarts the ranks of one node only."""

from pathlib import Path

import pytest

from launch import torchrun
from launch.run_dir import RunDir


@pytest.mark.parametrize(("nodes", "restarts"), [(1, 3), (2, 0)])
def test_ranks_of_several_nodes_are_not_restarted_by_torchruns_that_count_apart(
    tmp_path: Path, nodes: int, restarts: int
) -> None:
    printed = torchrun.command(RunDir(tmp_path / "run"), {"nodes": nodes, "ranks_per_node": 4}, [])
    assert f"--max-restarts={restarts} " in printed
    assert ("--node-rank=NODE" in printed) == (nodes > 1)
