"""The report of `acceleration.py` as markdown: bars, every variant's time to the plain recipe's accuracy, curves."""

import statistics
from collections.abc import Iterator, Mapping
from typing import Any

from tests.benchmarks.claims_curves import Curve, Speed, mean_curve, mean_speed, speed
from tests.benchmarks.claims_report import MIXED, curve, head, line, mixed, runs_of, shown, tuned_settings
from tests.benchmarks.claims_table import Bar, Claim, DataSet
from tests.benchmarks.table_rows import Plan, Results

CLOCKS = ("even_seconds", "seconds", "wall_seconds")
"""The times of a row: of the processor at an even pace, as they were, and of the wall."""
TIMES = ("times sooner, at an even pace", "processor", "wall")
MISSED, LACKING = "MISSED", "NOT RUN"
Found = dict[str, Curve]
"""The curves of a data set's variants."""


def evened(curves: Found) -> Found:
    """Return curves whose rows also have `even_seconds`: their seconds at the median pace of all rows."""
    rows = [numbers for own in curves.values() for runs in own.values() for numbers in runs.values()]
    typical = statistics.median([row["pace_seconds"] for row in rows] or [1.0])

    def even(row: Mapping[str, Any]) -> dict[str, Any]:
        return {**row, "even_seconds": row["seconds"] * typical / row["pace_seconds"]}

    return {
        name: {seed: {budget: even(row) for budget, row in runs.items()} for seed, runs in own.items()}
        for name, own in curves.items()
    }


def found_of(plan: Plan, results: Results, data: DataSet, *, tuned: bool) -> Found:
    """Return the curves of a data set, with even seconds."""
    return evened({v.name: curve(plan, results, data, v, tuned=tuned) for d, v in plan.pairs() if d is data})


def headings(plan: Plan) -> dict[str, list[Claim]]:
    """Return the claims of time whose variants the command asks for, by heading."""
    asked = {variant.name for variant in plan.variants}
    found: dict[str, list[Claim]] = {}
    for claim in plan.table.claims:
        if claim.number == "time" and {claim.better, claim.than} <= asked:
            found.setdefault(claim.paper, []).append(claim)
    return found


def speeds(claims: list[Claim], found: Found, clock: str) -> list[Speed | None]:
    """Return how many times sooner each claim's variant is by kNN, None where one has no rows."""
    return [
        speed(found[claim.better], found[claim.than], "knn", clock) if runs_of(claim, found) else None
        for claim in claims
    ]


def together(bar: Bar, of: list[Speed | None]) -> Speed | None:
    """Return what is compared with a bar; None where rows are lacking."""
    known = [each for each in of if each is not None]
    if bar.of == "best":
        return max(known, key=lambda each: each.ratio or 0.0, default=None)
    return mean_speed(known) if len(known) == len(of) else None


def verdict(bar: Bar, found: Speed | None) -> str:
    """Return whether a bar is reached."""
    if found is None:
        return LACKING
    ratio = found.ratio or 0.0
    return "star" if ratio >= bar.star else "reached" if ratio >= bar.bar else MISSED


def bars(plan: Plan, data: DataSet, found: Found) -> Iterator[str]:
    """Yield the table of a data set's bars."""
    yield from head("what", "bar", "star", *TIMES, "verdict")
    for heading, claims in headings(plan).items():
        if heading in plan.table.bars:
            bar = plan.table.bars[heading]
            times = [together(bar, speeds(claims, found, clock)) for clock in CLOCKS]
            means = "the best" if bar.of == "best" else f"geometric mean of {len(claims)}"
            cells = ["-" if each is None else each.shown for each in times]
            yield line(f"{heading}, {means}", f"{bar.bar:g}", f"{bar.star:g}", *cells, verdict(bar, times[0]))


def ratios(plan: Plan, found: Found) -> Iterator[str]:
    """Yield the table of the times to the plain recipes' accuracy."""
    yield from head("what", "variant", "accuracy", "plain recipe's seconds", *TIMES)
    for heading, claims in headings(plan).items():
        for claim, *times in zip(claims, *(speeds(claims, found, clock) for clock in CLOCKS), strict=True):
            if None not in times:
                plain = found[claim.than]
                seconds, bar = max(
                    mean_curve(plain, sorted(found[claim.better].keys() & plain.keys()), "knn", CLOCKS[0])
                )
                cells = [each.shown for each in times if each is not None]
                yield line(heading, claim.text, f"{100 * bar:.1f} %", f"{seconds:.0f}", *cells)


def curves(plan: Plan, found: Found) -> Iterator[str]:
    """Yield a data set's curves: kNN and seconds at an even pace at every budget, and the seeds."""
    yield from head("variant", *(f"kNN, % and seconds at {budget:g}" for budget in plan.budgets), "seeds")
    for variant in plan.variants:
        runs = found.get(variant.name, {})
        cells = []
        for budget in plan.budgets:
            own = [by_budget[budget] for by_budget in runs.values() if budget in by_budget]
            accuracy = shown([n.get("bag_knn", n["knn"]) for n in own])
            cells.append(f"{accuracy}; {shown([n[CLOCKS[0]] for n in own], 1, 0)}" if own else "-")
        if runs:
            yield line(f"{variant.label} (`{variant.name}`)", *cells, str(len(runs)))


def markdown(plan: Plan, results: Results, *, tuned: bool) -> str:
    """Return the whole report."""
    lines: list[str] = []
    for data in plan.data:
        own = found_of(plan, results, data, tuned=tuned)
        lines += [f"### {data.name}", "", *bars(plan, data, own), "", *ratios(plan, own), ""]
        lines += [*curves(plan, own), "", *mixed(data, own)]
    return "\n".join([*lines, *(["### Settings", "", *tuned_settings(plan, results)] if tuned else [])])


def failed(text: str) -> bool:
    """Return whether a report names a bar that is missed or has no rows, or rows that cannot be compared."""
    return any(word in text for word in (MISSED, LACKING, MIXED))
