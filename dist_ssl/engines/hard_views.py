"""The choice of views by the model, before the step that trains on them."""

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from dist_ssl.core.batch import Batch
from dist_ssl.core.candidates import PAIRED, CandidateViews, choose


@torch.no_grad()
def with_chosen_views(
    embed: Callable[[Tensor], Tensor], batch: Batch, parts: int = 1
) -> tuple[Batch, dict[str, Tensor]]:
    """Return the batch with the views that the model chooses from its candidates, and the metrics of the choice.

    A batch without candidates is returned unchanged. `embed`: [B, 3, S, S] -> [B, D], features in evaluation mode;
    `parts`: number of equal parts in which the batch is trained on, and so scored. A choice makes the host wait for the
    device: random numbers of colours are drawn on the host.
    """
    given = batch.candidates
    if given is None:
        return batch, {}
    first, second = F.normalize(features(embed, given, given.parts * parts).double(), dim=-1)
    cosines = first @ second.mT
    choice = choose((1 - cosines).cpu().numpy(), given.temperature, batch.draws, batch.draw_ids)
    metrics = {key: torch.tensor(value) for key, value in choice.metrics.items()}
    return replace(batch, views=given.finish(choice.pairs), candidates=None), metrics


def features(embed: Callable[[Tensor], Tensor], given: CandidateViews, parts: int) -> Tensor:
    """Return the features of all candidates of both slots, [2, B, K, D], computed in equal parts of the batch."""
    each = zip(*(views.chunk(parts) for views in given.small), strict=True)
    rows = len(given.small[0]) // parts // given.number
    found = [embed(torch.cat(part)).view(PAIRED, rows, given.number, -1) for part in each]
    return torch.cat(found, dim=1)
