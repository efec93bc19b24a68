"""The keys of the newest samples of the whole job, a ring that is equal on every rank (He et al. 2020, 1911.05722).

Keys enter in global sample order, so every rank holds the same ones at every world size. The ring takes any number of
slots and any batch. A loss reads what was pushed at earlier steps; `push` belongs into a method's `remember`, after the
weights have moved (torch refuses the backward pass of a loss whose keys were pushed over). Where a data set is smaller
than the ring, it holds older keys of the very images of a batch: ids are kept beside keys, and those are masked.
"""

import torch
from torch import Tensor, nn

from dist_ssl.distributed.world import World

EMPTY = -1
"""The id of a slot that has no key yet."""


class Queue(nn.Module):
    """The last `slots` keys of width `dim`; all of its state lies in buffers. Both at least 1."""

    keys: Tensor
    """[K, D], zero where empty."""
    ids: Tensor
    """[K] int64, the keys' samples, or EMPTY."""
    births: Tensor
    """[K] int64, the number of the push that brought a key, from 0."""
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
        """The keys [K, D], and which of them may be negatives of the samples `ids` [B]: [B, K] bool.

        Those are the keys of other images. The keys are the queue's own, not a copy.
        """
        usable = (self.ids != EMPTY) & (self.ids != ids.to(self.ids.device)[:, None])
        return self.keys, usable

    @torch.no_grad()
    def push(self, keys: Tensor, ids: Tensor, valid: Tensor) -> None:
        """Take in this rank's keys [B, D] of the samples `ids` [B], where `valid` [B]; the oldest go.

        A collective: every rank brings its part of the global batch. Stand-ins (not valid) are skipped.
        """
        keep = self.world.gather_const(valid.to(self.keys.device).to(torch.uint8)).bool()
        new = self.world.gather_const(keys.to(self.keys.dtype))[keep]
        samples = self.world.gather_const(ids.to(self.keys.device))[keep]
        slots = len(self.keys)
        numbers = torch.arange(len(new), device=new.device)[-slots:]  # of more than fit, the newest stay
        places = (self.pushed + numbers) % slots
        self.keys[places] = new[-slots:]
        self.ids[places] = samples[-slots:]
        self.births[places] = self.pushes
        self.pushed += len(new)
        self.pushes += 1

    @property
    def age(self) -> Tensor:
        """[] fp32: how many pushes ago its keys came, on average; 1 where all came with the last, 0 where empty."""
        filled = self.ids != EMPTY
        total = ((self.pushes - self.births) * filled).sum()
        return total.float() / filled.sum().clamp_min(1)
