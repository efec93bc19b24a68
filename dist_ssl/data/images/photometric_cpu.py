"""Photometric augmentation on the CPU: Numba loops that process one image at a time, while it is in the cache.

Torch operations stream a whole batch through memory some forty times; these loops do the same arithmetic in the same
order as `photometric.py`, equal up to float32 rounding, and are several times as fast. They release the GIL, so a batch
is split over threads, and an image's values depend on neither thread nor batch. LLVM may not reorder or fuse these,
so every CPU computes the same bits. Importing this module compiles them (seconds), once per copy of the code; later
imports load them from disk.

An image is three planes [3, S * S]; loops run over slices, whose indices LLVM knows to be in range.
"""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dist_ssl.core.draws import Floats, Ints
from dist_ssl.data.images.colour_constants import BRIGHTNESS, CONTRAST, HUE, LUMA, REACH, SATURATION
from dist_ssl.data.images.image_rules import Pixels
from dist_ssl.data.images.numba_tools import compiled, entrance
from dist_ssl.data.loader.buffers import Returning

F = np.float32
RED, GREEN, BLUE = map(F, LUMA)
LINE = 16
"""Floats per cache line: the memory of each view begins at a multiple of it."""
BLOCK = 2048
"""Floats per block of a convolution: a block stays in the L1 cache."""


@compiled
def clamp(value: F) -> F:
    """Clamp a value to [0, 1]."""
    low = value if value > F(0) else F(0)
    return low if low < F(1) else F(1)


@compiled
def luma(r: F, g: F, b: F) -> F:
    """Return the luma with the weights of ITU-R 601."""
    return RED * r + GREEN * g + BLUE * b


@compiled
def channel(value: F, chroma: F, sixth: F) -> F:
    """Return one RGB channel from value, chroma and hue (in sixths of a turn, offset by the channel)."""
    k = sixth - F(6) * np.floor(sixth * F(1 / 6))
    k = k if k < F(4) - k else F(4) - k
    return value - chroma * clamp(k)


@compiled
def scale(x: Floats, factor: F, shift: F) -> None:
    """Set x to clamp(factor * x + shift)."""
    for c in range(3):
        plane = x[c]
        for i in range(plane.size):
            plane[i] = clamp(factor * plane[i] + shift)


@compiled
def mean_luma(x: Floats, line: Floats) -> float:
    """Return the mean luma; `line` [BLOCK] holds partial sums, so that the loop is vectorised without reordering."""
    for i in range(line.size):
        line[i] = F(0)
    size = x.shape[1]
    for start in range(0, size, line.size):
        r, g, b = x[0, start : start + line.size], x[1, start : start + line.size], x[2, start : start + line.size]
        for i in range(r.size):
            line[i] += luma(r[i], g[i], b[i])
    total = 0.0
    for i in range(line.size):
        total += np.float64(line[i])
    return float(total / size)


@compiled
def saturate(x: Floats, factor: F) -> None:
    """Blend the image with its own luma, in place; factor 0 gives gray."""
    r, g, b = x[0], x[1], x[2]
    for i in range(r.size):
        gray = (F(1) - factor) * luma(r[i], g[i], b[i])
        r[i] = clamp(factor * r[i] + gray)
        g[i] = clamp(factor * g[i] + gray)
        b[i] = clamp(factor * b[i] + gray)


@compiled
def hue(x: Floats, turns: F) -> None:
    """Turn the hue of HSV by `turns`, in place; value and saturation stay."""
    r, g, b = x[0], x[1], x[2]
    for i in range(r.size):
        red, green, blue = r[i], g[i], b[i]
        value, low = (red, green) if red > green else (green, red)
        value, low = value if value > blue else blue, low if low < blue else blue
        chroma = value - low
        safe = chroma if chroma > F(1e-12) else F(1e-12)
        from_blue, from_green, from_red = (red - green) / safe, (blue - red) / safe, (green - blue) / safe
        sixth = from_green + F(2) if green == value else from_blue + F(4)
        sixth = (from_red if red == value else sixth) + F(6) * turns
        r[i] = channel(value, chroma, sixth + F(5))
        g[i] = channel(value, chroma, sixth + F(3))
        b[i] = channel(value, chroma, sixth + F(1))


@compiled
def gaussian(sigma: float, side: int) -> Floats:
    """Return the weights of a Gaussian of `sigma` px from its middle on (one half)."""
    reach = min(math.ceil(REACH * sigma), side - 1)
    taps, total = np.empty(reach + 1, np.float32), 1.0
    for k in range(1, reach + 1):
        total += 2 * math.exp(-0.5 * (k / sigma) ** 2)
    for k in range(reach + 1):
        taps[k] = math.exp(-0.5 * (k / sigma) ** 2) / total
    return taps


@compiled
def convolve(source: Floats, target: Floats, taps: Floats, stride: int, count: int) -> None:
    """Set target[i] = sum over k of taps[|k|] * source[i + (k + reach) * stride], in blocks, two tap pairs a pass."""
    reach = taps.size - 1
    for start in range(0, count, BLOCK):
        n = min(BLOCK, count - start)
        out, at = target[start : start + n], start + reach * stride
        middle = source[at : at + n]
        for i in range(n):
            out[i] = taps[0] * middle[i]
        for k in range(1, reach, 2):
            near, far = k * stride, (k + 1) * stride
            a, b = source[at - near : at - near + n], source[at + near : at + near + n]
            c, d = source[at - far : at - far + n], source[at + far : at + far + n]
            for i in range(n):
                out[i] = out[i] + taps[k] * (a[i] + b[i]) + taps[k + 1] * (c[i] + d[i])
        if reach % 2:
            a, b = source[at - reach * stride :][:n], source[at + reach * stride :][:n]
            for i in range(n):
                out[i] = out[i] + taps[reach] * (a[i] + b[i])


@compiled
def blur(x: Floats, sigma: float, first: Floats, second: Floats, side: int) -> None:
    """Blur by a Gaussian of `sigma` px, in place, along padded rows, then along padded columns; edges are mirrored."""
    taps = gaussian(sigma, side)
    reach = taps.size - 1
    width = side + 2 * reach
    for c in range(3):
        for y in range(side):
            source, row = x[c, y * side : (y + 1) * side], first[y * width : (y + 1) * width]
            for i in range(side):
                row[reach + i] = source[i]
            for k in range(1, reach + 1):
                row[reach - k], row[reach + side - 1 + k] = source[k], source[side - 1 - k]
        convolve(first, second[reach * width :], taps, 1, side * width - 2 * reach)
        for k in range(1, reach + 1):
            for at, mirrored in ((reach - k, reach + k), (reach + side - 1 + k, reach + side - 1 - k)):
                source, row = second[mirrored * width : (mirrored + 1) * width], second[at * width : (at + 1) * width]
                for i in range(width):
                    row[i] = source[i]
        convolve(second, first, taps, width, side * width - 2 * reach)
        for y in range(side):
            source, row = first[y * width : (y + 1) * width], x[c, y * side : (y + 1) * side]
            for i in range(side):
                row[i] = source[i]


@compiled
def load(pixels: Pixels, x: Floats, line: Floats) -> None:
    """Load [S, S, 3] uint8 into planes `x` [3, S * S] of floats in [0, 1]."""
    flat = pixels.reshape(-1)
    third = line.size // 3
    for start in range(0, x.shape[1], third):
        r, g, b = x[0, start : start + third], x[1, start : start + third], x[2, start : start + third]
        part = flat[3 * start : 3 * (start + third)]
        for i in range(part.size):
            line[i] = F(part[i]) / F(255)
        for i in range(r.size):
            r[i], g[i], b[i] = line[3 * i], line[3 * i + 1], line[3 * i + 2]


@compiled
def solarize(x: Floats, bright: F) -> None:
    """Invert values (x -> 1 - x) that are at least `bright`."""
    for c in range(3):
        plane = x[c]
        for i in range(plane.size):
            plane[i] = plane[i] if plane[i] < bright else F(1) - plane[i]


@compiled
def store(x: Floats, out: Floats, turn: Ints, weight: Floats, shift: Floats) -> None:
    """Write planes to `out` [S, S, 3], normalised; `turn` flags: transpose, mirror rows, mirror columns."""
    side, last = out.shape[0], out.shape[0] - 1
    p, q, s, t, u, v = weight[0], weight[1], weight[2], shift[0], shift[1], shift[2]
    for y in range(side):
        row, line = out[y].reshape(-1), last - y if turn[1] else y
        start = line * side
        r, g, b = x[0, start : start + side], x[1, start : start + side], x[2, start : start + side]
        if turn[0]:
            for i in range(side):
                at = line + side * (last - i if turn[2] else i)
                row[3 * i], row[3 * i + 1], row[3 * i + 2] = x[0, at] * p + t, x[1, at] * q + u, x[2, at] * s + v
        elif turn[2]:
            for i in range(side):
                at = last - i
                row[3 * i], row[3 * i + 1], row[3 * i + 2] = r[at] * p + t, g[at] * q + u, b[at] * s + v
        else:
            for i in range(side):
                row[3 * i], row[3 * i + 1], row[3 * i + 2] = r[i] * p + t, g[i] * q + u, b[i] * s + v


@compiled
def jitter(x: Floats, order: Ints, factors: Floats, line: Floats) -> None:
    """Apply the parts of the jitter in this order; any other number in `order` is skipped."""
    for part in order:
        if part == BRIGHTNESS:
            scale(x, factors[part], F(0))
        elif part == CONTRAST:
            scale(x, factors[part], (F(1) - factors[part]) * F(mean_luma(x, line)))
        elif part == SATURATION:
            saturate(x, factors[part])
        elif part == HUE:
            hue(x, factors[part])


def _colour(
    pixels: Pixels,
    out: Floats,
    order: Ints,
    factors: Floats,
    sigma: Floats,
    marks: Ints,
    bright: F,
    weight: Floats,
    shift: Floats,
) -> None:
    """Augment [B, S, S, 3] uint8 into `out`; `marks` [B, 6]: flags gray, solarize, invert, and the three of `store`."""
    side, most = pixels.shape[1], 0.0
    for row in range(len(pixels)):
        most = max(most, sigma[row])
    widest = side + 2 * (gaussian(most, side).size - 1)
    x, line = np.empty((3, side * side), np.float32), np.empty(BLOCK // 3 * 3, np.float32)
    first, second = np.empty(side * widest, np.float32), np.empty(widest * widest, np.float32)
    for row in range(len(pixels)):
        load(pixels[row], x, line)
        jitter(x, order[row], factors[row], line)
        if marks[row, 0]:
            saturate(x, F(0))
        if sigma[row] > F(0):
            blur(x, float(sigma[row]), first, second, side)
        if marks[row, 1]:
            solarize(x, bright)
        if marks[row, 2]:
            solarize(x, F(0))
        store(x, out[row], marks[row, 3:], weight, shift)


SIGNATURE = "void(u1[:,:,:,::1],f4[:,:,:,::1],i8[:,::1],f4[:,::1],f4[::1],i8[:,::1],f4,f4[::1],f4[::1])"
colour = entrance(SIGNATURE, _colour)
"""`_colour` with all functions that it calls, compiled at the import of this module or loaded from disk."""


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="colour")


@cache
def _memory() -> Returning:
    return Returning()


def colour_views(
    given: Sequence[tuple[Pixels, tuple[npt.NDArray[Any], ...], tuple[Any, ...]]], threads: int
) -> list[torch.Tensor]:
    """Return the augmented views, [B, S, S, 3] float32 each, in one block of memory; the work is split over threads.

    `given`, per view: pixels; order, factors, sigma and marks, [B, ...]; the arguments that all its images share.
    """
    sizes = [pixels.size + -pixels.size % LINE for pixels, _, _ in given]
    parts = torch.tensor_split(_memory().take(sum(sizes)), np.cumsum(sizes)[:-1].tolist())
    found = [part[: pixels.size].view(pixels.shape) for part, (pixels, _, _) in zip(parts, given, strict=True)]
    pieces, work = -(-2 * threads // len(given)) if threads > 1 else 1, []
    for (pixels, rows, rest), target in zip(given, found, strict=True):
        cuts = np.linspace(0, len(pixels), max(1, min(pieces, len(pixels))) + 1).astype(np.int64).tolist()
        for cut in map(slice, cuts[:-1], cuts[1:]):
            work.append((pixels[cut], target.numpy()[cut], *(row[cut] for row in rows), *rest))
    if threads > 1:
        list(_pool(threads).map(lambda one: colour(*one), work))
    else:
        for one in work:
            colour(*one)
    return found
