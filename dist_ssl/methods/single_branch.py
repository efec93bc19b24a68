"""One view, one branch, a memory bank (after Cao and Wu 2024, arXiv 2404.19289): every image is its own class.

    z = norm(projector(encoder(x)));   s = z W^T over the rows of all images, or of the batch and `negatives` others
    loss = CE(s / T, own row) + kl_weight KL(p || u),   p = softmax(s / kl_temperature),   u ~ p^exponent, constant
        (or KL(u || p): `divergence`; or with the gradient through u too: `through_target`)
    with CutMix: lam CE(own row) + (1 - lam) CE(the partner's row)

Rows are initialised with the untrained network's embeddings, in one pass over the data in whole batches; rows of the
images that fill no batch are zeros until they are visited, as in the released code. `calibrate` false leaves this pass
out: all rows begin as zeros. Rows are updated after every step:
`ema` as in the released code; `pull` and `descend` are reconstructions of the paper's gradient-based update, whose
exact form is not public. The bank's rows are sharded over the ranks.
"""

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dist_ssl.config.validation import at_least, positive, require, shares
from dist_ssl.core.batch import Batch
from dist_ssl.core.draws import Draws, Ints, SampleDraws
from dist_ssl.core.plan import Hyperparameters
from dist_ssl.data.images import cutmix
from dist_ssl.distributed.norm_groups import scope
from dist_ssl.distributed.world import World
from dist_ssl.errors import ConfigError
from dist_ssl.losses.health import signs_of_health
from dist_ssl.losses.instance import Divergence, instance_cross_entropy, self_distillation
from dist_ssl.losses.job import job_mean
from dist_ssl.memory.bank import Bank
from dist_ssl.memory.negatives import negatives
from dist_ssl.models import norm
from dist_ssl.models.branch import Branch, width_of
from dist_ssl.models.heads import mlp
from dist_ssl.models.patches import drop_tokens, set_patch
from dist_ssl.protocols.method import Embeddings, LossOutput, Method

Update = Literal["ema", "pull", "descend"]


def check_update(update: Update, on_mixed: bool, mix: bool) -> None:
    """Raise ConfigError where rows cannot be updated with this combination of options."""
    if not on_mixed and not mix:
        raise ConfigError(
            "method.update_on_mixed=false changes nothing with method.mix=false: no image is mixed.",
            "Leave one of them out.",
        )
    if not on_mixed and update != "ema":
        raise ConfigError(
            f"method.update_on_mixed=false is not possible with method.update={update}: rows then follow the gradient "
            "of the loss, which is computed from mixed images.",
            "Set method.update=ema or method.update_on_mixed=true.",
        )


class SingleBranch(Method):
    """The method around an encoder that carries `num_features`.

    `num_samples`: number of images in the data set. `hidden`, `dim`: widths of the projector and of the bank.
    `temperature` > 0. Self-distillation: `kl_weight` from 0, `kl_temperature` > 0, `exponent` between 0 and 1,
    `divergence`: its direction, `through_target`: pass the gradient through u too. `negatives`: number of rows compared
    beside the batch's; None: all rows. `update`: update rule of the rows; `ema` and `pull` use `bank_momentum`, 0 to 1,
    `descend` uses `bank_rate`, from 0. `update_on_mixed`: update rows with the embeddings of mixed images, as in the
    released code; False: with those of unmixed images, which costs one more forward pass and works with `ema` only.
    `half`: keep the bank in bfloat16. `calibrate`: initialise the rows before the first step; False: they are zeros
    until their images are visited. `mix`: CutMix with Beta(`mix_alpha`, `mix_alpha`), 0.001 to 2. `norm_group`:
    samples that share batch-norm statistics; None: all of the job's.
    """

    num_views = 1
    student: Branch
    teacher = None

    def __init__(
        self,
        encoder: nn.Module,
        *,
        world: World,
        num_samples: int,
        hidden: int = 2048,
        dim: int = 256,
        temperature: float = 0.2,
        kl_weight: float = 20.0,
        kl_temperature: float = 1.0,
        exponent: float = 0.5,
        divergence: Divergence = "p||u",
        through_target: bool = False,
        negatives: int | None = None,
        update: Update = "ema",
        bank_momentum: float = 0.5,
        bank_rate: float = 0.1,
        update_on_mixed: bool = True,
        half: bool = False,
        calibrate: bool = True,
        mix: bool = True,
        mix_alpha: float = 0.5,
        norm_group: int | None = None,
    ) -> None:
        super().__init__()
        at_least("method", 1, hidden=hidden, dim=dim)
        at_least("method", 0, kl_weight=kl_weight, bank_rate=bank_rate, negatives=negatives or 0)
        positive("method", temperature=temperature, kl_temperature=kl_temperature)
        cutmix.check_alpha(mix_alpha)
        require("method", "more than 0 and less than 1", lambda value: 0 < value < 1, exponent=exponent)
        shares("method", bank_momentum=bank_momentum)
        check_update(update, update_on_mixed, mix)
        self.world, self.temperature, self.negatives, self.divergence = world, temperature, negatives, divergence
        self.kl_weight, self.kl_temperature, self.exponent = kl_weight, kl_temperature, exponent
        self.update, self.bank_momentum, self.bank_rate, self.mix_alpha = update, bank_momentum, bank_rate, mix_alpha
        self.mix, self.update_on_mixed, self.through_target = mix, update_on_mixed, through_target
        student = Branch(encoder, mlp([width_of(encoder), hidden, hidden, dim], last_norm=False, bias=True))
        self.student = norm.convert(student, scope(world, norm_group))
        self.bank, self.needs_initial_pass = Bank(num_samples, dim, world=world, half=half), calibrate

    @property
    def needs_whole_batch(self) -> str:
        """`method.mix`: images are mixed with others of the whole batch."""
        return "method.mix" if self.mix else ""

    def embed(self, views: list[Tensor], draws: SampleDraws) -> Embeddings:
        """Return unit embeddings z, [B, dim], of mixed images if `mix`."""
        norm.set_views(self, 1)
        view = views[0]
        if self.mix:
            view = cutmix.mixed(view, self._mix(draws.draws, torch.from_numpy(draws.ids), view.shape[-1]), self.world)
        drop_tokens(self.student, draws, 1)
        return {"z": F.normalize(self.student(view), dim=1)}

    @torch.no_grad()
    def targets(self, views: list[Tensor], draws: SampleDraws) -> Embeddings:
        """Return embeddings of the unmixed images, [B, dim], if the rows are updated with these; else nothing."""
        if self.update_on_mixed or not self.mix:
            return {}
        norm.set_views(self, 1)
        return {"unmixed": self.student(views[0])}

    def _job_ids(self, ids: Tensor) -> Ints:
        """Return the sample numbers of the global batch, [N], from this rank's `ids` [B]."""
        return self.world.gather_const(ids.to(self.world.device)).cpu().numpy()

    def loss(self, embeddings: Embeddings, batch: Batch, hyper: Hyperparameters) -> LossOutput:
        """Return instance discrimination plus self-distillation, averaged over the job's valid samples."""
        z = embeddings["z"]
        targets, weights = self._targets(batch, z.dtype)
        among = self._among(batch)
        temperatures = (self.temperature, self.kl_temperature, self.kl_temperature / self.exponent)
        found = self.bank.compare(z, targets, temperatures, weights=weights, among=among)
        rows = instance_cross_entropy(found.logsumexp[0], found.own, weights, self.temperature)
        rows = rows + self.kl_weight * self_distillation(
            (found.logsumexp[1], found.logsumexp[2]),
            (found.mean[1], found.mean[2]),
            exponent=self.exponent,
            divergence=self.divergence,
            through_target=self.through_target,
        )
        loss = job_mean(rows, weights.sum(0) > 0, self.world.sum)
        metrics = {**signs_of_health(z, z), "positive_similarity": found.own[0].detach().mean()}
        if "unmixed" in embeddings:
            unmixed = embeddings["unmixed"].to(found.kept["queries"].dtype)
            found.kept["followed"] = self.world.gather_const(F.normalize(unmixed, dim=1))
        return LossOutput(loss, metrics, remember=found.kept)

    def _mix(self, draws: Draws, ids: Tensor, side: int) -> cutmix.Mix:
        return cutmix.draw(draws, self._job_ids(ids), self.mix_alpha, side)

    def _targets(self, batch: Batch, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return the samples' own rows and their weights, [A, B] each; weight 0 with a replacement; A = 2 if mixed."""
        own, valid = batch.ids.to(self.world.device), batch.valid
        if not self.mix:
            return own[None], valid[None].to(dtype)
        mix = self._mix(batch.draws, torch.from_numpy(batch.draw_ids), batch.views[0].shape[-1])
        everyone = self.world.gather_const(torch.stack([own, valid.to(own.dtype)], dim=1))
        part = slice(self.world.rank * len(own), (self.world.rank + 1) * len(own))
        partners, partner_valid = everyone[torch.from_numpy(mix.partners[part]).to(own.device)].unbind(1)
        counts = (valid & (partner_valid > 0)).to(dtype)
        return torch.stack([own, partners]), torch.stack([mix.kept * counts, (1 - mix.kept) * counts])

    def _among(self, batch: Batch) -> Tensor | None:
        """Return the rows to compare samples with, ascending: the batch's and the step's negatives; None: all."""
        if self.negatives is None:
            return None
        ids = np.unique(self._job_ids(batch.ids))
        others = negatives(batch.draws, batch.step, self.bank.num_rows, ids, self.negatives)
        return torch.from_numpy(np.union1d(ids, others))

    @torch.no_grad()
    def initialise_memory(self, batch: Batch) -> None:
        """Initialise the rows of these samples with the embeddings of their unmixed views; a collective."""
        norm.set_views(self, 1)
        set_patch(self, batch.tokens.patch)
        self.bank.write(batch.ids, self.student(batch.views[0]), batch.valid)

    def remember(self, out: LossOutput, batch: Batch, hyper: Hyperparameters) -> None:
        """Update the bank's rows; nothing is exchanged."""
        kept = out.remember
        if self.update == "ema":
            keep = kept["weights"].sum(0) > 0
            followed = kept.get("followed", kept["queries"])
            self.bank.update_by_ema(kept["targets"][0], followed, keep, self.bank_momentum)
        elif self.update == "pull":
            self.bank.pull(kept, self.temperature, self.bank_momentum)
        else:
            self.bank.descend(kept, self.temperature, self.bank_rate)
