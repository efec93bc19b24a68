"""The report of `claims.py`: curves, settings, and verdicts by paired differences over the seeds, as markdown."""

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tests.benchmarks.claims_curves import Curve, at_seconds
from tests.benchmarks.claims_table import Claim, DataSet, Variant, Words
from tests.benchmarks.table_rows import MEASURES, Plan, Results, Row, number, score

T_95 = {1: 6.31, 2: 2.92, 3: 2.35, 4: 2.13, 5: 2.02, 6: 1.94, 7: 1.89, 8: 1.86, 9: 1.83}
"""One-sided 5 % quantile of Student's t by degrees of freedom."""
NORMAL_95 = 1.65
COLLAPSED, MIXED = "COLLAPSED", "MIXED"
MARGIN = 0.15
"""A recipe whose kNN is not this far above an untrained encoder's has collapsed."""
NAMES = {"knn": "kNN", "linear": "linear", "image": "ms an image"}


@dataclass(frozen=True)
class Paired:
    """Differences of two variants, one per seed; above 0 is as claimed."""

    differences: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean difference."""
        return statistics.mean(self.differences)

    @property
    def spread(self) -> float:
        """Standard deviation over the seeds; 0 for one."""
        return statistics.stdev(self.differences) if len(self.differences) > 1 else 0.0

    @property
    def clear(self) -> bool:
        """Whether the mean is beyond what its standard error explains, by a one-sided t-test at 5 %."""
        free = len(self.differences) - 1
        return free > 0 and abs(self.mean) > T_95.get(free, NORMAL_95) * self.spread / math.sqrt(free + 1)

    @property
    def verdict(self) -> str:
        """What the differences say of the claim."""
        if not self.differences:
            return "not run"
        if self.mean == 0:
            return "no difference"
        if len(self.differences) == 1:
            return "one seed: sign as claimed" if self.mean > 0 else "one seed: opposite sign"
        if self.clear:
            return "holds" if self.mean > 0 else "DOES NOT HOLD"
        return "sign as claimed, within the spread" if self.mean > 0 else "opposite sign, within the spread"

    def shown(self, scale: float, digits: int = 1) -> str:
        """Return mean and spread, with the sign of the mean."""
        if not self.differences:
            return "-"
        spread = f" ± {scale * self.spread:.{digits}f}" if len(self.differences) > 1 else ""
        return f"{scale * self.mean:+.{digits}f}{spread}"


def curve(plan: Plan, results: Results, data: DataSet, variant: Variant, *, tuned: bool) -> Curve:
    """Return the numbers of a variant's rows that are done and did not break."""
    setting = plan.chosen(data, variant, results) if tuned else variant.settings[0]
    found: Curve = {}
    for seed in range(plan.seeds):
        for budget in () if setting is None else plan.budgets_of(variant):
            numbers = results.whole(plan.row(data, variant, setting or (), budget, seed, "val"))
            if numbers is not None:
                found.setdefault(seed, {})[budget] = numbers
    return found


def paired(first: Curve, second: Curve, budget: float, name: str) -> Paired:
    """Return the differences of a number at a budget, over the seeds that both have; of a time, second - first."""
    seeds = [seed for seed in first if budget in first[seed] and budget in second.get(seed, {})]
    pairs = [(number(first[seed][budget], name), number(second[seed][budget], name)) for seed in seeds]
    return Paired(tuple(b - a if name == "image" else a - b for a, b in pairs))


def longest(found: Curve) -> float:
    """Return the mean over the seeds of the seconds of the longest run; 0 if there is none."""
    return statistics.mean([max(float(n["seconds"]) for n in own.values()) for own in found.values()] or [0.0])


def paired_at_equal_seconds(first: Curve, second: Curve, name: str) -> Paired:
    """Return the differences where both have trained as long as the faster one did for its largest budget."""
    seconds, differences = min(longest(first), longest(second)), []
    for seed in first.keys() & second.keys():
        own = [[(n["seconds"], number(n, name)) for n in of[seed].values()] for of in (first, second)]
        a, b = (at_seconds(points, seconds) for points in own)
        if a is not None and b is not None:
            differences.append(a - b)
    return Paired(tuple(differences))


def shown(values: Sequence[float], scale: float = 100, digits: int = 1) -> str:
    """Return mean and standard deviation over the seeds."""
    if not values:
        return "-"
    spread = f" ± {scale * statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{scale * statistics.mean(values):.{digits}f}{spread}"


def line(*cells: str) -> str:
    """Return a line of a table."""
    return "| " + " | ".join(cells) + " |"


def head(*cells: str) -> list[str]:
    """Return the first two lines of a table."""
    return [line(*cells), "|" + "---|" * len(cells)]


def curves(plan: Plan, data: DataSet, found: dict[str, Curve]) -> Iterator[str]:
    """Yield the table of a data set: both accuracies at every budget, and what the largest costs."""
    budgets, last = plan.budgets, max(plan.budgets)
    heads = [f"{NAMES[name]}, % at {budget:g}" for name in MEASURES for budget in budgets]
    yield from head("", *heads, f"seconds for {last:g}", "ms an image", "peak MiB")
    for variant in plan.variants:
        own = found.get(variant.name, {})
        if not own:
            continue
        longest_runs = [runs[last] for runs in own.values() if last in runs]
        costs = [
            shown([n["seconds"] for n in longest_runs], 1, 0),
            shown([number(n, "image") for n in longest_runs], 1, 2),
        ]
        costs.append(shown([n["peak_mib"] for n in longest_runs], 1, 0))
        for whole in (False, True) if variant.bag else (False,):
            cells = [
                shown([n[name] if whole else number(n, name) for runs in own.values() if (n := runs.get(budget))])
                for name in MEASURES
                for budget in budgets
            ]
            yield line(variant.label + (", whole images" if whole else ""), *cells, *(["", "", ""] if whole else costs))


def verdicts(plan: Plan, found: dict[str, dict[str, Curve]]) -> Iterator[str]:
    """Yield the table of the claims, those that have been run on a data set."""
    last = max(plan.budgets)
    differences = [f"at {budget:g}" for budget in plan.budgets]
    yield from head("claim", "data", "number", *differences, "at equal seconds", f"verdict at {last:g}")
    for claim in plan.table.claims:
        for data, own in found.items():
            if claim.number != "time" and runs_of(claim, own):
                yield from lines_of(claim, plan, data, own[claim.better], own[claim.than])


def lines_of(claim: Claim, plan: Plan, data: str, first: Curve, second: Curve) -> Iterator[str]:
    """Yield a claim's lines on a data set: one per number."""
    timed = claim.number == "image"
    for name in (claim.number,) if timed else MEASURES:
        by_budget = [paired(first, second, budget, name) for budget in plan.budgets]
        seconds = "" if timed else paired_at_equal_seconds(first, second, name).shown(100)
        cells = [each.shown(1 if timed else 100, 2 if timed else 1) for each in by_budget]
        largest = by_budget[plan.budgets.index(max(plan.budgets))]
        yield line(f"{claim.paper}: {claim.text}", data, NAMES[name], *cells, seconds, largest.verdict)


def runs_of(claim: Claim, found: dict[str, Curve]) -> bool:
    """Return whether both variants of a claim have runs."""
    return bool(found.get(claim.better) and found.get(claim.than))


def tuned_settings(plan: Plan, results: Results) -> Iterator[str]:
    """Yield the table of the tuning: the scores of every setting in the table's order, and the one that was chosen."""
    yield from head("data", "method", "score of each setting, %", "after the final budget", "chosen")
    for data, variant in plan.pairs():
        rows = plan.tried(data, variant)
        if not rows:
            continue
        finals = {row.setting: row for row in plan.finals(data, variant, results)}
        last = [scored(results, finals.get(row.setting)) for row in rows]
        chosen = plan.chosen(data, variant, results)
        shown = "not tuned yet" if chosen is None else of(chosen)
        yield line(data.name, variant.label, " ".join(scored(results, row) for row in rows), " ".join(last), shown)


def scored(results: Results, row: Row | None) -> str:
    """Return the score of a row as text, `-` where there is none."""
    numbers = None if row is None else results.get(row)
    return "-" if numbers is None else "broke" if "broken" in numbers else f"{100 * score(numbers):.1f}"


def of(setting: Words) -> str:
    """Return a setting as text."""
    return f"`{' '.join(setting)}`" if setting else "the recipe as it stands"


def collapsed(plan: Plan, found: dict[str, Curve]) -> Iterator[str]:
    """Yield the methods, without ablations, whose kNN is not 15 points above an untrained encoder's."""
    still = [n["knn"] for runs in found.get("untrained", {}).values() for n in runs.values()]
    last = max(plan.budgets)
    for variant in plan.variants if still else ():
        own = [number(runs[last], "knn") for runs in found.get(variant.name, {}).values() if last in runs]
        if own and not variant.own and statistics.mean(own) < statistics.mean(still) + MARGIN:
            yield f"{COLLAPSED}: {variant.label}, kNN {shown(own)} %, untrained {shown(still)} %."


def mixed(data: DataSet, found: dict[str, Curve]) -> Iterator[str]:
    """Yield which rows of a data set cannot be compared: of other images under the same name, or on another device."""
    rows = [n for runs in found.values() for own in runs.values() for n in own.values()]
    for key, what in (("data", "data sets"), ("device", "devices")):
        values = sorted({str(row[key]) for row in rows if key in row})
        if len(values) > 1:
            yield f"{MIXED}: the rows of {data.name} are of several {what}: {', '.join(values)}."


def markdown(plan: Plan, results: Results, *, tuned: bool) -> str:
    """Return the whole report."""
    found: dict[str, dict[str, Curve]] = {}
    for data, variant in plan.pairs():
        found.setdefault(data.name, {})[variant.name] = curve(plan, results, data, variant, tuned=tuned)
    lines = ["### Claims", "", *verdicts(plan, found)]
    for data in plan.data:
        own = found.get(data.name, {})
        lines += ["", f"### {data.name}", "", *curves(plan, data, own), "", *mixed(data, own), *collapsed(plan, own)]
    return "\n".join([*lines, *(["", "### Settings", "", *tuned_settings(plan, results)] if tuned else [])])
