"""How uncertain an accuracy is."""

import math

Z_95 = 1.959964
"""Two-sided 5 % quantile of the normal distribution."""


def interval(accuracy: float, images: int) -> tuple[float, float]:
    """Return the ends of an accuracy's 95 % confidence interval after Wilson (1927), 0 to 1.

    It does not lie evenly around the accuracy: of 6 hits in 6 queries it goes from 0.61 to 1. `accuracy`: 0 to 1;
    `images`: number of queries, at least 1.
    """
    square = Z_95**2 / images
    middle = accuracy + square / 2
    half = Z_95 * math.sqrt(accuracy * (1 - accuracy) / images + square / (4 * images))
    return max(0.0, (middle - half) / (1 + square)), min(1.0, (middle + half) / (1 + square))


def shown_interval(accuracy: float, images: int) -> str:
    """Return the confidence interval in per cent: `(95 %: 61.0 to 100.0)`. `accuracy`: 0 to 1; `images`: at least 1."""
    low, high = interval(accuracy, images)
    return f"(95 %: {100 * low:.1f} to {100 * high:.1f})"
