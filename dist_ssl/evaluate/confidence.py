"""How uncertain an accuracy is."""

import math

Z_95 = 1.96
"""Two-sided 5 % quantile of the normal distribution."""


def margin(accuracy: float, images: int) -> float:
    """Return half the width of an accuracy's 95 % confidence interval after Wilson (1927), 0 to 0.5.

    `accuracy`: 0 to 1; `images`: number of queries, at least 1.
    """
    square = Z_95**2 / images
    return Z_95 * math.sqrt(accuracy * (1 - accuracy) / images + square / (4 * images)) / (1 + square)
