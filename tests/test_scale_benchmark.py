"""What a save and a restore cost a rank does not grow with the number of ranks, and what they cost rank 0 only as that.

A small version of `tests/benchmarks/scale.py`, and the same bytes counted in real saves.
"""

import json
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dist_ssl.checkpoint.saver import Checkpoint
from dist_ssl.distributed.world import World
from dist_ssl.protocols.engine import Piece
from tests.benchmarks.scale import LAYOUTS, beyond, measured
from tests.checkpoint.test_saver import Store, Thread, on_ranks, saved, without_groups

__all__ = ["without_groups"]
TENSORS = 120


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_cost_grows_faster_than_the_ranks_in_all_or_their_logarithm_on_one(layout: str) -> None:
    found = {ranks: measured(LAYOUTS[layout], TENSORS, ranks) for ranks in (8, 64)}
    assert beyond(found) == []
    assert found[64].save[1].taken <= 1.05 * found[8].save[1].taken  # what rank 0 tells all


def test_a_bar_that_is_missed_is_named() -> None:
    found = measured(LAYOUTS["ddp"], TENSORS, 8)
    dear = replace(found, save=tuple(replace(cost, taken=100 * cost.all) for cost in found.save))
    assert beyond({8: found, 16: dear}) == [
        "8 to 16 ranks: a save grows faster than the ranks on rank 0",
        "8 to 16 ranks: a save grows faster than their logarithm on another rank",
    ]
    assert beyond({8: replace(found, first_table=10**6)}) == ["8 ranks: a table has more than 200 bytes a piece"]


@dataclass(frozen=True)
class Counting(Thread):
    """A rank that is a thread, and counts the bytes of JSON that it takes from others."""

    taken: Counter[str] = field(default_factory=Counter)

    def collect(self, obj: Any) -> list[Any]:
        found = super().collect(obj)
        self.taken["all"] += sum(len(json.dumps(value)) for value in found)
        return found

    def collect_on_first(self, obj: Any) -> list[Any]:
        found = Thread.collect(self, obj) if self.rank == 0 else (Thread.collect(self, obj), [])[1]
        self.taken["first"] += sum(len(json.dumps(value)) for value in found)
        return found

    def share(self, obj: Any) -> Any:
        found = Thread.collect(self, obj)[0]
        self.taken["shared"] += len(json.dumps(found))
        return found

    def agree(self, value: int) -> int:
        return max(Thread.collect(self, value))


def taken_in_a_save(folder: Path, ranks: int) -> list[Counter[str]]:
    """Bytes that every rank takes from others while 40 tensors are saved that are spread over the ranks."""

    def save(world: World) -> Counter[str]:
        beside = world.beside  # type: ignore[attr-defined]
        counting = Counting(rank=world.rank, size=ranks, table=beside.table, together=beside.together)
        engine = Store()
        rows = {f"model/{name:02d}": Piece(torch.ones(2, 8), (2 * ranks, 8), 16 * world.rank) for name in range(40)}
        engine.held = {**rows, "model/whole": torch.ones(3)}
        saved(
            Checkpoint(folder, replace(world, beside=counting), keep_last=2, attempt=2, newest=lambda: True), engine, 1
        )  # type: ignore[call-arg]
        return counting.taken

    return on_ranks(ranks, save)


def test_a_real_save_exchanges_no_tables(tmp_path: Path) -> None:
    found = {ranks: taken_in_a_save(tmp_path / f"{ranks}", ranks) for ranks in (4, 16)}
    for ranks, counted in found.items():
        assert all(own["all"] == 0 for own in counted)  # nothing is gathered on all of them
        assert all(own["first"] == 0 for own in counted[1:])
        assert counted[0]["first"] <= 120 * ranks
    assert found[16][1]["shared"] <= found[4][1]["shared"] + 10
