"""Views chosen from candidates: the same run on 1, 2 and 4 ranks across kills, the same bits on one, on any engine."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dist_ssl.distributed.world import World
from dist_ssl.runtime import jsonl
from tests.engines.jobs import forget_worlds
from tests.jobs import attempt, same_bits, small_config
from tests.ranks import Ranks

HARD = ("schedule.candidates=3", "save_every=1 steps", "epochs=2", "probe.every=9 epochs", "precision=fp64")
PARAMETERS = (*HARD, "difficulty=parameters", "schedule.candidates_from=0.5")
MODEL = (*HARD, "method=simclr", "difficulty=model", "difficulty.every=2", "schedule.candidates_from=0")


def rows(folder: Path, key: str) -> list[float]:
    """What was logged under a key, step by step."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line[key] for line in lines if key in line]


def agreed(moved: Path, alone: Path, scored: int) -> None:
    """Losses are the same up to rounding in double precision, and so are the pairs, whose features are single."""
    assert rows(moved, "loss") == pytest.approx(rows(alone, "loss"), rel=0, abs=1e-9)
    assert len(rows(alone, "loss")) == 10
    for key in ("difficulty/chosen", "difficulty/first"):
        assert len(rows(alone, key)) == scored
        assert rows(moved, key) == pytest.approx(rows(alone, key), rel=0, abs=1e-6)
    assert min(a - b for a, b in zip(*(rows(alone, f"difficulty/{k}") for k in ("chosen", "first")), strict=True)) > 0


def test_chosen_by_parameters_they_are_the_same_on_other_ranks(ranks: Ranks, demo_shards: Path, tmp_path: Path) -> None:
    config = small_config(demo_shards, *PARAMETERS)
    assert attempt(World(), config, tmp_path / "alone", 1, 99) is not None
    for number, (size, batches) in enumerate([(4, 7), (2, 99)], 1):
        answers = ranks.run(attempt, size, config, tmp_path / "moved", number, batches)
        assert all((answer is None) == (batches < 99) for answer in answers)
    agreed(tmp_path / "moved", tmp_path / "alone", scored=5)
    plans = list(jsonl.read(tmp_path / "moved" / "plan.jsonl"))
    assert [row["candidates"] for row in plans] == [1, 3]


def test_chosen_by_the_model_they_are_the_same_on_other_ranks_and_to_the_bit_after_a_kill(
    ranks: Ranks, demo_shards: Path, tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    config = small_config(demo_shards, *MODEL)
    whole = attempt(World(), config, tmp_path / "alone", 1, 99)
    assert attempt(World(), config, tmp_path / "cut", 1, 7) is None
    resumed = attempt(World(), config, tmp_path / "cut", 2, 99)
    assert whole is not None
    assert resumed is not None
    assert same_bits(whole, resumed)
    for number, (size, batches) in enumerate([(2, 4), (4, 99)], 1):
        ranks.run(attempt, size, config, tmp_path / "moved", number, batches)
    agreed(tmp_path / "moved", tmp_path / "alone", scored=6)


def attempt_anew(world: World, *given: Any) -> dict[str, Tensor] | None:
    """An attempt in a process that may have been in another world with DeepSpeed."""
    forget_worlds()
    return attempt(world, *given)


@pytest.mark.parametrize("engine", ["fsdp", "deepspeed"])
def test_other_engines_choose_the_same(ranks: Ranks, engine: str, demo_shards: Path, tmp_path: Path) -> None:
    words = ("schedule.candidates=3", "schedule.candidates_from=0", "difficulty=model", f"engine={engine}")
    own = (*words, *(["engine.stage=3"] if engine == "deepspeed" else []))
    attempt(World(), small_config(demo_shards, *words[:-1]), tmp_path / "ddp", 1, 2)
    ranks.run(attempt_anew, 2, small_config(demo_shards, *own), tmp_path / engine, 1, 2)
    for key in ("difficulty/chosen", "difficulty/first", "loss"):
        assert rows(tmp_path / engine, key)[0] == pytest.approx(rows(tmp_path / "ddp", key)[0], rel=0, abs=1e-5)
