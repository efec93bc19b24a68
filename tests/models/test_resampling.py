"""Learnt positions are resized to the numbers of antialiased bicubic interpolation, gradients too."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from dist_ssl.models.encoders import timm_encoder
from dist_ssl.models.resampling import Grid, ResizedPositions, resampling, resized

SIZES = [((14, 14), (6, 6)), ((14, 14), (16, 16)), ((14, 14), (7, 13)), ((5, 3), (2, 9))]
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}


def interpolated(positions: Tensor, old: Grid, new: Grid) -> Tensor:
    """The same as timm does it."""
    grid = positions.transpose(1, 2).unflatten(2, old)
    return F.interpolate(grid, size=new, mode="bicubic", antialias=True).flatten(2).transpose(1, 2)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("old", "new"), SIZES)
def test_a_product_equals_interpolation_gradients_too(old: Grid, new: Grid, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    values = 0.2 * torch.randn(1, old[0] * old[1], 5, generator=generator, dtype=torch.float64).to(dtype)  # as learnt
    weight = 0.2 * torch.rand(1, new[0] * new[1], 5, generator=generator, dtype=torch.float64).to(dtype)
    found = []
    for resize in (resized, interpolated):
        leaf = values.clone().requires_grad_()
        result = resize(leaf, old, new)
        (result * weight).sum().backward()
        assert leaf.grad is not None
        found.append((result.detach(), leaf.grad))
    for own, other in zip(*found, strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=TOLERANCE[dtype])


def test_the_matrix_is_made_once_per_size_and_serves_training_when_inference_asked_first() -> None:
    with torch.inference_mode():
        first = resampling((9, 9), (4, 4), torch.float32, torch.device("cpu"))
    assert resampling((9, 9), (4, 4), torch.float32, torch.device("cpu")) is first
    leaf = torch.ones(1, 81, 2, requires_grad=True)
    resized(leaf, (9, 9), (4, 4)).sum().backward()
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad.sum(), torch.tensor(32.0))  # rows of the matrix sum to 1


def test_autocast_does_not_round_positions() -> None:
    values = torch.randn(1, 196, 8, generator=torch.Generator().manual_seed(0))
    plain = resized(values, (14, 14), (6, 6))
    with torch.autocast("cpu", torch.bfloat16):
        cast = resized(values, (14, 14), (6, 6))
    assert cast.dtype == torch.float32
    assert torch.equal(cast, plain)


@pytest.mark.parametrize("options", [{}, {"reg_tokens": 2}, {"no_embed_class": True, "reg_tokens": 1}])
def test_an_encoder_answers_and_learns_as_timms_own(options: dict[str, object]) -> None:
    name, dynamic = "vit_tiny_patch16_224", {"dynamic_img_size": True, "depth": 1, **options}
    torch.manual_seed(0)
    own = timm_encoder(name, **dynamic)
    assert type(own) is ResizedPositions
    other = timm.create_model(name, num_classes=0, **dynamic)
    other.load_state_dict(own.state_dict())
    for side in (224, 96):
        x = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(side))
        answers = [encoder(x) for encoder in (own, other)]
        torch.testing.assert_close(*answers, rtol=0, atol=1e-5)
        weight = torch.randn(2, 192, generator=torch.Generator().manual_seed(1))
        slopes = [
            torch.autograd.grad((y * weight).sum(), net.pos_embed)[0]
            for y, net in zip(answers, (own, other), strict=True)
        ]
        torch.testing.assert_close(*slopes, rtol=0, atol=1e-5 * float(slopes[1].abs().max()))


def test_a_copy_resizes_its_own_positions() -> None:
    encoder = timm_encoder("vit_tiny_patch16_224", dynamic_img_size=True, depth=1)
    teacher = copy.deepcopy(encoder)
    with torch.no_grad():
        teacher.pos_embed.add_(torch.randn_like(teacher.pos_embed))
    x = torch.randn(1, 3, 96, 96)
    assert not torch.allclose(encoder(x), teacher(x))


def test_encoders_of_one_size_stay_timms() -> None:
    assert type(timm_encoder("vit_tiny_patch16_224", depth=1)) is not ResizedPositions
