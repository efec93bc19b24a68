"""Cut and resize all views of one image: bilinear, antialiased, with the same bits on either code path.

Views of `SMALLEST_LOOPED` px and more are resized by compiled loops (`resize_cpu.py`), all views of an image in one
call that releases the GIL. With one torch call per view, threads would spend more time on passing the GIL around than
on pixels. Torch resizes smaller views.
"""

from collections.abc import Sequence

import numpy as np

from dist_ssl.data.images.decode import Box, resize
from dist_ssl.data.images.image_rules import Pixels

SMALLEST_LOOPED = 64
"""Smallest side, px, of views that compiled loops resize and augment. Smaller ones cost torch little, and compiling the
loops (seconds, once per copy of the code) would cost more than it saves."""


def cut_views(pixels: Pixels, boxes: Sequence[Box], out: Sequence[Pixels]) -> None:
    """Fill each [side, side, 3] buffer of `out` with its box (left, top, right, bottom) of `pixels` [h, w, 3], resized.

    Buffers must be C-contiguous uint8.
    """
    if max(map(len, out)) < SMALLEST_LOOPED:
        for box, view in zip(boxes, out, strict=True):
            view[:] = resize(pixels, box, len(view))
        return
    from dist_ssl.data.images.resize_cpu import cut  # compiles (seconds): only where needed

    places = np.array([(*box, len(view), view.ctypes.data) for box, view in zip(boxes, out, strict=True)])
    assert all(view.flags.c_contiguous for view in out)
    cut(pixels, places)
