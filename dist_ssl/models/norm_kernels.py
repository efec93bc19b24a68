"""The kernels of `norm_triton`: sums over blocks of rows, their merge, and the two passes that write an input's size.

An input is [G, rows, C] in memory. A program works on some channels of a block of `span` rows of one group, in tiles of
`height` rows and `width` channels. Numbers are read and written in their own precision and computed in single
precision. No program adds to the sums of another one.
"""

import triton.language as tl

from dist_ssl.core.triton_tools import kernel, kernel_of_any

TILE = tl.constexpr(2048)
"""Numbers that a program reads at once, by 128 threads."""
STAGES = tl.constexpr(5)
"""Tiles of a sum on their way at the same time: all but one, at 4 kB each, are copied while one is added up."""
MERGED = tl.constexpr(16)
"""Channels whose blocks one program merges."""


@kernel
def place(rows: tl.tensor, span: tl.tensor, channels: tl.tensor, height: tl.constexpr, width: tl.constexpr) -> tl.tuple:
    """Return the first row of this program's block, the rows in it, its channels, and offsets of its first tile."""
    lanes = tl.cdiv(channels, width)
    block = tl.program_id(0) // lanes
    begin = block * span
    c = (tl.program_id(0) % lanes) * width + tl.arange(0, width)
    tile = tl.arange(0, height)[:, None] * channels + c[None, :]
    return begin, tl.minimum(span, rows - begin), c, tile


@kernel_of_any("rows", "span", "blocks")
def block_moments(
    x: tl.tensor,
    means: tl.tensor,
    squares: tl.tensor,
    rows: tl.tensor,
    span: tl.tensor,
    blocks: tl.tensor,
    channels: tl.tensor,
    height: tl.constexpr,
    width: tl.constexpr,
) -> None:
    """Mean and sum of squared differences from it, of a block of rows, to [G, blocks, C].

    Sums are of differences from the mean of the first tile. It is at most sqrt(tiles) standard deviations of the block
    from the mean of the block, so that few bits cancel wherever the mean lies.
    """
    begin, count, c, tile = place(rows, span, channels, height, width)
    group, r, known = tl.program_id(1).to(tl.int64), tl.arange(0, height), c < channels
    at = x + (group * rows + begin) * channels + tile
    first = tl.load(at, (r < count)[:, None] & known[None, :], 0.0).to(tl.float32)
    shift = tl.sum(first, 0) / tl.minimum(count, height)
    plain, square = tl.zeros((height, width), tl.float32), tl.zeros((height, width), tl.float32)
    whole = count // height * height
    for done in tl.range(0, whole, height, num_stages=STAGES):
        apart = tl.load(at + done * channels, known[None, :], 0.0).to(tl.float32) - shift[None, :]
        plain += apart
        square += apart * apart
    for done in range(whole, count, height):
        inside = (done + r < count)[:, None] & known[None, :]
        apart = tl.load(at + done * channels, inside, 0.0).to(tl.float32) - shift[None, :]
        apart = tl.where(inside, apart, 0.0)
        plain += apart
        square += apart * apart
    added = tl.sum(plain, 0)
    mean = added / count
    out = (group * blocks + begin // span) * channels + c
    tl.store(means + out, shift + mean, known)
    tl.store(squares + out, tl.maximum(tl.sum(square, 0) - added * mean, 0.0), known)


@kernel_of_any("rows", "span", "blocks")
def merge_moments(
    means: tl.tensor,
    squares: tl.tensor,
    mean: tl.tensor,
    scale: tl.tensor,
    rows: tl.tensor,
    span: tl.tensor,
    blocks: tl.tensor,
    channels: tl.tensor,
    eps: tl.tensor,
    size: tl.constexpr,
) -> None:
    """Merge blocks as Chan et al. (1979) do: mean and 1 / sqrt(var + eps) of each group, [G, C]."""
    c, b = tl.program_id(0) * MERGED + tl.arange(0, MERGED), tl.arange(0, size)
    group, known = tl.program_id(1).to(tl.int64), c < channels
    inside = (b < blocks)[:, None] & known[None, :]
    start = group * blocks * channels
    at = start + b[:, None] * channels + c[None, :]
    count = tl.where(b < blocks, tl.minimum(span, rows - b * span), 0).to(tl.float32)[:, None]
    shift = tl.load(means + start + c, known, 0.0)
    apart = tl.load(means + at, inside, 0.0) - shift[None, :]
    middle = tl.sum(count * apart, 0) / rows
    apart = apart - middle[None, :]
    var = tl.sum(tl.load(squares + at, inside, 0.0) + count * apart * apart, 0) / rows
    tl.store(mean + group * channels + c, shift + middle, known)
    tl.store(scale + group * channels + c, tl.div_rn(1.0, tl.sqrt_rn(var + eps)), known)


@kernel_of_any("rows", "span")
def normalise_block(
    x: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    mean: tl.tensor,
    scale: tl.tensor,
    out: tl.tensor,
    rows: tl.tensor,
    span: tl.tensor,
    channels: tl.tensor,
    affine: tl.constexpr,
    height: tl.constexpr,
    width: tl.constexpr,
) -> None:
    """Write a tile of weight * (x - mean) * scale + bias."""
    begin, count, c, tile = place(rows, span, channels, height, width)
    group, known = tl.program_id(1).to(tl.int64), c < channels
    start = (group * rows + begin) * channels
    inside = (tl.arange(0, height) < count)[:, None] & known[None, :]
    read = tl.load(x + start + tile, inside, 0.0).to(tl.float32)
    slope = tl.load(scale + group * channels + c, known, 0.0)
    shift = tl.zeros((width,), tl.float32)
    if affine:
        slope = slope * tl.load(weight + c, known, 0.0)
        shift = tl.load(bias + c, known, 0.0)
    y = (read - tl.load(mean + group * channels + c, known, 0.0)[None, :]) * slope[None, :] + shift[None, :]
    tl.store(out + start + tile, y.to(out.dtype.element_ty), inside)


@kernel_of_any("rows", "span", "blocks")
def block_sums(
    dy: tl.tensor,
    x: tl.tensor,
    mean: tl.tensor,
    plains: tl.tensor,
    alongs: tl.tensor,
    rows: tl.tensor,
    span: tl.tensor,
    blocks: tl.tensor,
    channels: tl.tensor,
    height: tl.constexpr,
    width: tl.constexpr,
) -> None:
    """Sums of dy and of dy * (x - mean) over a block of rows, to [G, blocks, C]."""
    begin, count, c, tile = place(rows, span, channels, height, width)
    group, r, known = tl.program_id(1).to(tl.int64), tl.arange(0, height), c < channels
    start = (group * rows + begin) * channels
    middle = tl.load(mean + group * channels + c, known, 0.0)[None, :]
    plain, along = tl.zeros((height, width), tl.float32), tl.zeros((height, width), tl.float32)
    whole = count // height * height
    for done in tl.range(0, whole, height, num_stages=STAGES):
        at = tile + done * channels
        slope = tl.load(dy + start + at, known[None, :], 0.0).to(tl.float32)
        plain += slope
        along += slope * (tl.load(x + start + at, known[None, :], 0.0).to(tl.float32) - middle)
    for done in range(whole, count, height):
        inside, at = (done + r < count)[:, None] & known[None, :], tile + done * channels
        slope = tl.load(dy + start + at, inside, 0.0).to(tl.float32)
        plain += slope
        along += slope * (tl.load(x + start + at, inside, 0.0).to(tl.float32) - middle)
    out = (group * blocks + begin // span) * channels + c
    tl.store(plains + out, tl.sum(plain, 0), known)
    tl.store(alongs + out, tl.sum(along, 0), known)


@kernel_of_any("blocks", "groups")
def merge_sums(
    plains: tl.tensor,
    alongs: tl.tensor,
    scale: tl.tensor,
    own: tl.tensor,
    learnt: tl.tensor,
    blocks: tl.tensor,
    groups: tl.tensor,
    channels: tl.tensor,
    size: tl.constexpr,
) -> None:
    """Add blocks up: both sums of each group, own [2, G, C]; gradients of weight and bias, learnt [2, C]."""
    c, b = tl.program_id(0) * MERGED + tl.arange(0, MERGED), tl.arange(0, size)
    known = c < channels
    inside = (b < blocks)[:, None] & known[None, :]
    of_weight, of_bias = tl.zeros((MERGED,), tl.float32), tl.zeros((MERGED,), tl.float32)
    for group in range(groups):
        at = (group * blocks + b)[:, None] * channels + c[None, :]
        plain, along = tl.sum(tl.load(plains + at, inside, 0.0), 0), tl.sum(tl.load(alongs + at, inside, 0.0), 0)
        tl.store(own + group * channels + c, plain, known)
        tl.store(own + (groups + group) * channels + c, along, known)
        of_weight += along * tl.load(scale + group * channels + c, known, 0.0)
        of_bias += plain
    tl.store(learnt + c, of_weight, known)
    tl.store(learnt + channels + c, of_bias, known)


@kernel_of_any("rows", "span", "groups")
def gradient_block(
    dy: tl.tensor,
    x: tl.tensor,
    weight: tl.tensor,
    mean: tl.tensor,
    scale: tl.tensor,
    own: tl.tensor,
    dx: tl.tensor,
    rows: tl.tensor,
    span: tl.tensor,
    groups: tl.tensor,
    channels: tl.tensor,
    count: tl.tensor,
    affine: tl.constexpr,
    height: tl.constexpr,
    width: tl.constexpr,
) -> None:
    """Write a tile of the gradient of x; `own` [2, G, C] are sums over `count` values."""
    begin, there, c, tile = place(rows, span, channels, height, width)
    group, known = tl.program_id(1).to(tl.int64), c < channels
    start, row = (group * rows + begin) * channels, group * channels + c
    inside = (tl.arange(0, height) < there)[:, None] & known[None, :]
    above = tl.load(dy + start + tile, inside, 0.0).to(tl.float32)
    read = tl.load(x + start + tile, inside, 0.0).to(tl.float32)
    own_scale = tl.load(scale + row, known, 0.0)
    plain = tl.load(own + row, known, 0.0) / count
    bend = own_scale * own_scale * tl.load(own + groups * channels + row, known, 0.0) / count
    slope = own_scale * tl.load(weight + c, known, 0.0) if affine else own_scale
    apart = read - tl.load(mean + row, known, 0.0)[None, :]
    found = (above - plain[None, :] - apart * bend[None, :]) * slope[None, :]
    tl.store(dx + start + tile, found.to(dx.dtype.element_ty), inside)
