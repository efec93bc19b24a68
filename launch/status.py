"""The command that shows what runs are doing: those of a folder, or one of them live.

Examples:

    python launch/status.py                       # the runs in runs/, the newest report first
    python launch/status.py runs=/shared/runs     # those in another folder, a colleague's perhaps
    python launch/status.py run=runs/NAME         # one run
    python launch/status.py run=runs/NAME follow=true    # its progress bar; Ctrl-C ends the watching, not the run

States: not started, queued, running, how the newest attempt ended (finished, stopped, refused, failed), why its job
waits to start again (preempted, time limit, something was lost), killed (it ended without a report), and silent (no
report for 10 minutes, and nobody on this machine knows more). Reads files, and asks Slurm about runs that have a job,
one after the other; executes nothing of a run, so a colleague's can be looked at.

Exit codes: 0; 2 something in the command must be corrected; 130 interrupted.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table

from dist_ssl.config.command import INTERRUPTED_CODE, Screen, known_pairs, run_command, say
from dist_ssl.config.instantiate import fit
from dist_ssl.errors import ConfigError, UserError
from launch.charts import duration
from launch.progress_bar import DASH, RunView
from launch.run_dir import RunDir
from launch.run_state import GOING, RUNNING, RunState

KEYS = ("runs", "run", "follow")
HEADINGS = (
    *("run", "state", "epochs", "step", "loss", "kNN", "images/s", "left", "report", "saved", "attempts"),
    "steps lost",
)
NUMBERS_FROM = 2
"""The first heading of a column of numbers."""
WIDTH = 120
MOST = 1e12
"""Largest number that is shown: the file may be anybody's."""
LOOK_SECONDS, ASK_SECONDS = 0.5, 5.0
"""Between two looks at a run that is followed, and between two questions about its state, some of them to Slurm."""


def cells(found: RunState, now: float) -> list[str]:
    """Return the row of a run; `now` in seconds since 1970."""
    numbers = found.numbers

    def text(key: str, form: str, scale: float = 1.0) -> str:
        return format(scale * max(-MOST, min(float(numbers[key]), MOST)), form) if key in numbers else DASH

    def age(moment: float | None) -> str:
        return DASH if moment is None else duration(max(0.0, now - moment))

    left = (
        duration(min(float(numbers["seconds_left"]), MOST))
        if "seconds_left" in numbers and found.state in GOING
        else DASH
    )
    return [
        found.run.folder.resolve().name,
        found.state,
        f"{text('epoch', '.0f')}/{text('epochs', '.0f')}" if numbers else DASH,
        text("step", ".0f"),
        text("loss", ".4g"),
        f"{text('knn_accuracy', '.1f', 100)} %" if "knn_accuracy" in numbers else DASH,
        text("images_per_second", ".0f"),
        left,
        age(found.reported),
        age(found.saved),
        str(found.run.newest_attempt()),
        text("lost_steps", ".0f"),
    ]


def show(states: Sequence[RunState], console: Console) -> None:
    """Print the table of runs, and below it why they are in their states."""
    table = Table(box=None, pad_edge=False)
    for number, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="right" if number >= NUMBERS_FROM else "left", overflow="fold")
    for found in states:
        table.add_row(*cells(found, time.time()))
    console.print(table)
    for found in states:
        if found.why:
            say(console, f"{found.run.folder}: {found.why}")


def runs_in(folder: Path, console: Console) -> list[RunState]:
    """Return the runs of a folder, those with the newest reports first; what is no run is left out, damage is said."""
    if not folder.is_dir():
        raise ConfigError(f"There is no folder {folder}.", "Name the folder of the runs: runs=...")
    states: list[RunState] = []
    for path in sorted(folder.iterdir()):
        try:
            if RunDir(path).config_file.exists():
                states.append(RunState.of(RunDir.open(path)))
        except (UserError, OSError, ValueError) as error:
            say(console, f"{path}: cannot be read: {error}")
    return sorted(states, key=lambda found: found.reported or 0.0, reverse=True)


def follow(run: RunDir, console: Console) -> None:
    """Show the progress bar of a run until it has ended."""
    asked, found = time.monotonic(), RunState.of(run)
    with RunView(run.folder, console) as view:
        while found.state in GOING:
            view.queue(run.folder.name, "RUNNING" if found.state == RUNNING else found.why or found.state)
            view.refresh()
            time.sleep(LOOK_SECONDS)
            if time.monotonic() > asked + ASK_SECONDS:
                asked, found = time.monotonic(), RunState.of(run)


def run(arguments: list[str], console: Console) -> int:
    """Show the runs that the arguments name; return the exit code. Raises UserError."""
    given = dict(known_pairs(arguments, KEYS))
    live = fit(given.get("follow", "false"), Literal["true", "false"], "follow") == "true"
    if "run" not in given:
        if live:
            raise ConfigError("One run is followed at a time.", "Write run=runs/NAME follow=true")
        folder = Path(given.get("runs", "runs"))
        if states := runs_in(folder, console):
            show(states, console)
        else:
            say(console, f"No runs are in {folder}.")
        return 0
    if "runs" in given:
        raise ConfigError("run= and runs= cannot be shown at once.", "Give one of them.")
    found = RunDir.open(Path(given["run"]))
    if live:
        try:
            follow(found, console)
        except KeyboardInterrupt:
            say(console, "Not watched any more; the run goes on.")
            return INTERRUPTED_CODE
    show([RunState.of(found)], console)
    return 0


def main(arguments: list[str]) -> int:
    """Run the command line; return the exit code."""
    console = Screen()
    console.width = max(console.width, WIDTH)
    return run_command(run, arguments, console)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
