"""The tokens of an epoch: how a transformer cuts the views of every step, the same for all samples."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Tokens:
    """The side of a patch, for student and teacher alike, and the share of its tokens that the student keeps."""

    keep: float = 1.0
    """Share of the tokens of a view, more than 0, at most 1; a teacher, a probe and an evaluation see all."""
    patch: int = 0
    """Side of a patch, px; 0: as the encoder has it."""

    def kept(self, count: int) -> int:
        """Return how many of `count` tokens are kept: the nearest whole number, a half rounded up; it may be 0."""
        return math.floor(self.keep * count + 0.5)


ALL_TOKENS = Tokens()
"""All tokens of the encoder's own patches."""
