"""MoCo v2 (Chen et al. 2020, arXiv 2003.04297): a query finds its key among the keys of earlier batches.

    q = head(encoder(x_1)),  k = teacher(x_2) without gradient;   loss = CE([q.k, q.queue] / T, 0)

The loss has one direction, as published. `symmetric` adds the other one, as the authors' CIFAR notebook offers: both
views are queries and keys, the losses of the two directions are added, and the keys of both views enter the queue. That
takes nearly twice the time of a step, and behaves like twice the epochs, as the notebook says.

With `norm_group` batch norms take their statistics over groups of samples. `shuffle` then groups the keys differently
from the queries, so that group statistics do not reveal which key belongs to a query: key views are exchanged between
ranks in a random order of the global batch, the same at every world size.
"""

import torch
from torch import Tensor, nn

from dist_ssl.config.validation import at_least, positive
from dist_ssl.core.batch import Batch
from dist_ssl.core.draws import Purpose, SampleDraws
from dist_ssl.core.plan import Hyperparameters
from dist_ssl.distributed.world import World
from dist_ssl.errors import ConfigError
from dist_ssl.losses.health import signs_of_health
from dist_ssl.losses.job import job_mean
from dist_ssl.losses.queued import queue_cross_entropy
from dist_ssl.memory.queue import Queue
from dist_ssl.models import norm
from dist_ssl.models.branch import Branch, width_of
from dist_ssl.models.heads import mlp
from dist_ssl.models.multi_crop import by_size
from dist_ssl.protocols.method import Embeddings, LossOutput
from dist_ssl.protocols.momentum_teacher import MomentumTeacher

DIRECTIONS = ("q", "k"), ("q_back", "k_back")
"""Names of queries and keys: from the first view to the second, and back."""


class MoCoV2(MomentumTeacher):
    """MoCo v2 around an encoder that carries `num_features`.

    `hidden`, `dim`: widths of the head; with `hidden` None it is one linear map, as in MoCo v1. `head_norm`: batch norm
    after the head's layers, which the published head does not have. `slots`: number of keys in the queue.
    `temperature` > 0. `momentum`: EMA momentum of the teacher, 0 to 1, constant. `norm_group`: samples that share
    batch-norm statistics; None: all of the job's. `shuffle`: form the groups of the keys from a shuffled batch.
    `symmetric`: learn in both directions.
    """

    num_views = 2

    def __init__(
        self,
        encoder: nn.Module,
        *,
        world: World,
        hidden: int | None = 2048,
        dim: int = 128,
        head_norm: bool = False,
        slots: int = 65536,
        temperature: float = 0.2,
        momentum: float = 0.999,
        norm_group: int | None = None,
        shuffle: bool = False,
        symmetric: bool = False,
    ) -> None:
        at_least("method", 1, hidden=1 if hidden is None else hidden, dim=dim, slots=slots)
        positive("method", temperature=temperature)
        if shuffle and norm_group is None:
            raise ConfigError(
                "method.shuffle=true changes nothing where all of the job's samples share batch-norm statistics.",
                "Set method.norm_group too, 32, say.",
            )
        widths = [width_of(encoder), *([] if hidden is None else [hidden]), dim]
        head = mlp(widths, last_norm=head_norm, bias=True, hidden_norm=head_norm)
        super().__init__(Branch(encoder, head), world=world, momentum=momentum, norm_group=norm_group)
        self.temperature, self.shuffle = temperature, shuffle
        self.directions = DIRECTIONS if symmetric else DIRECTIONS[:1]
        self.queue = Queue(slots, dim, world=world)

    @property
    def needs_whole_batch(self) -> str:
        """`method.shuffle`: a random order needs the whole batch."""
        return "method.shuffle" if self.shuffle else ""

    def embed(self, views: list[Tensor], draws: SampleDraws) -> Embeddings:
        """Return queries `q` of the first view, [B, dim], and `q_back` of the second if symmetric."""
        queries = by_size(self.student, views[: len(self.directions)], draws)
        return dict(zip((q for q, _ in self.directions), queries, strict=True))

    @torch.no_grad()
    def targets(self, views: list[Tensor], draws: SampleDraws) -> Embeddings:
        """Return keys `k` of the second view, [B, dim], and `k_back` of the first if symmetric."""
        norm.set_views(self.teacher, 1)
        keyed = enumerate(zip((k for _, k in self.directions), reversed(views), strict=False))
        return {
            k: self._shuffled(view, draws, slot) if self.shuffle else self.teacher(view) for slot, (k, view) in keyed
        }

    def _shuffled(self, view: Tensor, draws: SampleDraws, slot: int) -> Tensor:
        """Return the keys of a view in its own order, computed in a random order of the global batch."""
        ids = self.world.gather_const(torch.from_numpy(draws.ids).to(view.device))
        order = torch.from_numpy(draws.draws.order(Purpose.SHUFFLE, ids.cpu().numpy(), slot)).to(view.device)
        own = slice(self.world.rank * len(view), (self.world.rank + 1) * len(view))
        keys = self.world.gather_const(self.teacher(self.world.gather_const(view)[order[own]]))
        back = torch.empty_like(keys)
        back[order] = keys
        return back[own]

    def loss(self, embeddings: Embeddings, batch: Batch, hyper: Hyperparameters) -> LossOutput:
        """Return the cross-entropy of each query's own key against the queue, averaged over the job's valid samples.

        The losses of two directions are added.
        """
        queue, usable = self.queue.negatives(batch.ids)
        pairs = [(embeddings[q], embeddings[k]) for q, k in self.directions]
        rows = [queue_cross_entropy(q, k, queue, usable, self.temperature) for q, k in pairs]
        loss = job_mean(torch.stack(rows).sum(0), batch.valid, self.world.sum)
        metrics = {**signs_of_health(*pairs[0]), "queue_age": self.queue.age}
        keys = torch.stack([k for _, k in pairs], dim=1)
        return LossOutput(loss, metrics, remember={"keys": nn.functional.normalize(keys, dim=2)})

    def remember(self, out: LossOutput, batch: Batch, hyper: Hyperparameters) -> None:
        """Push the keys of the whole job onto the queue, sample by sample: one of each, or two if symmetric."""
        ids, valid = (x.repeat_interleave(len(self.directions)) for x in (batch.ids, batch.valid))
        self.queue.push(out.remember["keys"].flatten(0, 1), ids, valid)
