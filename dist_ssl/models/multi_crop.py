"""Forward passes of one module over views of several sizes: views of one size share a pass."""

from collections.abc import Iterator
from itertools import groupby

import torch
from torch import Tensor, nn

from dist_ssl.core.draws import SampleDraws
from dist_ssl.models import drop_path, norm
from dist_ssl.models.branch import Branch
from dist_ssl.models.patches import drop_tokens


def same_size(views: list[Tensor]) -> Iterator[list[Tensor]]:
    """Return the runs of consecutive views, [B, 3, S, S] each, that have the same side S."""
    return (list(neighbours) for _, neighbours in groupby(views, key=lambda view: view.shape[-1]))


def in_one_pass(module: nn.Module, same: list[Tensor], draws: SampleDraws | None = None, first: int = 0) -> Tensor:
    """Return the outputs of views of one size, [V * B, D], view after view, with separate statistics per view.

    `draws`: those of the samples, for a student: its stochastic depth and dropped tokens. `first`: number of the first
    of the views.
    """
    norm.set_views(module, len(same))
    if draws is not None:
        drop_path.draw(module, draws, range(first, first + len(same)), same[0].device)
        drop_tokens(module, draws, len(same), first=first)
    out: Tensor = module(torch.cat(same))
    return out


def by_size(module: nn.Module, views: list[Tensor], draws: SampleDraws | None = None) -> list[Tensor]:
    """Return the output of every view, [B, D] each, in the order of the views, with separate statistics per view.

    `draws`: those of the samples, for a student.
    """
    found: list[Tensor] = []
    for same in same_size(views):
        found += in_one_pass(module, same, draws, len(found)).chunk(len(same))
    return found


def with_common_statistics(branch: Branch, views: list[Tensor], draws: SampleDraws) -> list[Tensor]:
    """Return the output of every view, [B, D] each, in the order of the views, with batch statistics of several views.

    In the encoder views of one size have common statistics; the projector sees all views at once, with one set of
    statistics. Rows lie sample by sample, so that a group of samples takes all their views along. `draws`: those of the
    samples, for the tokens that the encoder drops.
    """
    features: list[Tensor] = []
    slot = 0
    for same in same_size(views):
        norm.set_views(branch.encoder, 1, rows=len(same))
        drop_tokens(branch.encoder, draws, 1, rows=len(same), first=slot)
        slot += len(same)
        features.append(branch.encoder(torch.stack(same, dim=1).flatten(0, 1)))
    norm.set_views(branch.projector, 1, rows=len(views))
    by_sample = torch.cat([rows.view(len(views[0]), -1, rows.shape[1]) for rows in features], dim=1)
    found: Tensor = branch.projector(by_sample.flatten(0, 1))
    return list(found.view(len(views[0]), len(views), -1).unbind(1))
