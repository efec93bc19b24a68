"""Dots in the names of tar members: whether they are parts of keys or of kinds, decided over all tars together.

Of `1.left.jpg` and `1.right.jpg`, `1` is a sample with two images; `cam1.000001.jpg` and `cam1.000002.jpg` are two
samples. One tar, and a small one above all, cannot tell these apart: the tars of a data set share their kinds.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any

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
    """Number of `.cls` members with a dot of their own: `cam1.000001.cls`."""

    def plain(self) -> dict[str, Any]:
        """Return the same as values of JSON."""
        return {**asdict(self), "kinds": sorted(self.kinds)}

    @classmethod
    def restored(cls, values: dict[str, Any]) -> "DottedNames":
        """Return what `plain` has made plain values of. Raises TypeError, KeyError, ValueError for any others."""
        numbers = {one.name: int(values[one.name]) for one in fields(cls) if one.name != "kinds"}
        return cls(frozenset(map(str, values["kinds"])), **numbers)


def lost_images(tars: Iterable[DottedNames]) -> int:
    """Return how many images would be lost because names have dots of their own; 0 if dots belong to kinds.

    They do unless there are more kinds than samples, and more than FEW or all of them numbers: nearly every image then
    has a kind of its own. They also do where labels are named by the first dot: `1.cls` beside `1.0.jpg` and `1.1.jpg`.
    """
    every = list(tars)
    kinds = frozenset[str]().union(*(tar.kinds for tar in every))
    samples = sum(tar.samples for tar in every)
    numbers = all(kind.rpartition(".")[0].isdecimal() for kind in kinds)
    names = len(kinds) > (samples if numbers else max(FEW, samples))
    by_first_dot = sum(tar.labels_of_samples for tar in every) > sum(tar.labels_of_images for tar in every)
    return sum(tar.hidden for tar in every) if names and not by_first_dot else 0
