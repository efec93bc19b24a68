"""A row of the tables of metrics: what a metric is called, how it is reduced, and how many series it can have."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Reduction = Literal["mean", "max", "sum", "last"]
Unit = Literal["", "seconds", "bytes", "ratio", "pixels", "joules", "timestamp"]
UNITS: tuple[Unit, ...] = ("seconds", "bytes", "ratio", "pixels", "joules")
"""Units in which an exported name may end."""


@dataclass(frozen=True)
class Metric:
    """One metric. `key`: its name in the code and in `metrics.jsonl`; `stem`: its exported name without the prefix.

    `panel`: title of the panel that shows it. `reduction`: over the steps since the last flush and over ranks (`last`:
    rank 0's newest value). `label`: name of the label of a metric that has one series for each of the label's values,
    under the keys `KEY/VALUE`; empty for a metric with one series, under `KEY`. `plain`: the label's value that the key
    `KEY` alone stands for; empty where a value must be given.

    `values`: those of the label that are exported; all others are exported together as `rest`, or refused where that is
    empty. `methods`: those that alone have the metric (names of configs); empty for a metric that any may have.
    `instead`: a query over other metrics that says the same; a metric with one is not exported.
    """

    key: str
    stem: str
    help: str
    panel: str
    reduction: Reduction = "mean"
    label: str = ""
    plain: str = ""
    values: tuple[str, ...] = ()
    rest: str = ""
    methods: tuple[str, ...] = ()
    instead: str = ""

    def __post_init__(self) -> None:
        assert bool(self.label) == bool(self.values or self.rest), f"{self.key}: a label has values, and only a label"

    @property
    def name(self) -> str:
        """Return the exported name."""
        return f"dist_ssl_{self.stem}"

    @property
    def counter(self) -> bool:
        """Return whether the metric counts, and is exported as a counter, which only rises."""
        return self.stem.endswith("_total")

    @property
    def most(self) -> int:
        """Return the largest number of series that are exported."""
        return 0 if self.instead else len(self.values) + bool(self.rest) if self.label else 1

    def exported(self, value: str) -> str:
        """Return the value of the label under which one is exported; empty for one that there cannot be."""
        return value if value in self.values else self.rest

    @property
    def increments(self) -> bool:
        """Return whether a report holds a counter's increase since the last one, and not its total."""
        return self.counter and self.reduction != "last"

    @property
    def unit(self) -> Unit:
        """Return the unit that the exported name ends in; `timestamp`: seconds since 1970."""
        words = self.stem.removesuffix("_total")
        if words.endswith("_timestamp_seconds"):
            return "timestamp"
        return next((unit for unit in UNITS if words.endswith(f"_{unit}")), "")


def most_series(table: Iterable[Metric]) -> int:
    """Return the largest number of series that one run, or one node, can have of the metrics of a table.

    Every label has all its values; of metrics that only some methods have, those of the method with most of them count.
    """
    rows = [metric for metric in table if not metric.instead]
    shared = sum(metric.most for metric in rows if not metric.methods)
    of_methods = {method for metric in rows for method in metric.methods}
    own = (sum(metric.most for metric in rows if method in metric.methods) for method in of_methods)
    return shared + max(own, default=0)
