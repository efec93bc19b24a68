"""Runs whose epochs differ: stopped within a small one and resumed on other ranks, and extended by a further cycle."""

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from dist_ssl.core.batch import Batch
from dist_ssl.core.plan import EpochPlan
from dist_ssl.data.stream import Stream
from dist_ssl.distributed.world import World
from dist_ssl.runtime import jsonl
from dist_ssl.train import train
from tests.jobs import run_job, same_bits, small_config, small_job, together
from tests.ranks import Ranks

GROWING = ("schedule=accelerated", "schedule.start_scale=0.5", "schedule.start_batch=24", "probe.every=9 epochs")
SIDES, BATCHES = [8, 8, 12, 12, 16], [24, 24, 24, 12, 12]
"""What five epochs of 60 images at up to 16 px are planned to be."""


class KilledError(Exception):
    """The run is gone."""


class Observed:
    """A stream that notes samples and sides, and kills the run before the step of this number in this attempt."""

    def __init__(self, stream: Stream, dies_at: int) -> None:
        self.stream, self.dies_at = stream, dies_at
        self.ids: list[list[int]] = []
        self.sides: list[int] = []

    def epoch(self, plan: EpochPlan, start: int = 0, before: int | None = None) -> Iterator[Batch]:
        for batch in self.stream.epoch(plan, start, before):
            if len(self.ids) == self.dies_at:
                raise KilledError
            self.ids.append(batch.ids.tolist())
            self.sides.append(batch.views[0].shape[-1])
            yield batch


def attempt(
    world: World, config: dict[str, Any], folder: Path, number: int, dies_at: int = -1
) -> tuple[list[list[int]], list[int]]:
    """Train to the end or to the kill; the samples of every step, and the side of its views."""
    job = small_job(world, config, folder, number)
    stream = Observed(job.stream, dies_at)
    job.stream = stream  # type: ignore[assignment]
    with suppress(KilledError):
        train(job)
    job.checkpoint.close()
    job.agreement.drain()
    job.meter.close()
    job.ledger.close()
    return stream.ids, stream.sides


def checkpoints(folder: Path) -> list[str]:
    """The names of the run's checkpoints."""
    return sorted(path.name for path in (folder / "checkpoints").glob("step_*"))


def losses(folder: Path) -> list[float]:
    """The loss of every step, as it was logged."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.parametrize("encoder", ["tiny", "vit_tiny_demo"])
def test_a_run_that_is_killed_in_a_small_epoch_resumes_with_its_plan_on_other_ranks(
    ranks: Ranks, demo_shards: Path, tmp_path: Path, encoder: str
) -> None:
    words = ("encoder.width=4",) if encoder == "tiny" else ("encoder.width=8", "encoder.heads=2")
    config = small_config(demo_shards, f"encoder={encoder}", *words, "epochs=5", "precision=fp64", *GROWING)
    config["save_every"] = "3 steps"
    whole, sides = attempt(World(), config, tmp_path / "whole", 1)
    assert sides == [side for side, batch in zip(SIDES, BATCHES, strict=True) for _ in range(60 // batch)]
    assert [len(step) for step in whole] == [batch for batch in BATCHES for _ in range(60 // batch)]
    before, _ = attempt(World(), config, tmp_path / "run", 1, dies_at=3)
    assert checkpoints(tmp_path / "run")[-1] == "step_00000003", "in the middle of the second epoch"
    results = ranks.run(attempt, 2, config, tmp_path / "run", 2)
    after = together([own for own, _ in results])
    assert results[0][1] == sides[3:]
    assert before + after == whole
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "whole"), rel=0, abs=1e-9)
    rows = jsonl.read(tmp_path / "run" / "plan.jsonl")
    assert [(row["epoch"], row["image_size"], row["batch_size"]) for row in rows] == [
        (epoch, side, batch) for epoch, (side, batch) in enumerate(zip(SIDES, BATCHES, strict=True))
    ]


@pytest.mark.parametrize("schedule", ["one_cycle", "accelerated", "steady"])
def test_a_finished_run_that_is_extended_equals_the_uninterrupted_one(
    demo_shards: Path, tmp_path: Path, schedule: str
) -> None:
    words = (f"schedule={schedule}", "schedule.peak_decay=0.5", "probe.every=9 epochs", "epochs=2")
    first = small_config(demo_shards, *words)
    both = small_config(demo_shards, *words, "extend=[3 epochs]")
    whole, expected = run_job(World(), both, tmp_path / "whole")
    before, finished = run_job(World(), first, tmp_path / "run")
    after, found = run_job(World(), both, tmp_path / "run", attempt=2)
    assert (len(before), len(after)) == (10, 15)
    assert before + after == whole
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    assert same_bits(found, expected)
    assert not same_bits(finished, found)


def test_the_number_of_local_views_may_grow(demo_shards: Path, tmp_path: Path) -> None:
    words = ["method=swav", "views=demo_crops", "method.local_views=2", "schedule=progressive", "epochs=3"]
    config = small_config(demo_shards, *words, "schedule.start_local_views=0", "probe.every=9 epochs")
    attempt(World(), config, tmp_path, 1)
    rows = jsonl.read(tmp_path / "plan.jsonl")
    assert [row["local_views"] for row in rows] == [0, 1, 2]
    assert len(losses(tmp_path)) == 15
