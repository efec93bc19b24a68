"""What a test can read in a PromQL expression without evaluating it."""

import re

from dist_ssl.metrics.table_row import Metric
from monitoring.queries import TABLES

BY_NAME = {metric.name: metric for metric in TABLES if not metric.instead}
OF_COUNTERS = ("rate", "increase")
OF_GAUGES = ("delta", "predict_linear", "quantile_over_time", "max_over_time", "last_over_time")


def metrics_of(expression: str) -> list[Metric]:
    """The metrics of the table in an expression; another name of ours fails."""
    return [BY_NAME[name] for name in re.findall(r"\bdist_ssl_\w+", re.sub(r'"[^"]*"', "", expression))]


def misused(expression: str) -> list[str]:
    """The metrics of an expression to which a function of the other type is applied."""
    calls = re.findall(r"(\w+)\((?:[\d.]+, )?(dist_ssl_\w+)", expression)
    wrong = [f"{call}({name})" for call, name in calls if call in OF_COUNTERS and not BY_NAME[name].counter]
    return wrong + [f"{call}({name})" for call, name in calls if call in OF_GAUGES and BY_NAME[name].counter]
