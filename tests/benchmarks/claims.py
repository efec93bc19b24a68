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

import sys
from pathlib import Path

from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dist_ssl.config.command import run_command
from tests.benchmarks import table_command
from tests.benchmarks.claims_report import COLLAPSED, MIXED, markdown
from tests.benchmarks.table_rows import Plan, Results

OPTIONS = {**table_command.OPTIONS, "table": "laptop", "jobs": "2", "out": str(table_command.RESULTS / "claims.jsonl")}


def report(plan: Plan, results: Results, tuned: bool) -> tuple[str, bool]:
    """Return the report, and whether every recipe learned and all rows can be compared."""
    text = markdown(plan, results, tuned=tuned)
    return text, not (COLLAPSED in text or MIXED in text)


def command(arguments: list[str], console: Console) -> int:
    """Run what the arguments say; return the exit code. Raises UserError."""
    options, extra = table_command.parsed(arguments, OPTIONS)
    plan, results = table_command.of_command(options, extra), Results(Path(options["out"]))
    return table_command.run(options, plan, results, console, report)


def main(arguments: list[str]) -> int:
    """Run the command line; return the exit code."""
    interrupted = "Interrupted: the rows that are done are kept."
    return run_command(command, arguments, Console(highlight=False), interrupted=interrupted)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
