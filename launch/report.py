"""The report: one HTML page with what runs have come to, for people without Grafana.

Examples:

    python launch/report.py run=runs/NAME                                          # runs/NAME/report.html
    python launch/report.py run=runs/NAME run=runs/OTHER out=both.html             # drawn over one another
    python launch/report.py run=runs/NAME plan=plan.json                           # and the time that a plan predicted

The page holds everything that it shows and loads nothing. Runs are drawn by samples seen and by hours since each was
created; plan= is what python launch/plan.py wrote. By default the page is in the folder of the first run.

Exit codes: 0; 2 something in the command must be corrected; 130 interrupted.
"""

import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from rich.console import Console

from dist_ssl.config.command import known_pairs, run_command
from dist_ssl.errors import ConfigError, cannot_be_written
from dist_ssl.metrics.goodput import CAUSES
from dist_ssl.metrics.sinks import read_reports
from dist_ssl.runtime.end_names import FAILED, FINISHED, REFUSED, STOPPED
from dist_ssl.runtime.files import write_atomically
from dist_ssl.runtime.strange_files import writable
from launch.charts import COLOURS, Span, Trace, curves, duration, number, percent, stacked, timeline
from launch.ending import Ending
from launch.prediction import Prediction
from launch.report_style import COLOURS as CLASSES
from launch.report_style import STYLE
from launch.run_dir import AttemptDir, RunDir
from launch.run_files import read_numbers

KEYS = ("run", "plan", "out")
PLANNED = ("train", "data", "probe")
"""Causes whose time a plan predicts."""
JOULES_PER_KWH = 3.6e6
SOURCES = ("gpus", "processors")
"""The parts of a node whose energy is counted."""
PLACE = {"time", "samples"}
"""Keys that place a report on both axes."""
CHARTS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("Loss", "loss", number),
    ("kNN accuracy", "knn_accuracy", percent),
    ("Images per second", "images_per_second", number),
    ("Learning rate", "lr", number),
    ("Gradient norm", "gradient_norm", number),
    ("Effective rank", "effective_rank", number),
    ("Image size, px", "image_size", number),
    ("Wait for data per step, s", "data_wait_seconds", number),
)
"""Title, key and format of the curves; one that no run has is left out."""
OUTCOMES = {FINISHED: 2, STOPPED: 0, REFUSED: 3, FAILED: 1, "": 4}
"""Colours of the attempts by their outcomes; without one: still at work, or lost."""


class RunRecord:
    """A run as its folder describes it."""

    def __init__(self, run: RunDir) -> None:
        self.run, self.name = run, writable(run.folder.resolve().name)
        self.reports = [report for report in read_reports(run.metrics) if report.keys() >= PLACE]
        files = [path for name in ("config.yaml", "overrides.yaml") if (path := run.folder / name).is_file()]
        self.created = min(path.stat().st_mtime for path in files)  # an extension rewrites the config

    def trace(self, key: str, by: str) -> Trace:
        """Return the curve of a metric, by `samples` or by `hours`."""
        found = [report for report in self.reports if key in report]
        return Trace(self.name, [(self._across(report, by), report[key]) for report in found])

    def _across(self, report: dict[str, Any], by: str) -> float:
        return float(report["samples"]) if by == "samples" else self._hours(report["time"])

    def _hours(self, time: float) -> float:
        return max(0.0, time - self.created) / 3600

    def spent(self) -> dict[str, float]:
        """Return the seconds by cause."""
        last = self.reports[-1] if self.reports else {}
        return {cause: float(last.get(f"spent_seconds/{cause}", 0.0)) for cause in CAUSES}

    def worked(self) -> Trace:
        """Return the seconds of steps and probes that count, by samples."""
        return Trace(self.name, [(float(report["samples"]), of_plan(report)) for report in self.reports])

    def attempts(self) -> list[Span]:
        """Return the attempts on the time line. One without an outcome ends with its last report."""
        spans = []
        last: dict[float, float] = {}
        for report in self.reports:
            attempt_of = report.get("attempt", 0)
            last[attempt_of] = max(report["time"], last.get(attempt_of, report["time"]))
        for count in self.run.attempts():
            attempt = AttemptDir(self.run, count)
            if not attempt.config_file.is_file():
                continue
            started, ended = attempt.config_file.stat().st_mtime, attempt.outcome_file
            known = Ending.read(ended)
            end = ended.stat().st_mtime if known else last.get(count, started)
            outcome = str(known.outcome) if known else ""
            note = f"attempt {count}: {outcome or 'no outcome'}{f', {known.reason}' if known and known.reason else ''}"
            spans.append(
                Span(self.name, self._hours(started), self._hours(end), note, OUTCOMES.get(outcome, OUTCOMES[""]))
            )
        return spans

    def energy(self) -> str:
        """Return the energy that the run's nodes have counted, and of what; `unknown` where none of them counts it.

        It is at least this much where attempts are missing.
        """
        joules: Counter[str] = Counter()
        counted = 0
        for count in self.run.attempts():
            files = [*AttemptDir(self.run, count).folder.glob("energy_*.json")]
            counted += bool(files)
            for found in map(read_numbers, files):
                joules.update({source: found[source] for source in SOURCES if source in found})
        if not joules:
            return "unknown"
        least = "" if counted == self.run.newest_attempt() else "at least "
        return f"{least}{number(joules.total() / JOULES_PER_KWH)} kWh ({', '.join(sorted(joules))})"

    def cells(self) -> list[str]:
        """Return the run's line of the first table."""
        last = self.reports[-1] if self.reports else {}
        probes = [report["knn_accuracy"] for report in self.reports if "knn_accuracy" in report]
        spent, attempts = self.spent(), self.run.newest_attempt()
        age = sum(spent.values())
        return [
            self.run.outcome() or ("at work, or lost" if attempts else "not started"),
            number(last.get("step", 0)),
            number(last.get("samples", 0)),
            percent(last.get("progress", 0)),
            percent(max(probes)) if probes else "-",
            duration(age),
            percent(spent["train"] / age) if age else "-",
            str(attempts),
            number(last.get("lost_steps", 0)),
            self.energy(),
        ]


def of_plan(report: dict[str, Any]) -> float:
    """Return the seconds so far of what a plan predicts."""
    return sum(float(report.get(f"spent_seconds/{cause}", 0.0)) for cause in PLANNED)


HEADINGS = (
    "run",
    "state",
    "steps",
    "samples",
    "done",
    "best kNN",
    "age",
    "goodput",
    "attempts",
    "lost steps",
    "energy",
)


def page(runs: Sequence[RunRecord], plan: Prediction | None = None) -> str:
    """Return the whole page."""
    title = escape(", ".join(run.name for run in runs))
    heading = title if len(runs) == 1 else f"{len(runs)} runs"
    names = legend({run.name: number % COLOURS for number, run in enumerate(runs)}) if len(runs) > 1 else ""
    spans = [span for run in runs for span in run.attempts()]
    parts = {cause: colour for colour, cause in enumerate(CAUSES)}
    bars = stacked("Wall clock by cause", {run.name: run.spent() for run in runs}, parts)
    body = [
        f"<h1>{heading}</h1>{overview(runs)}",
        f"<h2>Curves</h2>{names}",
        '<input type="radio" name="by" id="samples" checked><label for="samples"> by samples seen</label>',
        '<input type="radio" name="by" id="hours"><label for="hours"> by hours of age</label>',
        *(f'<div class="cards by-{by}">{"".join(drawn(runs, by))}</div>' for by in ("samples", "hours")),
        against(runs, plan) if plan else "",
        f'<h2>Time</h2><div class="cards"><div class="card">{bars}{legend(parts)}</div>',
    ]
    if spans:
        outcomes = {outcome or "no outcome": colour for outcome, colour in OUTCOMES.items()}
        body.append(f'<div class="card">{timeline("Attempts", spans)}{legend(outcomes)}</div>')
    body.append("</div>")
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>'
    head = f"<head>{head}<style>{STYLE}{CLASSES}</style></head>"
    return f'<!doctype html><html lang="en">{head}<body>{"".join(body)}</body></html>\n'


def overview(runs: Sequence[RunRecord]) -> str:
    """Return the table with one line per run, in the colours of their curves."""
    head = "".join(f"<th>{heading}</th>" for heading in HEADINGS)
    lines = []
    for colour, run in enumerate(runs):
        cells = "".join(
            f'<td data-heading="{heading}"><span>{escape(cell)}</span></td>'
            for heading, cell in zip(HEADINGS[1:], run.cells(), strict=True)
        )
        lines.append(f'<td><span class="key f{colour % COLOURS}"></span>{escape(run.name)}</td>{cells}')
    return f'<table class="runs"><tr>{head}</tr>{"".join(f"<tr>{line}</tr>" for line in lines)}</table>'


def drawn(runs: Sequence[RunRecord], by: str) -> list[str]:
    """Return the charts that have a curve."""
    found = []
    for title, key, label in CHARTS:
        traces = [run.trace(key, by) for run in runs]
        if any(trace.points for trace in traces):
            found.append(f'<div class="card">{curves(title, traces, by, label)}</div>')
    return found


def against(runs: Sequence[RunRecord], plan: Prediction) -> str:
    """Return the time of the runs' steps and probes against the predicted one, as curves and in sentences."""
    traces = [*(run.worked() for run in runs), Trace("plan", plan.points)]
    longest = max(y for trace in traces for _, y in trace.points)
    size, unit = (3600.0, "h") if longest >= 7200 else (60.0, "min") if longest >= 120 else (1.0, "s")
    scaled = [Trace(trace.name, [(x, y / size) for x, y in trace.points]) for trace in traces]
    words = [escape(plan.source)]
    for trace in traces[:-1]:
        samples, seconds = trace.points[-1] if trace.points else (0.0, 0.0)
        if expected := plan.seconds(samples):
            took = f"{trace.name} took {duration(seconds)} for {number(samples)} samples, planned {duration(expected)}"
            words.append(escape(f"{took}: {seconds / expected:.2f} times as long."))
    chart = curves(f"Steps and probes, {unit}", scaled, "samples")
    names = legend({trace.name: colour % COLOURS for colour, trace in enumerate(traces)})
    cards = (f'<div class="card">{part}</div>' for part in (chart + names, "".join(f"<p>{line}</p>" for line in words)))
    return f'<h2>Against the plan</h2><div class="cards">{"".join(cards)}</div>'


def legend(colours: dict[str, int]) -> str:
    """Return what the colours of a chart stand for."""
    items = (f'<span class="key f{colour}"></span>{escape(name)}' for name, colour in colours.items())
    return f'<div class="legend">{" ".join(f"<span class=item>{item}</span>" for item in items)}</div>'


def name_apart(runs: Sequence[RunRecord]) -> None:
    """Name runs by their whole paths where several have the same name."""
    names = [run.name for run in runs]
    for run in runs:
        if names.count(run.name) > 1:
            run.name = str(run.run.folder)


def beside(run: RunDir) -> Path:
    """Return where the report of one's own run lies. Raises ConfigError for that of another user, who could read it.

    The files of such a folder may be links to what only the owner of this process can read.
    """
    if of_another_user(run):
        raise ConfigError(
            f"{run.folder} belongs to another user, so the report is not written into it.",
            "Name a file of your own: out=report.html",
        )
    return run.folder / "report.html"


def of_another_user(run: RunDir) -> bool:
    """Return whether somebody else can put links into the folder of a run."""
    return run.folder.stat().st_uid != os.geteuid()


def run(arguments: list[str], console: Console) -> int:
    """Write the report of the runs that the arguments name; return the exit code. Raises UserError."""
    given = known_pairs(arguments, KEYS)
    folders = {Path(value).resolve(): Path(value) for key, value in given if key == "run" and value}
    runs = [RunRecord(RunDir.open(folder)) for folder in folders.values()]
    name_apart(runs)
    if not runs:
        raise ConfigError("No run is given.", "python launch/report.py run=runs/NAME")
    out = Path(dict(given).get("out") or beside(runs[0].run))
    plan = Prediction.read(Path(named)) if (named := dict(given).get("plan")) else None
    private = not dict(given).get("out") and any(of_another_user(one.run) for one in runs)
    try:
        write_atomically(
            out, writable(page(runs, plan)), private=private
        )  # in place of a link that somebody may have put there
    except OSError as error:
        raise cannot_be_written(out, error, "Name another file: out=report.html") from error
    console.print(f"Written: {out}")
    return 0


def main(arguments: list[str]) -> int:
    """Run the command line; return the exit code."""
    return run_command(run, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
