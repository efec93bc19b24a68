"""Batched colour augmentation, blur, flips and normalisation on the device, with separate parameters per sample.

All parameters are drawn on the host, keyed by sample, so the host knows which samples an effect changes and the device
never waits; they reach it in one copy. Single-precision views on a CPU are processed by compiled loops
(`photometric_cpu.py`), views on a GPU by Triton kernels (`photometric_triton.py`). The reference of both, and the path
of all other views, are torch operations: cheap effects run on the whole batch, with parameters that leave the other
samples unchanged; hue and blur run only on the samples that they change. Order: jitter (its four parts in a random
order per sample), gray, blur, solarize, invert, flip, turn, normalise. In between, values are floats in [0, 1], clamped
after each part as torchvision does; unlike torchvision on uint8 images, nothing is rounded after a part. Images of
other channels than three or of 16 bits take the path of torch; contrast blends each channel with its own mean.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dist_ssl.core.draws import Draws, Flags, Floats, Ints, Purpose
from dist_ssl.data.images.colour_constants import CONTRAST, HUE, LUMA, NOTHING, PARTS, SATURATION
from dist_ssl.data.images.host_to_device import send
from dist_ssl.data.images.pixel_numbers import loopable, white
from dist_ssl.data.images.resize import SMALLEST_LOOPED
from dist_ssl.data.images.views import Augmentation

SOLARIZE_FROM = 128 / 255
CENTRE = np.array([1.0, 1.0, 1.0, 0.0], dtype=np.float32)
LOWEST = np.array([0.0, 0.0, 0.0, -0.5], dtype=np.float32)
"""Smallest allowed factors of the four parts; `CENTRE` holds the factors that change nothing."""
NUMBERS = {
    Purpose.JITTER: 9,
    Purpose.GRAY: 1,
    Purpose.BLUR: 2,
    Purpose.SOLARIZE: 1,
    Purpose.INVERT: 1,
    Purpose.FLIP: 1,
    Purpose.TURN: 2,
}
"""Count of random numbers per sample for each effect; the first of them decides whether the effect is applied."""


def luma(x: Tensor) -> Tensor:
    """Return the luma, [B, 3, H, W] -> [B, 1, H, W], with the weights of ITU-R 601."""
    return LUMA[0] * x[:, 0:1] + LUMA[1] * x[:, 1:2] + LUMA[2] * x[:, 2:3]


def blend(x: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """Return factor * x + (1 - factor) * other, clamped to [0, 1]; factor [B, 1, 1, 1]."""
    return (factor * x + (1 - factor) * other).clamp_(0, 1)


def hue(x: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue of HSV by `turns` [B, 1, 1, 1], -0.5 to 0.5; value and saturation stay."""
    value = x.amax(1, keepdim=True)
    chroma = value - x.amin(1, keepdim=True)
    r, g, b = x[:, 0:1], x[:, 1:2], x[:, 2:3]
    safe = chroma.clamp_min(1e-12)
    sixth = torch.where(r == value, (g - b) / safe, torch.where(g == value, (b - r) / safe + 2.0, (r - g) / safe + 4.0))
    sixth = sixth + 6.0 * turns
    offsets = (5 - 2 * torch.arange(3, device=x.device, dtype=x.dtype)).view(1, 3, 1, 1)
    k = torch.remainder(sixth + offsets, 6.0)
    return value - chroma * torch.minimum(k, 4.0 - k).clamp(0.0, 1.0)


def solarize(x: Tensor) -> Tensor:
    """Invert the values (x -> 1 - x) from `SOLARIZE_FROM` on."""
    return torch.where(x < SOLARIZE_FROM, x, 1 - x)


def blur(x: Tensor, sigma: Tensor) -> Tensor:
    """Blur by a Gaussian of `sigma` [B] px, mirrored at the edges: two products with [S, S] matrices."""
    kernel = gaussian_matrix(sigma, x.shape[-1])
    return kernel @ x @ kernel.transpose(-1, -2)


def gaussian_matrix(sigma: Tensor, size: int) -> Tensor:
    """Return [B, 1, S, S]: row i holds the weights with which pixel i sums the pixels of its line, edges mirrored."""
    place = torch.arange(size, device=sigma.device, dtype=sigma.dtype)
    i, j = place[:, None], place[None, :]
    mirror_low, mirror_high = i + j, 2 * (size - 1) - j - i
    scale = -0.5 / sigma.view(-1, 1, 1, 1) ** 2
    weights = torch.exp(scale * (i - j) ** 2)
    weights = weights + torch.exp(scale * mirror_low**2) * (j > 0)
    weights = weights + torch.exp(scale * mirror_high**2) * (j < size - 1)
    return weights / weights.sum(-1, keepdim=True)


@dataclass(frozen=True)
class Looks:
    """The photometric parameters of every sample of a batch; flags are [B] bool."""

    order: Ints
    """Parts of the jitter in the order of each sample, [B, 4]; `NOTHING` where a part is left out."""
    factors: Floats
    """Factors of the parts, [B, 4]; that of the hue is a shift in turns."""
    gray: Flags
    sigma: Floats
    """Standard deviation of the blur, [B], px; 0: no blur."""
    solarize: Flags
    invert: Flags
    transpose: Flags
    mirror_rows: Flags
    mirror_columns: Flags

    def of(self, rows: slice) -> "Looks":
        """Return the parameters of some of the samples."""
        return Looks(**{name: array[rows] for name, array in vars(self).items()})


class Photometry:
    """The photometric part of one recipe for one view slot. `mean`, `std`: per channel, for values in [0, 1]."""

    def __init__(self, recipe: Augmentation, slot: int, mean: Sequence[float], std: Sequence[float]) -> None:
        self.recipe, self.slot, self.mean, self.std = recipe, slot, mean, std

    def __call__(self, pixels: Tensor, ids: Ints, draws: Draws, dtype: torch.dtype) -> Tensor:
        """Augment [B, S, S, C] uint8 on the device -> [B, C, S, S] `dtype`, normalised, channels last in memory."""
        return colour([self], [pixels], ids, draws, dtype)[0]

    def change(self, pixels: Tensor, looks: Looks, there: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        """Augment [B, S, S, C] uint8 -> [B, C, S, S] `dtype` with torch operations; `there`: `looks` on the device."""

        def changed(name: str, x: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
            return torch.where(there[name].view(-1, 1, 1, 1), change(x), x) if getattr(looks, name).any() else x

        single = torch.promote_types(dtype, torch.float32)  # a shorter type is rounded to once, at the end
        x = pixels.permute(0, 3, 1, 2).to(single, memory_format=torch.contiguous_format).div_(white(pixels))
        x = jitter(x, looks.order, there["order"], there["factors"])
        x = changed("gray", x, luma)
        if blurred := int(np.count_nonzero(looks.sigma)):
            at = _rows(there["sigma"] > 0, blurred)
            x[at] = blur(x[at], there["sigma"][at].to(single))
        x = changed("solarize", x, solarize)
        x = changed("invert", x, lambda x: 1 - x)
        x = changed("transpose", x, lambda x: x.transpose(-2, -1))
        x = changed("mirror_rows", x, lambda x: x.flip(-2))
        x = changed("mirror_columns", x, lambda x: x.flip(-1))
        return normalise(x, self.mean, self.std).contiguous(memory_format=torch.channels_last).to(dtype)

    def looks(self, drawn: Mapping[Purpose, Floats]) -> Looks:
        """Convert the `NUMBERS` drawn for some samples to parameters.

        A flip followed by quarter turns becomes a transposition and two mirrorings.
        """
        r = self.recipe
        order, factors = self.jitter(drawn[Purpose.JITTER])
        blurred = drawn[Purpose.BLUR]
        sigma = r.blur_min + blurred[:, 1] * (r.blur_max - r.blur_min)
        flip, turns = _hit(drawn[Purpose.FLIP], r.flip_p), drawn[Purpose.TURN]
        quarters = np.where(_hit(turns, r.turn_p), 1 + (3 * turns[:, 1]).astype(np.int64), 0)
        odd = quarters % 2 == 1
        return Looks(
            order=order,
            factors=factors,
            gray=_hit(drawn[Purpose.GRAY], r.gray_p),
            sigma=np.where(_hit(blurred, r.blur_p), sigma, np.float32(0)),
            solarize=_hit(drawn[Purpose.SOLARIZE], r.solarize_p),
            invert=_hit(drawn[Purpose.INVERT], r.invert_p),
            transpose=odd,
            mirror_rows=((quarters == 1) | (quarters == 2)) ^ (flip & odd),
            mirror_columns=(quarters >= 2) ^ (flip & ~odd),
        )

    def jitter(self, numbers: Floats) -> tuple[Ints, Floats]:
        """Return `Looks.order` and `Looks.factors` for the numbers drawn for the jitter of some samples, [B, 9]."""
        r = self.recipe
        spread = np.array([r.brightness, r.contrast, r.saturation, r.hue], dtype=np.float32)
        low = np.maximum(CENTRE - spread, LOWEST)
        order = np.argsort(numbers[:, 5:], axis=1, kind="stable")
        order[~_hit(numbers, r.jitter_p)[:, None] | (spread[order] == 0)] = NOTHING
        return order, low + numbers[:, 1:5] * (CENTRE + spread - low)


def colour(
    changes: Sequence[Photometry],
    views: Sequence[Tensor],
    ids: Ints,
    draws: Draws,
    dtype: torch.dtype,
    parts: int = 1,
    slots: Ints | None = None,
) -> list[Tensor]:
    """Augment each view [B, S, S, C] of the samples `ids` by its own photometry; same result as one call per view.

    `parts`: number of equal parts of the batch that torch operations process one after the other. `slots`: those of
    every sample's views, [V, B]; None: as the photometries have them.
    """
    drawn = draws.of_slots(NUMBERS, ids, np.array([[one.slot] for one in changes]) if slots is None else slots)
    looks = [change.looks({p: n[place] for p, n in drawn.items()}) for place, change in enumerate(changes)]
    return _finish(changes, views, looks, dtype, parts)


def _finish(
    changes: Sequence[Photometry], views: Sequence[Tensor], looks: Sequence[Looks], dtype: torch.dtype, parts: int
) -> list[Tensor]:
    given, device, rgb = list(zip(changes, views, looks, strict=True)), views[0].device, loopable(views[0])
    if rgb and device.type == "cuda" and _has_kernels(device, dtype):
        from dist_ssl.data.images.photometric_triton import colour_views

        return colour_views([_numbers(*one) for one in given], dtype)
    single = rgb and device.type == "cpu" and dtype == torch.float32
    looped = [single and view.shape[1] >= SMALLEST_LOOPED for view in views]
    works = [_numbers(*one) for one, loops in zip(given, looped, strict=True) if loops]
    done = iter(_in_loops(works) if works else [])
    there = iter(_there([look for look, loops in zip(looks, looped, strict=True) if not loops], device))
    cases = zip(looped, given, strict=True)
    return [next(done) if loops else _by_torch(*one, next(there), dtype, parts) for loops, one in cases]


@cache
def _has_kernels(device: torch.device, dtype: torch.dtype) -> bool:
    if not find_spec("triton"):
        return False
    from dist_ssl.data.images.photometric_triton import TYPES, usable

    return dtype in TYPES and usable(device)


def _there(looks: Sequence[Looks], device: torch.device) -> list[dict[str, Tensor]]:
    sent = iter(send([array for look in looks for array in vars(look).values()], device))
    return [{name: next(sent) for name in vars(look)} for look in looks]


def _by_torch(
    change: Photometry, view: Tensor, looks: Looks, there: Mapping[str, Tensor], dtype: torch.dtype, parts: int
) -> Tensor:
    if parts == 1:
        return change.change(view, looks, there, dtype)
    rows = len(view) // parts
    cuts = [slice(start, start + rows) for start in range(0, len(view), rows)]
    some = [(view[cut], looks.of(cut), {name: x[cut] for name, x in there.items()}) for cut in cuts]
    return torch.cat([change.change(*part, dtype) for part in some])


def _numbers(change: Photometry, view: Tensor, looks: Looks) -> tuple[Tensor, tuple[Any, ...], tuple[Any, ...]]:
    """Return a view, the parameters of its samples and those that they share, as loops and kernels take them."""
    turns = (looks.transpose, looks.mirror_rows, looks.mirror_columns)
    marks = np.stack([looks.gray, looks.solarize, looks.invert, *turns], axis=1).astype(np.int64)
    weight, shift = (np.array(v, np.float32) for v in _affine(change.mean, change.std))
    return view, (looks.order, looks.factors, looks.sigma, marks), (np.float32(SOLARIZE_FROM), weight, shift)


def _in_loops(works: Sequence[tuple[Tensor, tuple[Any, ...], tuple[Any, ...]]]) -> list[Tensor]:
    from dist_ssl.data.images.photometric_cpu import colour_views  # compiles (seconds): only where needed

    given = [(pixels.contiguous().numpy(), rows, rest) for pixels, rows, rest in works]
    return [found.permute(0, 3, 1, 2) for found in colour_views(given, torch.get_num_threads())]


def jitter(x: Tensor, order: Ints, there: Tensor, factors: Tensor) -> Tensor:
    """Apply brightness, contrast, saturation and hue in each sample's own order [B, 4]; `there`: that on the device."""
    for part, on_device in zip(order.T, there.unbind(1), strict=True):
        if (part < HUE).any():
            x = _blend_some(x, on_device, factors)
        if turned := int(np.count_nonzero(part == HUE)):
            at = _rows(on_device == HUE, turned)
            x[at] = hue(x[at], _column(factors[at, HUE], x))
    return x


def _rows(flags: Tensor, count: int) -> Tensor:
    """Return the indices of the `count` set flags [B], ascending; a search would make the host wait for the device."""
    return torch.argsort(flags.to(torch.uint8), descending=True, stable=True)[:count]


def _hit(numbers: Floats, p: float) -> Flags:
    """Return [B] bool: True where an effect of probability p applies, by the first of a sample's numbers."""
    flags: Flags = numbers[:, 0] < np.float32(p)
    return flags


def _blend_some(x: Tensor, part: Ints | Tensor, factors: Floats | Tensor) -> Tensor:
    """Blend each sample towards black, its mean luma, its luma, or not at all, as `part` [B] says."""
    part, factors = (torch.as_tensor(given, device=x.device) for given in (part, factors))
    own = factors.gather(1, (part % PARTS).unsqueeze(1)).squeeze(1)
    factor = torch.where(part < HUE, own, 1)
    gray, averaged = (luma(x), (1, 2, 3)) if x.shape[1] == len(LUMA) else (x, (2, 3))
    other = gray * _column(part == SATURATION, x)
    other += gray.mean(averaged, keepdim=True) * _column(part == CONTRAST, x)
    return blend(x, other, _column(factor, x))


def normalise(x: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return (x - mean) / std per channel."""
    # made on the device: a copy of three numbers would make the host wait
    scale, shift = (torch.cat([x.new_full((1, 1, 1, 1), number) for number in v], 1) for v in _affine(mean, std))
    return torch.addcmul(shift, x, scale)


def _affine(mean: Sequence[float], std: Sequence[float]) -> tuple[list[float], list[float]]:
    """Return the factor and the summand per channel that normalise values in [0, 1]."""
    return [1 / s for s in std], [-m / s for m, s in zip(mean, std, strict=True)]


def _column(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like.dtype).view(-1, 1, 1, 1)
