"""Difficulty of a pair of views by the model: how little the features of its two images resemble each other.

    difficulty = 1 - cosine of the features of both views, by the student's encoder in evaluation mode, without gradient

The score is that of the weights at the start of the very step that trains on the views, so it is part of no checkpoint,
and the same after a resume and at every number of ranks. All candidates are cut at full size; the model sees them
smaller, with the same crops, colours and flips, and a blur that shrinks with them. Hard View Selection (Ferreira et al.
2023, arXiv 2310.03940) takes the pair with the largest loss of the method, and finds that smaller images do for it;
Kocyigit et al. (WACV 2023) choose hard positives in a way that is not public: this is a reconstruction.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dist_ssl.config.bounds import RGB
from dist_ssl.config.validation import at_least, require
from dist_ssl.core.candidates import PAIRED, CandidateViews, candidate_slots, slots_of
from dist_ssl.core.draws import Draws, Ints
from dist_ssl.core.plan import EpochPlan
from dist_ssl.data.epoch_views import Difficulty, EpochViews, Finished, Look
from dist_ssl.data.images.photometric import colour
from dist_ssl.data.images.pixel_numbers import white
from dist_ssl.data.images.views import Cutter


@dataclass(frozen=True)
class ModelScore(Difficulty):
    """How the model scores candidates. Raises ConfigError."""

    temperature: float
    """Temperature of the choice, from 0 (the hardest pair), see `candidates.py`."""
    size: float = 0.5
    """Side of the views that are scored, as a share of that of the views that are trained on, more than 0 to 1."""
    every: int = 1
    """Steps, counted from the start of an epoch, of which the first is scored; the others use the first candidates."""
    multiple: int = 1
    """Sides that the encoder takes are multiples of it, px."""
    channels: int = RGB
    """Channels of an image."""
    pixel_bytes: int = 1
    """Bytes of every number of a pixel."""

    def __post_init__(self) -> None:
        at_least("difficulty", 0, temperature=self.temperature)
        at_least("difficulty", 1, every=self.every)
        require("difficulty", "more than 0 and at most 1", lambda value: 0 < value <= 1, size=self.size)

    def views(self, plan: EpochPlan, look: Look) -> EpochViews:
        """Return the views of an epoch, chosen from several candidates."""
        return ScoredPairs(self, plan, look)

    def scored_bytes(self, plan: EpochPlan, itemsize: int) -> int:
        """Return the bytes of all candidates: as pixels at full size, and as numbers at the side of the score."""
        if plan.candidates == 1:
            return 0
        small = itemsize * self.side(plan.image_size) ** 2
        return PAIRED * plan.candidates * self.channels * (self.pixel_bytes * plan.image_size**2 + small)

    def side(self, image_size: int) -> int:
        """Return the side of the views that are scored, px: the nearest that the encoder takes."""
        return max(1, round(self.size * image_size / self.multiple)) * self.multiple


@dataclass(frozen=True)
class SameSlots:
    """Slots that are the same for every sample."""

    slots: tuple[int, ...]

    def __call__(self, draws: Draws, ids: Ints) -> Ints:
        """Return the slots, [V, 1]."""
        return np.array(self.slots)[:, None]


@dataclass(frozen=True)
class ViewsCut:
    """Numbers of views that are cut: `scored` in the first of `every` steps, the first `plain` ones in the others."""

    every: int
    scored: int
    plain: int

    def __call__(self, step: int) -> int:
        """Return the number for a step of the epoch."""
        return self.plain if step % self.every else self.scored


class ScoredPairs(EpochViews):
    """The views of an epoch whose global pairs the model chooses from `plan.candidates`.

    The first candidates of all views are cut first, then the other ones of the two global views.
    """

    def __init__(self, score: ModelScore, plan: EpochPlan, look: Look) -> None:
        super().__init__(plan, look)
        self.score, self.number, own = score, plan.candidates, len(self.recipes)
        more = plan.candidates - 1
        slots = (*range(own), *candidate_slots(plan.candidates)[1:].ravel().tolist())
        recipes, sizes = self.recipes + self.recipes[:PAIRED] * more, self.sizes + self.sizes[:PAIRED] * more
        self.cutter = Cutter(recipes, sizes, look.rules, SameSlots(slots))
        self.number_cut = len(recipes)
        self.cut_in = ViewsCut(score.every, len(recipes), own)
        self.side = score.side(plan.image_size)
        small = [recipe.at(1, self.side / plan.image_size) for recipe in self.recipes[:PAIRED]]
        self.small = look.photometries(small)

    def finish(self, pixels: list[Tensor], ids: Ints, draws: Draws, step: int) -> Finished:
        """See `EpochViews`; where the model scores this step, there are no views yet."""
        own = len(self.recipes)
        if step % self.score.every:
            return super().finish(pixels, ids, draws, step)
        drawn = [*pixels[:PAIRED], *pixels[own:]]
        sets = [torch.stack(drawn[slot::PAIRED], dim=1) for slot in range(PAIRED)]  # [B, K, S, S, C]
        rest = [view.clone() for view in pixels[PAIRED:own]]  # copies all: the pixels' memory is filled again
        shrunk = [resized(candidates.flatten(0, 1), self.side) for candidates in sets]
        slots, each = np.tile(candidate_slots(self.number).T, len(ids)), np.repeat(ids, self.number)
        small = colour(self.small, shrunk, each, draws, self.look.dtype, self.look.parts, slots)
        finish = partial(self.chosen, sets, rest, ids, draws)
        options = self.score.temperature, self.look.parts
        return Finished([], CandidateViews(self.number, small, *options, finish, [*sets, *rest]))

    def chosen(self, sets: list[Tensor], rest: list[Tensor], ids: Ints, draws: Draws, pairs: Ints) -> list[Tensor]:
        """Return the finished views with the chosen candidates.

        `sets`: pixels of all candidates of either slot, [B, K, S, S, C]; `rest`: of the views that have one candidate;
        `pairs`: [2, B].
        """
        device = sets[0].device
        picked, each = torch.from_numpy(pairs).to(device), torch.arange(len(ids), device=device)
        hard = [candidates[each, own] for candidates, own in zip(sets, picked, strict=True)]
        return self.coloured([*hard, *rest], ids, draws, slots_of(pairs, len(self.recipes)))


def resized(pixels: Tensor, side: int) -> Tensor:
    """Return images, [B, S, S, C] uint8, at another side, px: bilinear, antialiased."""
    if pixels.shape[1] == side:
        return pixels
    planes = pixels.permute(0, 3, 1, 2).float()
    small = F.interpolate(planes, size=(side, side), mode="bilinear", antialias=True)
    return small.round().clamp(0, white(pixels)).to(pixels.dtype).permute(0, 2, 3, 1).contiguous()
