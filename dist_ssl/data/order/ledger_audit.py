"""The audit: compares the ledger with the expected deliveries, which are recomputed from data, seed and plans.

A rank's line of a step holds the number of its samples and the sum of their hashes. Where the sum is not the expected
one, the difference identifies the fault: a single sample that is missing, extra or exchanged is found by its own hash,
and the samples of another step or rank by their sum (probability of a chance match: below one in 10^9 for a data set of
a million). Any other difference is called unclear: samples were lost or repeated, and the hash cannot say which.
"""

from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from dist_ssl.core.draws import Draws, Ints
from dist_ssl.core.plan import EpochPlan, epoch_samples
from dist_ssl.data.order.lanes import SampleOrder
from dist_ssl.data.order.ledger import hash_ids, mix
from dist_ssl.data.order.ledger_blocks import Rows
from dist_ssl.data.order.ledger_reader import Deliveries
from dist_ssl.data.order.mixed_order import order_of
from dist_ssl.data.storage.manifest import Split
from dist_ssl.data.storage.mixture import MixedSplit
from dist_ssl.errors import plural

MODULUS = 1 << 64
"""Hashes are added modulo this number."""


@dataclass(frozen=True)
class EpochAudit:
    """The fate of one epoch's samples, in its steps up to the last one that a checkpoint holds."""

    epoch: int
    steps: int
    """Steps that were audited."""
    of_steps: int
    """Steps of the whole epoch."""
    used: int
    """Number of samples that were delivered exactly once, at their step; in a mixture, as often as planned."""
    replaced: int
    """Number of unreadable samples for which a replacement sample was delivered, at their step."""
    dropped: int
    """Number of samples left over after the last whole batch, as planned; 0 until the epoch is complete."""
    lost: Sequence[int]
    """Samples that were never delivered; in a mixture, less often than planned."""
    repeated: Sequence[int]
    """Samples that were delivered more than once; in a mixture, more often than planned."""
    moved: Sequence[int]
    """Samples that were delivered once, but not at their step."""
    unclear: int
    """Number of samples in steps with a wrong hash that does not show whether they were lost or repeated."""
    notes: Sequence[str]
    """One line for each wrong delivery: the step, and what is wrong."""
    of_sources: Sequence[int] = ()
    """Number of deliveries of the samples of each source of a mixture, at their step or not."""

    @property
    def clean(self) -> bool:
        """Return whether nothing was lost, repeated or moved."""
        return not (self.lost or self.repeated or self.moved or self.unclear or self.notes)


@dataclass
class Epoch:
    """The samples of one epoch as they should have been delivered, per step and rank.

    `first_step`: the run's number of its first step.
    """

    plan: EpochPlan
    order: SampleOrder
    first_step: int
    split: Split
    _parts: dict[int, dict[int, tuple[int, int]]] = field(default_factory=dict)

    @property
    def num_samples(self) -> int:
        """Return the number of samples in the whole data set."""
        return len(self.split.samples)

    @property
    def dropped(self) -> int:
        """Return the number of samples that the epoch leaves over; those of a mixture come in the next epoch."""
        over = self.num_samples - epoch_samples(self.num_samples, self.plan.batch_size)
        return 0 if isinstance(self.split, MixedSplit) else over

    @property
    def steps(self) -> int:
        """Return the number of steps of the whole epoch."""
        return epoch_samples(self.num_samples, self.plan.batch_size) // self.plan.batch_size

    def by_source(self, times: Ints) -> list[int]:
        """Return the sum of numbers of all samples, [N], over those of each source of a mixture; else nothing."""
        if not isinstance(self.split, MixedSplit):
            return []
        ends = np.cumsum([source.samples for source in self.split.sources])
        return [int(own.sum()) for own in np.split(times, ends[:-1])]

    def batch(self, step: int) -> Ints:
        """Return the sample numbers of the global batch of a step of the run, [batch_size], in rank order."""
        count = self.plan.samples_per_lane
        return self.order.batch(0, 1, (step - self.first_step) * count, count)

    def part(self, step: int, rank: int, ranks: int) -> Ints:
        """Return the sample numbers of one rank's part of a step, [batch_size / ranks]."""
        own: Ints = self.batch(step).reshape(ranks, -1)[rank]
        return own

    def find_part(self, hashed: int, ranks: int) -> tuple[int, int] | None:
        """Return the step and rank whose part has this hash, None where no part has it."""
        if ranks not in self._parts:
            table: dict[int, tuple[int, int]] = {}
            for step in range(self.first_step, self.first_step + self.steps):
                sums = mix(self.batch(step)).reshape(ranks, -1).sum(axis=1, dtype=np.uint64)
                table |= {int(total): (step, rank) for rank, total in enumerate(sums)}
            self._parts[ranks] = table
        return self._parts[ranks].get(hashed)


def epochs(plans: Sequence[EpochPlan], split: Split, seed: int, window: int) -> list[Epoch]:
    """Return the epochs of a run over a split, in order."""
    found: list[Epoch] = []
    first = before = 0
    for plan in plans:
        order = order_of(split, Draws(seed, plan.epoch), plan.lanes, window, before)
        found.append(Epoch(plan, order, first, split))
        first += found[-1].steps
        before += epoch_samples(len(split.samples), plan.batch_size)
    return found


def without(part: Ints, number: int) -> Ints:
    """Return samples but for one occurrence of one of them."""
    return np.delete(part, np.flatnonzero(part == number)[0])


class Audit:
    """A comparison of the ledger with the epochs of a run.

    `final`: number of steps that the last checkpoint holds; `listed`: the samples that the quarantine lists.
    """

    def __init__(self, ledger: Deliveries, epochs: Sequence[Epoch], final: int, listed: AbstractSet[int]) -> None:
        self.ledger, self.epochs, self.final, self.listed = ledger, epochs, final, listed
        mixed = mix(np.arange(epochs[0].num_samples, dtype=np.int64))
        self._by_hash = np.argsort(mixed)
        self._mixed = mixed[self._by_hash]
        self.attempt_of = np.zeros(final, dtype=np.int64)
        for attempt, restored in sorted(ledger.restored().items()):
            self.attempt_of[restored:] = attempt
        self._bad = np.array(sorted(listed), dtype=np.int64)
        self._used: dict[int, npt.NDArray[np.bool_]] = {}

    def _rows_of(self, step: int) -> Rows:
        """Return the ledger's rows of a step in the attempt that counts, in rank order."""
        return self.ledger.of_step(int(self.attempt_of[step]), step)

    def unsaved(self) -> list[str]:
        """Return a message for each attempt that resumed from a step that no earlier attempt saved."""
        saved_by = self.ledger.saves
        return [
            f"Attempt {attempt} resumed from step {step}, but no earlier attempt wrote a checkpoint of that step."
            for attempt, step in sorted(self.ledger.restored().items())
            if step > 0 and not any(saved == step and by < attempt for by, saved in saved_by)
        ]

    def shards_used(self) -> dict[int, set[int]]:
        """Return the shards that the samples of every attempt's final steps are in, as far as `tallies` has come."""
        return {attempt: {*np.flatnonzero(used).tolist()} for attempt, used in self._used.items()}

    def tallies(self) -> list[EpochAudit]:
        """Return the fate of the samples of every epoch of which a checkpoint holds at least one step."""
        return [self._tally(epoch) for epoch in self.epochs if epoch.first_step < self.final]

    def _tally(self, epoch: Epoch) -> EpochAudit:
        first, end = epoch.first_step, min(epoch.first_step + epoch.steps, self.final)
        times, due = np.zeros((2, epoch.num_samples), dtype=np.int64)
        unclear = np.zeros_like(times, dtype=np.bool_)
        strays: list[Ints] = []
        notes: list[str] = []
        replaced = 0
        for step in range(first, end):
            batch = epoch.batch(step)
            np.add.at(due, batch, 1)
            for part, found, note in self._step(epoch, step, batch):
                notes += [note] if note else []
                if found is None:
                    unclear[part] = True
                elif note:
                    np.add.at(times, found, 1)
                    strays.append(np.setdiff1d(found, part))
                else:
                    np.add.at(times, part, 1)
            replaced += self._replaced(step, batch, notes)
        out_of_place = np.unique(np.concatenate([np.empty(0, dtype=np.int64), *strays]))
        lost = np.flatnonzero(~unclear & (times < due))
        often = times > np.maximum(due, 1)
        moved = out_of_place[((times > 0) & ~often & ~unclear)[out_of_place]]
        right = ~unclear & (times == due)
        right[moved] = False
        return EpochAudit(
            epoch=epoch.plan.epoch,
            steps=max(end - first, 0),
            of_steps=epoch.steps,
            used=int(due[right].sum()) - replaced,
            replaced=replaced,
            dropped=epoch.dropped if end == first + epoch.steps else 0,
            lost=lost.tolist(),
            repeated=np.flatnonzero(often).tolist(),
            moved=moved.tolist(),
            unclear=int(unclear.sum()),
            notes=notes,
            of_sources=epoch.by_source(times),
        )

    def _note_shards(self, step: int, batch: Ints) -> None:
        """Add a step's shards to those of its attempt; unreadable samples are not read again once they are known."""
        if len(self._bad):
            places = np.minimum(np.searchsorted(self._bad, batch), len(self._bad) - 1)
            batch = batch[self._bad[places] != batch]
        ends = self.epochs[0].split.ends
        used = self._used.setdefault(int(self.attempt_of[step]), np.zeros(len(ends), dtype=np.bool_))
        used[np.searchsorted(ends, batch, side="right")] = True

    def _step(self, epoch: Epoch, step: int, batch: Ints) -> Iterator[tuple[Ints, Ints | None, str]]:
        """Yield per rank the expected samples, the delivered ones (None: unknown), and what is wrong ("": nothing)."""
        self._note_shards(step, batch)
        rows = self._rows_of(step)
        if not len(rows):
            yield batch, batch[:0], f"step {step}: the ledger has no line for it"
            return
        ranks = int(rows["ranks"][0])
        if len(batch) % ranks:
            yield batch, None, f"step {step}: the ledger is of {ranks} ranks, among which {len(batch)} cannot be parted"
            return
        sums = mix(batch).reshape(ranks, -1).sum(axis=1, dtype=np.uint64)
        for rank, part in enumerate(batch.reshape(ranks, -1)):
            own = rows[rows["rank"] == rank]
            place = f"step {step}, rank {rank} of {ranks}, attempt {self.attempt_of[step]}"
            if len(own) == 1 and own["count"][0] == len(part) and own["hash"][0] == sums[rank]:
                yield part, part, ""
            elif not len(own):
                yield part, part[:0], f"{place}: the ledger has no line for it"
            else:
                for row in own:
                    found, how = self._found(epoch, part, int(row["count"]), int(row["hash"]))
                    again = f", delivered {len(own)} times" if len(own) > 1 else ""
                    yield part, found, f"{place}: {how}{again}"

    def _found(self, epoch: Epoch, part: Ints, count: int, hashed: int) -> tuple[Ints | None, str]:
        """Return the samples that a count and a hash stand for (None: unknown), and a description of the difference."""
        more, less = (hashed - hash_ids(part)) % MODULUS, (hash_ids(part) - hashed) % MODULUS
        if count == len(part) and more == 0:
            return part, "as planned"
        if count == len(part) - 1 and (gone := self._number(less)) is not None and gone in part:
            return without(part, gone), f"sample {gone} is missing"
        if count == len(part) + 1 and (extra := self._number(more)) is not None:
            return np.append(part, extra), f"sample {extra} was added"
        if count == len(part) and (swap := self._swap(part, more)):
            gone, extra = swap
            return np.append(without(part, gone), extra), f"sample {extra} instead of sample {gone}"
        for ranks in {epoch.plan.lanes, *self.ledger.ranks}:
            for near in self.epochs[max(epoch.plan.epoch - 1, 0) : epoch.plan.epoch + 2]:
                if count * ranks == near.plan.batch_size and (other := near.find_part(hashed, ranks)):
                    return near.part(*other, ranks), f"the samples of step {other[0]}, rank {other[1]} of {ranks}"
        return None, f"{plural(count, 'sample')} instead of {len(part)}, and the hash does not identify them"

    def _number(self, mixed: int) -> int | None:
        """Return the sample with this hash, None where there is none."""
        place = int(np.searchsorted(self._mixed, np.uint64(mixed)))
        if place == len(self._mixed) or int(self._mixed[place]) != mixed:
            return None
        return int(self._by_hash[place])

    def _swap(self, part: Ints, more: int) -> tuple[int, int] | None:
        """Return the missing sample and the one delivered in its place, None unless one exchange explains `more`."""
        candidates = mix(part) + np.uint64(more)  # modulo 2^64, as the hash is
        places = np.minimum(np.searchsorted(self._mixed, candidates), len(self._mixed) - 1)
        for at in np.flatnonzero(self._mixed[places] == candidates):
            return int(part[at]), int(self._by_hash[places[at]])
        return None

    def _replaced(self, step: int, batch: Ints, notes: list[str]) -> int:
        """Return the number of replaced samples of a step; add a note where the quarantine does not list them all."""
        rows = self._rows_of(step)
        count = int(rows["replaced"].sum())
        if count:
            known = np.array([number for number in batch.tolist() if number in self.listed], dtype=np.int64)
            hashed = int(rows["replaced_hash"].sum(dtype=np.uint64))
            if len(known) < count or (len(known) == count and hash_ids(known) != hashed):
                notes.append(
                    f"step {step}: {plural(count, 'sample was', 'samples were')} replaced, not all of which "
                    "the quarantine lists"
                )
        return count
