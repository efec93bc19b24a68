"""An alert, and the rule of Prometheus that it becomes."""

from dataclasses import dataclass
from typing import Any, Literal

Severity = Literal["critical", "warning", "info"]


@dataclass(frozen=True)
class Alert:
    """A rule that fires once `expression` has held for `lasting`. `summary`: follows the name of the run.

    `critical`: the run makes no progress or its work is wasted; `warning`: look at it today; `info`: know it.
    """

    name: str
    severity: Severity
    lasting: str
    summary: str
    expression: str


def rule(alert: Alert) -> dict[str, Any]:
    """Return one rule in Prometheus' format."""
    return {
        "alert": alert.name,
        "expr": alert.expression,
        "for": alert.lasting,
        "labels": {"severity": alert.severity},
        "annotations": {
            "summary": f"{{{{ $labels.run }}}} {alert.summary}",
            "runbook": f"monitoring/RUNBOOK.md#{alert.name.lower()}",
        },
    }
