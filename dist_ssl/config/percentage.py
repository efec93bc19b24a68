"""Shares of a whole are written with a percent sign: `1 %`. A bare number is refused: 1 could mean 1 % or 100 %."""

import math
import re
from dataclasses import dataclass
from fractions import Fraction

from dist_ssl.errors import ConfigError

FORM = re.compile(r"\s*(\d+(?:\.\d+)?)\s*%\s*", re.ASCII)


@dataclass(frozen=True)
class Share:
    """A percentage of a whole, 0 to 100; an exact fraction, so that the bound is the same on every machine."""

    percent: Fraction

    @classmethod
    def parse(cls, text: str) -> "Share":
        """Read `<number> %`. Raises ConfigError."""
        found = FORM.fullmatch(str(text))
        if not found or Fraction(found[1]) > 100:
            raise ConfigError(f"'{text}' is not a share: it takes a number from 0 to 100 and %.", "Write '1 %', say.")
        return cls(Fraction(found[1]))

    def of(self, whole: int) -> int:
        """Return this share of `whole`, rounded down to a whole number."""
        return math.floor(self.percent * whole / 100)

    def __str__(self) -> str:
        return f"{float(self.percent):g} %"
