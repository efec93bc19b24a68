"""Values decided in advance: the plan of an epoch, made by rank 0, and the hyperparameters of a step."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dist_ssl.config.durations import Duration
from dist_ssl.core.tokens import Tokens
from dist_ssl.errors import plural

if TYPE_CHECKING:
    from torch import Tensor  # a report reads plans, and needs no torch, which takes seconds to import

FROZEN = "frozen/"
"""Prefix of a hyperparameter that freezes a part of a method: the part is not updated while the value is above 0."""


def epoch_samples(num_samples: int, batch_size: int) -> int:
    """Return the number of samples that one epoch uses: whole batches only; the rest of the data set is dropped."""
    return num_samples // batch_size * batch_size


@dataclass(frozen=True)
class EpochPlan:
    """How one epoch is read and augmented; decided once by rank 0, recorded in the run folder and in checkpoints."""

    epoch: int
    image_size: int
    """Side of a global view, px."""
    magnitude: float
    """Augmentation strength; 1 is the recipe as published."""
    views: int
    """Number of global views of every image."""
    batch_size: int
    """Samples per step in the whole job; a multiple of `lanes`."""
    lanes: int
    """Number of equal runs (lanes) into which the epoch's samples are cut; a multiple of the world size."""
    local_views: int = 0
    """Number of smaller views drawn in addition to the global ones."""
    local_size: int = 0
    """Side of a local view, px; 0 if there are no local views."""
    scale: float = 1.0
    """Side of a global view as a share of that which the augmentations are published for; the blur shrinks with it."""
    fixed: tuple[str, ...] = ()
    """Augmentations that keep their full strength whatever the magnitude (see `views.SCALED`)."""
    keep_tokens: float = 1.0
    """Share of a transformer's tokens that the student keeps of every view, more than 0, at most 1."""
    patch_size: int = 0
    """Side of a transformer's patches, px, for student and teacher; 0: as the encoder has it."""
    candidates: int = 1
    """Candidates drawn of each of two global views, of which a hard pair is kept (`candidates.py`); 1: no choice."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "fixed", tuple(self.fixed))  # JSON has no tuples

    def numbered(self, epoch: int) -> "EpochPlan":
        """Return the same plan for another epoch."""
        return replace(self, epoch=epoch)

    @property
    def samples_per_lane(self) -> int:
        """Return the number of samples that one step takes from every lane."""
        return self.batch_size // self.lanes

    @property
    def views_in_words(self) -> str:
        """The views of an image, as in `2 views of 224 px and 6 of 96 px`."""
        local = f" and {self.local_views} of {self.local_size} px" if self.local_views else ""
        return f"{plural(self.views, 'view')} of {self.image_size} px{local}"

    @property
    def tokens(self) -> Tokens:
        """Return how a transformer cuts the views."""
        return Tokens(self.keep_tokens, self.patch_size)


@dataclass(frozen=True)
class Hyperparameters:
    """Hyperparameter values of one step (learning rate, momentum, ...), a pure function of the position in the run.

    Each is a 0-d float64 tensor on the host.
    """

    values: "Mapping[str, Tensor]"

    def __getitem__(self, name: str) -> "Tensor":
        return self.values[name]

    def number(self, name: str) -> float:
        """Return the hyperparameter as a Python float."""
        return float(self.values[name])


@dataclass(frozen=True)
class Curve:
    """One hyperparameter over a run: from `start` to `end` along half a cosine; constant if they are equal."""

    start: float
    end: float
    warms_up: bool = False
    """True: a linear rise from `rises_from` to `start` in the warm-up, then the cosine; False: only the cosine."""
    for_next_step: bool = False
    """True: the value of the following step is used: the EMA update that ends a step makes the teacher of the next."""

    rises_from: float = 0.0
    """Value at the beginning of the warm-up."""
    warmup: Duration | None = None
    """Length of the warm-up from the start of the run, counted (steps or epochs); constant after it. None: the
    schedule's, in every cycle."""
    batch_size: int = 0
    """Samples per step that a learning rate is for: with others it is proportionally larger; 0: no learning rate."""


def freeze(part: str, time: Duration | None) -> dict[str, Curve]:
    """Return the hyperparameter that freezes a part of a method at first, for `time`; an empty dict if that is None.

    `part`: prefix of its parameters' names. The value falls from 1 to 0 during that time.
    """
    return {FROZEN + part: Curve(0.0, 0.0, warms_up=True, rises_from=1.0, warmup=time)} if time else {}
