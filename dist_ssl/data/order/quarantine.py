"""The unreadable samples of a run: each is listed once, every rank knows the same list, too many stop the run.

A rank that meets an unreadable sample keeps it until all ranks exchange what they found: one step later, by agreement,
and before every save. So the list is the same at every world size, its order is that of the global batches, it holds
every unreadable sample met before a checkpoint, and a resumed run starts from it. The limit is a share of the data set:
the same samples are unreadable in every epoch, so each is counted once.
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
from dist_ssl.data.storage.mixture import MixedSplit
from dist_ssl.distributed.world import World
from dist_ssl.errors import TooManyUnreadableError
from dist_ssl.runtime import jsonl
from dist_ssl.runtime.kept_lines import KeptLines

log = logging.getLogger(__name__)
Row = dict[str, Any]
REASONS_SHOWN = 3


class Quarantine:
    """The unreadable samples of a run, one line each in `path`, which rank 0 writes.

    `max_bad`: the share of the split's samples above which the run is stopped. All ranks construct it together. Raises
    TooManyUnreadableError where the list already holds more than that.
    """

    def __init__(self, path: Path, split: Split, *, world: World, attempt: int, max_bad: Share) -> None:
        self.path, self.split, self.world, self.attempt, self.max_bad = path, split, world, attempt, max_bad
        self._lines = KeptLines(path)
        self._known: dict[int, Row] = {}
        self._found: dict[int, Row] = {}
        self._enter(world.share(self._listed() if world.rank == 0 else None))
        self._judge(list(self._known.values()), None)

    @property
    def news(self) -> bool:
        """Return whether this rank has found unreadable samples that it has not shared yet."""
        return bool(self._found)

    @property
    def metrics(self) -> Mapping[str, float]:
        """Return the number of known unreadable samples per reason, by metric key; the same on every rank."""
        return self._metrics

    def record(self, progress: Progress, batch: Batch) -> None:
        """Keep and log the unreadable samples of this batch that were not known yet."""
        for number, reason in batch.unreadable.items():
            if number in self._known or number in self._found:
                continue
            row = self._row(progress, number, reason, batch.levels.get(number, 0))
            self._found[number] = row
            log.warning(
                "Sample %s of %s cannot be read: %s. A replacement sample is used.", row["key"], row["shard"], reason
            )

    def share_news(self, progress: Progress) -> None:
        """Exchange new unreadable samples between all ranks; every rank calls it after the step before this position.

        Raises TooManyUnreadableError on every rank where too many are known. A save exchanges them one step earlier
        than the agreement would, so within an epoch the samples of the last step are not counted yet: the step at which
        the run stops does not depend on when it saves.
        """
        gathered = self.world.collect(list(self._found.values()))
        new = self._enter(sorted((row for own in gathered for row in own), key=lambda row: row["step"]))
        self._found = {}
        if new and self.world.rank == 0:
            self._lines.add(*new)
            self._lines.sync()
        judged = progress.step - (progress.lane_offset > 0)
        self._judge([row for row in self._known.values() if row["step"] < judged], progress.samples)

    def _listed(self) -> list[Row]:
        """Return the lines of the file that name a sample of this split; whatever else somebody left there is none."""
        listed = [row for row in jsonl.read(self.path) if row.get("split") == self.split.name and _names_sample(row)]
        return [row for row in listed if row["number"] < len(self.split.samples)]

    def _row(self, progress: Progress, number: int, reason: str, level: int) -> Row:
        """Return the line of a sample: its identity, the reason, and where the run first met it."""
        read = self.split.levels[level - 1] if level else self.split
        source = {"source": self.split.source_of(number) + 1} if isinstance(self.split, MixedSplit) else {}
        return {
            "split": self.split.name,
            "number": number,
            **source,
            "shard": read.shards[read.shard_of(number)].name,
            "key": self.split.samples.key(number),
            "reason": reason,
            "epoch": progress.epoch,
            "step": progress.step,
            "attempt": self.attempt,
        }

    def _enter(self, rows: list[Row]) -> list[Row]:
        """Add rows to the known ones, update the metrics, and return the rows that are new."""
        new: dict[int, Row] = {}
        for row in rows:
            if row["number"] not in self._known:
                new.setdefault(row["number"], row)
        self._known |= new
        counts = Counter(row["reason"] for row in self._known.values())
        self._metrics = {f"bad_samples/{reason}": float(count) for reason, count in counts.items()}
        return list(new.values())

    def _judge(self, bad: list[Row], read: int | None) -> None:
        """Raise TooManyUnreadableError where these unreadable samples are more than `max_bad` allows.

        `read`: number of samples that were read so far, None where it is not known. Until all have been, twice the
        share of these is advised as limit: how many of the others cannot be read is not known yet.
        """
        count, samples = len(bad), len(self.split.samples)
        if count <= self.max_bad.of(samples):
            return
        whole = read is not None and read >= samples
        part = f"the first {max(count, read)}" if read is not None and not whole else f"the {samples}"
        share = count / (samples if read is None or whole else max(count, read))
        advised = min(100, math.ceil(100 * share if whole else 200 * share))
        limit = f"{self.max_bad.of(samples)} of the {samples}"
        reasons = Counter(row["reason"] for row in bad).most_common(REASONS_SHOWN)
        worst = ", ".join(f"{number} x {reason}" for reason, number in reasons)
        raise TooManyUnreadableError(
            f"{count} of {part} samples cannot be read ({worst}): more than data.max_bad={self.max_bad}, {limit}.",
            f"They are listed in {self.path}; shards/verify.py lists all that there are. Fix them and make the shards "
            f"again, or allow for them in a new run: data.max_bad='{advised} %'.",
        )


def _names_sample(row: Row) -> bool:
    """Return whether a line has the numbers and the reason that a quarantine computes with."""
    whole = all(type(row.get(key)) is int and row[key] >= 0 for key in ("number", "step"))
    return whole and isinstance(row.get("reason"), str)
