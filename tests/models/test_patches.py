"""Patches of any side give the nearest tokens, dropped tokens leave the others as they are, and draws know no rank."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dist_ssl.core.draws import Draws, Purpose
from dist_ssl.core.tokens import ALL_TOKENS, Tokens
from dist_ssl.errors import ConfigError
from dist_ssl.models.encoders import TinyResNet, timm_encoder
from dist_ssl.models.patches import (
    Dropout,
    Projection,
    check_side,
    check_support,
    drop_tokens,
    patch_resampling,
    projections,
    set_patch,
)
from dist_ssl.models.vit import vit

CPU = torch.device("cpu")
SIDES = st.integers(2, 9)
FEW = settings(max_examples=25, deadline=None)


def ours(**own: Any) -> nn.Module:
    """A transformer with fixed positions, patches of 4 px and trained patches."""
    torch.manual_seed(0)
    return vit(**{"width": 16, "depth": 2, "heads": 4, "patch": 4, "frozen_patches": False, **own}).double()


def timms() -> nn.Module:
    """One of timm's with learnt positions, a register token and patches of 4 px."""
    torch.manual_seed(0)
    small = {"embed_dim": 16, "num_heads": 4, "patch_size": 4, "img_size": 24, "depth": 2, "reg_tokens": 1}
    return timm_encoder("vit_tiny_patch16_224", dynamic_img_size=True, **small).double()


encoders = pytest.mark.parametrize("made", [ours, timms])


def images(count: int = 3, side: int = 24, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def before_the_blocks(encoder: nn.Module, x: Tensor) -> Tensor:
    """The tokens that the first block sees, [B, tokens, D]."""
    caught: list[Tensor] = []
    hook = encoder.blocks[0].register_forward_pre_hook(lambda _, args: caught.append(args[0]))  # type: ignore[index,union-attr]
    encoder(x)
    hook.remove()
    return caught[0]


def resize(patches: Tensor, side: int) -> Tensor:
    """Patches, [N, p, p], bilinearly resized to a side."""
    return F.interpolate(patches[:, None], size=(side, side), mode="bilinear", antialias=True)[:, 0]


def projection(old: int, generator: torch.Generator) -> Projection:
    made = Projection(3, 2, old, old).double()
    with torch.no_grad():
        made.weight.copy_(torch.randn(made.weight.shape, dtype=torch.float64, generator=generator))
    return made


@FEW
@given(SIDES, SIDES, st.integers(0, 2**31))
def test_resized_weights_answer_larger_patches_as_the_old_ones_answered_the_small(
    old: int, new: int, seed: int
) -> None:
    old, new = sorted((old, new))
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(5 * 3, old, old, dtype=torch.float64, generator=generator)
    own = projection(old, generator)
    larger = resize(x, new).view(5, 3, new, new)
    before = torch.einsum("nchw,dchw->nd", x.view(5, 3, old, old), own.weight)
    after = torch.einsum("nchw,dchw->nd", larger, own.resized(new))
    torch.testing.assert_close(after, before, rtol=0, atol=1e-9)


@FEW
@given(SIDES, SIDES)
def test_the_matrix_solves_the_least_squares_problem(old: int, new: int) -> None:
    pixels = torch.eye(old * old, dtype=torch.float64).view(-1, old, old)
    b = resize(pixels, new).flatten(1).T  # [new^2, old^2]: resize(x) = b x
    matrix = patch_resampling(old, new, torch.float64, CPU)
    solved = torch.linalg.lstsq(b.T, torch.eye(old * old, dtype=torch.float64), driver="gelsd").solution
    torch.testing.assert_close(matrix, solved, rtol=0, atol=1e-9)
    torch.testing.assert_close(b @ (b.T @ matrix - torch.eye(old * old)), torch.zeros_like(b), rtol=0, atol=1e-9)


def test_no_other_weights_come_nearer_where_patches_shrink() -> None:
    generator = torch.Generator().manual_seed(0)
    b = resize(torch.eye(64, dtype=torch.float64).view(-1, 8, 8), 4).flatten(1).T
    w = torch.randn(64, dtype=torch.float64, generator=generator)
    found = patch_resampling(8, 4, torch.float64, CPU) @ w
    error = (w - b.T @ found).square().sum()  # the mean of (<x, w> - <b x, w'>)^2 over x ~ N(0, 1)
    assert error > 1e-3
    for _ in range(20):
        other = found + 0.01 * torch.randn(16, dtype=torch.float64, generator=generator)
        assert (w - b.T @ other).square().sum() > error


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_patches_of_the_own_side_are_a_plain_convolution_to_the_bit(dtype: torch.dtype) -> None:
    made, x = projection(4, torch.Generator().manual_seed(0)).to(dtype), images().to(dtype)
    made.patch = 4
    assert made.resized(4) is made.weight
    assert torch.equal(made(x), F.conv2d(x, made.weight, made.bias, 4).flatten(2).transpose(1, 2))
    torch.testing.assert_close(patch_resampling(4, 4, dtype, CPU), torch.eye(16, dtype=dtype), rtol=0, atol=1e-6)


@encoders
def test_patches_enlarged_one_by_one_have_the_same_tokens_as_before(made: Any) -> None:
    encoder, x = made(), images(side=12)
    small = x.unflatten(3, (3, 4)).unflatten(2, (3, 4)).permute(0, 2, 4, 1, 3, 5)  # [B, rows, columns, 3, 4, 4]
    large = resize(small.flatten(0, 3), 8).view(3, 3, 3, 3, 8, 8).permute(0, 3, 1, 4, 2, 5).reshape(3, 3, 24, 24)
    plain = encoder.patch_embed.proj(x)
    set_patch(encoder, 8)
    torch.testing.assert_close(encoder.patch_embed.proj(large), plain, rtol=0, atol=1e-12)


def test_a_larger_patch_has_the_position_of_its_centre() -> None:
    encoder, x = ours(), images(side=24)
    set_patch(encoder, 8)
    found = before_the_blocks(encoder, x)[:, 1:]
    places = found - F.conv2d(x, encoder.patch_embed.proj.resized(8), encoder.patch_embed.proj.bias, 8).flatten(2).mT
    for number in range(9):
        h, w = (2 * (number // 3) + 0.5, 2 * (number % 3) + 0.5)  # patch 1 of 8 px covers the small patches 2 and 3
        rates = [10000 ** (-i / 4) for i in range(4)]
        wanted = [f(at * rate) for at in (w, h) for f in (np.sin, np.cos) for rate in rates]
        torch.testing.assert_close(places[0, number], torch.tensor(wanted, dtype=torch.float64), rtol=0, atol=1e-12)


@encoders
def test_the_gradient_passes_through_resized_weights_and_chosen_patches(made: Any) -> None:
    encoder, x = made(), images(side=24)
    weight = encoder.patch_embed.proj.weight
    slopes = torch.randn(3, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def value() -> Tensor:
        set_patch(encoder, 6)
        drop_tokens(encoder, Draws(3).of(np.arange(3), Tokens(0.5, 6)), 1)
        return (encoder(x) * slopes).sum()

    (found,) = torch.autograd.grad(value(), weight)
    step = 1e-5 * torch.randn(weight.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            weight.add_(sign * step)
            ends.append(value())
            weight.sub_(sign * step)
    assert float((found * step).sum()) == pytest.approx(float(ends[0] - ends[1]) / 2, rel=1e-5)


@encoders
@pytest.mark.parametrize("patch", [0, 8])
def test_kept_tokens_are_those_of_all_with_their_positions_and_the_class_token_stays(made: Any, patch: int) -> None:
    encoder, x, tokens = made(), images(6), Tokens(0.4, patch)
    prefix = encoder.num_prefix_tokens
    draws = Draws(7, 2).of(np.array([5, 9, 11]), tokens)
    set_patch(encoder, patch)
    whole = before_the_blocks(encoder, x)
    drop_tokens(encoder, draws, 2)
    some = before_the_blocks(encoder, x)
    count = whole.shape[1] - prefix
    kept = Dropout(draws, 2, 1, 0).kept(count)
    assert kept.shape == (6, tokens.kept(count))
    assert some.shape[1] == prefix + tokens.kept(count) < whole.shape[1]
    torch.testing.assert_close(some[:, :prefix], whole[:, :prefix], rtol=0, atol=0)
    wanted = whole[:, prefix:].gather(1, kept[:, :, None].expand(-1, -1, 16))
    torch.testing.assert_close(some[:, prefix:], wanted, rtol=0, atol=1e-12)


@encoders
def test_tokens_are_dropped_in_one_pass_only_and_never_in_evaluation(made: Any) -> None:
    encoder, x = made(), images()
    draws = Draws(0).of(np.arange(3), Tokens(0.5))
    whole = encoder(x)
    drop_tokens(encoder, draws, 1)
    assert not torch.allclose(encoder(x), whole)
    assert torch.equal(encoder(x), whole)
    set_patch(encoder, 12)
    drop_tokens(encoder, draws, 1)
    assert torch.equal(encoder.eval()(x), whole)


def test_all_tokens_kept_by_choice_are_all_tokens() -> None:
    encoder, x = ours(), images()
    whole = encoder(x)
    drop_tokens(encoder, Draws(0).of(np.arange(3), Tokens(0.999)), 1)
    torch.testing.assert_close(encoder(x), whole, rtol=0, atol=1e-12)


def test_a_pass_of_other_views_than_were_drawn_for_is_an_error() -> None:
    encoder = ours()
    drop_tokens(encoder, Draws(0).of(np.arange(3), Tokens(0.5)), 2)
    with pytest.raises(AssertionError, match="drawn for 6 views, used with 3"):
        encoder(images())


def test_a_row_of_a_pass_has_the_draws_of_its_sample_and_slot() -> None:
    tokens, ids = Tokens(0.5), np.array([4, 8, 15, 16])
    kept = Dropout(Draws(1, 2).of(ids, tokens), 2, 3, 5).kept(10).view(2, 4, 3, 5)
    for view in range(2):
        for sample in range(4):
            for row in range(3):
                slot = 5 + 3 * view + row
                own = Draws(1, 2).chosen(Purpose.TOKENS, ids[sample : sample + 1], range(slot, slot + 1), 10, 5)
                assert kept[view, sample, row].tolist() == own[0, 0].tolist()
    assert len({tuple(row.tolist()) for row in kept.view(-1, 5)}) > 15  # of 24 rows, out of 252 choices


def test_frozen_patches_of_another_side_stay_frozen() -> None:
    encoder = ours(frozen_patches=True)
    set_patch(encoder, 8)
    encoder(images()).sum().backward()
    assert encoder.patch_embed.proj.weight.grad is None
    assert encoder.cls_token.grad is not None


def test_autocast_does_not_round_resized_weights() -> None:
    made = projection(4, torch.Generator().manual_seed(0)).float()
    plain = made.resized(6)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(made.resized(6), plain)


def test_the_matrix_is_made_once_per_side_and_serves_training_when_inference_asked_first() -> None:
    with torch.inference_mode():
        first = patch_resampling(3, 7, torch.float32, CPU)
    assert patch_resampling(3, 7, torch.float32, CPU) is first
    weight = torch.ones(2, 9, requires_grad=True)
    (weight @ first.T).sum().backward()
    assert weight.grad is not None


REFUSED = {
    "no share": (Tokens(0.0), "schedule.keep_tokens=0 is not possible"),
    "more than all": (Tokens(1.5), "schedule.keep_tokens=1.5 is not possible"),
    "no number": (Tokens(float("nan")), "schedule.keep_tokens=nan is not possible"),
    "less than nothing": (Tokens(1.0, -4), "schedule.patch_size=-4 is not possible"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_values_outside_their_range_are_refused(case: str) -> None:
    tokens, message = REFUSED[case]
    with pytest.raises(ConfigError) as refusal:
        check_support(ours(), tokens)
    assert message in str(refusal.value)


def test_encoders_without_tokens_that_can_be_chosen_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"schedule.keep_tokens=0.5 is not possible with this encoder, TinyResNet"):
        check_support(TinyResNet(4), Tokens(0.5))
    fixed = timm_encoder("vit_tiny_patch16_224", depth=1)
    with pytest.raises(ConfigError, match=r"schedule.patch_size=32 is not possible .*, VisionTransformer"):
        check_support(fixed, Tokens(patch=32))
    check_support(TinyResNet(4), ALL_TOKENS)
    for encoder in (ours(), timms()):
        assert len(projections(encoder)) == 1
        check_support(encoder, Tokens(0.25, 8))


def test_sides_are_multiples_of_the_patch_and_one_token_is_kept() -> None:
    check_side(ours(), 24, "schedule.image_size", Tokens(0.5, 6))
    with pytest.raises(
        ConfigError, match=r"schedule.image_size=20 does not fit schedule.patch_size=8.*\n.*multiple of 8"
    ):
        check_side(ours(), 20, "schedule.image_size", Tokens(1.0, 8))
    with pytest.raises(ConfigError, match=r"schedule.keep_tokens=0.1 keeps none of the 4 tokens of key=16"):
        check_side(ours(), 16, "key", Tokens(0.1, 8))
    set_patch(encoder := ours(), 9)
    with pytest.raises(ConfigError, match=r"=24 does not fit schedule.patch_size=9"):
        encoder(images())


def test_the_nearest_number_of_tokens_is_kept() -> None:
    kept = [Tokens(share).kept(count) for share, count in [(0.5, 25), (0.5, 24), (0.25, 1), (0.5, 1), (1.0, 7)]]
    assert kept == [13, 12, 0, 1, 7]
