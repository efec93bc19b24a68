"""The same run on 1, 2 and 4 ranks: the same samples in the same order, and the same losses up to rounding."""

import json
from pathlib import Path

import pytest

from dist_ssl.distributed.world import World
from tests.jobs import run_job, small_config, together
from tests.ranks import Ranks


def losses(folder: Path) -> list[float]:
    """The loss of every step, as it was logged."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_100_steps_in_fp64_agree_on_1_2_and_4_ranks(ranks: Ranks, demo_shards: Path, tmp_path: Path) -> None:
    config = small_config(demo_shards, "precision=fp64", "epochs=20", "probe.every=20 epochs")
    ids, _ = run_job(World(), config, tmp_path / "1")
    alone = losses(tmp_path / "1")
    assert len(alone) == 100
    for size in (2, 4):
        folder = tmp_path / str(size)
        results = ranks.run(run_job, size, config, folder)
        assert together([own for own, _ in results]) == ids
        assert losses(folder) == pytest.approx(alone, rel=0, abs=1e-9)


def test_the_first_step_in_fp32_agrees_on_1_2_and_4_ranks(ranks: Ranks, demo_shards: Path, tmp_path: Path) -> None:
    config = small_config(demo_shards, "epochs=1", "schedule.warmup=1 step")
    run_job(World(), config, tmp_path / "1")
    for size in (2, 4):
        ranks.run(run_job, size, config, tmp_path / str(size))
        assert losses(tmp_path / str(size))[0] == pytest.approx(losses(tmp_path / "1")[0], rel=0, abs=1e-5)
