"""Colours the cases of `test_photometric_triton.py` by Triton's interpreter, which is chosen when Triton is imported.

    TRITON_INTERPRET=1 python -m tests.data.images.interpreted FOLDER

FOLDER then holds the views, `views.safetensors`, and what each launch moved, `launches.json`.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from dist_ssl.core.draws import Draws
from dist_ssl.data.images import photometric
from dist_ssl.data.images.photometric import NUMBERS, Looks, Photometry
from dist_ssl.data.images.views import Augmentation
from shards.picture_rules import IMAGENET

MEAN, STD = IMAGENET
CALM = Augmentation(crop_min=1, flip_p=0)
JITTER = replace(CALM, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.2, jitter_p=0.9)
FULL = replace(
    JITTER, gray_p=0.2, blur_p=0.5, solarize_p=0.3, invert_p=0.3, flip_p=0.5, turn_p=0.5, blur_min=0.1, blur_max=2.0
)
RECIPES = {
    "nothing": CALM,
    "brightness": replace(CALM, brightness=0.8, jitter_p=1),
    "contrast": replace(CALM, contrast=0.8, jitter_p=1),
    "saturation": replace(CALM, saturation=0.8, jitter_p=1),
    "hue": replace(CALM, hue=0.5, jitter_p=1),
    "jitter": JITTER,
    "gray": replace(CALM, gray_p=0.5),
    "blur": replace(CALM, blur_p=0.7),
    "wide blur": replace(CALM, blur_p=0.7, blur_min=3.0, blur_max=5.0),
    "solarize": replace(CALM, solarize_p=0.5),
    "invert": replace(CALM, invert_p=0.5),
    "flip": replace(CALM, flip_p=0.5),
    "turn": replace(CALM, turn_p=0.9, flip_p=0.5),
    "all": FULL,
}
SIDES = (32, 33, 9)
"""One block of pixels, two of which the second is nearly empty, and less than a wide blur reaches."""
COUNT = 6


class Case(NamedTuple):
    """A view to colour."""

    recipe: str
    side: int
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{self.recipe} {self.side} {str(self.dtype).removeprefix('torch.')}"

    @property
    def photometry(self) -> Photometry:
        return Photometry(RECIPES[self.recipe], 0, MEAN, STD)

    @property
    def looks(self) -> Looks:
        drawn = Draws(4).uniforms(NUMBERS, np.arange(COUNT) + 100, 0)
        return self.photometry.looks(drawn)

    def pixels(self) -> Tensor:
        """[COUNT, side, side, 3]: noise, with flat grey, black, white, saturated and half bright corners."""
        rng = np.random.default_rng(self.side)
        pixels = rng.integers(0, 256, (COUNT, self.side, self.side, 3)).astype(np.uint8)
        for value, rows, columns in ((100, 0, 0), (0, 0, -3), (255, -3, 0), (128, -3, -3)):
            pixels[:, rows:, columns:][:, :3, :3] = value
        pixels[:, 3:5, :3] = (255, 0, 0)
        return torch.from_numpy(pixels)


CASES = [
    *(Case(recipe, 32, torch.float32) for recipe in RECIPES),
    *(Case(recipe, side, torch.float32) for recipe in ("jitter", "wide blur", "turn", "all") for side in (33, 9)),
    *(Case("all", side, dtype) for dtype in (torch.bfloat16, torch.float16) for side in (32, 33)),
]
PART = slice(2, 4)
"""Samples of a batch that are coloured once more, alone."""


@contextmanager
def watched(launches: list[int]) -> Iterator[None]:
    """Note for each launch how many bytes of memory its programs touch, each byte once."""
    from triton.runtime import interpreter

    from dist_ssl.data.images import photometric_triton

    plain, memory, start = interpreter._interpreter, [], photometric_triton.launch

    class Memory:
        def __getattr__(self, name: str) -> Any:
            return getattr(plain, name)

        def load(self, at: Any, mask: Any, other: Any, kind: Any) -> Any:
            memory.append((at[mask], np.dtype(kind).itemsize))
            return plain.load(at, mask, other, kind)

        def store(self, at: Any, value: Any, mask: Any) -> Any:
            memory.append((at[mask], value.dtype.itemsize))
            return plain.store(at, value, mask)

    def launch(function: Any, programs: Any, *given: Any, **sizes: Any) -> None:
        memory.clear()
        start(function, programs, *given, **sizes)
        widths = {width for _, width in memory}
        every = {w: np.unique(np.concatenate([at.ravel() for at, own in memory if own == w])) for w in widths}
        launches.append(sum(len(at) * width for width, at in every.items()))

    interpreter._interpreter, photometric_triton.launch = Memory(), launch
    try:
        yield
    finally:
        interpreter._interpreter, photometric_triton.launch = plain, start


def main(folder: Path) -> None:
    """Colour all cases."""
    from dist_ssl.data.images.photometric_triton import colour_views

    views: dict[str, Tensor] = {}
    launches: dict[str, list[int]] = {}
    for case in CASES:
        with watched(launches.setdefault(str(case), [])):
            (view,) = colour_views([photometric._numbers(case.photometry, case.pixels(), case.looks)], case.dtype)
        assert view.is_contiguous(memory_format=torch.channels_last)
        views[str(case)] = view.contiguous()
    case = Case("all", 33, torch.float32)
    parts = [
        photometric._numbers(case.photometry, case.pixels()[rows], case.looks.of(rows)) for rows in (PART, slice(0))
    ]
    views["part"], views["empty"] = (view.contiguous() for view in colour_views(parts, torch.float32))
    save_file(views, folder / "views.safetensors")
    (folder / "launches.json").write_text(json.dumps(launches))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
