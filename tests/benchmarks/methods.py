"""Trains every method for equal numbers of crops and for equal seconds on the demo data, and reads the claims off.

    python tests/benchmarks/methods.py [methods=mocov3,simclr] [crops=288000] [seconds=120] [seeds=3] [jobs=2]
        [out=runs/methods.jsonl] [data=FOLDER] [KEY=VALUE ...]

A row is one training in a process of one thread (`one_method.py`): the product's own build of `+recipe=demo_METHOD`, of
any other KEY=VALUE, and of nothing else. `crops=0` or `seconds=0` leaves that half out. Rows are kept in `out`; those
that stand there are not run again, so that it goes on after a kill. `jobs` rows run beside each other.

Prints kNN and linear accuracy, crops, seconds and peak memory, mean and spread over the seeds, then what the papers
claim of one method against another, whether it held or not. Exits 1 where a method collapsed (kNN of less than an
untrained encoder's and 15 points) or a row broke.
"""

import hashlib
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from launch.preparation import make_data
from launch.run_dir import PROJECT
from launch.settings import compose

RECIPES = PROJECT / "configs" / "recipe"
METHODS = sorted(path.stem.removeprefix("demo_") for path in RECIPES.glob("demo_*.yaml"))
UNTRAINED = "untrained"
"""The row of an encoder whose weights never move; one epoch settles its batch norms."""
MARGIN = 0.15
OPTIONS = {"methods": "", "crops": "288000", "seconds": "120", "seeds": "3", "jobs": "2", "data": "data/demo"}
OPTIONS |= {"out": "runs/methods.jsonl"}


@dataclass(frozen=True)
class Row:
    """One training."""

    method: str
    budget: str
    amount: float
    seed: int
    words: tuple[str, ...]
    """What composes its config."""
    settings: str = ""
    """The hash of that config: where a recipe has changed, an old row is another one."""

    @property
    def command(self) -> list[str]:
        """The words for `one_method.py`."""
        return [self.budget, str(self.amount), *self.words, f"seed={self.seed}"]

    @property
    def key(self) -> str:
        """What it is known by in the file of results."""
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class Claim:
    """What is said of `method` against `other`: `better` of the two numbers, and in which half of the table."""

    text: str
    budget: str
    method: str
    other: str
    number: str = "knn"
    lower: bool = False
    allowance: float = 0.0
    """By how much it may fall short."""


CLAIMS = (
    Claim("EMP-SSL above SimCLR at equal crops", "crops", "emp_ssl", "simclr"),
    Claim("Fast-MoCo above MoCo v3 at equal seconds", "seconds", "fast_moco", "mocov3"),
    Claim(
        "rotation costs MoCo v3 at most 5 points at equal crops (the demo's shapes have no upright to learn)",
        "crops",
        "rotation",
        "mocov3",
        allowance=0.05,
    ),
    Claim("one branch takes fewer seconds per step than two", "crops", "single_branch", "simclr", "step", lower=True),
)


class Results:
    """The rows that are done, in a file of one JSON object a line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        text = path.read_text() if path.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        if whole != text:  # a kill cut the last line short
            path.write_text(whole)
        rows = [json.loads(line) for line in whole.splitlines()]
        self.found: dict[str, dict[str, float]] = {row["key"]: row["found"] for row in rows}

    def add(self, row: Row, found: dict[str, float]) -> None:
        """Keep a row's numbers, on disk."""
        self.found[row.key] = found
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps({"key": row.key, "found": found}) + "\n")

    def of(self, rows: Iterable[Row], number: str) -> list[float]:
        """One number of those of the rows that are done."""
        done = [self.found[row.key] for row in rows if row.key in self.found]
        return [found["seconds"] / found["steps"] if number == "step" else found[number] for found in done]


def run(row: Row, results: Results, console: Console) -> str:
    """Train a row, unless it stands in the results; what broke, if it did."""
    if row.key in results.found:
        return ""
    script = Path(__file__).with_name("one_method.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = [sys.executable, str(script), *row.command]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=PROJECT, env=environment)
    name = f"{row.method}, {row.budget}={row.amount:g}, seed {row.seed}"
    if done.returncode:
        said = done.stderr.strip().splitlines()[-2:] or [f"ended with {done.returncode} and no word"]
        return f"{name}: {' '.join(line.strip() for line in said)}"
    found = json.loads(done.stdout.splitlines()[-1])
    results.add(row, found)
    console.print(f"{name}: kNN {100 * found['knn']:.1f} %, {found['seconds']:.0f} s", highlight=False)
    return ""


def shown(values: list[float], scale: float = 1.0, digits: int = 1) -> str:
    """Mean and standard deviation over the seeds."""
    if not values:
        return "-"
    spread = f" ± {scale * statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{scale * statistics.mean(values):.{digits}f}{spread}"


def table(budget: str, rows: list[Row], results: Results) -> Table:
    """One half: a line per method."""
    heads = ("method", "kNN, %", "linear, %", "1,000 crops", "seconds", "ms a step", "peak MiB")
    amount = next(row.amount for row in rows if row.budget == budget and row.method != UNTRAINED)
    made = Table(*heads, title=f"equal {budget}: {amount:g}")
    for method in dict.fromkeys(row.method for row in rows):
        own = [row for row in rows if row.method == method and (method == UNTRAINED or row.budget == budget)]
        cells = [("knn", 100, 1), ("linear", 100, 1), ("crops", 1e-3, 0), ("seconds", 1, 0), ("step", 1e3, 0)]
        cells.append(("peak_mib", 1, 0))
        made.add_row(method, *(shown(results.of(own, number), scale, digits) for number, scale, digits in cells))
    return made


def judge(claim: Claim, rows: list[Row], results: Results) -> tuple[str, str, str, str] | None:
    """A claim, both numbers and whether it held; None where one of the two was not run."""
    pair = []
    for method in (claim.method, claim.other):
        pair.append(results.of([r for r in rows if (r.method, r.budget) == (method, claim.budget)], claim.number))
    if not all(pair):
        return None
    first, second = (statistics.mean(values) for values in pair)
    held = first < second if claim.lower else first >= second - claim.allowance
    spread = math.hypot(*(statistics.stdev(values) if len(values) > 1 else 0.0 for values in pair))
    within = " (within the spread)" if abs(first - second) <= spread else ""
    scale, digits = (1e3, 0) if claim.number == "step" else (100, 1)
    ours, theirs = (shown(values, scale, digits) for values in pair)
    return claim.text, ours, theirs, ("held" if held else "DID NOT HOLD") + within


def collapsed(rows: list[Row], results: Results) -> list[str]:
    """The methods that are not 15 points above an untrained encoder, by their means."""
    bar = statistics.mean(results.of([r for r in rows if r.method == UNTRAINED], "knn")) + MARGIN
    found = []
    for method, budget in dict.fromkeys((r.method, r.budget) for r in rows if r.method != UNTRAINED):
        own = results.of([r for r in rows if (r.method, r.budget) == (method, budget)], "knn")
        if own and statistics.mean(own) < bar:
            found.append(f"{method} at equal {budget}: kNN {shown(own, 100)} %, less than {100 * bar:.1f} %")
    return found


def rows_of(options: dict[str, str], words: tuple[str, ...]) -> list[Row]:
    """All trainings, seed by seed, so that every method has been seen early."""
    chosen = [name for name in options["methods"].split(",") if name] or METHODS
    budgets = {name: float(options[name]) for name in ("crops", "seconds") if float(options[name])}
    kinds = [(UNTRAINED, "crops", 1.0), *((name, *budget) for budget in budgets.items() for name in chosen)]
    composed = {name: words_of(name, words) for name in (UNTRAINED, *chosen)}
    return [Row(*kind, seed, *composed[kind[0]]) for seed in range(int(options["seeds"])) for kind in kinds]


def words_of(method: str, words: tuple[str, ...]) -> tuple[tuple[str, ...], str]:
    """What composes a method's config, and that config's hash."""
    recipe = "mocov3" if method == UNTRAINED else method
    still = ("optim.base_lr=0", "schedule.warmup=null") if method == UNTRAINED else ()
    own = (f"+recipe=demo_{recipe}", *words, *still)
    config = json.dumps(compose(list(own), PROJECT / "configs"), sort_keys=True)
    return own, hashlib.sha256(config.encode()).hexdigest()[:16]


def report(rows: list[Row], results: Results, console: Console) -> list[str]:
    """Print both tables and the claims; what collapsed."""
    for budget in dict.fromkeys(row.budget for row in rows if row.method != UNTRAINED):
        console.print(table(budget, rows, results))
    claims = Table("claim", "it", "against", "")
    for line in (judge(claim, rows, results) for claim in CLAIMS):
        if line:
            claims.add_row(*line)
    if claims.row_count:
        console.print(claims)
    return collapsed(rows, results)


def main(arguments: list[str]) -> int:
    """Run what is missing, print what there is; 1 where a method collapsed or a row broke."""
    given: dict[str, Any] = {key: value for key, _, value in (word.partition("=") for word in arguments)}
    options = {key: given.pop(key, value) for key, value in OPTIONS.items()}
    console = Console(width=140)
    unknown = [name for name in options["methods"].split(",") if name and name not in METHODS]
    if unknown:
        console.print(f"There is no method {', '.join(unknown)}. There are: {', '.join(METHODS)}.")
        return 2
    make_data({"data": {"path": options["data"], "source": "demo"}}, console)
    words = (
        f"data.path={Path(options['data']).resolve()}",
        "data.source=null",
        *(f"{k}={v}" for k, v in given.items()),
    )
    rows, results = rows_of(options, words), Results(Path(options["out"]))
    with ThreadPoolExecutor(int(options["jobs"])) as pool:
        broken = [what for what in pool.map(lambda row: run(row, results, console), rows) if what]
    if not results.of([row for row in rows if row.method == UNTRAINED], "knn"):
        wrong = broken
    else:
        wrong = [*broken, *(f"COLLAPSED: {what}" for what in report(rows, results, console))]
    for what in wrong:
        console.print(what, style="red", highlight=False)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
