"""Durations are written with a unit: `30 minutes`, `50 steps`, `1 epoch`. A bare number is refused."""

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
FORM = re.compile(r"\s*(\d{1,15}(?:\.\d{1,30})?)\s*([a-z]+?)s?\s*", re.ASCII)


class Position(Protocol):
    """The part of a `Progress` that a duration reads."""

    @property
    def step(self) -> int:
        """Return the number of weight updates made."""
        ...

    @property
    def epoch(self) -> int:
        """Return the epoch that the next step belongs to, from 0."""
        ...

    @property
    def between_epochs(self) -> bool:
        """Return whether at least one epoch is done and the next step is the first of another one."""
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
            whole = "" if unit == "seconds" else "whole and "
            raise ConfigError(
                f"'{text}' is not possible: {unit} are {whole}more than 0.", f"Write '1 {found[2]}', say."
            )
        return cls(amount, unit)

    @property
    def timed(self) -> bool:
        """Return whether the duration is measured by a clock, not counted in steps or epochs."""
        return self.unit == "seconds"

    def due(self, progress: Position) -> bool:
        """Return whether this position is a multiple of a counted duration; always False for a timed one."""
        if self.unit == "steps":
            return progress.step % int(self.amount) == 0
        return self.unit == "epochs" and progress.between_epochs and progress.epoch % int(self.amount) == 0


def clock(seconds: float) -> str:
    """Return seconds formatted as `4:05` or `1:04:05`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
