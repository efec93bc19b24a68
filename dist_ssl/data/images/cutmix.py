"""CutMix (Yun et al. 2019, arXiv 1905.04899) as Cao and Wu use it: one box and one partner order per global batch.

    lam ~ Beta(a, a), at least 1/2;  a box of area (1 - lam) S^2 around a uniform centre, clipped;
    inside the box every image shows its partner's pixels;  lam is then the share that is left of its own

All of it is drawn from the samples of the global batch, so it is the same at every world size.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dist_ssl.config.validation import require
from dist_ssl.core.draws import Draws, Ints, Purpose
from dist_ssl.distributed.world import World

TRIES = 64
ALPHAS = (0.001, 2.0)
"""Of Beta(a, a), smallest and largest: beyond them too often none of so many tries fits."""


@dataclass(frozen=True)
class Mix:
    """How a global batch is mixed. `partners`: [N] places; the share `kept` of an image; the box in px of a view."""

    partners: Ints
    kept: float
    box: tuple[int, int, int, int]
    """Top, bottom, left, right."""


def check_alpha(alpha: float) -> None:
    """Raise ConfigError where Beta(alpha, alpha) cannot be drawn from."""
    least, most = ALPHAS
    require("method", f"{least:g} to {most:g}", lambda value: least <= value <= most, mix_alpha=alpha)


def draw(draws: Draws, ids: Ints, alpha: float, side: int) -> Mix:
    """The mix of the global batch `ids` [N], for views of `side` px. `alpha` within ALPHAS."""
    # slot 0 is the order's: the box has one of its own, so that neither tells the other
    numbers = draws.uniform(Purpose.MIX, ids.min(keepdims=True), 1, 2 * TRIES + 2)[0].astype(np.float64)
    share = beta(numbers[2:], alpha)
    reach = int(side * math.sqrt(1 - max(share, 1 - share))) // 2
    centres = (int(number * side) for number in numbers[:2])
    (top, bottom), (left, right) = ((max(0, at - reach), min(side, at + reach)) for at in centres)
    kept = 1 - (bottom - top) * (right - left) / side**2
    return Mix(draws.order(Purpose.MIX, ids), kept, (top, bottom, left, right))


def beta(numbers: "np.typing.NDArray[np.float64]", alpha: float) -> float:
    """A draw of Beta(alpha, alpha) from uniform numbers, taken in pairs until one fits (Johnk 1964)."""
    for u, v in numbers.reshape(-1, 2):
        x, y = u ** (1 / alpha), v ** (1 / alpha)
        if 0 < x + y <= 1:
            return float(x / (x + y))
    return 0.5


def mixed(view: Tensor, mix: Mix, world: World) -> Tensor:
    """This rank's images [B, 3, S, S] with their partners' pixels in the box; the boxes travel between the ranks."""
    top, bottom, left, right = mix.box
    if top == bottom or left == right:
        return view
    own = slice(world.rank * len(view), (world.rank + 1) * len(view))
    patches = world.gather_const(view[:, :, top:bottom, left:right])
    out = view.clone()
    out[:, :, top:bottom, left:right] = patches[torch.from_numpy(mix.partners[own]).to(view.device)]
    return out
