"""The command line of `claims.py` and `acceleration.py`: which rows of a table are to be run, and its stages.

Options are KEY=VALUE words; those that are not the command's own come last in every row.
"""

import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from dist_ssl.errors import ConfigError, nearest
from launch.run_dir import PROJECT
from tests.benchmarks.claims_table import DataSet, Table
from tests.benchmarks.row_runner import Runner
from tests.benchmarks.table_rows import Plan, Results, Row, cost

TABLES = Path(__file__).parent / "tables"
RESULTS = Path(__file__).parent / "results"
STAGES = ("estimate", "tune", "run", "report")
OPTIONS = {"stage": "", "data": "", "variants": "", "budgets": "", "seeds": "", "tuned": "true", "minutes": ""}
"""Options that both commands have, with their defaults."""
Report = Callable[[Plan, Results, bool], tuple[str, bool]]
"""The text of a report, and whether it holds; the last argument: whether settings are those of the tuning."""


def names(text: str, options: Sequence[str], kind: str) -> list[str]:
    """Return the comma-separated names. Raises ConfigError where one does not exist."""
    found = [name for name in text.split(",") if name]
    for name in found:
        if name not in options:
            raise ConfigError(f"There is no {kind} {name}.", nearest(name, options))
    return found


def of_command(options: dict[str, str], extra: tuple[str, ...]) -> Plan:
    """Return the part of the table that the options ask for. Raises ConfigError."""
    path = TABLES / f"{options['table']}.yaml"
    if not path.is_file():
        raise ConfigError(f"There is no table {options['table']}.", nearest(options["table"], tables()))
    table = Table.read(path)
    chosen = [variant for variant in table.variants.values() if not variant.named]
    if options["variants"]:
        chosen = [table.variants[name] for name in names(options["variants"], list(table.variants), "variant")]
    budgets = tuple(float(text) for text in options["budgets"].split(",") if text) or table.budgets
    seeds = int(options["seeds"] or table.seeds)
    return Plan(table, data_of(options["data"], table, extra), tuple(chosen), budgets, seeds, extra)


def data_of(text: str, table: Table, extra: tuple[str, ...]) -> tuple[DataSet, ...]:
    """Return the data sets of the table that are named, or all, or one of the configs. Raises ConfigError.

    Where the command says a path, it is part of the name: the rows are not those of other images.
    """
    if text in table.data or text not in [path.stem for path in (PROJECT / "configs" / "data").glob("*.yaml")]:
        chosen = [table.data[name] for name in names(text, list(table.data), "data set") or table.data]
    else:
        chosen = [DataSet(text, (f"data={text}",))]
    path = next((word.partition("=")[2] for word in extra if word.startswith("data.path=")), None)
    return tuple(replace(data, name=f"{data.name} {path}", source=None) if path else data for data in chosen)


def tables() -> list[str]:
    """Return the names of all tables."""
    return sorted(path.stem for path in TABLES.glob("*.yaml"))


def draw(plan: Plan, console: Console) -> None:
    """Draw the data sets that our own code draws, where they are missing. Raises ConfigError, DataError."""
    from shards.make import make, source_of

    for data in plan.data:
        path = next((Path(word.partition("=")[2]) for word in data.words if word.startswith("data.path=")), None)
        if data.source and path and not (path / "manifest.json").exists():
            console.print(f"Drawing {data.name} into {path} (once).")
            make(data.source, path, console, replace(source_of(data.source).options(), **data.options))


def estimate(stage: str, rows: Sequence[Row], plan: Plan, results: Results, jobs: int) -> str:
    """Return what the missing rows of a stage will cost, as text."""
    missing = [row for row in rows if results.get(row) is None]
    hours = sum(cost(row, results, plan.table.seconds) for row in missing) / 3600
    left = f"{hours:.1f} core-hours, {hours / jobs:.1f} h with jobs={jobs}"
    return f"{stage}: {len(rows)} rows, {len(missing)} of them missing: {left}"


def untuned(plan: Plan, results: Results) -> list[str]:
    """Return the variants whose settings are not all tried."""
    return [
        f"{data.name}/{variant.name}" for data, variant in plan.pairs() if plan.chosen(data, variant, results) is None
    ]


def run(options: Mapping[str, str], plan: Plan, results: Results, console: Console, report: Report) -> int:
    """Run a stage; return the exit code. Raises UserError."""
    tuned, jobs, stage = options["tuned"] == "true", int(options["jobs"]), options["stage"]
    if stage == "report":
        text, holds = report(plan, results, tuned)
        print(text)
        return 0 if holds else 1
    rows = {"tune": plan.tuning(results), "run": plan.runs(results, tuned=tuned and stage == "run")}
    for name in rows if stage == "estimate" else (stage,):
        console.print(estimate(name, rows[name], plan, results, jobs))
    if stage == "estimate":
        return 0
    draw(plan, console)
    if stage == "run" and tuned and (missing := untuned(plan, results)):
        console.print(f"Left out until stage=tune has tried all their settings: {', '.join(missing)}", soft_wrap=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    runner = Runner(results, console, float(options["minutes"]) if options["minutes"] else None)
    broken = runner.run_all(rows[stage], jobs)
    if stage == "tune":  # the finals are known now
        broken += runner.run_all([row for row in plan.tuning(results) if row not in rows[stage]], jobs)
    for what in broken:
        console.print(what, style="red", soft_wrap=True)
    return 1 if broken else 0


def parsed(arguments: Sequence[str], known: Mapping[str, str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return the options with their values, and the words that come last in every row. Raises ConfigError."""
    given = {key: value for key, _, value in (word.partition("=") for word in arguments)}
    options = {key: given.get(key, value) for key, value in known.items()}
    if options["stage"] not in STAGES:
        raise ConfigError(f"stage={options['stage']} does not exist.", f"Choose one of {', '.join(STAGES)}.")
    return options, tuple(word for word in arguments if word.partition("=")[0] not in known)
