"""The keys of the `probe` config node, which evaluations after training share."""

from dataclasses import dataclass

from dist_ssl.config.durations import Duration
from dist_ssl.config.run_keys import check_units
from dist_ssl.config.validation import positive, require
from dist_ssl.errors import ConfigError
from dist_ssl.protocols.engine import Branch
from dist_ssl.protocols.method import Method

SHORTER_SIDE = 256 / 224
"""Shorter side of an image by the side of the centre crop that is evaluated, as published for most methods."""


@dataclass(frozen=True)
class Probing:
    """The keys of the `probe` config node; `sides` says what the two keys of the view stand for where they are null."""

    every: Duration
    bank: int
    queries: int
    k: int
    temperature: float
    branch: Branch = "student"
    crop: int | None = None
    resize: int | None = None

    def check(self, method: Method, *, averaged: bool = False) -> None:
        """Raise ConfigError if a key is out of range, or asks for a branch that there is not.

        `averaged`: whether the run keeps an average of its weights.
        """
        check_units("probe.every", self.every, "epochs")
        positive("probe", bank=self.bank, queries=self.queries, k=self.k, temperature=self.temperature)
        if self.branch == "teacher" and method.teacher is None:
            raise ConfigError(
                "probe.branch=teacher is not possible: the method has no teacher.", "Use probe.branch=student."
            )
        if self.branch == "ema" and not averaged:
            raise ConfigError(
                "probe.branch=ema is not possible: the run keeps no average of its weights.",
                "Use probe.branch=student, or start a run with ema=0.999.",
            )

    def sides(self, trained: int) -> tuple[int, int]:
        """Return the shorter side of the resized image and the side of its centre crop, px. Raises ConfigError.

        `trained`: side of the views of the last epoch, px, which the crop has by default.
        """
        crop = trained if self.crop is None else self.crop
        resize = round(crop * SHORTER_SIDE) if self.resize is None else self.resize
        positive("probe", crop=crop)
        require("probe", f"at least the side of the crop, {crop} px", lambda value: value >= crop, resize=resize)
        return resize, crop
