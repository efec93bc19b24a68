"""Dots in the names of tar members: whether they are parts of keys or of kinds, decided over all tars together.

Of `1.left.jpg` and `1.right.jpg`, `1` is a sample with two images; `cam1.000001.jpg` and `cam1.000002.jpg` are two
samples. One tar, and a small one above all, cannot tell these apart: the tars of a data set share their kinds.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

FEW = 10
"""Number of kinds, other than numbers, that a sample's images may have however few samples there are."""


@dataclass(frozen=True)
class DottedNames:
    """The dots in the names of one tar's images, with keys that end before the first dot."""

    kinds: frozenset[str] = frozenset()
    """The kinds of images that have a dot: `left.jpg`, `000001.jpg`."""
    samples: int = 0
    """Number of samples that have an image."""
    hidden: int = 0
    """Number of images that are not used because their sample has another one."""
    labels_of_samples: int = 0
    """Number of `KEY.cls` members of samples with such images: they would belong to nothing if keys ended later."""
    labels_of_images: int = 0
    """Number of `.cls` members beside such an image of the same name: `cam1.000001.cls`."""

    def plain(self) -> dict[str, Any]:
        """Return the same as values of JSON."""
        return {**asdict(self), "kinds": sorted(self.kinds)}

    @classmethod
    def restored(cls, values: dict[str, Any]) -> "DottedNames":
        """Return what `plain` has made plain values of. Raises TypeError, KeyError, ValueError for any others."""
        numbers = {one.name: int(values[one.name]) for one in fields(cls) if one.name != "kinds"}
        return cls(frozenset(map(str, values["kinds"])), **numbers)


class LostMembers(NamedTuple):
    """How many images and labels of tars would be lost if keys ended before the first dot."""

    images: int
    labels: int


def lost_members(tars: Iterable[DottedNames]) -> LostMembers:
    """Return what would be lost because names have dots of their own; nothing if dots belong to kinds.

    Labels tell: `1.0.cls` beside `1.0.jpg`, or `1.cls` beside `1.0.jpg` and `1.1.jpg`. Where there are as many of
    either, or none, dots belong to names if there are more kinds than samples, and more than FEW or all of them
    numbers: nearly every image then has a kind of its own. So do more numbers than FEW, such as those of a film.
    """
    every = list(tars)
    kinds = frozenset[str]().union(*(tar.kinds for tar in every))
    samples, hidden = sum(tar.samples for tar in every), sum(tar.hidden for tar in every)
    of_images, of_samples = (sum(getattr(tar, f"labels_of_{what}") for tar in every) for what in ("images", "samples"))
    numbers = all(kind.rpartition(".")[0].isdecimal() for kind in kinds)
    names = len(kinds) > (min(FEW, samples) if numbers else max(FEW, samples))
    if of_images > of_samples or (names and of_images == of_samples):
        return LostMembers(hidden, of_images)
    return LostMembers(0, 0)
