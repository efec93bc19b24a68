"""The colours of views on a GPU: four launches a view, in which each pixel is read and written as seldom as possible.

    lumas     the sum of the luma over a block of pixels, at the point of the jitter where the contrast needs its mean
    colours   jitter, gray, flip and turn; for samples without blur also solarize, invert and normalise, and the output
    blurs     the Gaussian along rows, then along columns; the second one solarizes, inverts, normalises and writes

They do the arithmetic of `photometric.py` in single precision, in the same order, with one exception: a view is turned
before it is blurred. A Gaussian is symmetric, so that changes nothing, and every kernel writes in the order of memory.
Pixels lie channels last, [B, S, S, 3], as they came; that is the memory of [B, 3, S, S] in `torch.channels_last`.

No sample's values depend on another one's, and no sum on the order in which programs run: the bits are always the same.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import triton
import triton.language as tl
from torch import Tensor

from dist_ssl.core.triton_tools import kernel, launch, works
from dist_ssl.data.images import colour_constants
from dist_ssl.data.images.host_to_device import send

TYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Types of views that can be written."""
PIXELS = 1024
"""Pixels of one image, or in blurs numbers, that a program computes."""
Array = npt.NDArray[Any]
View = tuple[Tensor, tuple[Array, Array, Array, Array], tuple[Any, Array, Array]]
"""[B, S, S, 3] uint8; order, factors, sigma and marks, [B, ...]; what all its images share (see `photometric_cpu`)."""

# columns of the table that holds what is known of each sample
FACTORS = tl.constexpr(4)
SIGMA = tl.constexpr(8)
GRAY = tl.constexpr(9)
SOLARIZE = tl.constexpr(10)
INVERT = tl.constexpr(11)
TRANSPOSE = tl.constexpr(12)
MIRROR_ROWS = tl.constexpr(13)
MIRROR_COLUMNS = tl.constexpr(14)
BLURRED = tl.constexpr(15)
WIDTH = tl.constexpr(16)
CONTRAST = tl.constexpr(colour_constants.CONTRAST)
SATURATION = tl.constexpr(colour_constants.SATURATION)
HUE = tl.constexpr(colour_constants.HUE)
RED, GREEN, BLUE = map(tl.constexpr, colour_constants.LUMA)
REACH = tl.constexpr(colour_constants.REACH)


@kernel
def clamp(x: tl.tensor) -> tl.tensor:
    """Limit to [0, 1]."""
    return tl.minimum(tl.maximum(x, 0.0), 1.0)


@kernel
def luma(r: tl.tensor, g: tl.tensor, b: tl.tensor) -> tl.tensor:
    """Return the luma of ITU-R 601."""
    return r * RED + g * GREEN + b * BLUE


@kernel
def channel(value: tl.tensor, chroma: tl.tensor, sixth: tl.tensor) -> tl.tensor:
    """Return red, green or blue from value, chroma and hue (in sixths of a turn, offset by the channel)."""
    k = sixth - 6.0 * tl.floor(sixth * (1 / 6))
    return value - chroma * clamp(tl.minimum(k, 4.0 - k))


@kernel
def hue(r: tl.tensor, g: tl.tensor, b: tl.tensor, turns: tl.tensor) -> tl.tuple:
    """Turn the hue of HSV; value and saturation stay."""
    value = tl.maximum(tl.maximum(r, g), b)
    chroma = value - tl.minimum(tl.minimum(r, g), b)
    safe = tl.maximum(chroma, 1e-12)
    sixth = tl.where(g == value, (b - r) / safe + 2.0, (r - g) / safe + 4.0)
    sixth = tl.where(r == value, (g - b) / safe, sixth) + 6.0 * turns
    return channel(value, chroma, sixth + 5.0), channel(value, chroma, sixth + 3.0), channel(value, chroma, sixth + 1.0)


@kernel
def jitter(
    r: tl.tensor, g: tl.tensor, b: tl.tensor, sample: tl.tensor, mean: tl.tensor, to_contrast: tl.constexpr
) -> tl.tuple:
    """Apply the parts of the jitter in the sample's own order; `to_contrast`: only those before the contrast.

    What is not blended is multiplied by 1, which keeps its bits.
    """
    going = 1
    for place in tl.static_range(4):
        part = tl.load(sample + place).to(tl.int32)
        factor = tl.load(sample + FACTORS + tl.minimum(part, HUE))
        if to_contrast:
            going = going * (part != CONTRAST).to(tl.int32)
        if part * going == HUE:
            r, g, b = hue(r, g, b, factor)
        factor = tl.where((part < HUE) & (going == 1), factor, 1.0)
        gray = luma(r, g, b)
        other = tl.where(part == SATURATION, gray, tl.where(part == CONTRAST, mean, 0.0)) * (1.0 - factor)
        r, g, b = clamp(factor * r + other), clamp(factor * g + other), clamp(factor * b + other)
    return r, g, b


@kernel
def inverted(x: tl.tensor, sample: tl.tensor, bright: tl.tensor) -> tl.tensor:
    """Solarize and invert, where the sample is to be."""
    x = tl.where(tl.load(sample + SOLARIZE) > 0, tl.where(x < bright, x, 1.0 - x), x)
    return tl.where(tl.load(sample + INVERT) > 0, 1.0 - x, x)


@kernel
def load(pixels: tl.tensor, place: tl.tensor, inside: tl.tensor) -> tl.tuple:
    """Return three channels of 0 to 1; divided as torch divides, since solarizing has a threshold."""
    r = tl.div_rn(tl.load(pixels + 3 * place, inside, 0).to(tl.float32), 255.0)
    g = tl.div_rn(tl.load(pixels + 3 * place + 1, inside, 0).to(tl.float32), 255.0)
    b = tl.div_rn(tl.load(pixels + 3 * place + 2, inside, 0).to(tl.float32), 255.0)
    return r, g, b


@kernel
def lumas(
    pixels: tl.tensor, table: tl.tensor, sums: tl.tensor, side: tl.tensor, blocks: tl.tensor, size: tl.constexpr
) -> None:
    """sums[image, block] = the sum of the luma where the contrast comes; untouched where there is no contrast."""
    block, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    sample = table + image * WIDTH
    contrasts = 0
    for part in tl.static_range(4):
        contrasts += (tl.load(sample + part) == CONTRAST).to(tl.int32)
    if contrasts > 0:
        place = block * size + tl.arange(0, size)
        inside = place < side * side
        r, g, b = load(pixels + image * side * side * 3, place, inside)
        r, g, b = jitter(r, g, b, sample, 0.0, True)
        tl.store(sums + image * blocks + block, tl.sum(tl.where(inside, luma(r, g, b), 0.0)))


@kernel
def colours(
    pixels: tl.tensor,
    table: tl.tensor,
    sums: tl.tensor,
    sharp: tl.tensor,
    out: tl.tensor,
    rest: tl.tensor,
    side: tl.tensor,
    blocks: tl.tensor,
    partials: tl.constexpr,
    size: tl.constexpr,
) -> None:
    """Write a block of pixels: to `out` what is finished, to `sharp` [K, S, S, 3] what is blurred next."""
    block, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    sample, area = table + image * WIDTH, side * side
    place = block * size + tl.arange(0, size)
    inside = place < area
    y, x = place // side, place % side
    y = tl.where(tl.load(sample + MIRROR_ROWS) > 0, side - 1 - y, y)
    x = tl.where(tl.load(sample + MIRROR_COLUMNS) > 0, side - 1 - x, x)
    source = tl.where(tl.load(sample + TRANSPOSE) > 0, x * side + y, y * side + x)
    r, g, b = load(pixels + image * area * 3, source, inside)
    part = tl.arange(0, partials)
    mean = tl.sum(tl.load(sums + image * blocks + part, part < blocks, 0.0)) / area
    r, g, b = jitter(r, g, b, sample, mean, False)
    gray, gray_too = luma(r, g, b), tl.load(sample + GRAY) > 0
    r, g, b = tl.where(gray_too, gray, r), tl.where(gray_too, gray, g), tl.where(gray_too, gray, b)
    blurred = tl.load(sample + BLURRED).to(tl.int64)
    if blurred >= 0:
        target = sharp + blurred * area * 3 + 3 * place
        tl.store(target, r, inside)
        tl.store(target + 1, g, inside)
        tl.store(target + 2, b, inside)
    else:
        bright = tl.load(rest)
        end = out + image * area * 3 + 3 * place
        tl.store(end, inverted(r, sample, bright) * tl.load(rest + 1) + tl.load(rest + 4), inside)
        tl.store(end + 1, inverted(g, sample, bright) * tl.load(rest + 2) + tl.load(rest + 5), inside)
        tl.store(end + 2, inverted(b, sample, bright) * tl.load(rest + 3) + tl.load(rest + 6), inside)


@kernel
def blurs(
    source: tl.tensor,
    table: tl.tensor,
    rows: tl.tensor,
    out: tl.tensor,
    rest: tl.tensor,
    side: tl.tensor,
    along_rows: tl.constexpr,
    size: tl.constexpr,
) -> None:
    """Blur a block of the numbers of `source` [K, S, S, 3], edges mirrored; the columns come last and go to `out`."""
    place = tl.program_id(0) * size + tl.arange(0, size)
    blurred, image = tl.program_id(1).to(tl.int64), tl.load(rows + tl.program_id(1)).to(tl.int64)
    sample, numbers, last = table + image * WIDTH, side * side * 3, side - 1
    inside = place < numbers
    step = 3 if along_rows else 3 * side
    at = (place // step) % side
    begin = source + blurred * numbers + (place - at * step)
    sigma = tl.load(sample + SIGMA)
    reach = tl.minimum((sigma * REACH).to(tl.int32) + 1, 2 * last)
    total = tl.full((size,), 1.0, tl.float32)
    x = tl.load(begin + at * step, inside, 0.0)
    k = 1
    while k <= reach:
        ratio = k / sigma
        weight = tl.exp(-0.5 * ratio * ratio)
        low, high = tl.abs(at - k), tl.where(at + k > last, 2 * last - at - k, at + k)
        x += weight * tl.load(begin + low * step, inside & (low <= last), 0.0)
        x += weight * tl.load(begin + high * step, inside & (high >= 0), 0.0)
        total += weight * ((low <= last).to(tl.float32) + (high >= 0).to(tl.float32))
        k += 1
    x = x / total
    if along_rows:
        tl.store(out + blurred * numbers + place, x, inside)
    else:
        channel = place % 3
        x = inverted(x, sample, tl.load(rest)) * tl.load(rest + 1 + channel) + tl.load(rest + 4 + channel)
        tl.store(out + image * numbers + place, x, inside)


def colour_views(given: Sequence[View], dtype: torch.dtype) -> list[Tensor]:
    """Colour views, each [B, S, S, 3] uint8 on the device, to [B, 3, S, S] in channels_last; dtype of `TYPES`."""
    known: list[Array] = []
    for _, (order, factors, sigma, marks), (bright, weight, shift) in given:
        rows = np.flatnonzero(sigma).astype(np.int32)
        places = np.full(len(sigma), -1, np.float32)
        places[rows] = np.arange(len(rows))
        table = np.column_stack([order, factors, sigma, marks, places]).astype(np.float32)
        known += [table, rows, np.concatenate([[bright], weight, shift]).astype(np.float32)]
    there = iter(send(known, given[0][0].device))
    return [_coloured(pixels, order, next(there), next(there), next(there), dtype) for pixels, (order, *_), _ in given]


def _coloured(pixels: Tensor, order: Array, table: Tensor, rows: Tensor, rest: Tensor, dtype: torch.dtype) -> Tensor:
    images, side = pixels.shape[:2]
    out = torch.empty(pixels.shape, dtype=dtype, device=pixels.device)
    if images == 0:
        return out.permute(0, 3, 1, 2)
    blocks = triton.cdiv(side * side, PIXELS)
    sums = table.new_empty(images, blocks)
    sharp = table.new_empty(len(rows), side, side, 3)
    pixels = pixels.contiguous()
    if (order == CONTRAST.value).any():
        launch(lumas, (blocks, images), pixels, table, sums, side, blocks, size=PIXELS)
    partials = triton.next_power_of_2(blocks)
    given = (pixels, table, sums, sharp, out, rest, side, blocks)
    launch(colours, (blocks, images), *given, partials=partials, size=PIXELS)
    if len(rows):
        half, programs = torch.empty_like(sharp), (triton.cdiv(3 * side * side, PIXELS), len(rows))
        launch(blurs, programs, sharp, table, rows, half, rest, side, along_rows=True, size=PIXELS)
        launch(blurs, programs, half, table, rows, out, rest, side, along_rows=False, size=PIXELS)
    return out.permute(0, 3, 1, 2)


def traffic(images: int, side: int, contrasted: int, blurred: int, dtype: torch.dtype) -> int:
    """Return the bytes of device memory that `colour_views` reads and writes for a view, each launch's once.

    `contrasted`, `blurred`: how many of its images have a contrast, and a blur. Caches hold what a launch reads again.
    """
    numbers = side * side * 3
    return numbers * (contrasted + images + blurred * 4 * 4 + images * dtype.itemsize)


@cache
def usable(device: torch.device) -> bool:
    """Return whether the kernels compile and run here; where they do not, torch's operations do the work."""
    pixels = torch.zeros(1, 2, 2, 3, dtype=torch.uint8, device=device)
    one = np.ones((1, 6), np.int64)
    known = np.arange(4)[None], np.ones((1, 4), np.float32), np.ones(1, np.float32), one
    return works(
        lambda: colour_views([(pixels, known, (0.5, np.ones(3), np.ones(3)))], torch.float32),
        "Views are coloured without Triton's kernels, which is slower",
    )
