"""The pass before the first step: only for methods that want it, heeding the pulse, and over every sample it can."""

from pathlib import Path

import pytest
import torch

from dist_ssl.engine import Piece
from dist_ssl.filling import EPOCH, fill, plan_of_pass
from dist_ssl.models.norm import BatchNorm
from dist_ssl.progress import Progress
from dist_ssl.world import World
from tests.jobs import small_config, small_job


def of(value: torch.Tensor | Piece) -> torch.Tensor:
    """A tensor of a state of one rank."""
    return value.tensor if isinstance(value, Piece) else value


def test_a_method_without_memory_is_shown_nothing(demo_shards: Path, tmp_path: Path) -> None:
    job = small_job(World(), small_config(demo_shards, "method=simclr"), tmp_path)
    looked: list[int] = []
    assert fill(job.engine, (looked.append(1) or pytest.fail("read") for _ in range(1)), lambda: False)
    assert not looked


def test_every_row_is_begun_and_no_weight_moves(demo_shards: Path, tmp_path: Path) -> None:
    job = small_job(World(), small_config(demo_shards, "method=single_branch"), tmp_path)
    before = {name: of(value).clone() for name, value in job.engine.state().items()}
    plan = plan_of_pass(job.schedule.plan(Progress(epochs=1)))
    assert plan.epoch == EPOCH
    assert fill(job.engine, job.stream.epoch(plan), lambda: False)
    state = job.engine.state()
    rows = of(state["model/bank.rows"])
    assert torch.allclose(rows.norm(dim=1), torch.ones(60))
    moved = {name for name, value in state.items() if not torch.equal(of(value), before[name])}
    assert moved == {name for name in state if "running_" in name or name == "model/bank.rows"}
    job.pulse.drain()


def test_the_pass_ends_where_the_cluster_wants_its_nodes_back(demo_shards: Path, tmp_path: Path) -> None:
    job = small_job(World(), small_config(demo_shards, "method=single_branch"), tmp_path)
    answers = iter([False, True])
    plan = plan_of_pass(job.schedule.plan(Progress(epochs=1)))
    assert not fill(job.engine, job.stream.epoch(plan), lambda: next(answers))
    assert (of(job.engine.state()["model/bank.rows"]).norm(dim=1) > 0).sum() == 12


def test_nothing_piles_up_in_the_norms_between_steps(demo_shards: Path, tmp_path: Path) -> None:
    job = small_job(World(), small_config(demo_shards, "method=single_branch"), tmp_path)
    plan = plan_of_pass(job.schedule.plan(Progress(epochs=1)))
    assert fill(job.engine, job.stream.epoch(plan), lambda: False)
    job.engine.embed(torch.zeros(2, 3, 16, 16), "student")
    assert not [m for m in job.engine.method.modules() if isinstance(m, BatchNorm) and m.seen]
