"""What the ledger says against what should have been delivered, which is computed anew from data, seed and plans.

A rank's line of a step holds the number of its samples and the sum of their mixed numbers. Where that is not the sum
expected, the difference tells more: one sample too few or too many, or one in another's place, is found by its mixed
number, and the samples of another step or of another rank by their sum (chance agreement: below one in 10^9 for a
data set of a million). What remains is called unclear: samples were lost or repeated, the hash cannot say which.
"""

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from dist_ssl.core.draws import Draws
from dist_ssl.core.plan import EpochPlan
from dist_ssl.data.order.lanes import EpochOrder
from dist_ssl.data.order.ledger import Deliveries, hash_ids, mix

Ints = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]
WORD = 1 << 64


@dataclass(frozen=True)
class EpochAudit:
    """What became of the samples of one epoch, in its steps up to the last one that is final."""

    epoch: int
    steps: int
    of_steps: int
    used: int
    """Exactly once, at their step."""
    replaced: int
    """Unreadable: another stood in for them, at their step."""
    dropped: int
    """Left over behind the last whole batch, as planned."""
    lost: Sequence[int]
    repeated: Sequence[int]
    moved: Sequence[int]
    """Delivered once, but not at their step."""
    unclear: int
    """Of steps with another hash, from which it cannot be told whether these samples were lost or repeated."""
    notes: Sequence[str]
    """Which steps are wrong, and how."""

    @property
    def clean(self) -> bool:
        """Nothing was lost, repeated or moved."""
        return not (self.lost or self.repeated or self.moved or self.unclear or self.notes)


@dataclass
class Epoch:
    """The samples of one epoch as they should have been delivered: `parts(ranks)` per step and rank."""

    plan: EpochPlan
    order: EpochOrder
    first_step: int
    num_samples: int
    _parts: dict[int, dict[int, tuple[int, int]]] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """Steps of the whole epoch."""
        return self.order.lane_length // self.plan.samples_per_lane

    def batch(self, step: int) -> Ints:
        """The global batch of a step of the run, in rank order."""
        count = self.plan.samples_per_lane
        return self.order.batch(0, 1, (step - self.first_step) * count, count)

    def part(self, step: int, rank: int, ranks: int) -> Ints:
        """One rank's part of it."""
        own: Ints = self.batch(step).reshape(ranks, -1)[rank]
        return own

    def whose(self, hashed: int, ranks: int) -> tuple[int, int] | None:
        """The step and rank whose part has this hash."""
        if ranks not in self._parts:
            table: dict[int, tuple[int, int]] = {}
            for step in range(self.first_step, self.first_step + self.steps):
                sums = mix(self.batch(step)).reshape(ranks, -1).sum(axis=1, dtype=np.uint64)
                table |= {int(total): (step, rank) for rank, total in enumerate(sums)}
            self._parts[ranks] = table
        return self._parts[ranks].get(hashed)


def epochs(plans: Sequence[EpochPlan], sizes: Ints, seed: int, window: int) -> list[Epoch]:
    """The epochs of a run, in order."""
    found: list[Epoch] = []
    first = 0
    for plan in plans:
        order = EpochOrder(sizes, Draws(seed, plan.epoch), plan.lanes, window)
        found.append(Epoch(plan, order, first, int(sizes.sum())))
        first += found[-1].steps
    return found


class Audit:
    """Compares the ledger with the epochs of a run.

    `final`: steps that a checkpoint holds; `listed`: the samples that the quarantine names.
    """

    def __init__(self, ledger: Deliveries, epochs: Sequence[Epoch], final: int, listed: Container[int]) -> None:
        self.ledger, self.epochs, self.final, self.listed = ledger, epochs, final, listed
        mixed = mix(np.arange(epochs[0].num_samples, dtype=np.int64))
        self._by_hash = np.argsort(mixed)
        self._mixed = mixed[self._by_hash]
        self.attempt_of = np.zeros(final, dtype=np.int64)
        for attempt, restored in sorted(ledger.restored().items()):
            self.attempt_of[restored:] = attempt
        made = ledger.step < final
        valid = np.flatnonzero(made)
        valid = valid[ledger.attempt[valid] == self.attempt_of[ledger.step[valid]]]
        self._rows = valid[np.lexsort((ledger.rank[valid], ledger.step[valid]))]
        self._starts = np.searchsorted(ledger.step[self._rows], np.arange(final + 1))

    def unsaved(self) -> list[str]:
        """Attempts that went on from where nothing had been saved."""
        saved_by = self.ledger.saves
        return [
            f"Attempt {attempt} went on from step {step}, of which no earlier attempt wrote a checkpoint."
            for attempt, step in sorted(self.ledger.restored().items())
            if step > 0 and not any(saved == step and by < attempt for by, saved in saved_by)
        ]

    def tallies(self) -> list[EpochAudit]:
        """What became of the samples of every epoch of which a step is final."""
        return [self._tally(epoch) for epoch in self.epochs if epoch.first_step < self.final]

    def _tally(self, epoch: Epoch) -> EpochAudit:
        first, end = epoch.first_step, min(epoch.first_step + epoch.steps, self.final)
        times = np.zeros(epoch.num_samples, dtype=np.int64)
        due, blurred = np.zeros_like(times, dtype=np.bool_), np.zeros_like(times, dtype=np.bool_)
        strays: list[Ints] = []
        notes: list[str] = []
        replaced = 0
        for step in range(first, end):
            batch = epoch.batch(step)
            due[batch] = True
            for part, found, note in self._step(epoch, step, batch):
                notes += [note] if note else []
                if found is None:
                    blurred[part] = True
                elif note:
                    np.add.at(times, found, 1)
                    strays.append(np.setdiff1d(found, part))
                else:
                    times[part] += 1
            replaced += self._replaced(step, batch, notes)
        out_of_place = np.unique(np.concatenate([np.empty(0, dtype=np.int64), *strays]))
        lost = np.flatnonzero(due & ~blurred & (times == 0))
        repeated = np.flatnonzero(times > 1)
        moved = out_of_place[(times[out_of_place] == 1) & ~blurred[out_of_place]]
        once = due & ~blurred & (times == 1)
        once[moved] = False
        complete = epoch.steps * epoch.plan.batch_size
        return EpochAudit(
            epoch=epoch.plan.epoch,
            steps=max(end - first, 0),
            of_steps=epoch.steps,
            used=int(once.sum()) - replaced,
            replaced=replaced,
            dropped=epoch.num_samples - complete if end == first + epoch.steps else 0,
            lost=lost.tolist(),
            repeated=repeated.tolist(),
            moved=moved.tolist(),
            unclear=int(blurred.sum()),
            notes=notes,
        )

    def _step(self, epoch: Epoch, step: int, batch: Ints) -> Iterator[tuple[Ints, Ints | None, str]]:
        """Per rank: what it should have delivered, what it did (None: it cannot be told), and what is wrong."""
        rows = self._rows[self._starts[step] : self._starts[step + 1]]
        if not len(rows):
            yield batch, batch[:0], f"step {step}: the ledger has no line of it"
            return
        ranks = int(self.ledger.ranks[rows[0]])
        sums = mix(batch).reshape(ranks, -1).sum(axis=1, dtype=np.uint64)
        for rank, part in enumerate(batch.reshape(ranks, -1)):
            own = rows[self.ledger.rank[rows] == rank]
            place = f"step {step}, rank {rank} of {ranks}, attempt {self.attempt_of[step]}"
            if len(own) == 1 and self.ledger.count[own[0]] == len(part) and self.ledger.hash[own[0]] == sums[rank]:
                yield part, part, ""
            elif not len(own):
                yield part, part[:0], f"{place}: the ledger has no line of it"
            else:
                for row in own:
                    found, how = self._found(epoch, part, int(self.ledger.count[row]), int(self.ledger.hash[row]))
                    again = f", delivered {len(own)} times" if len(own) > 1 else ""
                    yield part, found, f"{place}: {how}{again}"

    def _found(self, epoch: Epoch, part: Ints, count: int, hashed: int) -> tuple[Ints | None, str]:
        """The samples behind a count and a hash, where they can be told, and in words."""
        more, less = (hashed - hash_ids(part)) % WORD, (hash_ids(part) - hashed) % WORD
        if count == len(part) and more == 0:
            return part, "as planned"
        if count == len(part) - 1 and (gone := self._number(less)) is not None and gone in part:
            return part[part != gone], f"sample {gone} is missing"
        if count == len(part) + 1 and (extra := self._number(more)) is not None:
            return np.append(part, extra), f"sample {extra} is too many"
        if count == len(part) and (swap := self._swap(part, more)):
            gone, extra = swap
            return np.append(part[part != gone], extra), f"sample {extra} instead of sample {gone}"
        for ranks in {epoch.plan.lanes, *np.unique(self.ledger.ranks).tolist()}:
            for near in self.epochs[max(epoch.plan.epoch - 1, 0) : epoch.plan.epoch + 2]:
                if count == near.plan.batch_size // ranks and (other := near.whose(hashed, ranks)):
                    return near.part(*other, ranks), f"the samples of step {other[0]}, rank {other[1]} of {ranks}"
        return None, f"{count} samples instead of {len(part)}, which ones cannot be told from the hash"

    def _number(self, mixed: int) -> int | None:
        """The sample with this mixed number."""
        place = int(np.searchsorted(self._mixed, np.uint64(mixed)))
        if place == len(self._mixed) or int(self._mixed[place]) != mixed:
            return None
        return int(self._by_hash[place])

    def _swap(self, part: Ints, more: int) -> tuple[int, int] | None:
        """The sample that is gone and the one in its place, where one exchange explains the difference."""
        wanted = mix(part) + np.uint64(more)  # modulo 2^64, as the hash is
        places = np.minimum(np.searchsorted(self._mixed, wanted), len(self._mixed) - 1)
        for at in np.flatnonzero(self._mixed[places] == wanted):
            return int(part[at]), int(self._by_hash[places[at]])
        return None

    def _replaced(self, step: int, batch: Ints, notes: list[str]) -> int:
        """Samples of a step for which others stood in; each of them must be in the quarantine."""
        rows = self._rows[self._starts[step] : self._starts[step + 1]]
        count = int(self.ledger.replaced[rows].sum())
        if count:
            known = np.array([number for number in batch.tolist() if number in self.listed], dtype=np.int64)
            hashed = int(self.ledger.replaced_hash[rows].sum(dtype=np.uint64))
            if len(known) < count or (len(known) == count and hash_ids(known) != hashed):
                notes.append(f"step {step}: {count} samples were replaced, not all of which the quarantine lists")
        return count
