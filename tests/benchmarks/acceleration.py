"""The proof of acceleration: how much sooner schedules have the accuracy of the tuned plain recipe's longest run.

    python tests/benchmarks/acceleration.py stage=estimate         # what the other stages will cost
    python tests/benchmarks/acceleration.py stage=tune             # the plain recipes' settings, where not yet tried
    python tests/benchmarks/acceleration.py stage=run minutes=60   # three seeds of all variants, the longest runs first
    python tests/benchmarks/acceleration.py stage=report           # tables, bars and plots
        [data=demo,garments] [variants=simclr,simclr_s1,...] [budgets=2,4,10] [seeds=3] [tuned=true] [jobs=1]
        [minutes=...] [out=FILE] [table=acceleration] [KEY=VALUE ...]

Variants, data sets and bars are those of `tables/acceleration.yaml`; rows are kept and resumed as those of `claims.py`,
whose rows of the tuning count here too: the plain recipe has the best of ten settings (temperature, learning rate,
momentum, batch), and what accelerates it has the same one. `data=folder|shards|cifar10 data.path=...` is other data.

Every point of a curve is a run of its own, whose schedule ends there. The time to an accuracy is read between points
of such a curve; the accuracy is what the plain recipe has after its largest budget. Intervals are of a bootstrap over
the seeds, the same ones for both. Seconds are of the training alone, its loader included, without imports and
evaluation, for all alike: of the processor, and of the wall, which counts what else the machine does. A second of a
shared core does more or less, so bars are compared with seconds at an even pace: each row times a fixed piece of work
before and after (`pace.py`), and its seconds are scaled to the median of these times over all rows. `stage=report`
also writes a plot of accuracy against processor time per data set, beside `out`. Exit code 1: a row broke, or a bar of
the table is missed or has no rows, or rows cannot be compared; 2: the command needs a correction.
"""

import os
import sys
from pathlib import Path

from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dist_ssl.config.command import run_command
from launch.agent import MALLOC
from tests.benchmarks import table_command
from tests.benchmarks.acceleration_plot import plots
from tests.benchmarks.acceleration_report import failed, markdown
from tests.benchmarks.table_rows import Plan, Results

OPTIONS = {**table_command.OPTIONS, "table": "acceleration", "jobs": "1"}
OPTIONS |= {"out": str(table_command.RESULTS / "acceleration.jsonl")}
TUNED = table_command.RESULTS / "claims.jsonl"
"""Where the rows are in which `claims.py` has tried the settings."""


def report(plan: Plan, results: Results, tuned: bool) -> tuple[str, bool]:
    """Write the plots; return the report, and whether all bars are reached by rows that can be compared."""
    text = markdown(plan, results, tuned=tuned)
    drawn = plots(plan, results, results.path, tuned=tuned)
    return "\n".join([text, "", *(f"Drawn: {path}" for path in drawn)]), not failed(text)


def command(arguments: list[str], console: Console) -> int:
    """Run what the arguments say; return the exit code. Raises UserError."""
    options, extra = table_command.parsed(arguments, OPTIONS)
    os.environ.setdefault("GLIBC_TUNABLES", MALLOC)  # rows keep freed memory, as the ranks that an agent starts do
    plan, results = table_command.of_command(options, extra), Results(Path(options["out"]), TUNED)
    return table_command.run(options, plan, results, console, report)


def main(arguments: list[str]) -> int:
    """Run the command line; return the exit code."""
    interrupted = "Interrupted: the rows that are done are kept."
    return run_command(command, arguments, Console(highlight=False), interrupted=interrupted)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
