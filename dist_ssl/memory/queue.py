"""The queue of the newest keys of the whole job, a ring buffer equal on every rank (He et al. 2020, 1911.05722).

Keys enter in global sample order, so the queue is the same at every world size. The number of slots and the batch size
are free. A loss reads the keys of earlier steps; call `push` in a method's `remember`, after the weight update (torch
refuses the backward pass of a loss whose keys have been overwritten). If the data set is smaller than the queue, it
holds older keys of the images of a batch: sample ids are kept beside the keys, so that these can be masked.
"""

import torch
from torch import Tensor, nn

from dist_ssl.distributed.world import World

EMPTY = -1
"""The id of a slot that has no key yet."""


class Queue(nn.Module):
    """The last `slots` keys of width `dim`, both at least 1; all state is in buffers."""

    keys: Tensor
    """[K, D], zero where empty."""
    ids: Tensor
    """[K] int64, sample ids of the keys, or EMPTY."""
    births: Tensor
    """[K] int64, number of the push that added a key, from 0."""
    pushes: Tensor
    """[] int64, pushes so far."""
    pushed: Tensor
    """[] int64, keys pushed so far; the next goes into slot `pushed % K`."""

    def __init__(self, slots: int, dim: int, *, world: World) -> None:
        super().__init__()
        assert slots >= 1
        assert dim >= 1
        self.world = world
        self.register_buffer("keys", torch.zeros(slots, dim))
        self.register_buffer("ids", torch.full((slots,), EMPTY))
        self.register_buffer("births", torch.zeros(slots, dtype=torch.int64))
        self.register_buffer("pushes", torch.zeros((), dtype=torch.int64))
        self.register_buffer("pushed", torch.zeros((), dtype=torch.int64))

    def negatives(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return the keys [K, D] and which of them are negatives of the samples `ids` [B]: [B, K] bool.

        Negatives are the keys of other images. The keys are the buffer itself, not a copy.
        """
        usable = (self.ids != EMPTY) & (self.ids != ids.to(self.ids.device, non_blocking=True)[:, None])
        return self.keys, usable

    @torch.no_grad()
    def push(self, keys: Tensor, ids: Tensor, valid: Tensor) -> None:
        """Add this rank's keys [B, D] of the samples `ids` [B], where `valid` [B]; they overwrite the oldest.

        A collective: every rank gives its part of the global batch. Replacement samples (not valid) are skipped.
        """
        keep = self.world.gather_const(valid.to(self.keys.device).to(torch.uint8)).bool()
        new = self.world.gather_const(keys.to(self.keys.dtype))
        samples = self.world.gather_const(ids.to(self.keys.device, non_blocking=True))
        numbers, places, source = self._order(keep)
        for buffer, values in ((self.keys, new[source]), (self.ids, samples[source]), (self.births, self.pushes)):
            mask = (numbers >= 0).view(-1, *[1] * (buffer.dim() - 1))
            buffer[places] = torch.where(mask, values, buffer[places])
        self.pushed += keep.sum()
        self.pushes += 1

    def _order(self, keep: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[n] each: the numbers of the newest keys, less than 0 of none, their slots, and where in `keep` they are.

        Only the device knows how many samples are valid, and the host does not wait for that number: n is the largest
        that it can be, and what is too many writes back the slots that it reads.
        """
        count, most = keep.sum(), min(len(keep), len(self.keys))
        numbers = count - most + torch.arange(most, device=keep.device)
        source = torch.searchsorted(keep.cumsum(0), numbers + 1).clamp_max(len(keep) - 1)
        return numbers, (self.pushed + numbers) % len(self.keys), source

    @property
    def age(self) -> Tensor:
        """[] fp32, mean age of the keys in pushes; 1 if all came with the last push, 0 if empty."""
        filled = self.ids != EMPTY
        total = ((self.pushes - self.births) * filled).sum()
        return total.float() / filled.sum().clamp_min(1)
