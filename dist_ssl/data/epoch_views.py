"""The views of an epoch's images: how they are cut on the host, and finished on the device.

`EpochViews` has one candidate of every view; where there are several, `difficulty/` derives from it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from dist_ssl.core.candidates import CandidateViews
from dist_ssl.core.draws import Draws, Ints
from dist_ssl.core.plan import EpochPlan
from dist_ssl.data.images.image_rules import RULES, ImageRules
from dist_ssl.data.images.photometric import Photometry, colour
from dist_ssl.data.images.views import Augmentation, Cutter, of_views


@dataclass(frozen=True)
class Colours:
    """The normalisation of pixels: mean and standard deviation per channel, for values in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Look:
    """How every view of a run is made, whatever the epoch."""

    recipes: Sequence[Augmentation]
    """Augmentations of the views, as published."""
    colours: Colours
    dtype: torch.dtype
    rules: ImageRules = RULES
    """How the bytes of an image become pixels."""
    parts: int = 1
    """Number of equal parts in which a batch is augmented on the device."""

    def photometries(self, recipes: Sequence[Augmentation]) -> list[Photometry]:
        """Return the photometry of each recipe, of slots 0, 1, ..."""
        return [Photometry(recipe, slot, self.colours.mean, self.colours.std) for slot, recipe in enumerate(recipes)]


@dataclass(frozen=True)
class Finished:
    """A batch's views on the device, normalised; or none yet, and the candidates to choose them from."""

    views: list[Tensor]
    candidates: CandidateViews | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


class EpochViews:
    """The views of an epoch of this plan, each drawn once.

    `cutter` cuts `number_cut` views of an image, or as many of the first ones as `cut_in` returns for a step.
    """

    def __init__(self, plan: EpochPlan, look: Look) -> None:
        strength = plan.magnitude, plan.scale, plan.fixed
        self.look = look
        self.recipes = [r.at(*strength) for r in of_views(look.recipes, plan.views, plan.local_views)]
        self.sizes = [plan.local_size if recipe.local else plan.image_size for recipe in self.recipes]
        self.changes = look.photometries(self.recipes)
        self.cutter = Cutter(self.recipes, self.sizes, look.rules)
        self.number_cut = len(self.recipes)
        self.cut_in: Callable[[int], int] | None = None

    def finish(self, pixels: list[Tensor], ids: Ints, draws: Draws, step: int) -> Finished:
        """Return the views of the samples `ids`, whose pixels were cut by `cutter`, [B, S, S, C] uint8 each.

        `step`: number of the step within its epoch.
        """
        return Finished(self.coloured(pixels, ids, draws))

    def coloured(self, pixels: list[Tensor], ids: Ints, draws: Draws, slots: Ints | None = None) -> list[Tensor]:
        """Return all views, coloured and normalised, [B, C, S, S]; `slots`: of every sample's views, [V, B]."""
        return colour(self.changes, pixels, ids, draws, self.look.dtype, self.look.parts, slots)


class Difficulty(Protocol):
    """A measure of the difficulty of a pair of views, by which candidates are chosen."""

    def views(self, plan: EpochPlan, look: Look) -> EpochViews:
        """Return the views of an epoch with several candidates."""
        ...

    def scored_bytes(self, plan: EpochPlan, itemsize: int) -> int:
        """Return the bytes on the device of an image's candidates that the model scores; `itemsize`: of a number."""
        ...
