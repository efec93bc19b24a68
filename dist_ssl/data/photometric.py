"""Colour, blur and normalisation on the device, batched, every sample with its own parameters.

All parameters are drawn on the host, keyed by sample, so the host knows which samples an effect touches and the
device never waits. What is cheap is done to the whole batch, with parameters that leave the others as they are; hue
and blur are done to those samples alone that they touch. Order: jitter (its four parts in an order of the sample's
own), gray, blur, solarize, invert, flip, turn, normalise. Values are floats in [0, 1] in between, clamped after each
part as torchvision does; where torchvision rounds to uint8 after each part, nothing is rounded here.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dist_ssl.data.views import Recipe
from dist_ssl.draws import Draws, Floats, Purpose

LUMA = (0.2989, 0.587, 0.114)
SOLARIZE_FROM = 128 / 255
BRIGHTNESS, CONTRAST, SATURATION, HUE, NOTHING = range(5)
PARTS = 4
CENTRE = np.array([1.0, 1.0, 1.0, 0.0], dtype=np.float32)
LOWEST = np.array([0.0, 0.0, 0.0, -0.5], dtype=np.float32)
"""Of the factors of the four parts: what changes nothing, and the smallest allowed."""
NUMBERS = {
    Purpose.JITTER: 9,
    Purpose.GRAY: 1,
    Purpose.BLUR: 2,
    Purpose.SOLARIZE: 1,
    Purpose.INVERT: 1,
    Purpose.FLIP: 1,
    Purpose.TURN: 2,
}
"""How many numbers a sample takes for each effect; the first decides whether it is touched."""
Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


def luma(x: Tensor) -> Tensor:
    """[B, 3, H, W] -> [B, 1, H, W], ITU-R 601."""
    return LUMA[0] * x[:, 0:1] + LUMA[1] * x[:, 1:2] + LUMA[2] * x[:, 2:3]


def blend(x: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """factor * x + (1 - factor) * other, clamped to [0, 1]; factor [B, 1, 1, 1]."""
    return (factor * x + (1 - factor) * other).clamp_(0, 1)


def hue(x: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue of HSV by `turns` [B, 1, 1, 1], -0.5 to 0.5; value and saturation stay."""
    value = x.amax(1, keepdim=True)
    chroma = value - x.amin(1, keepdim=True)
    r, g, b = x[:, 0:1], x[:, 1:2], x[:, 2:3]
    safe = chroma.clamp_min(1e-12)
    sixth = torch.where(r == value, (g - b) / safe, torch.where(g == value, (b - r) / safe + 2.0, (r - g) / safe + 4.0))
    sixth = sixth + 6.0 * turns
    offsets = torch.tensor([5.0, 3.0, 1.0], device=x.device, dtype=x.dtype).view(1, 3, 1, 1)
    k = torch.remainder(sixth + offsets, 6.0)
    return value - chroma * torch.minimum(k, 4.0 - k).clamp(0.0, 1.0)


def solarize(x: Tensor) -> Tensor:
    """Invert what is bright."""
    return torch.where(x < SOLARIZE_FROM, x, 1 - x)


def blur(x: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur with deviation `sigma` [B] px, mirrored at the edges: two products with [S, S] matrices."""
    kernel = gaussian_matrix(sigma, x.shape[-1])
    return kernel @ x @ kernel.transpose(-1, -2)


def gaussian_matrix(sigma: Tensor, size: int) -> Tensor:
    """[B, 1, S, S]: row i holds the weights that pixel i gives to the pixels of its line, edges mirrored."""
    place = torch.arange(size, device=sigma.device, dtype=sigma.dtype)
    i, j = place[:, None], place[None, :]
    mirror_low, mirror_high = i + j, 2 * (size - 1) - j - i
    scale = -0.5 / sigma.view(-1, 1, 1, 1) ** 2
    weights = torch.exp(scale * (i - j) ** 2)
    weights = weights + torch.exp(scale * mirror_low**2) * (j > 0)
    weights = weights + torch.exp(scale * mirror_high**2) * (j < size - 1)
    return weights / weights.sum(-1, keepdim=True)


class Photometry:
    """Applies the colour half of one recipe to one view slot. `mean`, `std`: per channel, of values in [0, 1]."""

    def __init__(self, recipe: Recipe, slot: int, mean: Sequence[float], std: Sequence[float]) -> None:
        self.recipe, self.slot, self.mean, self.std = recipe, slot, mean, std

    def __call__(self, pixels: Tensor, ids: Ints, draws: Draws, dtype: torch.dtype) -> Tensor:
        """[B, S, S, 3] uint8 on the device -> [B, 3, S, S] `dtype`, normalised, channels last in memory."""
        r, drawn = self.recipe, draws.uniforms(NUMBERS, ids, self.slot)
        x = pixels.permute(0, 3, 1, 2).to(dtype, memory_format=torch.contiguous_format).div_(255)
        x = self._jitter(x, drawn[Purpose.JITTER])
        x = _where(_hit(drawn[Purpose.GRAY], r.gray_p), x, luma)
        self._blur(x, drawn[Purpose.BLUR])
        x = _where(_hit(drawn[Purpose.SOLARIZE], r.solarize_p), x, solarize)
        x = _where(_hit(drawn[Purpose.INVERT], r.invert_p), x, lambda x: 1 - x)
        x = self._turn(x, drawn[Purpose.FLIP], drawn[Purpose.TURN])
        return normalise(x, self.mean, self.std).contiguous(memory_format=torch.channels_last)

    def _jitter(self, x: Tensor, numbers: Floats) -> Tensor:
        r = self.recipe
        spread = np.array([r.brightness, r.contrast, r.saturation, r.hue], dtype=np.float32)
        low = np.maximum(CENTRE - spread, LOWEST)
        factors = low + numbers[:, 1:5] * (CENTRE + spread - low)
        order = np.argsort(numbers[:, 5:], axis=1, kind="stable")
        order[~_hit(numbers, r.jitter_p)[:, None] | (spread[order] == 0)] = NOTHING
        for part in order.T:
            x = _blend_some(x, part, factors)
            rows = np.flatnonzero(part == HUE)
            if len(rows):
                at = torch.from_numpy(rows).to(x.device)
                x[at] = hue(x[at], _column(factors[rows, HUE], x))
        return x

    def _blur(self, x: Tensor, numbers: Floats) -> None:
        r = self.recipe
        rows = np.flatnonzero(_hit(numbers, r.blur_p))
        if len(rows):
            at = torch.from_numpy(rows).to(x.device)
            sigma = _column(r.blur_min + numbers[rows, 1] * (r.blur_max - r.blur_min), x).flatten()
            x[at] = blur(x[at], sigma)

    def _turn(self, x: Tensor, flips: Floats, turns: Floats) -> Tensor:
        """Mirror some, then turn some by quarters: together a transposition and two mirrors."""
        flip = _hit(flips, self.recipe.flip_p)
        quarters = np.where(_hit(turns, self.recipe.turn_p), 1 + (3 * turns[:, 1]).astype(np.int64), 0)
        odd = quarters % 2 == 1
        x = _where(odd, x, lambda x: x.transpose(-2, -1))
        x = _where(np.isin(quarters, (1, 2)) ^ (flip & odd), x, lambda x: x.flip(-2))
        return _where(np.isin(quarters, (2, 3)) ^ (flip & ~odd), x, lambda x: x.flip(-1))


def _hit(numbers: Floats, p: float) -> Flags:
    """[B] whom an effect of probability p touches, by the first of a sample's numbers."""
    flags: Flags = numbers[:, 0] < np.float32(p)
    return flags


def _where(flags: Flags, x: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """The batch with the flagged samples changed."""
    if not flags.any():
        return x
    return torch.where(torch.from_numpy(flags).to(x.device).view(-1, 1, 1, 1), change(x), x)


def _blend_some(x: Tensor, part: Ints, factors: Floats) -> Tensor:
    """Blend each sample towards black, its mean luma, its luma, or not at all, as `part` [B] says."""
    blended = part < HUE
    if not blended.any():
        return x
    factor = np.where(blended, factors[np.arange(len(part)), part % PARTS], np.float32(1))
    gray = luma(x)
    other = gray * _column(part == SATURATION, x)
    other += gray.mean((1, 2, 3), keepdim=True) * _column(part == CONTRAST, x)
    return blend(x, other, _column(factor, x))


def normalise(x: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(x - mean) / std per channel."""
    scale = torch.tensor([1 / s for s in std], device=x.device, dtype=x.dtype).view(1, 3, 1, 1)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=x.device, dtype=x.dtype)
    return torch.addcmul(shift.view(1, 3, 1, 1), x, scale)


def _column(values: Floats | Flags, like: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(like.device, like.dtype).view(-1, 1, 1, 1)
