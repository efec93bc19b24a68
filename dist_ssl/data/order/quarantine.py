"""The samples that could not be read: each listed once in a run, on every rank alike, and a run with too many stopped.

A rank that meets an unreadable sample keeps it until all ranks share their news, which they agree to do one step later
and do before every save. So the list is the same at every world size, its order is that of the global batches, every
sample of a checkpoint's past is in the list, and a resumed run reads there what was known. How many are too many is a
share of the data set: the same samples are unreadable in every epoch, so they are counted once.
"""

import logging
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dist_ssl.config.percentage import Share
from dist_ssl.core.batch import Batch
from dist_ssl.core.progress import Progress
from dist_ssl.data.storage.manifest import Split
from dist_ssl.distributed.world import World
from dist_ssl.errors import DataError
from dist_ssl.runtime import jsonl

log = logging.getLogger(__name__)
Row = dict[str, Any]
REASONS_SHOWN = 3


class Quarantine:
    """The unreadable samples of a run, one line each in `path`, which rank 0 writes.

    `max_bad`: the share of the split's samples beyond which the run is stopped. All ranks make it together. Raises
    DataError where too many are known already.
    """

    def __init__(self, path: Path, split: Split, *, world: World, attempt: int, max_bad: Share) -> None:
        self.path, self.split, self.world, self.attempt, self.max_bad = path, split, world, attempt, max_bad
        self._known: dict[int, Row] = {}
        self._found: dict[int, Row] = {}
        self._enter(world.share(jsonl.read(path) if world.rank == 0 else None))
        self._judge(len(self._known))

    @property
    def news(self) -> bool:
        """Whether this rank has met samples of which the others have not heard."""
        return bool(self._found)

    @property
    def metrics(self) -> Mapping[str, float]:
        """How many are known, per reason, by the keys of the metric table; the same on every rank."""
        return self._metrics

    def record(self, progress: Progress, batch: Batch) -> None:
        """Note and log what is unreadable in this batch and was not known."""
        for number, reason in batch.unreadable.items():
            if number in self._known or number in self._found:
                continue
            row = self._row(progress, number, reason, batch.levels.get(number, 0))
            self._found[number] = row
            log.warning(
                "Sample %s of %s cannot be read: %s. Another stands in for it.", row["key"], row["shard"], reason
            )

    def share_news(self, progress: Progress) -> None:
        """Tell all ranks what each has met; all of them call it, after the step that led to this position.

        Raises DataError on all of them where too many are known. A save may settle a step before the agreement would,
        so the last step of an epoch under way is not judged yet: the run stops at the same step whenever it saves.
        """
        told = self.world.collect(list(self._found.values()))
        new = self._enter(sorted((row for own in told for row in own), key=lambda row: row["step"]))
        self._found = {}
        if new and self.world.rank == 0:
            jsonl.append(self.path, new)
        judged = progress.step - (progress.lane_offset > 0)
        self._judge(sum(row["step"] < judged for row in self._known.values()))

    def _row(self, progress: Progress, number: int, reason: str, level: int) -> Row:
        """The line of a sample: what it is, and where the run first met it."""
        read = self.split.levels[level - 1] if level else self.split
        return {
            "split": self.split.name,
            "number": number,
            "shard": read.shards[read.shard_of(number)].name,
            "key": self.split.samples.key(number),
            "reason": reason,
            "epoch": progress.epoch,
            "step": progress.step,
            "attempt": self.attempt,
        }

    def _enter(self, rows: list[Row]) -> list[Row]:
        """Take rows into what is known; those that were not."""
        new: dict[int, Row] = {}
        for row in rows:
            if row["number"] not in self._known:
                new.setdefault(row["number"], row)
        self._known |= new
        counts = Counter(row["reason"] for row in self._known.values())
        self._metrics = {f"bad_samples/{reason}": float(count) for reason, count in counts.items()}
        return list(new.values())

    def _judge(self, count: int) -> None:
        """Raise DataError where so many are more than may be."""
        samples = len(self.split.samples)
        if count <= self.max_bad.of(samples):
            return
        reasons = Counter(row["reason"] for row in self._known.values()).most_common(REASONS_SHOWN)
        worst = ", ".join(f"{number} x {reason}" for reason, number in reasons)
        raise DataError(
            f"{count} of the {samples} samples cannot be read ({worst}): more than data.max_bad={self.max_bad}.",
            f"They are listed in {self.path}. Mend them and make the shards again, or allow for them in a new run: "
            f"data.max_bad='{math.ceil(100 * count / samples)} %'.",
        )
