"""The dashboards: all runs, one run, its reliability, its nodes, and runs over one another.

Every metric of a run is on a panel of `run` or of `reliability`, every metric of a node on one of `nodes`; the other
panels show a choice of them in another way.
"""

from dist_ssl.metrics.ends import ENDED
from dist_ssl.metrics.table import BY_KEY
from monitoring.layout import Board, Panel, Row, line, stat
from monitoring.queries import CHOSEN, Query, of_panel, query_of


def share_of(cause: str, seconds: str) -> str:
    """Return a query of the share of a cause in the wall clock; `seconds`: a template of the seconds by cause."""
    part = seconds.format(selector=f'{{cause="{cause}",run=~"$run"}}')
    return f"{part} / ignoring (cause) sum without (cause) ({seconds.format(selector=CHOSEN)})"


def newest(metric: str) -> str:
    """Return a query of a gauge with one series for each run, whatever its other labels are."""
    return f"max by (run) ({metric}{CHOSEN})"


def total(key: str) -> Query:
    """Return a query of a counter's total over the whole run: of rare events a rate says little."""
    return Query(f"{BY_KEY[key].name}{CHOSEN}", f"{{{{run}}}} {key.replace('_', ' ')}")


TOTAL = "dist_ssl_spent_seconds{selector}"
RECENT = "delta(dist_ssl_spent_seconds{selector}[$window])"
GOODPUT = Query(share_of("train", TOTAL), unit="percentunit")
GOODPUT_NOW = Query(share_of("train", RECENT), unit="percentunit")
GOODPUT_HELP = "Share of the wall clock in which the run trained and kept the result."
GOODPUT_OVER_TIME = Panel("Goodput over time", 12, own=(GOODPUT_NOW,), limits=(0.8, 0.5), help=GOODPUT_HELP)

RUN = Board(
    "dist-ssl-run",
    "dist_ssl: run",
    "now-6h",
    (
        Row(
            "At a glance",
            (
                *(stat("Progress"), stat("Time left"), stat("Epoch"), stat("Ranks")),
                stat("Report age", (300, 900)),
                stat("Goodput", (0.8, 0.5), GOODPUT, GOODPUT_HELP),
                stat("Loss now", None, query_of(BY_KEY["loss"]), BY_KEY["loss"].help),
                stat("kNN now", None, query_of(BY_KEY["knn_accuracy"]), BY_KEY["knn_accuracy"].help),
            ),
        ),
        Row(
            "Learning",
            (
                *line(8, "Loss", "kNN accuracy", "Evaluations"),
                *line(6, "Gradient norm", "Spread", "Cosines"),
                Panel("Effective rank", 6, limits=(3, 1.5)),
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
                *line(6, "Probe time", "Samples", "Memory"),
                Panel("GPU memory", 6, limits=(0.9, 0.97)),
            ),
        ),
        Row(
            "Data",
            (
                *line(8, "Bytes fetched", "Fetch retries", "Shard cache"),
                *line(6, "Unreadable samples", "Replacement samples", "Slow images", "Pyramid levels"),
            ),
        ),
    ),
)

LOST_TIME = Query(share_of("lost", TOTAL), unit="percentunit")
QUEUED = Query('sum by (run) (dist_ssl_spent_seconds{cause="queue",run=~"$run"})', unit="s")
SAVED = query_of(BY_KEY["checkpoint_timestamp"])
FAILURES = Panel(
    "Checkpoint failures",
    8,
    own=(total("failed_saves"), total("damaged_checkpoints")),
    help="Saves that failed, and checkpoints that a restore found damaged, in the whole run.",
)
ENDS = Query(
    f'up{{job="dist_ssl",end!="",run=~"$run"}} == bool 0 or {ENDED.name}{CHOSEN}', f"{{{{run}}}} {{{{{ENDED.label}}}}}"
)
ENDS_HELP = "1 for a run whose newest attempt ended with an error, by how it ended; empty where none did."
STALLED = Query(share_of("save", RECENT), unit="percentunit")
RELIABILITY = Board(
    "dist-ssl-reliability",
    "dist_ssl: reliability",
    "now-24h",
    (
        Row(
            "At a glance",
            (
                stat("Answers", (0.9, 0.5), Query('max by (run) (up{job="dist_ssl",run=~"$run"})'), "0: a lost run."),
                *(stat("Attempts"), stat("Lost steps")),
                stat("Lost work", (0.05, 0.1), LOST_TIME, "Share of the wall clock whose work was thrown away."),
                stat("Goodput", (0.8, 0.5), GOODPUT, GOODPUT_HELP),
                stat("Queued", None, QUEUED, "Time between the attempts of the run, all together."),
                stat("Save stall now", (0.05, 0.1), STALLED, "Share of the time in which training waits for saves."),
                stat(
                    "Checkpoint age now", (3600, 7200), query_of(BY_KEY["checkpoint_timestamp"]), "Since it was saved."
                ),
            ),
        ),
        Row(
            "Wall clock",
            (Panel("Wall clock by cause", 12, stacked=True), GOODPUT_OVER_TIME),
        ),
        Row(
            "Attempts",
            (
                Panel("Attempts over time", 8, own=(query_of(BY_KEY["attempt"]),), help=BY_KEY["attempt"].help),
                Panel("Lost steps over time", 8, own=(query_of(BY_KEY["lost_steps"]),), help=BY_KEY["lost_steps"].help),
                Panel("Restarts", 8),
                Panel(ENDED.panel, 12, own=(ENDS,), help=ENDS_HELP),
                Panel("Ranks over time", 12, own=(query_of(BY_KEY["ranks"]),), help=BY_KEY["ranks"].help),
            ),
        ),
        Row(
            "Checkpoints",
            (
                Panel("Checkpoint age", 8, limits=(3600, 7200)),
                *line(8, "Steps", "Save time", "Save stall"),
                FAILURES,
                Panel("Disk", 8),
            ),
        ),
    ),
)

COLUMNS = {
    "Answers": Query('max by (run, end) (up{job="dist_ssl",run=~"$run"})'),
    "Progress": Query(newest("dist_ssl_progress_ratio"), unit="percentunit"),
    "Time left": Query(f"max by (run) ({BY_KEY['seconds_left'].instead})", unit="s"),
    "Loss": Query(newest("dist_ssl_loss")),
    "kNN accuracy": Query(newest("dist_ssl_knn_accuracy_ratio"), unit="percentunit"),
    "Images/s": Query(newest("dist_ssl_images_per_second")),
    "Goodput": Query(f"max by (run) ({GOODPUT.expression})", unit="percentunit"),
    "Ranks": Query(newest("dist_ssl_ranks")),
    "Attempts": Query(newest("dist_ssl_attempts_total")),
    "Checkpoint age": Query(f"time() - {newest('dist_ssl_checkpoint_timestamp_seconds')}", unit="s"),
    "Report age": Query(f"time() - {newest('dist_ssl_report_timestamp_seconds')}", unit="s"),
}
"""Columns of the table of all runs."""
TABLE = tuple(Query(query.expression, title, query.unit) for title, query in COLUMNS.items())
RUNS = Panel(
    "Runs",
    24,
    "table",
    TABLE,
    help="One line per run that Prometheus finds, with its end where it has ended with an error.",
)
ALL = Query('count(count by (run) (up{job="dist_ssl",run=~"$run"}))', "runs")
LOST = Query('count(max by (run) (up{job="dist_ssl",run=~"$run"}) == 0) or vector(0)', "lost")
FIRING = Query('count(ALERTS{alertstate="firing",run=~"$run"}) or vector(0)', "alerts")
SPEED = Query(f"sum(dist_ssl_images_per_second{CHOSEN})", "images/s")
RANKS = Query(f"sum(dist_ssl_ranks{CHOSEN})", "ranks")
MEAN_GOODPUT = Query(f"avg({GOODPUT.expression})", "goodput", "percentunit")

FLEET = Board(
    "dist-ssl-fleet",
    "dist_ssl: fleet",
    "now-24h",
    (
        Row(
            "Now",
            (
                Panel("Known runs", 4, "stat", (ALL,), help="Runs that Prometheus finds.", height=4),
                Panel("Lost runs", 4, "stat", (LOST,), (1, 1), help="Runs that do not answer.", height=4),
                Panel("Alerts", 4, "stat", (FIRING,), (1, 3), help="Alerts that fire for these runs.", height=4),
                Panel("Ranks at work", 4, "stat", (RANKS,), help="Ranks of all runs together.", height=4),
                Panel("Images/s of all", 4, "stat", (SPEED,), help="Images trained per second, all runs.", height=4),
                Panel("Mean goodput", 4, "stat", (MEAN_GOODPUT,), (0.8, 0.5), help=GOODPUT_HELP, height=4),
                RUNS,
            ),
        ),
        Row(
            "Over time",
            (*line(12, "Progress", "kNN accuracy", "Loss", "Throughput"), GOODPUT_OVER_TIME, Panel("Ranks", 12)),
        ),
    ),
)

ANSWERING = Query('min by (run, node) (up{job="dist_ssl_node",run=~"$run",node=~"$node"})', "{{run}} node {{node}}")
WORK_HELP = "Time of a step in which a rank waits for no other: the mean, and that of the slowest rank."
NODES = Board(
    "dist-ssl-nodes",
    "dist_ssl: nodes",
    "now-6h",
    (
        Row(
            "Stragglers",
            (
                Panel(
                    "Nodes that answer", 8, own=(ANSWERING,), help="1 for a node that answers, 0 for one that is lost."
                ),
                Panel("Work of all ranks", 8, own=of_panel("Work of the ranks"), help=WORK_HELP),
                Panel(
                    "Node of the slowest rank",
                    8,
                    own=(query_of(BY_KEY["slowest_node"]),),
                    help=BY_KEY["slowest_node"].help,
                ),
            ),
        ),
        Row("GPUs", (*line(8, "GPUs", "GPU use"), Panel("GPU memory of the node", 8, limits=(0.9, 0.97)))),
        Row(
            "Host",
            line(8, "Processor use", "Host memory", "Processes", "Bytes read from disks", "Space left", "Energy"),
        ),
    ),
)

REPEATS = "A resume repeats the steps since its checkpoint, so its curve starts anew there."
SAMPLES = Query(newest("dist_ssl_samples"), "Samples seen")
HOURS = Query(f"sum by (run) (dist_ssl_spent_seconds{CHOSEN}) / 3600", "Hours", "h")
COMPARED = ("loss", "knn_accuracy", "effective_rank", "images_per_second", "gradient_norm", "image_size")


def across(x: Query, key: str) -> Panel:
    """Return a panel that draws a metric over samples or hours, a curve for each run."""
    metric, word = BY_KEY[key], x.legend.lower()
    y = Query(newest(metric.name), metric.panel, query_of(metric).unit)
    return Panel(f"{metric.panel} by {word}", 8, "xychart", (x, y), help=f"{metric.help} {REPEATS}")


COMPARE = Board(
    "dist-ssl-compare",
    "dist_ssl: compare runs",
    "now-7d",
    (
        Row("Runs", (RUNS,)),
        Row("By samples seen", tuple(across(SAMPLES, key) for key in COMPARED)),
        Row("By hours since the run was created", tuple(across(HOURS, key) for key in COMPARED)),
    ),
)

BOARDS = {"fleet": FLEET, "run": RUN, "reliability": RELIABILITY, "nodes": NODES, "compare": COMPARE}
"""The dashboards by the name of their file."""
PLAN = ("image_size_pixels", "batch_samples", "magnitude_ratio")
EVENTS = {
    "New attempt": f"changes(dist_ssl_attempts_total{CHOSEN}[1m]) > 0",
    "New plan": " + ".join(f"changes(dist_ssl_{stem}{CHOSEN}[1m])" for stem in PLAN) + " > 0",
    "Checkpoint": f"changes(dist_ssl_saved_step{CHOSEN}[1m]) > 0",
}
"""Annotations on every panel, by their names; the first two are shown at first."""
