"""The command that writes the reference of all metrics as a Markdown table, from the table that the code uses.

python monitoring/metric_reference.py
"""

from collections.abc import Iterable
from pathlib import Path

from dist_ssl.metrics.ends import END_METRICS
from dist_ssl.metrics.node_table import NODE_METRICS
from dist_ssl.metrics.table import METRICS
from dist_ssl.metrics.table_row import Metric

FILE = Path(__file__).parent / "METRICS.md"
HEADER = """\
# The metrics

Written by `python monitoring/metric_reference.py` from `dist_ssl/metrics/table.py`. *Key* is the name in
`metrics.jsonl`, where a counter stands as its increase since the last report, unless it is reduced by *last*. Every
series also has the labels `run` and `method`. *Series*: how many there can be; a metric with 0 follows from others, so
its panel asks for these, and it stands in `metrics.jsonl` and in trackers alone.

"""


OF_NODES = """\

## Of a node

Rows of `dist_ssl/metrics/node_table.py`, which every node's agent serves; they stand in no report. Every series also
has the labels `run`, `node` and `instance`.

"""


OF_ENDS = """\

## Of a run that has ended with an error

The row of `dist_ssl/metrics/ends.py`, which takes the place of all others in the text file of a run that failed. Where
the run is scraped, its target gets the label `end` instead.

"""


def reference(metrics: Iterable[Metric]) -> str:
    """Return a table with one row per metric: name, type, unit, keys in reports, reduction, series, panel, help."""
    rows = [
        f"| `{m.name}` | {'counter' if m.counter else 'gauge'} | {m.unit or '-'} | {_keys(m)} | {m.reduction} "
        f"| {m.most} | {m.panel} | {_meaning(m)} |"
        for m in metrics
    ]
    columns = ("metric", "type", "unit", "key", "reduction", "series", "panel", "meaning")
    return "\n".join([f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", *rows]) + "\n"


def text() -> str:
    """Return the text of the file."""
    return HEADER + reference(METRICS) + OF_NODES + of_nodes(NODE_METRICS) + OF_ENDS + of_nodes(END_METRICS)


def of_nodes(metrics: Iterable[Metric]) -> str:
    """Return a table of metrics that stand in no report: exported name, type, unit, own label, panel, help."""
    rows = [
        f"| `{m.name}` | {'counter' if m.counter else 'gauge'} | {m.unit or '-'} | {m.label or '-'} "
        f"| {m.panel} | {_meaning(m)} |"
        for m in metrics
    ]
    columns = ("metric", "type", "unit", "label", "panel", "meaning")
    return "\n".join([f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", *rows]) + "\n"


def _meaning(metric: Metric) -> str:
    """Return the help text, then the query that stands for the metric, or the values of its label."""
    if metric.instead:
        return f"{metric.help} By query: `{metric.instead}`."
    values = ", ".join((*metric.values, *([f"{metric.rest} (all others)"] if metric.rest else [])))
    return f"{metric.help} `{metric.label}`: {values}." if metric.label else metric.help


def _keys(metric: Metric) -> str:
    """Return the key without and with a label's value, as far as the metric has them."""
    plain = [metric.key] if metric.plain or not metric.label else []
    labelled = [f"{metric.key}/{metric.label.upper()}"] if metric.label else []
    return ", ".join(f"`{key}`" for key in plain + labelled)


if __name__ == "__main__":
    FILE.write_text(text())
