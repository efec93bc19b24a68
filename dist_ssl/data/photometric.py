"""Colour, blur and normalisation on the device, batched, every sample with its own parameters.

All parameters are drawn on the host, keyed by sample, so the host knows which samples an effect touches and the
device never waits. Order: jitter (its four parts in an order of the sample's own), gray, blur, solarize, flip, turn,
normalise. Values are floats in [0, 1] in between, clamped after each part as torchvision does; where torchvision
rounds to uint8 after each part, nothing is rounded here.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dist_ssl.data.views import Recipe
from dist_ssl.draws import Draws, Floats, Purpose

LUMA = (0.2989, 0.587, 0.114)
SOLARIZE_FROM = 128 / 255
Ints = npt.NDArray[np.int64]


def luma(x: Tensor) -> Tensor:
    """[B, 3, H, W] -> [B, 1, H, W], ITU-R 601."""
    return LUMA[0] * x[:, 0:1] + LUMA[1] * x[:, 1:2] + LUMA[2] * x[:, 2:3]


def blend(x: Tensor, other: Tensor | float, factor: Tensor) -> Tensor:
    """factor * x + (1 - factor) * other, clamped to [0, 1]; factor [B, 1, 1, 1]."""
    return (factor * x + (1 - factor) * other).clamp_(0, 1)


def brightness(x: Tensor, factor: Tensor) -> Tensor:
    """Towards black."""
    return blend(x, 0.0, factor)


def contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Towards the image's mean luma."""
    return blend(x, luma(x).mean((1, 2, 3), keepdim=True), factor)


def saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Towards the image's own luma."""
    return blend(x, luma(x), factor)


def hue(x: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue of HSV by `turns` [B, 1, 1, 1], -0.5 to 0.5; value and saturation stay."""
    value, _ = x.max(1, keepdim=True)
    chroma = value - x.amin(1, keepdim=True)
    r, g, b = x[:, 0:1], x[:, 1:2], x[:, 2:3]
    safe = chroma.clamp_min(1e-12)
    sixth = torch.where(r == value, (g - b) / safe, torch.where(g == value, (b - r) / safe + 2.0, (r - g) / safe + 4.0))
    sixth = sixth + 6.0 * turns
    offsets = torch.tensor([5.0, 3.0, 1.0], device=x.device, dtype=x.dtype).view(1, 3, 1, 1)
    k = torch.remainder(sixth + offsets, 6.0)
    return value - chroma * torch.minimum(k, 4.0 - k).clamp(0.0, 1.0)


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
        x = pixels.permute(0, 3, 1, 2).to(dtype) / 255
        self._jitter(x, ids, draws)
        self._gray(x, ids, draws)
        self._blur(x, ids, draws)
        self._solarize(x, ids, draws)
        self._flip(x, ids, draws)
        self._turn(x, ids, draws)
        return normalise(x, self.mean, self.std)

    def _chosen(self, purpose: Purpose, ids: Ints, draws: Draws, p: float, count: int = 1) -> tuple[Ints, Floats]:
        """Rows that an effect of probability p touches, and count - 1 further draws for each of them."""
        numbers = draws.uniform(purpose, ids, self.slot, count)
        rows = np.flatnonzero(numbers[:, 0] < np.float32(p))
        return rows, numbers[rows, 1:]

    def _jitter(self, x: Tensor, ids: Ints, draws: Draws) -> None:
        r = self.recipe
        rows, numbers = self._chosen(Purpose.JITTER, ids, draws, r.jitter_p, 9)
        order = np.argsort(numbers[:, 4:], axis=1, kind="stable")
        spread = np.array([r.brightness, r.contrast, r.saturation, r.hue], dtype=np.float32)
        centre = np.array([1.0, 1.0, 1.0, 0.0], dtype=np.float32)
        lowest = np.array([0.0, 0.0, 0.0, -0.5], dtype=np.float32)
        low = np.maximum(centre - spread, lowest)
        factors = low + numbers[:, :4] * (centre + spread - low)
        for place in range(4):
            for part, change in enumerate((brightness, contrast, saturation, hue)):
                mine = np.flatnonzero(order[:, place] == part)
                if len(mine) and spread[part] > 0:
                    at = torch.from_numpy(rows[mine]).to(x.device)
                    x[at] = change(x[at], _column(factors[mine, part], x))

    def _gray(self, x: Tensor, ids: Ints, draws: Draws) -> None:
        rows, _ = self._chosen(Purpose.GRAY, ids, draws, self.recipe.gray_p)
        at = torch.from_numpy(rows).to(x.device)
        x[at] = luma(x[at]).expand(-1, 3, -1, -1)

    def _blur(self, x: Tensor, ids: Ints, draws: Draws) -> None:
        r = self.recipe
        rows, numbers = self._chosen(Purpose.BLUR, ids, draws, r.blur_p, 2)
        if len(rows):
            at = torch.from_numpy(rows).to(x.device)
            sigma = _column(r.blur_min + numbers[:, 0] * (r.blur_max - r.blur_min), x).flatten()
            x[at] = blur(x[at].contiguous(), sigma)

    def _solarize(self, x: Tensor, ids: Ints, draws: Draws) -> None:
        rows, _ = self._chosen(Purpose.SOLARIZE, ids, draws, self.recipe.solarize_p)
        at = torch.from_numpy(rows).to(x.device)
        bright = x[at]
        x[at] = torch.where(bright < SOLARIZE_FROM, bright, 1 - bright)

    def _flip(self, x: Tensor, ids: Ints, draws: Draws) -> None:
        rows, _ = self._chosen(Purpose.FLIP, ids, draws, self.recipe.flip_p)
        at = torch.from_numpy(rows).to(x.device)
        x[at] = x[at].flip(-1)

    def _turn(self, x: Tensor, ids: Ints, draws: Draws) -> None:
        rows, numbers = self._chosen(Purpose.TURN, ids, draws, self.recipe.turn_p, 2)
        quarters = 1 + (3 * numbers[:, 0]).astype(np.int64)
        for count in (1, 2, 3):
            at = torch.from_numpy(rows[quarters == count]).to(x.device)
            x[at] = torch.rot90(x[at], count, (-2, -1))


def normalise(x: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(x - mean) / std per channel."""
    scale = torch.tensor([1 / s for s in std], device=x.device, dtype=x.dtype).view(1, 3, 1, 1)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=x.device, dtype=x.dtype)
    return torch.addcmul(shift.view(1, 3, 1, 1), x, scale)


def _column(values: Floats, like: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(like.device, like.dtype).view(-1, 1, 1, 1)
