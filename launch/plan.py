"""The plan of a run before it is started: the table of its epochs, their relative cost, and the predicted time.

Examples:

    python launch/plan.py method=mocov3 schedule=accelerated epochs=60 nodes=4
    python launch/plan.py ... steps=0                    # measure nothing: costs in proportion to pixels
    python launch/plan.py ... measured=runs/NAME         # with the speed of a past run
    python launch/plan.py ... watts=350 out=plan.png     # energy from the watts of a node; the file of the curves

Keys of this command:

    steps=4         steps of every kind of epoch that are trained on this machine, which should be idle; none is kept
    measured=RUN    the speed of a past run instead
    watts=W         of a node, from which energy is predicted
    out=plan.png    the curves; beside them is the prediction (plan.json), for the report to hold the run against

All others are those of the run. Time is that of steps and probes: starting, saving and the exchange between ranks are
not in it.

Exit codes: 0; 2 something in the command or the data must be corrected; 130 interrupted.
"""

import io
import itertools
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from dist_ssl.build import memory_estimate
from dist_ssl.config.command import Screen, run_command
from dist_ssl.config.durations import Duration, clock
from dist_ssl.config.meta_device import on_meta_device
from dist_ssl.core.plan import EpochPlan
from dist_ssl.core.progress import Progress
from dist_ssl.core.timeline import Timeline
from dist_ssl.distributed.devices import own_device
from dist_ssl.distributed.memory_size import memory_size
from dist_ssl.distributed.world import World
from dist_ssl.engines.memory_need import GIB, MemoryEstimate, check_memory
from dist_ssl.errors import ConfigError, cannot_be_written, plural
from dist_ssl.parts import Parts, parts
from dist_ssl.protocols.schedule import Schedule
from dist_ssl.runtime.files import write_output
from launch import calibration, credentials, curve_sheet, preparation
from launch.calibration import Cost
from launch.config_groups import keys_of_a_run
from launch.prediction import Prediction
from launch.private_cache import use_private_cache
from launch.run_dir import PROJECT, RunDir

POINTS = 600
"""Points of a curve in the picture, about."""
ROWS = 40
"""Rows of the table, about; a longer run has several epochs in a row."""
WIDTH = 120
"""Width of the table, in characters, at least."""
DEFAULTS = {"steps": "4", "measured": "", "watts": "", "out": "plan.png"}
COLUMNS = ("epochs", "steps", "size", "magnitude", "views", "local views", "batch", "lr", "memory, GiB", "cost")

MEMORY = "Memory is what a step needs at least (what libraries and the allocator take is not in it), on each of"


@dataclass(frozen=True)
class PlanOptions:
    """Options of this command; all other arguments are those of the run."""

    steps: int
    measured: str
    watts: float
    out: Path

    @classmethod
    def parse(cls, arguments: list[str]) -> tuple["PlanOptions", list[str]]:
        """Return the options and the other arguments. Raises ConfigError."""
        given = dict(DEFAULTS)
        others = []
        for argument in arguments:
            key, _, value = argument.partition("=")
            if key in DEFAULTS:
                given[key] = value
            else:
                others.append(argument)
        try:
            steps, watts = int(given["steps"]), float(given["watts"] or "nan")
        except ValueError as error:
            raise ConfigError(f"steps or watts is no number: {error}.", "Write steps=4 watts=350, say.") from error
        if steps < 0 or watts <= 0:
            raise ConfigError("steps is at least 0, and watts more than 0.", "Write steps=4 watts=350, say.")
        if given["out"].endswith(".json"):
            raise ConfigError(
                f"out={given['out']} would be the prediction, not the curves.", "Write out=plan.png, say."
            )
        return cls(steps, given["measured"], watts, Path(given["out"])), others


@dataclass(frozen=True)
class Stretch:
    """Consecutive epochs whose plans differ by their number alone, a row of the table."""

    plan: EpochPlan
    epochs: int
    steps: int
    """Steps of each epoch."""
    rates: tuple[float, float]
    """Learning rate of the first step and of the last."""


def stretches(schedule: Schedule, timeline: Timeline) -> list[Stretch]:
    """Return the epochs of a run, about ROWS stretches of them."""
    total = len(timeline.batch_sizes)
    plans = [schedule.plan(epoch) for epoch in range(total)]
    most = max(1, math.ceil(total / ROWS))

    def alike(plan: EpochPlan) -> tuple[EpochPlan, int, int]:
        cycle = cycle_of(timeline, plan.epoch)
        return plan.numbered(0), cycle, (plan.epoch - timeline.bounds[cycle]) // most

    found = []
    for _, group in itertools.groupby(plans, key=alike):
        own = list(group)
        first, last = own[0], own[-1]
        begin, end = timeline.starts[first.epoch], timeline.starts[last.epoch + 1] - last.batch_size
        rates = tuple(
            schedule.hyperparameters(Progress(epochs=total, epoch=plan.epoch, samples=samples)).number("lr")
            for plan, samples in ((first, begin), (last, end))
        )
        steps = (timeline.starts[first.epoch + 1] - begin) // first.batch_size
        found.append(Stretch(first, len(own), steps, (rates[0], rates[1])))
    return found


def cycle_of(timeline: Timeline, epoch: int) -> int:
    """Return the number of the cycle of an epoch."""
    return sum(epoch >= bound for bound in timeline.bounds[1:-1])


def table(rows: list[Stretch], cost: Cost, estimate: MemoryEstimate) -> Table:
    """Return the table of epochs; memory is what a rank needs at least, and cost a share of the last epoch's."""
    shown = Table(*COLUMNS, box=None, header_style="", pad_edge=False)
    last = cost.epoch(rows[-1].plan, rows[-1].steps)
    for column in shown.columns:
        column.justify = "right"
    for row in rows:
        plan, first = row.plan, row.plan.epoch + 1
        views = f"{plan.views} of {plan.views * plan.candidates}" if plan.candidates > 1 else str(plan.views)
        numbers = f"{first}-{first + row.epochs - 1}" if row.epochs > 1 else str(first)
        local = f"{plan.local_views} x {plan.local_size} px" if plan.local_views else "-"
        rates = " to ".join(f"{rate:.3g}" for rate in dict.fromkeys(row.rates))
        share = cost.epoch(plan, row.steps) / last
        cells = (row.steps, f"{plan.image_size} px", f"{plan.magnitude:.3g}", views, local, plan.batch_size)
        shown.add_row(numbers, *map(str, cells), rates, f"{estimate(plan).total / GIB:.3g}", f"{share:.2f}")
    return shown


def summary(rows: list[Stretch], cost: Cost, config: dict[str, Any], watts: float) -> list[str]:
    """Return the prediction in lines of text."""
    epochs = sum(row.epochs for row in rows)
    probes = epochs // every(config) * cost.probe
    training = sum(row.epochs * cost.epoch(row.plan, row.steps) for row in rows)
    hours = (training + probes) * config["nodes"] / 3600
    energy = f"{hours * watts:.3g} Wh" if not math.isnan(watts) else "unknown (watts=350, per node, predicts it)"
    return [
        cost.source,
        relative(rows, cost),
        f"Predicted: {clock(training + probes)}, of which probes {clock(probes)}; "
        f"{hours:.3g} node-hours; energy: {energy}.",
    ]


def every(config: dict[str, Any]) -> int:
    """Return the number of epochs from one probe to the next."""
    return int(Duration.parse(config["probe"]["every"]).amount)


def predicted(schedule: Schedule, timeline: Timeline, cost: Cost, probed: int) -> Prediction:
    """Return when each epoch ends, its probe included; there is one in `probed` epochs."""
    points, seconds = [(0.0, 0.0)], 0.0
    for epoch, size in enumerate(timeline.batch_sizes):
        steps = (timeline.starts[epoch + 1] - timeline.starts[epoch]) // size
        seconds += cost.epoch(schedule.plan(epoch), steps)
        seconds += cost.probe if (epoch + 1) % probed == 0 else 0.0
        points.append((float(timeline.starts[epoch + 1]), seconds))
    return Prediction(points, cost.source)


def relative(rows: list[Stretch], cost: Cost) -> str:
    """Return the cost of the whole plan by that of a plan whose epochs are all like the last, as a sentence."""
    training = sum(row.epochs * cost.epoch(row.plan, row.steps) for row in rows)
    alike = sum(row.epochs for row in rows) * cost.epoch(rows[-1].plan, rows[-1].steps)
    return f"The epochs cost {training / alike:.2f} of what they would cost if all were like the last."


def panels(schedule: Schedule, timeline: Timeline) -> dict[str, list[tuple[float, float]]]:
    """Return the points (epoch, value) of the learning rate and of everything else that changes."""
    found: dict[str, list[tuple[float, float]]] = {}
    for epoch, progress in positions(timeline):
        plan = schedule.plan(progress.epoch)
        values = {name: float(value) for name, value in schedule.hyperparameters(progress).values.items()}
        values |= {"image size (px)": plan.image_size, "magnitude": plan.magnitude, "batch size": plan.batch_size}
        for name, value in values.items():
            found.setdefault(name, []).append((epoch, value))
    return {name: points for name, points in found.items() if name == "lr" or len({y for _, y in points}) > 1}


def positions(timeline: Timeline) -> Iterator[tuple[float, Progress]]:
    """Yield about POINTS positions of steps, the first and the last of every epoch among them, by their epoch."""
    total = len(timeline.batch_sizes)
    for epoch, size in enumerate(timeline.batch_sizes):
        start, steps = timeline.starts[epoch], (timeline.starts[epoch + 1] - timeline.starts[epoch]) // size
        chosen = {*range(0, steps, max(1, steps * total // POINTS)), steps - 1}
        for step in sorted(chosen):
            yield epoch + step / steps, Progress(epochs=total, epoch=epoch, samples=start + step * size)


def show(options: PlanOptions, overrides: list[str], console: Console) -> None:
    """Write the curves of the run that the overrides describe, then print its plan. Raises UserError."""
    (overrides,) = preparation.pack_folders([overrides], console)
    config = credentials.restored(preparation.new_config(overrides, console))
    ranks = config["nodes"] * config["ranks_per_node"]
    with on_meta_device():
        found = parts(config, World(), ranks)
    draw(found.schedule, found.timeline, options.out)
    rows, plans = stretches(found.schedule, found.timeline), found.schedule.distinct_plans(found.run.all_epochs)
    if not options.steps:
        cost = calibration.by_pixels(plans)
    elif options.measured:
        cost = calibration.of_run(RunDir.open(Path(options.measured)), ranks)
    else:
        check_room(config, found, plans, ranks)
        splits = [found.data.train, *([found.data.val] if found.data.val else [])]
        images = [len(found.dataset.split(name).samples) for name in splits]
        cost = calibration.measured(config, plans, options.steps, images, console.print)
    console.print(table(rows, cost, memory_estimate(config, found, ranks)))
    console.print(f"{MEMORY} {plural(ranks, 'rank')}.")
    for line in summary(rows, cost, config, options.watts) if options.steps else [cost.source, relative(rows, cost)]:
        console.print(line)
    if options.steps:
        file = options.out.with_suffix(".json")
        predicted(found.schedule, found.timeline, cost, every(config)).write(file)
        console.print(
            f"Prediction: {file}. To hold a run against it: python launch/report.py run=runs/NAME plan={file}"
        )
    console.print(f"Curves: {options.out}")


def check_room(config: dict[str, Any], found: Parts, plans: list[EpochPlan], ranks: int) -> None:
    """Raise ConfigError where this machine lacks the memory for one rank's step of one of the plans."""
    alone = memory_estimate(calibration.of_one_rank(config), found, 1)
    room = memory_size(World(device=own_device(0)))
    try:
        check_memory(alone, room, [calibration.share_of(plan, ranks) for plan in plans])
    except ConfigError as error:
        remedy = "Add steps=0 to measure nothing here, or measured=runs/NAME to use the speed of a past run."
        raise ConfigError(f"A rank's step cannot be measured on this machine. {error.problem}", remedy) from error


def draw(schedule: Schedule, timeline: Timeline, out: Path) -> None:
    """Write the picture of the curves. Raises UserError."""
    file = io.BytesIO()
    curve_sheet.sheet(panels(schedule, timeline), [float(n) for n in timeline.bounds[1:]]).save(file, "PNG")
    try:
        write_output(out, file.getvalue())
    except OSError as error:
        raise cannot_be_written(out, error, "Name another file: out=...") from error


def run(arguments: list[str], console: Console) -> int:
    """Show the plan of the run that the arguments describe; return the exit code. Raises UserError."""
    options, overrides = PlanOptions.parse(credentials.set_aside(arguments))
    use_private_cache()  # compiled code is executed here too
    show(options, overrides, console)
    return 0


def main(arguments: list[str]) -> int:
    """Run the command line; return the exit code."""
    console = Screen()
    console.width = max(console.width, WIDTH)
    keys = partial(keys_of_a_run, PROJECT / "configs")
    return run_command(run, arguments, console, interrupted="Interrupted: no plan is written.", more_help=keys)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
