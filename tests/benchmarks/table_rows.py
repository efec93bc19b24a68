"""The rows that a table asks for: functions of the table, of configs and of what is done."""

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dist_ssl.runtime import jsonl
from tests.benchmarks.claims_digest import digest
from tests.benchmarks.claims_table import DataSet, Table, Variant, Words

Found = Mapping[str, Any]
"""The numbers of a row, or `broken`: why it has none."""
MEASURES = ("knn", "linear")
BESIDE = 12.0
"""Processor seconds of a row beside its training, where none has been measured."""


@dataclass(frozen=True)
class Row:
    """One training. `budget`: in two-view epochs; `split`: whose images are the queries, `train` where it is tuned."""

    data: str
    variant: str
    setting: Words
    budget: float
    seed: int
    split: Literal["train", "val"]
    bag: int
    words: Words
    """All that compose its config."""
    config: str
    """The hash of that config."""

    @property
    def key(self) -> dict[str, Any]:
        """What it is known by in the file of results."""
        names = ("data", "variant", "budget", "seed", "split", "bag", "config")
        return {name: getattr(self, name) for name in names}

    @property
    def name(self) -> str:
        """What it is called on the screen."""
        return f"{self.data}, {self.variant}, budget {self.budget:g}, seed {self.seed}, {' '.join(self.setting) or '-'}"


class Results:
    """The rows that are done, in a file of one JSON object a line; a line that a kill cut short is not read.

    `tuned`: a file of another command, whose rows of the tuning count too.
    """

    def __init__(self, path: Path, tuned: Path | None = None) -> None:
        self.path = path
        self.found: dict[str, Found] = {}
        self.done: list[tuple[str, str, Found]] = []
        """Data set, variant and numbers of the rows that did not break, of older configs too."""
        elsewhere = jsonl.read(tuned) if tuned is not None and tuned != path else []
        for line in [*(line for line in elsewhere if line["key"]["split"] == "train"), *jsonl.read(path)]:
            self._keep(line["key"], line["found"])

    def _keep(self, key: Mapping[str, Any], found: Found) -> None:
        self.found[json.dumps(key, sort_keys=True)] = found
        if "broken" not in found:
            self.done.append((key["data"], key["variant"], found))

    def add(self, row: Row, found: Found) -> None:
        """Keep a row's numbers, on disk."""
        self._keep(row.key, found)
        jsonl.append(self.path, [{"key": row.key, "setting": row.setting, "found": found}])

    def get(self, row: Row) -> Found | None:
        """Return a row's numbers, or why it broke, if it is done."""
        return self.found.get(json.dumps(row.key, sort_keys=True))

    def of(self, data: str | None, variant: str | None) -> list[Found]:
        """Return the numbers of all rows of a data set and of a variant, or of any."""
        return [found for d, v, found in self.done if data in (d, None) and variant in (v, None)]

    def whole(self, row: Row) -> Found | None:
        """Return a row's numbers if it is done and did not break."""
        found = self.get(row)
        return None if found is None or "broken" in found else found


@dataclass(frozen=True)
class Plan:
    """The part of a table that a command asks for; `extra`: KEY=VALUE words of the command, the last of every row."""

    table: Table
    data: tuple[DataSet, ...]
    variants: tuple[Variant, ...]
    budgets: tuple[float, ...]
    seeds: int
    extra: Words = ()

    def pairs(self) -> Iterator[tuple[DataSet, Variant]]:
        """Yield every data set with every variant that it is for."""
        for data in self.data:
            yield from ((data, variant) for variant in self.variants if variant.name not in data.without)

    def budgets_of(self, variant: Variant) -> tuple[float, ...]:
        """Return the budgets that a variant is trained for: its own ones that are asked for, or else all of them."""
        return tuple(b for b in variant.budgets if b in self.budgets) or variant.budgets or self.budgets

    def row(
        self, data: DataSet, variant: Variant, setting: Words, budget: float, seed: int, split: Literal["train", "val"]
    ) -> Row:
        """Return one row. `{views}` in a word is the number of views that an image has in all."""
        words = (*variant.words, *data.words, *setting, *variant.own, *self.extra, f"seed={seed}")
        views = str(max(2, round(2 * budget)))
        made = tuple(word.replace("{views}", views) for word in words)
        return Row(data.name, variant.name, setting, float(budget), seed, split, variant.bag, made, digest(made))

    def tried(self, data: DataSet, variant: Variant) -> list[Row]:
        """Return the rows that try all settings; none if a variant has one only, or that of another variant."""
        if len(variant.settings) == 1 or variant.like is not None:
            return []
        budget, seed = self.table.tuning["budget"], self.table.tuning["seed"]
        return [self.row(data, variant, setting, budget, seed, "train") for setting in variant.settings]

    def finals(self, data: DataSet, variant: Variant, results: Results) -> list[Row]:
        """Return the rows that train the best settings for longer; none until all are tried."""
        best, tuning = ranked(self.tried(data, variant), results), self.table.tuning
        return [
            self.row(data, variant, row.setting, tuning["final"], tuning["seed"], "train")
            for row in best[: tuning.get("finalists", 0)]
        ]

    def tuning(self, results: Results) -> list[Row]:
        """Return the rows of the tuning that are known: first settings of all variants, second ones, ..., finals."""
        rows = [self.tried(*pair) for pair in self.pairs()]
        most = max((len(own) for own in rows), default=0)
        tried = [own[turn] for turn in range(most) for own in rows if turn < len(own)]
        return tried + [row for pair in self.pairs() for row in self.finals(*pair, results)]

    def chosen(self, data: DataSet, variant: Variant, results: Results) -> Words | None:
        """Return the setting with the highest final score, the earlier one of equals; None until all are known.

        Where the table has no finals, it is the one with the highest score of those that are tried.
        """
        if variant.like is not None:
            return self.chosen(data, self.table.variants[variant.like], results)
        tried = self.tried(data, variant)
        if not tried:
            return variant.settings[0]
        last = self.finals(data, variant, results) if self.table.tuning.get("finalists") else tried
        best = ranked(last, results)
        return best[0].setting if best else None

    def runs(self, results: Results, *, tuned: bool = True) -> list[Row]:
        """Return the rows whose numbers are reported: seed by seed, the largest budget first, so all is seen early."""
        made: list[Row] = []
        budgets = {budget for _, variant in self.pairs() for budget in self.budgets_of(variant)}
        for seed in range(self.seeds):
            for budget in sorted(budgets, reverse=True):
                for data, variant in self.pairs():
                    setting = self.chosen(data, variant, results) if tuned else variant.settings[0]
                    if setting is not None and budget in self.budgets_of(variant):
                        made.append(self.row(data, variant, setting, budget, seed, "val"))
        return made


def number(found: Found, name: str) -> float:
    """Return a number of a row: the accuracy of its bag of patches if it has one; `image`: milliseconds of an image."""
    if name == "image":
        return 1000 * float(found["seconds"]) / float(found["images"])
    return float(found.get(f"bag_{name}", found[name]))


def score(found: Found) -> float:
    """Return what settings are compared by: the mean of both accuracies; -1 where the training broke."""
    return -1.0 if "broken" in found else statistics.mean(number(found, name) for name in MEASURES)


def ranked(rows: Sequence[Row], results: Results) -> list[Row]:
    """Return rows by falling score, the earlier one of equals first; none until all are done."""
    found = [results.get(row) for row in rows]
    scores = [score(numbers) for numbers in found if numbers is not None]
    if len(scores) < len(rows):
        return []
    return [rows[number] for number in sorted(range(len(rows)), key=lambda number: -scores[number])]


def cost(row: Row, results: Results, seconds: float) -> float:
    """Return the processor seconds that a row is expected to take, from the rows of its variant that are done.

    Where there are none on its data, from those on other data, else of all; `seconds`: for a budget of one, if there
    are none at all.
    """
    known = results.of(row.data, row.variant) or results.of(None, row.variant) or results.of(None, None)
    if not known:
        return seconds * row.budget + BESIDE
    train = statistics.mean(float(found["seconds"] / found["budget"]) for found in known)
    return train * row.budget + statistics.mean(float(found["process_seconds"] - found["seconds"]) for found in known)
