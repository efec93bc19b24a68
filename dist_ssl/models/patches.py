"""A transformer's patches: their projection for any side of a patch, and random dropout of tokens by keyed draws.

*Side of a patch*, as in FlexiViT (Beyer et al. 2023, arXiv 2212.08013): resizing a patch x of p x p pixels bilinearly
to P x P is a matrix product B x. The projection's weights w are resized to those whose products with resized patches
are nearest to what they were, in the mean over patches of independent pixels; for P >= p they are equal:

    w' = argmin E[(<x, w> - <B x, w'>)^2] = pinv(B.T) w

*Token dropout* (Lin et al. 2024, arXiv 2410.22364): the student sees a random part of the patches of every view, with
their positions. They are chosen before the projection, so a dropped patch costs nothing, and choosing needs no
gradient. A teacher sees all tokens, as in MSN (Assran et al. 2022, arXiv 2204.07141): targets are better without this
noise, and have no backward pass to save. The side of a patch is that of the student: the two weights stay comparable.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dist_ssl.core.draws import Purpose, SampleDraws
from dist_ssl.core.tokens import ALL_TOKENS, Tokens
from dist_ssl.errors import ConfigError

Grid = tuple[int, int]
"""Rows and columns of patches."""


@lru_cache(maxsize=32)
def patch_resampling(old: int, new: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the matrix, [new^2, old^2], that resizes the weights of patches of side `old` for those of side `new`.

    It is pinv(B.T) of bilinear resizing, antialiased where patches shrink. Resizing treats rows and columns alike, so
    it is the Kronecker product of the matrix of one dimension with itself. It is computed in double precision on the
    host, and cached for every pair of sides.
    """
    with torch.inference_mode(False), torch.no_grad():  # the cached matrix is used in training too
        lines = torch.eye(old, dtype=torch.float64, device="cpu")[:, None, :, None]
        squares = lines.repeat(1, 1, 1, old)  # images of one column are resized wrongly (torch 2.14)
        resize = F.interpolate(squares, size=(new, new), mode="bilinear", antialias=True)[:, 0, :, 0]
        one = torch.linalg.pinv(resize)
        return torch.kron(one, one).to(device, dtype)


@dataclass(frozen=True)
class Dropout:
    """The tokens that a pass keeps. Its views have the slots from `first` on; see `drop_tokens`."""

    draws: SampleDraws
    views: int
    rows: int
    first: int

    def kept(self, count: int) -> Tensor:
        """Return the numbers of the kept ones of `count` tokens, [rows of the pass, K] int64 on the host, ascending."""
        slots = range(self.first, self.first + self.views * self.rows)
        keep, ids = self.draws.tokens.kept(count), self.draws.ids
        found = self.draws.draws.chosen(Purpose.TOKENS, ids, slots, count, keep)
        return torch.from_numpy(found.reshape(self.views, self.rows, len(ids), keep).swapaxes(1, 2).reshape(-1, keep))


@dataclass(frozen=True)
class Layout:
    """How the images of a pass are cut into patches."""

    grid: Grid
    side: int
    """Side of a patch, px."""
    kept: Tensor | None
    """[B, K] int64 numbers of the kept patches, counted row by row; None: all."""

    def of(self, rows: Tensor) -> Tensor:
        """Return those of the grid's rows, [N, D], that belong to the kept patches, [B, K, D]; all, [N, D], if None."""
        return rows if self.kept is None else F.embedding(self.kept, rows)


class Projection(nn.Conv2d):
    """The projection of square patches, [B, C, S, S] -> [B, K, D], row by row; a Conv2d by the names of its weights.

    In evaluation it sees all patches of its own side.
    """

    patch = 0
    """Side of a patch in training, px; 0: its own."""
    dropout: Dropout | None = None
    """The tokens that the next pass in training keeps; None: all."""
    latest: Layout
    """How the images of the latest pass were cut."""

    @property
    def multiple_of(self) -> int:
        """Return the side of a patch that it was made for, px."""
        return self.kernel_size[0]

    def _layout(self, images: Tensor) -> Layout:
        """Return how this pass cuts its images, [B, C, S, S]. Raises ConfigError where patches do not fit."""
        dropout, patch = (self.dropout, self.patch) if self.training else (None, 0)
        self.dropout = None
        check_side(self, images.shape[-1], "The side of an image or a tile of it", Tokens(patch=patch))
        patch = patch or self.multiple_of
        grid = (images.shape[-2] // patch, images.shape[-1] // patch)
        if dropout is None:
            return Layout(grid, patch, None)
        kept = dropout.kept(grid[0] * grid[1])
        assert len(kept) == len(images), f"drawn for {len(kept)} views, used with {len(images)}"
        return Layout(grid, patch, kept.to(images.device))

    def forward(self, x: Tensor) -> Tensor:
        self.latest = layout = self._layout(x)
        side, kept = layout.side, layout.kept
        weight = self.resized(side)
        if kept is None:
            return F.conv2d(x, weight, self.bias, side).flatten(2).transpose(1, 2)
        rows, columns = kept // layout.grid[1], kept % layout.grid[1]
        image = torch.arange(len(x), device=x.device)[:, None]
        cut = x.reshape(*x.shape[:2], layout.grid[0], side, layout.grid[1], side)
        return F.linear(cut[image, :, rows, :, columns].flatten(2), weight.flatten(1), self.bias)

    def resized(self, side: int) -> Tensor:
        """Return the weights for patches of this side, [D, C, side, side]; for its own side the parameter itself."""
        return resized_projection(self.weight, side)


def resized_projection(weight: Tensor, side: int) -> Tensor:
    """Return the weights of a projection, [D, C, p, p], for patches of another side, [D, C, side, side]."""
    own = weight.shape[-1]
    if side == own:
        return weight
    exact = torch.promote_types(weight.dtype, torch.float32)
    with torch.autocast(weight.device.type, enabled=False):
        found = weight.to(exact).flatten(2) @ patch_resampling(own, side, exact, weight.device).T
    return found.to(weight.dtype).reshape(*weight.shape[:2], side, side)


def check_side(encoder: nn.Module, side: int | None, key: str, tokens: Tokens = ALL_TOKENS) -> None:
    """Raise ConfigError where the encoder cannot take images of this side, px, set by `key` of the config.

    `tokens`: how it cuts them, if it is a transformer; at least one token must be kept.
    """
    if side is None:
        return
    step = tokens.patch or getattr(encoder, "multiple_of", 1)
    if side < step or side % step:
        by = f"schedule.patch_size={step}" if tokens.patch else "the encoder"
        raise ConfigError(
            f"{key}={side} does not fit {by}, which cuts images into patches of {step} px.",
            f"Set it to a multiple of {step}: {max(1, round(side / step)) * step}, say.",
        )
    count = (side // step) ** 2
    if tokens.kept(count) < 1:
        raise ConfigError(
            f"schedule.keep_tokens={tokens.keep:g} keeps none of the {count} tokens of {key}={side}.",
            f"Set schedule.keep_tokens={1 / count:.2g} or more.",
        )


def check_support(encoder: nn.Module, tokens: Tokens) -> None:
    """Raise ConfigError where the encoder cannot cut views into these tokens, or a value is outside its range."""
    if not 0 < tokens.keep <= 1:
        raise ConfigError(
            f"schedule.keep_tokens={tokens.keep:g} is not possible: it is a share, more than 0 and at most 1.",
            "Set schedule.keep_tokens=0.5, say, or 1 to keep all.",
        )
    if tokens.patch < 0:
        raise ConfigError(
            f"schedule.patch_size={tokens.patch} is not possible: it is a side in px, or 0.",
            "Set schedule.patch_size=0 for the encoder's own patches.",
        )
    if tokens == ALL_TOKENS or projections(encoder):
        return
    key = f"schedule.keep_tokens={tokens.keep:g}" if tokens.keep < 1 else f"schedule.patch_size={tokens.patch}"
    raise ConfigError(
        f"{key} is not possible with this encoder, {type(encoder).__name__}: its tokens cannot be chosen.",
        "Use encoder=vit_small, vit_base, vit_tiny_demo or vit_small_dino, or leave out schedule.keep_tokens, "
        "schedule.start_tokens and schedule.patch_size.",
    )


def set_patch(module: nn.Module, side: int) -> None:
    """Let all passes in training, of student and teacher, cut images into patches of this side, px; 0: their own."""
    for projection in projections(module):
        projection.patch = side


def drop_tokens(module: nn.Module, draws: SampleDraws, views: int, *, rows: int = 1, first: int = 0) -> None:
    """Let the next pass of a module in training keep a part of the tokens, as `draws.tokens` says.

    The pass has the layout of `norm.set_views`: `views` views of all samples, one after the other, each with `rows`
    consecutive rows per sample. Row r of view v has the slot `first` + v * `rows` + r.
    """
    for projection in projections(module):
        projection.dropout = Dropout(draws, views, rows, first) if draws.tokens.keep < 1 else None


def projections(module: nn.Module) -> list[Projection]:
    """Return the projections of all transformers in a module."""
    return [child for child in module.modules() if isinstance(child, Projection)]
