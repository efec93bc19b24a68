"""Difficulty of a pair of views by what was drawn for them: how their crops, scales and colours differ.

    difficulty = overlap (1 - IoU) + scale (1 - smaller area / larger area) + colour |jitter_1 - jitter_2|

Kocyigit et al. (WACV 2023) choose hard positives by the difficulty of their augmentation, in a way that is not public:
this is a reconstruction. That the overlap of crops is what matters most is an observation of Hard View Selection
(Ferreira et al. 2023, arXiv 2310.03940).

Crops are compared as they lie in a square image: so the difficulty depends on the draws alone, and the loader, which
cuts the views, and the device, which colours them, come to the same choice; also for a replacement sample, and for any
level of a pyramid.
"""

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from dist_ssl.config.validation import at_least
from dist_ssl.core.candidates import PAIRED, Choice, candidate_slots, choose, slots_of
from dist_ssl.core.draws import Doubles, Draws, Floats, Ints, Purpose
from dist_ssl.core.plan import EpochPlan
from dist_ssl.data.epoch_views import Difficulty, EpochViews, Finished, Look
from dist_ssl.data.images.colour_constants import HUE, NOTHING, PARTS, SATURATION
from dist_ssl.data.images.photometric import NUMBERS, Photometry
from dist_ssl.data.images.views import CROP_DRAWS, TRIES, Augmentation, Cutter

DRAWN = {Purpose.CROP: CROP_DRAWS, Purpose.JITTER: NUMBERS[Purpose.JITTER], Purpose.GRAY: NUMBERS[Purpose.GRAY]}
"""Counts of the random numbers that the difficulty depends on."""


@dataclass(frozen=True)
class ParameterScore(Difficulty):
    """Weights, from 0, of the three differences, each of which is between 0 and about 1. Raises ConfigError."""

    temperature: float
    """Temperature of the choice, from 0 (the hardest pair), see `candidates.py`."""
    overlap: float = 1.0
    """Weight of the share of the union of both crops that only one of them shows."""
    scale: float = 1.0
    """Weight of the share by which the smaller crop is smaller than the larger."""
    colour: float = 1.0
    """Weight of the mean difference of the factors of brightness, contrast, saturation and hue."""

    def __post_init__(self) -> None:
        weights = {"overlap": self.overlap, "scale": self.scale, "colour": self.colour}
        at_least("difficulty", 0, temperature=self.temperature, **weights)

    def views(self, plan: EpochPlan, look: Look) -> EpochViews:
        """Return the views of an epoch, chosen from several candidates."""
        return DrawnPairs(self, plan, look)

    def scored_bytes(self, plan: EpochPlan, itemsize: int) -> int:
        """Return 0: only the chosen views are cut."""
        return 0

    def difficulty(self, boxes: Doubles, colours: Doubles) -> Doubles:
        """Return the difficulty of all pairs, [B, K, K].

        `boxes`: crops as shares of the image, [2, K, B, 4] (left, top, right, bottom); `colours`: of `colour_values`,
        [2, K, B, 4].
        """
        first, second = boxes[0].swapaxes(0, 1)[:, :, None], boxes[1].swapaxes(0, 1)[:, None]
        sides = np.minimum(first, second)[..., 2:] - np.maximum(first, second)[..., :2]
        common = np.maximum(sides, 0).prod(-1)
        areas = [(box[..., 2:] - box[..., :2]).prod(-1) for box in (first, second)]
        apart = 1 - common / (areas[0] + areas[1] - common)
        zoom = 1 - np.minimum(*areas) / np.maximum(*areas)
        shift = np.abs(colours[0].swapaxes(0, 1)[:, :, None] - colours[1].swapaxes(0, 1)[:, None])
        shift[..., HUE] = 2 * np.minimum(shift[..., HUE], 1 - shift[..., HUE])  # a hue is an angle
        found: Doubles = self.overlap * apart + self.scale * zoom + self.colour * shift.mean(-1)
        return found


@dataclass(frozen=True)
class HardSlots:
    """The slots of the chosen candidates: a pure function of draws, the same in the loader's process and in training.

    `recipes`: of all views; `candidates`: of each of the first two.
    """

    score: ParameterScore
    recipes: tuple[Augmentation, ...]
    candidates: int

    def __call__(self, draws: Draws, ids: Ints) -> Ints:
        """Return the slots of every sample's views, [V, B]; [V, 1] where there is no sample."""
        if not len(ids):
            return np.arange(len(self.recipes))[:, None]
        return slots_of(self.choice(draws, ids).pairs, len(self.recipes))

    def choice(self, draws: Draws, ids: Ints) -> Choice:
        """Return the pairs that are chosen for the samples `ids` [B]."""
        slots = candidate_slots(self.candidates).T.reshape(-1, 1)
        drawn = draws.of_slots(DRAWN, ids, slots)
        own = {purpose: x.reshape(PAIRED, self.candidates, len(ids), -1) for purpose, x in drawn.items()}
        boxes = [unit_boxes(r, x) for r, x in zip(self.recipes, own[Purpose.CROP], strict=False)]
        tints = zip(self.recipes, own[Purpose.JITTER], own[Purpose.GRAY], strict=False)
        difficulty = self.score.difficulty(np.stack(boxes), np.stack([colour_values(*one) for one in tints]))
        return choose(difficulty, self.score.temperature, draws, ids)


def unit_boxes(recipe: Augmentation, numbers: Floats) -> Doubles:
    """Return the crops in a square image, as shares of its side, [..., 4]; `numbers`: [..., CROP_DRAWS].

    They are those of `crop_box` but for its rounding to whole pixels.
    """
    drawn = numbers.astype(np.float64)
    low, high = math.log(recipe.aspect[0]), math.log(recipe.aspect[1])
    area = recipe.crop_min + drawn[..., :TRIES] * (recipe.crop_max - recipe.crop_min)
    ratio = np.exp(low + drawn[..., TRIES : 2 * TRIES] * (high - low))
    tried = np.sqrt(np.stack([area * ratio, area / ratio]))  # width and height of every try
    fits = (tried <= 1).all(0)
    first = fits.argmax(-1)[None, ..., None]
    sides = np.take_along_axis(tried, first, -1)[..., 0]
    whole = np.array([min(1, recipe.aspect[1]), min(1, 1 / recipe.aspect[0])]).reshape(2, *[1] * (sides.ndim - 1))
    fitting = fits.any(-1)
    sides = np.where(fitting, sides, whole)
    start = np.where(fitting, np.moveaxis(drawn[..., 2 * TRIES :], -1, 0), 0.5) * (1 - sides)
    return np.moveaxis(np.concatenate([start, start + sides]), 0, -1)


def colour_values(recipe: Augmentation, jitter: Floats, gray: Floats) -> Doubles:
    """Return brightness, contrast, saturation and shift of the hue (in turns) of views, [..., 4]; 1, 1, 1, 0: none.

    `jitter`, `gray`: the numbers drawn for them, [..., n]. A gray view has no saturation.
    """
    shape = jitter.shape[:-1]
    order, factors = Photometry(recipe, 0, (0, 0, 0), (1, 1, 1)).jitter(jitter.reshape(-1, jitter.shape[-1]))
    applied = (order[:, :, None] == np.arange(PARTS)).any(1)
    assert NOTHING >= PARTS
    values = np.where(applied, factors, np.array([1, 1, 1, 0])).reshape(*shape, PARTS)
    values[..., SATURATION] *= gray[..., 0] >= recipe.gray_p
    return values


class DrawnPairs(EpochViews):
    """The views of an epoch whose global pairs are chosen from `plan.candidates` by what was drawn for them."""

    def __init__(self, score: ParameterScore, plan: EpochPlan, look: Look) -> None:
        super().__init__(plan, look)
        self.slots = HardSlots(score, tuple(self.recipes), plan.candidates)
        self.cutter = Cutter(self.recipes, self.sizes, look.rules, self.slots)

    def finish(self, pixels: list[Tensor], ids: Ints, draws: Draws, step: int) -> Finished:
        """See `EpochViews`."""
        choice = self.slots.choice(draws, ids)
        slots = slots_of(choice.pairs, len(self.recipes))
        return Finished(self.coloured(pixels, ids, draws, slots), metrics=choice.metrics)
