"""Candidate views: their slots, and the choice of a hard pair of them, by keyed draws.

Of each of the two global views of an image K candidates are drawn. Candidate c of view slot s has the draws of slot
s + 256 c, so candidate 0 is the view that there is without candidates. Of the K^2 pairs of an image (one candidate per
slot, so both slots keep their own augmentation) one is drawn, hard ones more often:

    p(pair) = softmax(z / temperature),   z = (difficulty - mean) / standard deviation, over the pairs of this image

So a temperature means the same for every measure of difficulty. At 0 the hardest pair is chosen, which may show two
different things; at a large one all pairs are equally likely. The draw adds Gumbel noise to z and takes the largest.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from dist_ssl.core.draws import Doubles, Draws, Ints, Purpose
from dist_ssl.core.plan import EpochPlan
from dist_ssl.errors import ConfigError

SLOTS = 256
"""Distance between the slots of two candidates of a view: the largest number of views of an image that has any."""
MOST = 16
"""Largest number of candidates of a view: those of the last one have the last slots that draws have."""
PAIRED = 2
"""Number of global views of an image, of which a pair is chosen."""

LEAST_SPREAD = 1e-6
"""Smallest standard deviation of difficulties that is more than rounding, which differs with the number of ranks."""


def check_candidates(plan: EpochPlan) -> None:
    """Raise ConfigError where the candidates of a plan are too few or too many, or its views are no pairs."""
    number = plan.candidates
    if not 1 <= number <= MOST:
        raise ConfigError(
            f"schedule.candidates={number} is not possible: it must be from 1 to {MOST}.", "Set schedule.candidates=4."
        )
    if number > 1 and plan.views != PAIRED:
        raise ConfigError(
            f"schedule.candidates={number} is not possible with this method: pairs of views are compared, and it takes "
            f"{plan.views} view{'s' if plan.views > 1 else ''} of the main size of an image.",
            "Set schedule.candidates=1, or use a method of two views: mocov3, simclr or byol, say.",
        )
    if number > 1 and plan.views + plan.local_views > SLOTS:
        raise ConfigError(
            f"schedule.candidates={number} is not possible with {plan.local_views} local views.",
            f"Use at most {SLOTS - PAIRED}, or set schedule.candidates=1.",
        )


def candidate_slots(candidates: int) -> Ints:
    """Return the slots of all candidates, [K, 2]: of candidate c in row c."""
    return np.arange(PAIRED)[None, :] + SLOTS * np.arange(candidates)[:, None]


def slots_of(pairs: Ints, views: int) -> Ints:
    """Return the slots of all views of every sample, [views, B]; `pairs`: the candidates of the first two, [2, B]."""
    slots = np.repeat(np.arange(views)[:, None], pairs.shape[1], axis=1)
    slots[:PAIRED] += SLOTS * pairs
    return slots


@dataclass(frozen=True)
class Choice:
    """The pairs chosen for B samples."""

    pairs: Ints
    """Number of the chosen candidate of either slot, [2, B]."""
    chosen: float
    """Mean difficulty of the chosen pairs."""
    first: float
    """Mean difficulty of the pairs of candidates 0, those without a choice."""

    @property
    def metrics(self) -> Mapping[str, float]:
        """The mean difficulties, by the keys of the metric table."""
        return {"difficulty/chosen": self.chosen, "difficulty/first": self.first}


def choose(difficulty: Doubles, temperature: float, draws: Draws, ids: Ints) -> Choice:
    """Return a pair for each of the samples `ids`. `difficulty`: [B, K, K] of all pairs, first slot first."""
    batch, number, _ = difficulty.shape
    flat = difficulty.reshape(batch, number**2)
    uniform = draws.uniform(Purpose.CANDIDATE, ids, 0, number**2).astype(np.float64)
    noise = -np.log(-np.log(np.maximum(uniform, 2.0**-25)))
    best = np.argmax(standardised(flat) + temperature * noise, axis=1)
    mean = float(flat[np.arange(batch), best].mean())
    return Choice(np.stack(np.divmod(best, number)), mean, float(flat[:, 0].mean()))


def standardised(difficulty: Doubles) -> Doubles:
    """Return the rows, [B, N], with mean 0 and standard deviation 1; zeros where all of a row are nearly equal."""
    centred = difficulty - difficulty.mean(1, keepdims=True)
    spread = np.sqrt(np.square(centred).mean(1, keepdims=True))
    found: Doubles = np.where(spread > LEAST_SPREAD, centred / np.maximum(spread, LEAST_SPREAD), 0.0)
    return found


@dataclass(frozen=True)
class CandidateViews:
    """The candidates of a batch, to be scored by the model before its step."""

    number: int
    """Candidates of either slot, K."""
    small: list[Tensor]
    """Candidates of both slots at the side of the score, normalised, [B K, 3, s, s]: those of a sample are in a row."""
    temperature: float
    """Temperature of the choice, see above."""
    parts: int
    """Number of equal parts in which the batch is scored, one after the other."""
    finish: Callable[[Ints], list[Tensor]]
    """Returns all views of the batch, normalised, with the pairs [2, B] that were chosen."""
    pixels: list[Tensor]
    """The tensors on the device from which `finish` makes them."""
