"""The form of a fall of the learning rate, and of most other curves: half a cosine. Imports nothing heavy."""

import math


def half_cosine(start: float, end: float, position: float, total: float) -> float:
    """Return the value of half a cosine from `start` to `end` after `position` of `total`; `start` before it begins."""
    if start == end or position <= 0:
        return start
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * position / total))
