"""The command that prints the reference of all metrics as a Markdown table, from the table that the code uses.

python monitoring/metric_reference.py
"""

from collections.abc import Iterable

from dist_ssl.metrics.table import METRICS, Metric


def reference(metrics: Iterable[Metric]) -> str:
    """Return a table with one row per metric: exported name, keys in metrics.jsonl, reduction, help."""
    rows = [f"| `{m.name}` | {_keys(m)} | {m.reduction} | {m.help} |" for m in metrics]
    return "\n".join(["| metric | key | reduction | meaning |", "|---|---|---|---|", *rows])


def _keys(metric: Metric) -> str:
    """Return the key without and with a label's value, as far as the metric has them."""
    plain = [metric.key] if metric.plain or not metric.label else []
    labelled = [f"{metric.key}/{metric.label.upper()}"] if metric.label else []
    return ", ".join(f"`{key}`" for key in plain + labelled)


if __name__ == "__main__":
    print(reference(METRICS))
