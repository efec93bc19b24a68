"""The command that writes the dashboards in Grafana's JSON model, from the layout and the metric table.

python monitoring/dashboards.py
"""

import json
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dist_ssl.metrics.table import METRICS
from monitoring.layout import BOARDS, EVENTS, Board, Panel, Row

SCHEMA = 41
"""Version of the dashboard model, that of Grafana 12; newer ones read it too."""
COLUMNS = 24
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
WINDOWS = ("5m", "15m", "1h", "6h")
FOLDER = Path(__file__).parent / "dashboards"


def dashboard(board: Board) -> dict[str, Any]:
    """Return a dashboard in Grafana's JSON model."""
    return {
        "uid": board.uid,
        "title": board.title,
        "tags": ["dist_ssl"],
        "schemaVersion": SCHEMA,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": board.since, "to": "now"},
        "timezone": "browser",
        "links": [{"title": "dist_ssl", "type": "dashboards", "tags": ["dist_ssl"], "keepTime": True}],
        "templating": {"list": variables()},
        "annotations": {"list": [event(number, name) for number, name in enumerate(EVENTS)]},
        "panels": list(placed(board.rows)),
    }


def variables() -> list[dict[str, Any]]:
    """Return the variables of every dashboard: data source, runs, and the window over which rates are taken."""
    query = {"query": "label_values(dist_ssl_step, run)", "refId": "run"}
    windows = [{"text": window, "value": window, "selected": window == WINDOWS[0]} for window in WINDOWS]
    return [
        {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"},
        {
            "name": "run",
            "label": "Run",
            "type": "query",
            "datasource": SOURCE,
            "query": query,
            "definition": query["query"],
            "refresh": 2,
            "sort": 1,
            "multi": True,
            "includeAll": True,
            "current": {"text": ["All"], "value": ["$__all"]},
        },
        {
            "name": "window",
            "label": "Rates over",
            "type": "custom",
            "query": ",".join(WINDOWS),
            "current": {"text": WINDOWS[0], "value": WINDOWS[0]},
            "options": windows,
        },
    ]


def event(number: int, name: str) -> dict[str, Any]:
    """Return an annotation that marks when something changed."""
    return {
        "name": name,
        "datasource": SOURCE,
        "enable": number < 2,
        "expr": EVENTS[name],
        "iconColor": ("red", "blue", "green")[number],
        "titleFormat": f"{name}: {{{{run}}}}",
    }


def placed(rows: tuple[Row, ...]) -> Iterator[dict[str, Any]]:
    """Yield headings and panels with their numbers and their places on the grid."""
    number = top = 0
    for row in rows:
        number += 1
        yield {"id": number, "type": "row", "title": row.title, "collapsed": False, "gridPos": box(0, top, 24, 1)}
        left, top, height = 0, top + 1, 0
        for panel in row.panels:
            if left + panel.width > COLUMNS:
                left, top, height = 0, top + height, 0
            number += 1
            yield {"id": number, "gridPos": box(left, top, panel.width, panel.height), **drawn(panel)}
            left, height = left + panel.width, max(height, panel.height)
        top += height


def box(left: int, top: int, width: int, height: int) -> dict[str, int]:
    """Return a place on the grid."""
    return {"x": left, "y": top, "w": width, "h": height}


def drawn(panel: Panel) -> dict[str, Any]:
    """Return a panel without its place."""
    helps = [f"{m.help} (`{m.name}`)" for m in METRICS if m.panel == panel.title and not panel.own]
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.help or "\n\n".join(helps),
        "datasource": SOURCE,
        "targets": list(targets(panel)),
        **LOOKS[panel.kind](panel),
    }


def targets(panel: Panel) -> Iterator[dict[str, Any]]:
    """Yield the queries in Grafana's form."""
    for ref, query in zip(string.ascii_uppercase, panel.queries, strict=False):
        form = {"format": "table", "instant": True} if panel.kind == "table" else {"range": True}
        yield {
            "refId": ref,
            "datasource": SOURCE,
            "editorMode": "code",
            "expr": query.expression,
            "legendFormat": query.legend,
            **form,
        }


def curves(panel: Panel) -> dict[str, Any]:
    """Return how a panel draws curves."""
    stacking = {"mode": "normal", "group": "A"} if panel.stacked else {"mode": "none"}
    custom = {"lineWidth": 1, "fillOpacity": 40 if panel.stacked else 0, "showPoints": "auto", "stacking": stacking}
    return {
        "fieldConfig": {"defaults": {"unit": panel.queries[0].unit, "custom": custom}, "overrides": []},
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
    }


def numbers(panel: Panel) -> dict[str, Any]:
    """Return how a panel shows the newest value of every series, in the colours of its limits."""
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if panel.limits:
        (yellow, red), rising = panel.limits, panel.limits[0] < panel.limits[1]
        bounds = [("yellow", yellow), ("red", red)] if rising else [("yellow", red), ("green", yellow)]
        steps = [{"color": "green" if rising else "red", "value": None}]
        steps += [{"color": color, "value": value} for color, value in bounds]
    return {
        "fieldConfig": {
            "defaults": {"unit": panel.queries[0].unit, "thresholds": {"mode": "absolute", "steps": steps}},
            "overrides": [],
        },
        "options": {
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "colorMode": "value" if panel.limits else "none",
            "graphMode": "none",
            "textMode": "auto",
        },
    }


def columns(panel: Panel) -> dict[str, Any]:
    """Return how a panel merges its queries into a table with one line per run."""
    named = list(zip(string.ascii_uppercase, panel.queries, strict=False))
    renamed = {f"Value #{ref}": query.legend for ref, query in named}
    units = [
        {"matcher": {"id": "byName", "options": query.legend}, "properties": [{"id": "unit", "value": query.unit}]}
        for _, query in named
    ]
    return {
        "fieldConfig": {"defaults": {}, "overrides": units},
        "options": {"showHeader": True, "sortBy": [{"displayName": "run", "desc": False}]},
        "transformations": [
            {"id": "merge", "options": {}},
            {"id": "organize", "options": {"excludeByName": {"Time": True}, "renameByName": renamed}},
        ],
    }


LOOKS = {"timeseries": curves, "stat": numbers, "table": columns}
"""How each kind of panel is drawn."""


def text(board: Board) -> str:
    """Return a dashboard as the text of its file."""
    return json.dumps(dashboard(board), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for name, board in BOARDS.items():
        (FOLDER / f"{name}.json").write_text(text(board))
