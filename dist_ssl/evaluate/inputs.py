"""The views of an image whose features are evaluated: its centre, or views that are drawn as in training."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from dist_ssl.core.draws import Draws, Ints
from dist_ssl.data.epoch_views import Colours
from dist_ssl.data.images.centre_crop import CentreCrop
from dist_ssl.data.images.image_rules import RULES, ImageRules
from dist_ssl.data.images.photometric import Photometry, colour, normalise
from dist_ssl.data.images.pixel_numbers import white
from dist_ssl.data.images.views import Augmentation, Cutter, ViewCutter


class Inputs(Protocol):
    """The views of an image: how they are cut on the host, and finished on the device."""

    cutter: ViewCutter
    draws: Draws
    views: int
    """Number of views of an image."""
    side: int
    """Side of a view, px."""
    dtype: torch.dtype

    def finish(self, pixels: Sequence[Tensor], ids: Ints) -> list[Tensor]:
        """Return the normalised views, [B, C, S, S] each, of uint8 pixels, [B, S, S, C] each, of the samples `ids`."""
        ...


class CentreView:
    """One view: the centre of the image, see `CentreCrop`; only normalised."""

    cutter: ViewCutter
    views = 1

    def __init__(
        self, colours: Colours, dtype: torch.dtype, *, resize: int, crop: int, rules: ImageRules = RULES
    ) -> None:
        self.colours, self.dtype, self.side = colours, dtype, crop
        self.cutter, self.draws = CentreCrop(resize, crop, rules), Draws(0)

    def finish(self, pixels: Sequence[Tensor], ids: Ints) -> list[Tensor]:
        """See `Inputs`."""
        planes = [view.permute(0, 3, 1, 2).to(self.dtype) / white(view) for view in pixels]
        return [normalise(x, self.colours.mean, self.colours.std) for x in planes]


class DrawnViews:
    """Views that are cut and coloured as in training, one per recipe, from the draws of a sample: always the same."""

    cutter: ViewCutter

    def __init__(
        self,
        colours: Colours,
        dtype: torch.dtype,
        *,
        recipes: Sequence[Augmentation],
        side: int,
        draws: Draws,
        rules: ImageRules = RULES,
    ) -> None:
        self.dtype, self.side, self.draws, self.views = dtype, side, draws, len(recipes)
        self.cutter = Cutter(recipes, side, rules)
        self.changes = [Photometry(r, slot, colours.mean, colours.std) for slot, r in enumerate(recipes)]

    def finish(self, pixels: Sequence[Tensor], ids: Ints) -> list[Tensor]:
        """See `Inputs`."""
        return colour(self.changes, pixels, ids, self.draws, self.dtype)
