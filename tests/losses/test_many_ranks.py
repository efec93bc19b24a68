"""Losses over the whole batch: 2 and 4 gloo ranks give the loss and the gradients of one, replacements included.

The objective is the mean over ranks of what each returns, and engines average gradients.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dist_ssl.distributed.world import World
from dist_ssl.losses.coding_rate import emp_ssl
from dist_ssl.losses.combined_patches import combined_cross_entropy
from dist_ssl.losses.contrastive import nt_xent
from dist_ssl.losses.cosine import negative_cosine
from dist_ssl.losses.job import job_mean
from dist_ssl.losses.prototype_codes import sinkhorn, swapped_cross_entropy
from dist_ssl.losses.rotation_classes import rotation_cross_entropy
from dist_ssl.losses.teacher_cross_entropy import balanced_cross_entropy, batch_centre, dino_cross_entropy
from dist_ssl.losses.variance_covariance import vicreg
from tests.losses.tensors import close, normal
from tests.ranks import Ranks

SAMPLES, WIDTH, VIEWS = 8, 5, 4


def gathered(world: World, z: Tensor) -> Tensor:
    """[V, B, D] -> [V, N, D] with gradients."""
    return world.gather(z.transpose(0, 1).contiguous()).transpose(0, 1)


def simclr(world: World, z: Tensor, valid: Tensor) -> Tensor:
    keep = world.gather_const(valid)
    rows = nt_xent(z[:2], gathered(world, z[:2]), world.rank * len(valid), 0.2, keep)
    return job_mean(rows, valid, world.sum)


def simsiam(world: World, z: Tensor, valid: Tensor) -> Tensor:
    return job_mean(negative_cosine(z[:2], z[2:]), valid, world.sum)


def whole_vicreg(world: World, z: Tensor, valid: Tensor) -> Tensor:
    whole = gathered(world, z)
    return vicreg(whole[0], whole[1], world.gather_const(valid)).loss


def swav(world: World, z: Tensor, valid: Tensor) -> Tensor:
    scores = list(F.normalize(z, dim=2) @ F.normalize(normal(WIDTH, 7, seed=5), dim=0))
    codes = [sinkhorn(crop, valid, world.sum_const) for crop in scores[:2]]
    return job_mean(swapped_cross_entropy(scores, codes), valid, world.sum)


def dino(world: World, z: Tensor, valid: Tensor) -> Tensor:
    centre = batch_centre(list(z[:2]), valid, world.sum_const)
    return job_mean(dino_cross_entropy(list(z), list(z[:2]), centre), valid, world.sum)


def balanced_dino(world: World, z: Tensor, valid: Tensor) -> Tensor:
    outputs = list(z.tanh())
    return job_mean(balanced_cross_entropy(outputs, outputs[:2], valid, world.sum_const), valid, world.sum)


def emp_of_own_groups(world: World, z: Tensor, valid: Tensor) -> Tensor:
    return emp_ssl(z, valid, 2).loss


def emp_of_gathered_groups(world: World, z: Tensor, valid: Tensor) -> Tensor:
    return emp_ssl(gathered(world, z), world.gather_const(valid), SAMPLES).loss


def fast_moco(world: World, z: Tensor, valid: Tensor) -> Tensor:
    keys = gathered(world, z[2:]).detach()
    predictions = torch.stack([z[:2], z[:2] ** 2, z[:2].roll(1, 2)], dim=1)
    rows = combined_cross_entropy(predictions, keys, world.rank * len(valid), 0.3, world.gather_const(valid))
    return job_mean(rows, valid, world.sum)


def rotation(world: World, z: Tensor, valid: Tensor) -> Tensor:
    turns = torch.arange(world.rank * len(valid), (world.rank + 1) * len(valid)) % 4
    return job_mean(rotation_cross_entropy(z[0], turns), valid, world.sum)


CASES = {
    f.__name__: f
    for f in (
        simclr,
        simsiam,
        whole_vicreg,
        swav,
        dino,
        balanced_dino,
        emp_of_own_groups,
        emp_of_gathered_groups,
        fast_moco,
        rotation,
    )
}


def all_losses(world: World, invalid: tuple[int, ...]) -> dict[str, list[Tensor]]:
    """Of every case the job's loss, and the gradient of a layer averaged over ranks."""
    own = slice(world.rank * SAMPLES // world.size, (world.rank + 1) * SAMPLES // world.size)
    x, valid = normal(VIEWS, SAMPLES, 3, seed=1)[:, own], torch.ones(SAMPLES).bool()
    valid[list(invalid)] = False
    found = {}
    for name, loss in CASES.items():
        layer = nn.Linear(3, WIDTH).double()
        with torch.no_grad():
            layer.weight.copy_(normal(WIDTH, 3, seed=2))
            layer.bias.copy_(normal(WIDTH, seed=3))
        value = loss(world, layer(x), valid[own])
        value.backward()
        grads = [world.mean(p.grad) for p in layer.parameters() if p.grad is not None]
        found[name] = [world.mean(value.detach()), *grads]
    return found


@pytest.mark.parametrize("invalid", [(), (1, 4, 5), tuple(range(SAMPLES))], ids=["all", "three replacements", "none"])
@pytest.mark.parametrize("size", [2, 4])
def test_many_ranks_compute_the_losses_and_gradients_of_one(ranks: Ranks, size: int, invalid: tuple[int, ...]) -> None:
    expected = all_losses(World(), invalid)
    for found in ranks.run(all_losses, size, invalid):
        assert found.keys() == expected.keys()
        for name, values in found.items():
            assert all(value.isfinite().all() for value in values), name
            close(values, expected[name], 1e-9)


@pytest.mark.parametrize("name", CASES)
def test_the_case_has_a_gradient_and_replacements_change_the_loss(name: str) -> None:
    whole, fewer = all_losses(World(), ())[name], all_losses(World(), (1, 4, 5))[name]
    assert whole[1].abs().max() > 1e-6
    assert abs(float(whole[0] - fewer[0])) > 1e-9
