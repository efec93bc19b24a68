"""Stochastic depth (Huang et al. 2016, arXiv 1603.09382) with keyed draws: the same at every number of ranks.

A residual branch of a transformer block is left out for some samples, and scaled by 1 / (1 - rate) for the others. The
decisions for a pass are made before it, by `draw`: each depends on the sample, the number of its view and the branch.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn

from dist_ssl.config.validation import require
from dist_ssl.core.draws import Purpose, SampleDraws
from dist_ssl.errors import ConfigError

BRANCHES = ("drop_path1", "drop_path2")
"""The modules at the ends of a block's two residual branches, by timm's names."""


class DropPath(nn.Module):
    """The end of a residual branch, [B, ...] -> [B, ...]; in evaluation it returns its input."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.factors = torch.ones(0)
        """[B] of the next pass: 0 where the branch is left out."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        assert len(self.factors) == len(x), f"drawn for {len(self.factors)} views, used with {len(x)}"
        return x * self.factors.to(x.dtype).view(-1, *[1] * (x.dim() - 1))


def install(encoder: nn.Module, rate: float) -> None:
    """End the residual branches of a transformer in `DropPath`s; their rates rise from 0 to `rate` over the blocks.

    With a rate of 0 nothing changes. Raises ConfigError, also where the encoder has no such blocks.
    """
    require("method", "from 0 to less than 1", lambda value: 0 <= value < 1, drop_path=rate)
    if rate == 0:
        return
    blocks = [block for block in encoder.modules() if all(hasattr(block, name) for name in BRANCHES)]
    if not blocks:
        raise ConfigError(
            f"method.drop_path={rate:g} is not possible: the encoder has no transformer blocks.",
            "Set method.drop_path=0, or use encoder=vit_small_dino.",
        )
    for number, block in enumerate(reversed(blocks)):
        own = rate * (1 - number / max(1, len(blocks) - 1))
        for name in BRANCHES if own > 0 else ():
            setattr(block, name, DropPath(own))


def draw(module: nn.Module, draws: SampleDraws, slots: range, device: torch.device) -> None:
    """Draw the decisions for the next pass of a module over the views `slots` of these samples, one view after another.

    Nothing is drawn for a module without `DropPath`s.
    """
    drops = _of(module)
    if not drops:
        return
    numbers = draws.draws.of_slots({Purpose.DROP_PATH: len(drops)}, draws.ids, slots)[Purpose.DROP_PATH]
    rates = torch.tensor([drop.rate for drop in drops], dtype=torch.float64)
    factors = (torch.from_numpy(numbers).flatten(0, 1) >= rates) / (1 - rates)
    for drop, own in zip(drops, factors.T.contiguous().to(device).unbind(), strict=True):
        drop.factors = own


def again(module: nn.Module) -> AbstractContextManager[None]:
    """Return a context for recomputation: it restores the decisions of the current pass."""
    return _repeating([(drop, drop.factors) for drop in _of(module)])


@contextmanager
def _repeating(then: list[tuple[DropPath, Tensor]]) -> Iterator[None]:
    before = [(drop, drop.factors) for drop, _ in then]
    try:
        for drop, factors in then:
            drop.factors = factors
        yield
    finally:
        for drop, factors in before:
            drop.factors = factors


def _of(module: nn.Module) -> list[DropPath]:
    return [child for child in module.modules() if isinstance(child, DropPath)]
