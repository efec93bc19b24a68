"""A part of a whole, written with its unit: `1 %`. A bare number is refused, for nobody knows 1 from 100 %."""

import math
import re
from dataclasses import dataclass
from fractions import Fraction

from dist_ssl.errors import ConfigError

FORM = re.compile(r"\s*(\d+(?:\.\d+)?)\s*%\s*", re.ASCII)


@dataclass(frozen=True)
class Share:
    """So many hundredths of a whole, 0 to 100; exact, so that every machine draws the line at the same place."""

    percent: Fraction

    @classmethod
    def parse(cls, text: str) -> "Share":
        """Read `<number> %`. Raises ConfigError."""
        found = FORM.fullmatch(str(text))
        if not found or Fraction(found[1]) > 100:
            raise ConfigError(f"'{text}' is not a share: it takes a number from 0 to 100 and %.", "Write '1 %', say.")
        return cls(Fraction(found[1]))

    def of(self, whole: int) -> int:
        """The largest number of things that is no more than this share of `whole`."""
        return math.floor(self.percent * whole / 100)

    def __str__(self) -> str:
        return f"{float(self.percent):g} %"
