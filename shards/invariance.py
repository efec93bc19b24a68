"""Whether a set of pictures would look the same turned or recoloured, measured without labels.

An augmentation that leaves the distribution of the pictures unchanged loses nothing that their own variation has not
lost already, so it may have its full strength. Whether it does is measured by a classifier two-sample test (Lopez-Paz
and Oquab 2017, arXiv 1610.06545) on pairs: a linear classifier learns on a half of the pictures which of a picture and
its changed copy is the original, and is asked on the other half. Pictures of things that stand upright are
distinguished from turned ones by where their outlines run, photographs from recoloured ones by their hues.
"""

from collections.abc import Callable

import numpy as np

from dist_ssl.core.draws import Doubles

SIDE = 32
"""Side of the copies that are compared, px."""
CELLS, DIRECTIONS = 8, 4
"""Outlines are summed in 8 x 8 cells, by four directions."""
HUES = 24
DECAY = 10.0
"""Ridge penalty of the classifier per feature and picture of unit variance, where there are as many of both."""
BATCH = 64


def turned(pictures: Doubles) -> float:
    """Return how often an upright picture is distinguished from its copy with a quarter turn, 0.5 (never) to 1.

    `pictures` [N, 32, 32, 3] in [0, 1].
    """
    return distinguished(outlines(pictures), outlines(np.rot90(pictures, 1, (1, 2))))


def recoloured(pictures: Doubles) -> float:
    """Return how often a picture is distinguished from its copy with other hues, 0.5 (never) to 1.

    `pictures` [N, 32, 32, 3] in [0, 1]. Half of the copies have their complementary colours, the others a third of the
    circle of hues more.
    """
    found = hues(pictures)
    by = np.where(np.arange(len(found)) % 2, HUES // 2, HUES // 3)
    index = (np.arange(HUES) - by[:, None]) % HUES
    return distinguished(found, np.take_along_axis(found, index, axis=1))


def distinguished(before: Doubles, after: Doubles) -> float:
    """Return the share of pairs of rows [N, F], N >= 4, whose first one a linear classifier names as such.

    Each half of the pairs is asked of a classifier that was fitted to the other half. Equal pairs count as a half.
    """
    half = len(before) // 2
    known, asked = slice(None, half), slice(half, None)
    right = [_right(before, after, *parts) for parts in ((known, asked), (asked, known))]
    return float(np.concatenate(right).mean())


def _right(before: Doubles, after: Doubles, known: slice, asked: slice) -> Doubles:
    """Return 1, 0, or 0.5 where a pair is equal, of every pair that is asked."""
    rows = np.concatenate([before[known], after[known]])
    scale = rows.std(0) + 1e-9
    fitted = (rows - rows.mean(0)) / scale
    target = np.repeat([1.0, -1.0], len(rows) // 2)
    penalty = DECAY * rows.shape[1] * np.eye(rows.shape[1])
    weight = np.linalg.solve(fitted.T @ fitted + penalty, fitted.T @ target)
    found: Doubles = (np.sign(((before[asked] - after[asked]) / scale) @ weight) + 1) / 2
    return found


def outlines(pictures: Doubles) -> Doubles:
    """Return where outlines run and in which direction, and where it is light, [N, 320], of pictures [N, 32, 32, 3].

    Square roots of slopes weigh faint outlines as well as strong ones.
    """
    return _in_parts(_outlines, pictures)


def _outlines(pictures: Doubles) -> Doubles:
    light = pictures @ np.array([0.299, 0.587, 0.114])
    down, right = np.gradient(light, axis=(1, 2))
    strength = np.sqrt(np.hypot(down, right))
    direction = np.rint((np.arctan2(down, right) % np.pi) / np.pi * DIRECTIONS).astype(int) % DIRECTIONS
    parts = [_cells(np.where(direction == one, strength, 0)) for one in range(DIRECTIONS)]
    return np.concatenate([*parts, _cells(light - light.mean((1, 2), keepdims=True))], axis=1)


def _cells(values: Doubles) -> Doubles:
    """Return the mean of each of the cells, [N, 64], of values [N, 32, 32]."""
    size = SIDE // CELLS
    cells: Doubles = values.reshape(len(values), CELLS, size, CELLS, size).mean((2, 4))
    return cells.reshape(len(values), -1)


def hues(pictures: Doubles) -> Doubles:
    """Return the histogram of hues, weighted by their chroma, [N, 24], of pictures [N, 32, 32, 3]."""
    return _in_parts(_hues, pictures)


def _hues(pictures: Doubles) -> Doubles:
    red, green, blue = np.moveaxis(pictures, -1, 0)
    angle = np.arctan2(np.sqrt(3) * (green - blue), 2 * red - green - blue) / (2 * np.pi) % 1
    number = (angle * HUES).astype(int) % HUES
    chroma = pictures.max(-1) - pictures.min(-1)
    each = [np.where(number == one, chroma, 0).mean((1, 2)) for one in range(HUES)]
    return np.stack(each, axis=1)


def _in_parts(function: Callable[[Doubles], Doubles], pictures: Doubles) -> Doubles:
    """Return the function of all pictures, computed some at a time: what it makes on its way is large."""
    return np.concatenate([function(pictures[first : first + BATCH]) for first in range(0, len(pictures), BATCH)])
