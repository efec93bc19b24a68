"""What a method lets stand still for a while does not move, nor do its moments; rows of directions keep length 1."""

import pytest
import torch
from torch import Tensor

from dist_ssl.core.plan import Hyperparameters
from dist_ssl.distributed.world import World
from dist_ssl.optim.recipes import SGD, AdamW, OptimizerRecipe
from tests.engines import jobs
from tests.ranks import Ranks

PARTS = {"swav": "prototypes", "dino": "student.projector.last"}


def steps(
    world: World, engine: str, name: str, left: list[float], optimizer: OptimizerRecipe
) -> list[dict[str, Tensor]]:
    """The canonical states after steps with this much of the freeze left; the first is that before all."""
    made = jobs.small_engine(world, engine, jobs.small_method(world, name), optimizer)
    states = [jobs.whole_state(made)]
    for number, value in enumerate(left):
        hyper = jobs.hyper(made.method).values | {f"frozen/{PARTS[name]}": torch.tensor(value)}
        made.step(jobs.batch(world, 2, number), Hyperparameters(hyper))
        states.append(jobs.whole_state(made))
    return states


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_a_frozen_part_stands_still_and_moves_when_its_time_is_over(ranks: Ranks, engine: str, name: str) -> None:
    part = f"{PARTS[name]}.weight"
    for states in ranks.run(steps, 2, engine, name, [1.0, 0.5, 0.0], AdamW(1e-3, 0.05)):
        weights = [state[f"model/{part}"] for state in states]
        moments = [any(key.startswith(f"optim/{part}/") for key in state) for state in states]
        assert [torch.allclose(w, weights[0], atol=1e-12) for w in weights] == [True, True, True, False]
        assert moments == [False, False, False, True]
        other = next(key for key in states[0] if key.startswith("model/student.encoder") and "conv1" in key)
        assert not torch.allclose(states[1][other], states[0][other])


@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_prototypes_have_length_1_after_every_step(ranks: Ranks, engine: str) -> None:
    for states in ranks.run(steps, 4, engine, "swav", [0.0, 0.0], SGD(1.0, 0.1)):
        rows = [state["model/prototypes.weight"] for state in states]
        assert not torch.allclose(rows[0], rows[2])
        assert all(torch.allclose(w.norm(dim=1), torch.ones((), dtype=w.dtype)) for w in rows[1:])
