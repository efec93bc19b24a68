"""Durations carry units: `30 minutes`, `50 steps`, `1 epoch`. A bare number is refused."""

import re
from dataclasses import dataclass
from typing import Protocol

from dist_ssl.errors import ConfigError

UNITS = {
    "step": ("steps", 1),
    "epoch": ("epochs", 1),
    "second": ("seconds", 1),
    "minute": ("seconds", 60),
    "hour": ("seconds", 3600),
}
FORM = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]+?)s?\s*", re.ASCII)


class Position(Protocol):
    """What a duration reads of a `Progress`."""

    @property
    def step(self) -> int:
        """Weight updates made."""
        ...

    @property
    def epoch(self) -> int:
        """The epoch that the next step belongs to, from 0."""
        ...

    @property
    def between_epochs(self) -> bool:
        """At least one epoch lies behind, and the next step begins another."""
        ...


@dataclass(frozen=True)
class Duration:
    """An amount of `steps`, `epochs` or `seconds`; counted units are whole numbers."""

    amount: float
    unit: str

    @classmethod
    def parse(cls, text: str) -> "Duration":
        """Read `<number> <unit>`; units: steps, epochs, seconds, minutes, hours. Raises ConfigError."""
        found = FORM.fullmatch(str(text))
        if not found or found[2] not in UNITS:
            raise ConfigError(
                f"'{text}' is not a duration: it takes a number and a unit.",
                "Write it like '50 steps', '1 epoch', '30 seconds', '10 minutes' or '2 hours'.",
            )
        unit, factor = UNITS[found[2]]
        amount = float(found[1]) * factor
        if amount <= 0 or (unit != "seconds" and amount != int(amount)):
            raise ConfigError(f"'{text}' is not possible: {unit} are whole and more than 0.", "Write '1 epoch', say.")
        return cls(amount, unit)

    @property
    def timed(self) -> bool:
        """Measured by a clock, not counted."""
        return self.unit == "seconds"

    def due(self, progress: Position) -> bool:
        """Whether a counted duration has just run out again at this position; a timed one never has."""
        if self.unit == "steps":
            return progress.step % int(self.amount) == 0
        return self.unit == "epochs" and progress.between_epochs and progress.epoch % int(self.amount) == 0
