"""All views of one image, cut from its pixels: bilinear, antialiased, the same bits whoever does it.

Views of `SMALLEST_LOOPED` px and more are cut by compiled loops (`cuts_cpu.py`), all those of an image in one call that
holds no lock of Python's. With a call of torch per view, threads spend more time on handing that lock over than on
pixels; torch cuts the smaller ones.
"""

from collections.abc import Sequence

import numpy as np

from dist_ssl.data.images.decode import Box, Pixels, resize

SMALLEST_LOOPED = 64
"""Side, px, from which views are cut and coloured by compiled loops. Below it, torch's calls cost little, and compiling
(seconds, once per copy of the code) would cost more than it saves."""


def cut_views(pixels: Pixels, boxes: Sequence[Box], out: Sequence[Pixels]) -> None:
    """Fill each [side, side, 3] buffer with its box (left, top, right, bottom) of the pixels [h, w, 3]."""
    if max(map(len, out)) < SMALLEST_LOOPED:
        for box, view in zip(boxes, out, strict=True):
            view[:] = resize(pixels, box, len(view))
        return
    from dist_ssl.data.images.resize_cpu import cut  # compiles: seconds, which small views do without

    places = np.array([(*box, len(view), view.ctypes.data) for box, view in zip(boxes, out, strict=True)])
    assert all(view.flags.c_contiguous for view in out)
    cut(pixels, places)
