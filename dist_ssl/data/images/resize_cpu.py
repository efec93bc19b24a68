"""Resize all views of an image on the CPU in one compiled call without the GIL, with the bits of torch's resize.

The algorithm is torch's antialiased one: triangle weights as wide as the reduction, computed in double precision and
stored as 16-bit integers with as many fractional bits as the largest weight leaves; a pass along rows, rounded to
uint8, then a pass along columns, rounded again. Sums of integers are exact, so their order may differ. Here the image
is transposed once for all its views, so that both passes run along contiguous memory, which LLVM vectorises; torch's
inner loop reads a few bytes for every byte that it writes.

Importing this module compiles it (seconds), once per copy of the code; later imports load it from disk.
"""

import math

import numba
import numpy as np
import numpy.typing as npt

from dist_ssl.core.draws import Ints
from dist_ssl.data.images.image_rules import Pixels
from dist_ssl.data.images.numba_tools import bytes_at, compiled, entrance, load, shifted, store

Weights = npt.NDArray[np.int16]
Sums = npt.NDArray[np.int32]
Int = np.int32
Word = np.uint64
BYTES, PAIRS, HALVES = Word(0x00FF00FF00FF00FF), Word(0x0000FFFF0000FFFF), Word(0x00000000FFFFFFFF)
STEP = 32
"""Multiple, in bytes, to which the length of a line is rounded up, so that no vectorised loop has a remainder."""
TAPS = 4
"""Number of weights applied per pass over a line; rows of weights are padded with zeros to a multiple of it."""
MOST_BITS = 22
"""Largest number of fractional bits of a weight."""


@compiled
def up(number: int, step: int) -> int:
    """Round `number` up to a multiple of `step`."""
    return (number + step - 1) // step * step


@compiled
def exchange(a: Word, b: Word, shift: Word, mask: Word) -> tuple[Word, Word]:
    """Return two rows of a square after one step of its transposition: off-diagonal blocks are swapped."""
    t = ((a >> shift) ^ b) & mask
    return a ^ (t << shift), b ^ t


@compiled
def turn_square(source: int, stride: int, target: int, step: int) -> None:
    """Transpose 8 x 8 bytes from address `source` to `target`; their rows are `stride` and `step` bytes apart."""
    x0, x1 = exchange(load(source), load(source + stride), Word(8), BYTES)
    x2, x3 = exchange(load(source + 2 * stride), load(source + 3 * stride), Word(8), BYTES)
    x4, x5 = exchange(load(source + 4 * stride), load(source + 5 * stride), Word(8), BYTES)
    x6, x7 = exchange(load(source + 6 * stride), load(source + 7 * stride), Word(8), BYTES)
    x0, x2 = exchange(x0, x2, Word(16), PAIRS)
    x1, x3 = exchange(x1, x3, Word(16), PAIRS)
    x4, x6 = exchange(x4, x6, Word(16), PAIRS)
    x5, x7 = exchange(x5, x7, Word(16), PAIRS)
    x0, x4 = exchange(x0, x4, Word(32), HALVES)
    x1, x5 = exchange(x1, x5, Word(32), HALVES)
    x2, x6 = exchange(x2, x6, Word(32), HALVES)
    x3, x7 = exchange(x3, x7, Word(32), HALVES)
    store(target, x0)
    store(target + step, x1)
    store(target + 2 * step, x2)
    store(target + 3 * step, x3)
    store(target + 4 * step, x4)
    store(target + 5 * step, x5)
    store(target + 6 * step, x6)
    store(target + 7 * step, x7)


@compiled
def transpose(source: Pixels, start: int, stop: int, out: Pixels) -> None:
    """Write columns [start, stop) of `source` [h, w] as rows of `out`, in 8 x 8 squares; the last ones may overlap."""
    height, width = len(source), stop - start
    if height < 8 or width < 8:
        for i in range(width):
            for r in range(height):
                out[i, r] = source[r, start + i]
        return
    stride, step = source.strides[0], out.strides[0]
    given, target = source.ctypes.data + start, out.ctypes.data
    for column in range(0, width, 8):
        i = min(column, width - 8)
        for row in range(0, height - 7, 8):
            turn_square(given + row * stride + i, stride, target + i * step + row, step)
        row = height - 8
        turn_square(given + row * stride + i, stride, target + i * step + row, step)


@compiled
def weigh(given: int, size: int, spans: Ints, weights: Weights) -> int:
    """Compute the weights that resize a line of `given` pixels to `size`; return their number of fractional bits.

    `spans` [size, 2] is filled with the first input pixel and the number of input pixels of each output pixel,
    `weights` [size, taps] with their weights.
    """
    scale = given / size
    support = max(scale, 1.0)
    found, most = np.zeros((size, weights.shape[1])), 0.0
    for i in range(size):
        centre = scale * (i + 0.5)
        first = max(int(centre - support + 0.5), 0)
        count = min(int(centre + support + 0.5), given) - first
        spans[i, 0], spans[i, 1], total = first, count, 0.0
        for k in range(count):
            found[i, k] = max(0.0, 1.0 - abs((k + first - centre + 0.5) * (1.0 / support)))
            total += found[i, k]
        for k in range(count):
            found[i, k] /= total
            most = max(most, found[i, k])
    bits = 0
    while bits < MOST_BITS and int(0.5 + most * (1 << (bits + 1))) < 1 << 15:
        bits += 1
    for i in range(size):
        for k in range(weights.shape[1]):
            weights[i, k] = np.int16(0.5 + found[i, k] * (1 << bits))
    return bits


@compiled
def times(weight: Int, pixel: np.uint8) -> Int:
    """Return weight * pixel in 32 bits; the casts stop Numba from widening to 64 bits."""
    return Int(weight * Int(pixel))


@compiled
def four(p: Int, q: Int, r: Int, s: Int, a: np.uint8, b: np.uint8, c: np.uint8, d: np.uint8) -> Int:
    """Return the weighted sum of four pixels."""
    return Int(Int(times(p, a) + times(q, b)) + Int(times(r, c) + times(s, d)))


@compiled
def pixel(total: Int, bits: int) -> np.uint8:
    """Return a sum without its `bits` fractional bits, at most 255."""
    rounded = shifted(total, Int(bits))
    return np.uint8(rounded if rounded < Int(255) else Int(255))


@compiled
def blend(
    source: Pixels, row: int, stride: int, start: int, weights: Weights, count: int, bits: int, sums: Sums, out: Pixels
) -> None:
    """Set `out` to the weighted sum of `count` rows, every `stride`-th from `row` on, starting at column `start`.

    `sums`: scratch memory for sums over more than `TAPS` rows.
    """
    size, half = out.size, Int(1 << (bits - 1))
    total = sums[:size]
    for k in range(0, count, TAPS):
        at = row + k * stride
        a, b = source[at, start : start + size], source[at + stride, start : start + size]
        c, d = source[at + 2 * stride, start : start + size], source[at + 3 * stride, start : start + size]
        p, q, r, s = Int(weights[k]), Int(weights[k + 1]), Int(weights[k + 2]), Int(weights[k + 3])
        if count <= TAPS:
            for i in range(size):
                out[i] = pixel(Int(four(p, q, r, s, a[i], b[i], c[i], d[i]) + half), bits)
        elif k == 0:
            for i in range(size):
                total[i] = four(p, q, r, s, a[i], b[i], c[i], d[i]) + half
        elif k + TAPS < count:
            for i in range(size):
                total[i] += four(p, q, r, s, a[i], b[i], c[i], d[i])
        else:
            for i in range(size):
                out[i] = pixel(Int(four(p, q, r, s, a[i], b[i], c[i], d[i]) + total[i]), bits)


def _cut(pixels: Pixels, places: Ints) -> None:
    """Cut and resize the views of `pixels` [h, w, 3] into their buffers.

    `places` [V, 6]: left, top, right, bottom of every view's box, its side (px), and the address of its buffer.
    """
    left, top, right, bottom = places[:, 0].min(), places[:, 1].min(), places[:, 2].max(), places[:, 3].max()
    tallest, largest = (places[:, 3] - places[:, 1]).max(), places[:, 4].max()
    least = ((places[:, 2:4] - places[:, 0:2]) / places[:, 4:5]).max()
    taps = up(2 * math.ceil(max(least, 1.0)) + 2, TAPS)
    flat = pixels.reshape(len(pixels), -1)[top:bottom]
    columns = np.empty((3 * (right - left + taps), up(len(flat), 8) + STEP), np.uint8)
    transpose(flat, 3 * left, 3 * right, columns)
    width = up(3 * largest, STEP)
    narrow, rows = np.empty((width, up(tallest, STEP)), np.uint8), np.empty((tallest + taps, width), np.uint8)
    sums = np.empty(max(width, up(tallest, STEP)), np.int32)
    spans, weights = np.empty((largest, 2), np.int64), np.empty((largest, taps), np.int16)
    for x0, y0, x1, y1, side, address in places:
        out = numba.carray(bytes_at(address), (side, 3 * side), np.uint8)
        bits = weigh(x1 - x0, side, spans, weights)
        for x in range(side):
            first, count = spans[x]
            for c in range(3):
                at, line = 3 * (x0 - left + first) + c, narrow[3 * x + c, : up(y1 - y0, STEP)]
                blend(columns, at, 3, y0 - top, weights[x], count, bits, sums, line)
        transpose(narrow[: 3 * side], 0, y1 - y0, rows)
        bits = weigh(y1 - y0, side, spans, weights)
        for y in range(side):
            first, count = spans[y]
            blend(rows, first, 1, 0, weights[y], count, bits, sums, out[y])


cut = entrance("void(u1[:,:,::1],i8[:,::1])", _cut)
"""`_cut`, compiled together with all functions that it calls."""
