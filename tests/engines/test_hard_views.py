"""The model's choice: by features in evaluation mode, in any number of parts, without a trace in the model."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dist_ssl.core.batch import Batch
from dist_ssl.core.candidates import CandidateViews
from dist_ssl.core.draws import Draws, Ints
from dist_ssl.distributed.world import World
from dist_ssl.engines.hard_views import with_chosen_views
from tests.jobs import small_config, small_job

ANGLES = torch.tensor([[0.0, 0.1], [0.5, 2.0], [1.0, 0.4]])
"""Of the features of three candidates of two slots; the furthest apart are candidates 0 and 1, by 2.0."""


def embed(views: Tensor) -> Tensor:
    """Features of any length at the angle that all pixels have."""
    angle = views.mean((1, 2, 3))
    return (1 + views.new_tensor(range(len(views)))[:, None]) * torch.stack([angle.cos(), angle.sin()], dim=1)


def given(parts: int = 1, temperature: float = 0.0) -> tuple[Batch, list[Ints]]:
    """A batch of four samples with candidates, and the pairs that are asked for."""
    asked: list[Ints] = []

    def finish(pairs: Ints) -> list[Tensor]:
        asked.append(pairs)
        return [torch.tensor(row) for row in pairs]

    small = [angles.repeat(4)[:, None, None, None].repeat(1, 3, 2, 2) for angles in ANGLES.T]
    candidates = CandidateViews(3, small, temperature, parts, finish, [])
    ids = torch.arange(7, 11)
    return Batch([], ids, torch.ones(4, dtype=torch.bool), None, Draws(0), 0, candidates=candidates), asked


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_the_pair_of_least_similarity_is_chosen(parts: int) -> None:
    batch, asked = given(parts)
    found, metrics = with_chosen_views(embed, batch)
    assert [pairs.tolist() for pairs in asked] == [[[0] * 4, [1] * 4]]
    assert found.candidates is None
    assert [view.tolist() for view in found.views] == asked[0].tolist()
    assert float(metrics["difficulty/chosen"]) == pytest.approx(1 - np.cos(2.0))
    assert float(metrics["difficulty/first"]) == pytest.approx(1 - np.cos(0.1))


@pytest.mark.parametrize("parts", [1, 2])
def test_a_batch_that_is_trained_on_in_parts_is_scored_in_parts(parts: int) -> None:
    """Where the memory of a device is too small for a batch, it is too small for its candidates."""
    sizes: list[int] = []

    def watched(views: Tensor) -> Tensor:
        sizes.append(len(views))
        return embed(views)

    batch, asked = given(parts)
    with_chosen_views(watched, batch, 4 // parts)
    assert sizes == [6] * 4
    assert [pairs.tolist() for pairs in asked] == [[[0] * 4, [1] * 4]]


def test_with_temperature_samples_have_pairs_of_their_own_whatever_the_parts() -> None:
    asked = []
    for parts in (1, 2):
        batch, own = given(parts, temperature=3.0)
        with_chosen_views(embed, batch)
        asked.append(own[0])
    assert len(set(map(tuple, asked[0].T.tolist()))) > 1
    np.testing.assert_array_equal(*asked)


def test_a_batch_without_candidates_stays_as_it_is() -> None:
    batch = Batch([torch.ones(1)], torch.arange(1), torch.ones(1, dtype=torch.bool), None, Draws(0), 0)
    assert with_chosen_views(embed, batch) == (batch, {})


WORDS = ("difficulty=model", "schedule.candidates=3", "schedule.candidates_from=0")


def test_scoring_leaves_no_trace_and_has_no_gradient(demo_shards: Path, tmp_path: Path) -> None:
    job: Any = small_job(World(), small_config(demo_shards, *WORDS), tmp_path)
    plan, engine = job.schedule.plan(0), job.engine
    first, second = list(job.stream.epoch(plan))[:2]
    engine.step(first, job.schedule.hyperparameters(job.fresh))
    before = {name: value.clone() for name, value in engine.method.state_dict().items()}
    random = torch.get_rng_state()
    for parameter in engine.method.parameters():
        parameter.grad = None
    found, _ = with_chosen_views(lambda views: engine.embed(views, "student"), second)
    assert [tuple(view.shape) for view in found.views] == [(12, 3, 16, 16)] * 2
    assert not any(view.requires_grad for view in found.views)
    assert all(torch.equal(value, before[name]) for name, value in engine.method.state_dict().items())
    assert all(parameter.grad is None for parameter in engine.method.parameters())
    assert torch.equal(random, torch.get_rng_state())
    assert engine.method.encoder.training


@pytest.mark.parametrize("method", ["mocov3", "simclr", "byol"])
def test_a_step_trains_on_what_was_chosen(method: str, demo_shards: Path, tmp_path: Path) -> None:
    config = small_config(demo_shards, f"method={method}", *WORDS)
    twins: list[Any] = [small_job(World(), config, tmp_path / name) for name in ("whole", "chosen")]
    hyper = twins[0].schedule.hyperparameters(twins[0].fresh)
    batch = next(iter(twins[0].stream.epoch(twins[0].schedule.plan(0))))
    out = twins[0].engine.step(batch, hyper).metrics
    found, metrics = with_chosen_views(lambda views: twins[1].engine.embed(views, "student"), batch)
    assert torch.equal(twins[1].engine.step(found, hyper).metrics["loss"], out["loss"])
    assert metrics == {key: out[key] for key in metrics} != {}
    assert float(out["difficulty/chosen"]) > float(out["difficulty/first"])
