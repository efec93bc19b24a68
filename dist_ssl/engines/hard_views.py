"""The choice of views by the model, before the step that trains on them."""

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from dist_ssl.core.batch import Batch
from dist_ssl.core.candidates import PAIRED, CandidateViews, choose


@torch.no_grad()
def with_chosen_views(embed: Callable[[Tensor], Tensor], batch: Batch) -> tuple[Batch, dict[str, Tensor]]:
    """Return the batch with the views that the model chooses from its candidates, and the metrics of the choice.

    A batch without candidates is returned unchanged. `embed`: [B, 3, S, S] -> [B, D], features in evaluation mode. A
    choice makes the host wait for the device: random numbers of colours are drawn on the host.
    """
    given = batch.candidates
    if given is None:
        return batch, {}
    found = features(embed, given).double()
    first, second = F.normalize(found, dim=-1).view(-1, PAIRED, *found.shape[1:]).unbind(1)
    cosines = torch.einsum("kbd,lbd->bkl", first, second)
    choice = choose((1 - cosines).cpu().numpy(), given.temperature, batch.draws, batch.ids.numpy())
    metrics = {key: torch.tensor(value) for key, value in choice.metrics.items()}
    return replace(batch, views=given.finish(choice.pairs), candidates=None), metrics


def features(embed: Callable[[Tensor], Tensor], given: CandidateViews) -> Tensor:
    """Return the features of all candidates, [2 K, B, D]."""
    number, batch = len(given.small), len(given.small[0])
    rows = batch // given.parts
    starts = range(0, batch, rows)
    return torch.cat([embed(_rows(given.small, at, rows)).view(number, rows, -1) for at in starts], dim=1)


def _rows(views: list[Tensor], at: int, rows: int) -> Tensor:
    return torch.cat([view[at : at + rows] for view in views])
