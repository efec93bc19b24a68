"""A transformer whose views lose tokens: the same run on 1 and 4 ranks, across a kill; probes see whole views."""

import json
from pathlib import Path

import pytest
import torch

from dist_ssl.core.plan import EpochPlan
from dist_ssl.core.tokens import Tokens
from dist_ssl.distributed.world import World
from dist_ssl.runtime import jsonl
from tests.jobs import attempt, small_config, small_job
from tests.ranks import Ranks

WORDS = (
    "encoder=vit_tiny_demo",
    "encoder.width=8",
    "encoder.heads=2",
    "schedule.keep_tokens=0.5",
    "schedule.patch_size=8",
    "schedule.image_size=24",
    "probe.crop=24",
    "precision=fp64",
    "save_every=1 steps",
    "epochs=2",
    "probe.every=9 epochs",
)


def losses(folder: Path) -> list[float]:
    """The loss of every step, as it was logged."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_killed_and_resumed_on_other_ranks_it_sees_the_same_tokens(
    ranks: Ranks, demo_shards: Path, tmp_path: Path
) -> None:
    config = small_config(demo_shards, *WORDS)
    assert attempt(World(), config, tmp_path / "alone", 1, 99) is not None
    for number, (size, batches) in enumerate([(4, 3), (2, 4), (4, 99)], 1):
        answers = ranks.run(attempt, size, config, tmp_path / "moved", number, batches)
        assert all((answer is None) == (batches < 99) for answer in answers)
    alone = losses(tmp_path / "alone")
    assert len(alone) == 10
    assert losses(tmp_path / "moved") == pytest.approx(alone, rel=0, abs=1e-9)
    for folder in ("alone", "moved"):
        rows = list(jsonl.read(tmp_path / folder / "plan.jsonl"))
        assert {(row["keep_tokens"], row["patch_size"]) for row in rows} == {(0.5, 8)}
    other = small_config(demo_shards, *WORDS, "schedule.keep_tokens=1")
    attempt(World(), other, tmp_path / "whole", 1, 99)
    assert abs(losses(tmp_path / "whole")[0] - alone[0]) > 1e-6


def test_features_are_those_of_all_tokens_of_the_own_patches(demo_shards: Path, tmp_path: Path) -> None:
    job = small_job(World(), small_config(demo_shards, *WORDS), tmp_path)
    plan: EpochPlan = job.schedule.plan(0)
    batch = next(iter(job.stream.epoch(plan)))
    assert batch.tokens == Tokens(0.5, 8)
    job.engine.step(batch, job.schedule.hyperparameters(job.fresh))
    encoder = job.engine.method.encoder  # type: ignore[attr-defined]
    seen: list[int] = []
    hook = encoder.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    found = job.engine.embed(batch.views[0], "student")
    hook.remove()
    assert seen == [1 + 36]
    with torch.no_grad():
        assert torch.equal(found, encoder.eval()(batch.views[0]).float())
