"""How a metric of the table is asked of Prometheus and shown: the query, its unit in Grafana and its legend.

A gauge is shown as it is, a time as its age, and a counter of increases as its rate; a counter whose value says what a
run has come to, like its attempts, as it is. `$run` and `$window` are variables of the dashboards.
"""

from dataclasses import dataclass

from dist_ssl.metrics.ends import END_METRICS
from dist_ssl.metrics.node_table import NODE_METRICS
from dist_ssl.metrics.table import METRICS
from dist_ssl.metrics.table_row import Metric

TABLES = (*METRICS, *NODE_METRICS, *END_METRICS)
"""All metrics: those of a run, of its nodes, and of one that has ended."""

CHOSEN = '{run=~"$run"}'
"""The selector of the chosen runs."""
CHOSEN_NODES = '{run=~"$run",node=~"$node"}'
"""The selector of the chosen nodes of the chosen runs."""
GRAFANA_UNITS = {"": "short", "seconds": "s", "bytes": "bytes", "ratio": "percentunit", "pixels": "pixel"}
GRAFANA_UNITS |= {"joules": "joule"}
RATE_UNITS = {"": "cps", "seconds": "percentunit", "bytes": "Bps", "joules": "watt"}
"""Grafana's names of units, by those of the table: of values, and of rates per second."""


@dataclass(frozen=True)
class Query:
    """One query of a panel. `legend`: of its series, with their labels in double braces; `unit`: Grafana's name."""

    expression: str
    legend: str = "{{run}}"
    unit: str = "short"


def of_panel(title: str) -> tuple[Query, ...]:
    """Return the queries of all metrics that the table puts on a panel."""
    metrics = [metric for metric in TABLES if metric.panel == title]
    return tuple(query_of(metric, alone=len(metrics) == 1) for metric in metrics)


def query_of(metric: Metric, *, alone: bool = True) -> Query:
    """Return the query of a metric; its legend says which one it is where it is not `alone` on its panel."""
    of_node = metric in NODE_METRICS
    selected = metric.instead or metric.name + (CHOSEN_NODES if of_node else CHOSEN)
    expression, unit = selected, GRAFANA_UNITS.get(metric.unit, "s")
    if metric.increments or (of_node and metric.counter):
        expression, unit = f"rate({selected}[$window])", RATE_UNITS[metric.unit]
    elif metric.unit == "timestamp":
        expression = f"time() - {selected}"
    label = f" {{{{{metric.label}}}}}" if metric.label else ""
    owner = "{{run}} node {{node}}" if of_node else "{{run}}"
    return Query(expression, owner + label + ("" if alone else f" {metric.key.replace('_', ' ')}"), unit)


def summed(query: Query) -> Query:
    """Return the sum of a query over the runs, by the label that its legend names beside the run."""
    label = query.legend.removeprefix("{{run}} ").removeprefix("{{").partition("}}")[0]
    return Query(f"sum by ({label}) ({query.expression})", f"{{{{{label}}}}}", query.unit)
