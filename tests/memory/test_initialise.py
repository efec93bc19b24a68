"""The pass before the first step: only for methods that need it, over every sample it can, and it can be stopped."""

from pathlib import Path
from typing import Any

import pytest
import torch

from dist_ssl.distributed.world import World
from dist_ssl.engines.ddp import DDP
from dist_ssl.memory.initialise import EPOCH, plan_of_initial_pass, run_initial_pass
from dist_ssl.models.norm import BatchNorm
from dist_ssl.optim.recipes import SGD
from dist_ssl.protocols.engine import Piece
from tests.jobs import small_config, small_job
from tests.methods import small


def of(value: torch.Tensor | Piece) -> torch.Tensor:
    """A tensor of a state of one rank."""
    return value.tensor if isinstance(value, Piece) else value


def test_a_method_without_memory_is_shown_nothing(demo_shards: Path, tmp_path: Path) -> None:
    job = small_job(World(), small_config(demo_shards, "method=simclr"), tmp_path)
    looked: list[int] = []
    assert run_initial_pass(job.engine, (looked.append(1) or pytest.fail("read") for _ in range(1)), lambda: False)
    assert not looked


def test_every_row_is_begun_and_no_weight_moves(demo_shards: Path, tmp_path: Path) -> None:
    job = small_job(World(), small_config(demo_shards, "method=single_branch"), tmp_path)
    before = {name: of(value).clone() for name, value in job.engine.state().items()}
    plan = plan_of_initial_pass(job.schedule.plan(0))
    assert plan.epoch == EPOCH
    assert run_initial_pass(job.engine, job.stream.epoch(plan), lambda: False)
    state = job.engine.state()
    rows = of(state["model/bank.rows"])
    assert torch.allclose(rows.norm(dim=1), torch.ones(60))
    moved = {name for name, value in state.items() if not torch.equal(of(value), before[name])}
    assert moved == {name for name in state if "running_" in name or name == "model/bank.rows"}
    job.agreement.drain()


def test_the_pass_ends_where_the_cluster_wants_its_nodes_back(demo_shards: Path, tmp_path: Path) -> None:
    job = small_job(World(), small_config(demo_shards, "method=single_branch"), tmp_path)
    answers = iter([False, True])
    plan = plan_of_initial_pass(job.schedule.plan(0))
    assert not run_initial_pass(job.engine, job.stream.epoch(plan), lambda: next(answers))
    assert (of(job.engine.state()["model/bank.rows"]).norm(dim=1) > 0).sum() == 12


def test_nothing_piles_up_in_the_norms_between_steps(demo_shards: Path, tmp_path: Path) -> None:
    job = small_job(World(), small_config(demo_shards, "method=single_branch"), tmp_path)
    plan = plan_of_initial_pass(job.schedule.plan(0))
    assert run_initial_pass(job.engine, job.stream.epoch(plan), lambda: False)
    job.engine.embed(torch.zeros(2, 3, 16, 16), "student")
    assert not [m for m in job.engine.method.modules() if isinstance(m, BatchNorm) and m.seen]


@pytest.mark.parametrize("own", [{}, {"bitwise": True, "virtual_ranks": 2}], ids=["plain", "bitwise"])
def test_what_an_encoder_drops_in_the_pass_is_keyed_by_position(own: dict[str, Any]) -> None:
    rows = []
    for before in (1, 2):
        method = small.method("single_branch", hidden=12, dim=6, mix=False)
        method.student.projector.insert(2, torch.nn.Dropout(0.5))
        engine = DDP(method, SGD(0.1, 0.0), world=World(), dtype=torch.float64, **own)
        torch.manual_seed(before)  # what this process has drawn so far
        engine.initialise_memory(small.batch(1, 8))
        rows.append(method.bank.rows[:8])
    assert torch.equal(*rows)
