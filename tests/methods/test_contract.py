"""What every method must keep, at every world size; parametrised over configs/method, so a new file is tested too."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from dist_ssl.batch import Batch
from dist_ssl.draws import Draws
from dist_ssl.engines.passes import at_once, in_parts
from dist_ssl.instantiate import instantiate
from dist_ssl.method import Embeddings, LossOutput, Method
from dist_ssl.models.encoders import TinyResNet
from dist_ssl.plan import Knobs
from dist_ssl.world import World
from tests.ranks import Ranks

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "method").glob("*.yaml"))
NAMES = [path.stem for path in CONFIGS]
SAMPLES = 16


def small_method(name: str, world: World, **own: Any) -> Method:
    """The method around a net of a few thousand weights, the same on every rank; `own` replaces keys of its config."""
    node: dict[str, Any] = yaml.safe_load(next(p for p in CONFIGS if p.stem == name).read_text())
    torch.manual_seed(0)
    method: Method = instantiate({**node, "hidden": 16, "dim": 8, **own}, "method", encoder=TinyResNet(4), world=world)
    method.double().train()
    if method.teacher is not None:  # a teacher that has drifted from its student, as in the middle of a run
        with torch.no_grad():
            for parameter in method.teacher.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    return method


def small_batch(world: World, num_views: int, invalid: tuple[int, ...] = ()) -> Batch:
    """This rank's part of one global batch of random views."""
    generator = torch.Generator().manual_seed(1)
    valid = torch.ones(SAMPLES, dtype=torch.bool)
    valid[list(invalid)] = False
    own = slice(world.rank * SAMPLES // world.size, (world.rank + 1) * SAMPLES // world.size)
    views = [torch.randn(SAMPLES, 3, 12, 12, dtype=torch.float64, generator=generator) for _ in range(num_views)]
    ids = torch.arange(100, 100 + SAMPLES)
    return Batch([v[own] for v in views], ids[own], valid[own], None, Draws(0), step=0)


def forward(method: Method, batch: Batch) -> Embeddings:
    """All embeddings of the batch's views."""
    return method(*batch.parts(1)[0])


def knobs(method: Method) -> Knobs:
    return Knobs({name: torch.tensor(knob.start, dtype=torch.float64) for name, knob in method.knobs.items()})


def loss_and_gradients(world: World, name: str, invalid: tuple[int, ...]) -> tuple[Tensor, dict[str, Tensor]]:
    """The job's loss and its gradients, averaged over ranks as every engine does."""
    method = small_method(name, world)
    batch = small_batch(world, method.num_views, invalid)
    out = method.loss(forward(method, batch), batch, knobs(method))
    out.loss.backward()
    gradients = {n: world.mean(p.grad) for n, p in method.named_parameters() if p.grad is not None}
    return world.mean(out.loss.detach()), gradients


def gradients_in_parts(world: World, name: str, parts: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients of a batch whose samples are computed in parts, or at once where `parts` is 1."""
    method = small_method(name, world, norm_group=2)
    batch = small_batch(world, method.num_views, invalid=(3,))

    def loss(embeddings: Embeddings) -> LossOutput:
        return method.loss(embeddings, batch, knobs(method))

    if parts == 1:
        out = at_once(method, loss, batch, world.rank)
    else:
        out = in_parts(method, loss, batch, world.rank, parts, nullcontext)
    gradients = {n: world.mean(p.grad) for n, p in method.named_parameters() if p.grad is not None}
    return world.mean(out.loss.detach()), gradients


@pytest.mark.parametrize(("size", "parts"), [(1, 2), (1, 8), (2, 2), (4, 2)])
@pytest.mark.parametrize("name", NAMES)
def test_a_batch_in_parts_has_the_loss_and_gradients_of_the_whole(
    ranks: Ranks, name: str, size: int, parts: int
) -> None:
    loss, gradients = gradients_in_parts(World(), name, 1)
    for other_loss, other_gradients in ranks.run(gradients_in_parts, size, name, parts):
        assert other_loss.item() == pytest.approx(loss.item(), abs=1e-9)
        assert other_gradients.keys() == gradients.keys()
        for key, gradient in gradients.items():
            assert torch.allclose(other_gradients[key], gradient, rtol=0, atol=1e-9), key


def buffers(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.named_buffers()}


@pytest.mark.parametrize("invalid", [(), (3, 9)], ids=["all valid", "two stand-ins"])
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", NAMES)
def test_many_ranks_compute_the_loss_and_gradients_of_one(
    ranks: Ranks, name: str, size: int, invalid: tuple[int, ...]
) -> None:
    loss, gradients = loss_and_gradients(World(), name, invalid)
    for other_loss, other_gradients in ranks.run(loss_and_gradients, size, name, invalid):
        assert other_loss.item() == pytest.approx(loss.item(), abs=1e-9)
        assert other_gradients.keys() == gradients.keys()
        for key, gradient in gradients.items():
            assert torch.allclose(other_gradients[key], gradient, rtol=0, atol=1e-9), key


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_is_finite_and_reaches_the_encoder_but_not_the_teacher(name: str) -> None:
    method = small_method(name, World())
    batch = small_batch(World(), method.num_views)
    out = method.loss(forward(method, batch), batch, knobs(method))
    out.loss.backward()
    assert torch.isfinite(out.loss)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in method.encoder.parameters())
    if method.teacher is not None:
        assert all(p.grad is None for p in method.teacher.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_embed_and_loss_twice_give_the_same_and_change_no_buffer(name: str) -> None:
    method = small_method(name, World())
    batch = small_batch(World(), method.num_views)
    before = buffers(method)
    first = method.loss(forward(method, batch), batch, knobs(method))
    second = method.loss(forward(method, batch), batch, knobs(method))
    assert torch.equal(first.loss, second.loss)
    assert all(torch.equal(value, before[key]) for key, value in buffers(method).items())


@pytest.mark.parametrize("name", NAMES)
def test_remember_changes_no_parameter(name: str) -> None:
    method = small_method(name, World())
    batch = small_batch(World(), method.num_views)
    out = method.loss(forward(method, batch), batch, knobs(method))
    before = {key: value.clone() for key, value in method.named_parameters()}
    method.remember(out, batch, knobs(method))
    assert all(torch.equal(value, before[key]) for key, value in method.named_parameters())


@pytest.mark.parametrize("name", NAMES)
def test_every_metric_stands_in_the_table(name: str) -> None:
    from dist_ssl.metrics.table import BY_KEY

    method = small_method(name, World())
    batch = small_batch(World(), method.num_views)
    out = method.loss(forward(method, batch), batch, knobs(method))
    assert out.metrics.keys() <= BY_KEY.keys()
    assert all(not value.requires_grad and value.dim() == 0 for value in out.metrics.values())
