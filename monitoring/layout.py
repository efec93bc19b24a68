"""The dashboards as rows of panels, without anything of Grafana's format.

A panel shows the metrics that the metric table puts under its title, or queries of its own. The board `run` shows the
chosen runs from learning to goodput; `runs` compares all of them at a glance.
"""

from dataclasses import dataclass
from typing import Literal

from monitoring.queries import CHOSEN, Query, of_panel

Kind = Literal["timeseries", "stat", "table"]


@dataclass(frozen=True)
class Panel:
    """A panel. `width`: of 24 columns; `height`: in grid rows; `own`: queries in place of those of the metric table.

    `limits`: values from which on the panel is yellow and red; falling limits warn of small values. `stacked`: the
    series add up to something. `help`: what the panel says, where no help text of the table does.
    """

    title: str
    width: int = 8
    kind: Kind = "timeseries"
    own: tuple[Query, ...] = ()
    limits: tuple[float, float] | None = None
    stacked: bool = False
    help: str = ""
    height: int = 8

    @property
    def queries(self) -> tuple[Query, ...]:
        """Return the queries, in the order of the table."""
        return self.own or of_panel(self.title)


@dataclass(frozen=True)
class Row:
    """Panels under one heading, laid out from left to right in lines of 24 columns."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Board:
    """A dashboard. `uid`: its permanent name in links; `since`: the period that it shows at first."""

    uid: str
    title: str
    since: str
    rows: tuple[Row, ...]


def share_of(cause: str, seconds: str) -> str:
    """Return a query of the share of a cause in the wall clock; `seconds`: a template of the seconds by cause."""
    part = seconds.format(selector=f'{{cause="{cause}",run=~"$run"}}')
    return f"{part} / ignoring (cause) sum without (cause) ({seconds.format(selector=CHOSEN)})"


TOTAL = "dist_ssl_spent_seconds{selector}"
RECENT = "delta(dist_ssl_spent_seconds{selector}[$window])"
GOODPUT = Query(share_of("train", TOTAL), unit="percentunit")
GOODPUT_NOW = Query(share_of("train", RECENT), unit="percentunit")
GOODPUT_HELP = "Share of the wall clock in which the run trained and kept the result."


def stat(title: str, limits: tuple[float, float] | None = None) -> Panel:
    """Return a small panel that shows the newest value of the metrics under a title."""
    return Panel(title, 3, "stat", limits=limits, height=4)


def line(width: int, *titles: str) -> tuple[Panel, ...]:
    """Return panels of one width."""
    return tuple(Panel(title, width) for title in titles)


RUN = Board(
    "dist-ssl-run",
    "dist_ssl: run",
    "now-6h",
    (
        Row(
            "At a glance",
            (
                *(stat("Progress"), stat("Time left"), stat("Epoch"), stat("Ranks"), stat("Attempts")),
                stat("Report age", limits=(300, 900)),
                Panel("Goodput", 3, "stat", (GOODPUT,), limits=(0.8, 0.5), help=GOODPUT_HELP, height=4),
                stat("Lost steps"),
            ),
        ),
        Row(
            "Learning",
            (
                *line(12, "Loss", "kNN accuracy"),
                *line(6, "Gradient norm", "Spread", "Cosines", "Effective rank"),
                *line(6, "Teacher distance", "Queue age", "Coding rate", "Difficulty of views"),
            ),
        ),
        Row(
            "Schedule",
            (
                *line(6, "Learning rate", "Weight decay", "Teacher momentum", "Teacher temperature"),
                *line(6, "Frozen parts", "Image size", "Augmentation", "Batch size"),
            ),
        ),
        Row(
            "Speed",
            (
                *line(8, "Throughput", "Step time"),
                Panel("Step time by part", 8, stacked=True),
                *line(8, "Work of the ranks", "Slowest node", "FLOPs utilisation"),
                *line(6, "Probe time", "Samples", "Memory", "GPU memory"),
            ),
        ),
        Row(
            "Data",
            (
                *line(8, "Bytes fetched", "Fetch retries", "Shard cache"),
                *line(6, "Unreadable samples", "Replacement samples", "Slow images", "Pyramid levels"),
            ),
        ),
        Row(
            "Reliability",
            (
                *line(6, "Checkpoint age", "Steps", "Save time", "Save stall"),
                *line(8, "Restarts", "Checkpoint failures", "Disk"),
            ),
        ),
        Row(
            "Goodput",
            (
                Panel("Wall clock by cause", 12, stacked=True),
                Panel("Goodput over time", 12, own=(GOODPUT_NOW,), help=GOODPUT_HELP),
            ),
        ),
    ),
)

COLUMNS = {
    "Answers": Query('max by (run) (up{job="dist_ssl",run=~"$run"})'),
    "Progress": Query('max by (run) (dist_ssl_progress_ratio{run=~"$run"})', unit="percentunit"),
    "Time left": Query('max by (run) (dist_ssl_left_seconds{run=~"$run"})', unit="s"),
    "Loss": Query('max by (run) (dist_ssl_loss{run=~"$run"})'),
    "kNN accuracy": Query('max by (run) (dist_ssl_knn_accuracy_ratio{run=~"$run"})', unit="percentunit"),
    "Images/s": Query('max by (run) (dist_ssl_images_per_second{run=~"$run"})'),
    "Goodput": Query(f"max by (run) ({GOODPUT.expression})", unit="percentunit"),
    "Attempts": Query('max by (run) (dist_ssl_attempts_total{run=~"$run"})'),
    "Checkpoint age": Query('time() - max by (run) (dist_ssl_checkpoint_timestamp_seconds{run=~"$run"})', unit="s"),
    "Report age": Query('time() - max by (run) (dist_ssl_report_timestamp_seconds{run=~"$run"})', unit="s"),
}
"""Columns of the table of all runs."""
TABLE = tuple(Query(query.expression, title, query.unit) for title, query in COLUMNS.items())

RUNS = Board(
    "dist-ssl-runs",
    "dist_ssl: all runs",
    "now-24h",
    (
        Row(
            "Now",
            (
                Panel(
                    "Runs",
                    24,
                    "table",
                    TABLE,
                    help="One line per run that Prometheus finds. A run that answers with 0 is lost.",
                ),
            ),
        ),
        Row(
            "Over time",
            (
                *line(12, "Progress", "kNN accuracy", "Loss", "Throughput"),
                Panel("Goodput over time", 12, own=(GOODPUT_NOW,), help=GOODPUT_HELP),
                Panel("Attempts", 12),
            ),
        ),
    ),
)

BOARDS = {"run": RUN, "runs": RUNS}
"""The dashboards by the name of their file."""
EVENTS = {
    "New attempt": "changes(dist_ssl_attempts_total" + CHOSEN + "[1m]) > 0",
    "New image size": "changes(dist_ssl_image_size_pixels" + CHOSEN + "[1m]) > 0",
    "Checkpoint": "changes(dist_ssl_saved_step" + CHOSEN + "[1m]) > 0",
}
"""Annotations on every panel, by their names; the first two are shown at first."""
