"""Cut and resize all views of one image: bilinear, antialiased, with the same bits on either code path.

Views of `SMALLEST_LOOPED` px and more are resized by compiled loops (`resize_cpu.py`), all views of an image in one
call that releases the GIL. With one torch call per view, threads would spend more time on passing the GIL around than
on pixels. Torch resizes smaller views, those of other channels than three, and those of 16 bits.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.functional import interpolate

from dist_ssl.config.bounds import RGB
from dist_ssl.data.images.decode import Box
from dist_ssl.data.images.image_rules import Pixels

SMALLEST_LOOPED = 64
"""Smallest side, px, of views that compiled loops resize and augment. Smaller ones cost torch little, and compiling the
loops (seconds, once per copy of the code) would cost more than it saves."""


def resize(pixels: Pixels, box: Box, size: int) -> Pixels:
    """Return a box (left, top, right, bottom) resized to [size, size, C]: bilinear, antialiased.

    The box is copied first: torch resizes contiguous channels_last memory fastest, and without its own threads.
    """
    left, top, right, bottom = box
    return resize_whole(np.ascontiguousarray(pixels[top:bottom, left:right]), size, size)


def resize_whole(pixels: Pixels, width: int, height: int) -> Pixels:
    """Return contiguous pixels resized to [height, width, C]: bilinear, antialiased."""
    x = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)
    if pixels.dtype == np.uint8:
        found: Pixels = interpolate(x, (height, width), mode="bilinear", antialias=True)[0].permute(1, 2, 0).numpy()
        return found
    exact = interpolate(x.float(), (height, width), mode="bilinear", antialias=True)[0].permute(1, 2, 0)
    return exact.round_().numpy().astype(pixels.dtype)


def cut_views(pixels: Pixels, boxes: Sequence[Box], out: Sequence[Pixels]) -> None:
    """Fill each [side, side, C] buffer of `out` with its box (left, top, right, bottom) of `pixels` [h, w, C], resized.

    Buffers must be C-contiguous, of the same type as `pixels`.
    """
    if max(map(len, out)) < SMALLEST_LOOPED or pixels.shape[2] != RGB or pixels.dtype != np.uint8:
        for box, view in zip(boxes, out, strict=True):
            view[:] = resize(pixels, box, len(view))
        return
    from dist_ssl.data.images.resize_cpu import cut  # compiles (seconds): only where needed

    places = np.array([(*box, len(view), view.ctypes.data) for box, view in zip(boxes, out, strict=True)])
    assert all(view.flags.c_contiguous for view in out)
    cut(pixels, places)
