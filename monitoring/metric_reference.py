"""Print the reference of all metrics as a Markdown table, from the one table that the code uses.

python monitoring/metric_reference.py
"""

from collections.abc import Iterable

from dist_ssl.metrics.table import METRICS, Metric


def reference(metrics: Iterable[Metric]) -> str:
    """One row per metric: exported name, key in metrics.jsonl, reduction, help."""
    rows = [f"| `{m.name}` | `{_key(m)}` | {m.reduction} | {m.help} |" for m in metrics]
    return "\n".join(["| metric | key | reduction | meaning |", "|---|---|---|---|", *rows])


def _key(metric: Metric) -> str:
    return f"{metric.key}/{metric.label.upper()}" if metric.label else metric.key


if __name__ == "__main__":
    print(reference(METRICS))
