"""CutMix (Yun et al. 2019, arXiv 1905.04899) as used by Cao and Wu: one box and one partner order per global batch.

    lam ~ Beta(a, a), at least 1/2;  a box of area (1 - lam) S^2 around a uniform centre, clipped;
    inside the box every image shows its partner's pixels;  lam is then the area share of its own pixels

The random numbers are keyed by the samples of the global batch, so the mix is the same at every world size.
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
"""Smallest and largest a of Beta(a, a): outside of them too often none of the `TRIES` pairs of numbers is accepted."""


@dataclass(frozen=True)
class Mix:
    """How a global batch is mixed.

    `partners`: [N] index of every image's partner in the global batch; `kept`: area share of an image's own pixels.
    """

    partners: Ints
    kept: float
    box: tuple[int, int, int, int]
    """Box of the partner's pixels: top, bottom, left, right, in px of a view."""


def check_alpha(alpha: float) -> None:
    """Raise ConfigError if `alpha` is outside `ALPHAS`, where drawing from Beta(alpha, alpha) is not reliable."""
    least, most = ALPHAS
    require("method", f"from {least:g} to {most:g}", lambda value: least <= value <= most, mix_alpha=alpha)


def draw(draws: Draws, ids: Ints, alpha: float, side: int) -> Mix:
    """Draw the mix of the global batch `ids` [N], for views of `side` px. `alpha`: within `ALPHAS`."""
    # `order` below uses slot 0: the box uses another slot, so that the two are independent
    numbers = draws.uniform(Purpose.MIX, ids.min(keepdims=True), 1, 2 * TRIES + 2)[0].astype(np.float64)
    share = beta(numbers[2:], alpha)
    reach = int(side * math.sqrt(1 - max(share, 1 - share))) // 2
    centres = (int(number * side) for number in numbers[:2])
    (top, bottom), (left, right) = ((max(0, at - reach), min(side, at + reach)) for at in centres)
    kept = 1 - (bottom - top) * (right - left) / side**2
    return Mix(draws.order(Purpose.MIX, ids), kept, (top, bottom, left, right))


def beta(numbers: "np.typing.NDArray[np.float64]", alpha: float) -> float:
    """Return a draw of Beta(alpha, alpha): pairs of the uniform `numbers` are tried until one fits (Johnk 1964).

    1/2 if none fits.
    """
    for u, v in numbers.reshape(-1, 2):
        x, y = u ** (1 / alpha), v ** (1 / alpha)
        if 0 < x + y <= 1:
            return float(x / (x + y))
    return 0.5


def mixed(view: Tensor, mix: Mix, world: World) -> Tensor:
    """Return this rank's images [B, 3, S, S] with their partners' pixels in the box, gathered from all ranks."""
    top, bottom, left, right = mix.box
    if top == bottom or left == right:
        return view
    own = slice(world.rank * len(view), (world.rank + 1) * len(view))
    patches = world.gather_const(view[:, :, top:bottom, left:right])
    out = view.clone()
    out[:, :, top:bottom, left:right] = patches[torch.from_numpy(mix.partners[own]).to(view.device)]
    return out
