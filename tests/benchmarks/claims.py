"""The papers' claims on data that two cores can train on: each mechanism against its own ablation.

    python tests/benchmarks/claims.py stage=estimate               # what the other stages will cost
    python tests/benchmarks/claims.py stage=tune [minutes=60]      # 10 settings of every method, best 3 longer
    python tests/benchmarks/claims.py stage=run                    # the best setting of each, three other seeds
    python tests/benchmarks/claims.py stage=report                 # tables and verdicts, as markdown
        [table=laptop] [data=demo,garments] [variants=simclr,...] [budgets=1,3,10] [seeds=3] [tuned=true] [jobs=2]
        [minutes=...] [out=FILE] [KEY=VALUE ...]

A row is one training of one thread in a process of its own (`one_row.py`). Rows are kept in `out`, one a line, and are
not run again while their config stays the same, so that a stage resumes after a kill, on another machine too. `table`
is a file of `tables/`; `data=NAME data.path=...` is any other data set of the configs; further KEY=VALUE come last in
every row. `minutes`: start no row after so many. `tuned=false` takes every method's first setting: its recipe.

Every point of a curve is a run of its own, whose schedule ends there, as those of the papers' numbers do: in the middle
of a longer run the learning rate has not fallen yet, which costs some methods more than others. Equal seconds are read
off these curves. Settings are compared on a fifth of the training images, which nothing is reported of. Exit code 1: a
row broke, a recipe has collapsed, or the rows of a data set are of several sets of images or devices; 2: the command
needs a correction.
"""

import math
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dist_ssl.config.command import run_command
from dist_ssl.errors import ConfigError, nearest
from launch.run_dir import PROJECT
from tests.benchmarks.claims_report import COLLAPSED, MIXED, markdown
from tests.benchmarks.claims_table import DataSet, Found, Plan, Results, Row, Table, cost

TABLES = Path(__file__).parent / "tables"
STAGES = ("estimate", "tune", "run", "report")
OPTIONS = {"stage": "", "table": "laptop", "data": "", "variants": "", "budgets": "", "seeds": "", "tuned": "true"}
OPTIONS |= {"jobs": "2", "minutes": "", "out": str(Path(__file__).parent / "results" / "claims.jsonl")}


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


class Runner:
    """Runs rows, each in a process that is forked from one that has imported torch already, and keeps their numbers."""

    def __init__(self, results: Results, console: Console, minutes: float | None) -> None:
        self.results, self.console = results, console
        self.until = math.inf if minutes is None else time.monotonic() + 60 * minutes
        self.live: set[BaseProcess] = set()
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")]))
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["__main__", "tests.benchmarks.one_row"])

    def run(self, row: Row) -> str:
        """Run a row, unless it is done or the time is over; return why it broke, if it did.

        A row that diverged is done; what a setting of the tuning may do.
        """
        found = self.results.get(row)
        if found is None:
            if time.monotonic() > self.until:
                return ""
            found = self._measured(row)
            self.console.print(f"{row.name}: {said(found)}", soft_wrap=True)
            if found.get("diverged", True):
                self.results.add(row, found)
        accepted = "broken" not in found or (row.split == "train" and found["diverged"])
        return "" if accepted else f"{row.name}: {found['broken']}"

    def _measured(self, row: Row) -> Found:
        from tests.benchmarks.one_row import work

        source, sink = self.context.Pipe(duplex=False)
        given = (sink, list(row.words), row.budget, row.split, row.bag)
        process = self.context.Process(target=work, args=given)
        process.start()
        self.live.add(process)
        sink.close()
        try:
            found: Found = source.recv()
        except EOFError:
            found = {"broken": "its process ended without an answer", "diverged": False}
        process.join()
        self.live.discard(process)
        return found

    def run_all(self, rows: Sequence[Row], jobs: int) -> list[str]:
        """Run rows, `jobs` beside each other, and return why some broke."""
        with ThreadPoolExecutor(jobs) as pool:
            try:
                return [what for what in pool.map(self.run, rows) if what]
            except KeyboardInterrupt:
                self.until = -math.inf
                for process in list(self.live):
                    process.terminate()
                raise


def said(found: Found) -> str:
    """Return a line about what a row found."""
    if "broken" in found:
        return f"broke: {found['broken']}"
    shown = [
        f"{name} {100 * found[name]:.1f} %" for name in ("knn", "linear", "bag_knn", "bag_linear") if name in found
    ]
    return f"{', '.join(shown)}, {found['seconds']:.0f} s of training, {found['process_seconds']:.0f} s in all"


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


def run(options: dict[str, str], extra: tuple[str, ...], console: Console) -> int:
    """Run a stage; return the exit code. Raises UserError."""
    plan, results = of_command(options, extra), Results(Path(options["out"]))
    tuned, jobs, stage = options["tuned"] == "true", int(options["jobs"]), options["stage"]
    if stage == "report":
        print(text := markdown(plan, results, tuned=tuned))
        return 1 if COLLAPSED in text or MIXED in text else 0
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


def command(arguments: list[str], console: Console) -> int:
    """Run what the arguments say; return the exit code. Raises UserError."""
    given: dict[str, Any] = {key: value for key, _, value in (word.partition("=") for word in arguments)}
    options = {key: str(given.get(key, value)) for key, value in OPTIONS.items()}
    extra = tuple(word for word in arguments if word.partition("=")[0] not in OPTIONS)
    if options["stage"] not in STAGES:
        raise ConfigError(f"stage={options['stage']} does not exist.", f"Choose one of {', '.join(STAGES)}.")
    return run(options, extra, console)


def main(arguments: list[str]) -> int:
    """Run the command line; return the exit code."""
    interrupted = "Interrupted: the rows that are done are kept."
    return run_command(command, arguments, Console(highlight=False), interrupted=interrupted)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
