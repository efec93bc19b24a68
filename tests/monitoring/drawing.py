"""Dashboards drawn from their own JSON and the answers of a Prometheus, because Grafana cannot be installed for tests.

What a panel's JSON asks for is done as Grafana does it (queries, legends, transformations, units, limits), or fails.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from html import escape
from typing import Any

from launch.charts import Trace, curves, duration, number, percent
from launch.report_style import PALETTE, STYLE
from tests.monitoring.prometheus import Server

Rows = list[dict[str, Any]]


def in_bytes(value: float) -> str:
    """Bytes with a binary prefix."""
    for size, word in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if abs(value) >= size:
            return f"{value / size:.3g} {word}"
    return f"{value:.4g} B"


UNITS: dict[str, Callable[[float], str]] = {
    "short": number,
    "s": lambda value: (
        duration(value) if abs(value) >= 10 else f"{1000 * value:.3g} ms" if abs(value) < 1 else f"{value:.3g} s"
    ),
    "h": lambda value: f"{value:.3g} h",
    "bytes": in_bytes,
    "Bps": lambda value: f"{in_bytes(value)}/s",
    "cps": lambda value: f"{value:.3g} c/s",
    "percentunit": percent,
    "pixel": lambda value: f"{value:.4g} px",
    "joule": lambda value: f"{number(value)} J",
    "watt": lambda value: f"{number(value)} W",
}
"""How Grafana writes values of its units."""


@dataclass(frozen=True)
class Span:
    """The time that is shown, in seconds since 1970, and the distance of its points."""

    start: float
    end: float
    step: float


@dataclass
class Frame:
    """Rows of a table, and the labels that all of them share."""

    rows: Rows
    labels: dict[str, str] = field(default_factory=dict)


@dataclass
class Drawn:
    """A panel as HTML, and how many values it shows of each query or column."""

    panel: dict[str, Any]
    html: str
    shown: dict[str, int]


def asked(expression: str, variables: Mapping[str, str]) -> str:
    """An expression with the variables of the dashboard replaced."""
    for name, value in variables.items():
        expression = expression.replace(f"${name}", value)
    assert "$" not in expression, expression
    return expression


def series(server: Server, target: Mapping[str, Any], variables: Mapping[str, str], span: Span) -> list[dict[str, Any]]:
    """The series of a query, over the time that is shown or, where it is instant, at its end.

    As in Grafana, a curve has a gap where it is not a number.
    """
    expression = asked(target["expr"], variables)
    if target.get("instant"):
        found = server.ask("query", query=expression, time=str(span.end))["result"]
        found = [{"metric": one["metric"], "values": [one["value"]]} for one in found]
    else:
        times = {"start": str(span.start), "end": str(span.end), "step": str(span.step)}
        found = server.ask("query_range", query=expression, **times)["result"]
    numbers = [{**one, "values": [point for point in one["values"] if point[1] != "NaN"]} for one in found]
    return [one for one in numbers if one["values"]]


def table(found: list[dict[str, Any]], ref: str) -> Rows:
    """Series in the format of a table: a row for each value, with the time and the labels."""
    return [
        {"Time": float(time), **one["metric"], f"Value #{ref}": float(value)}
        for one in found
        for time, value in one["values"]
    ]


def merged(frames: list[Frame], options: Mapping[str, Any]) -> list[Frame]:
    """One table, in which rows that agree in all other columns are one."""
    joined: dict[tuple[Any, ...], dict[str, Any]] = {}
    for frame in frames:
        for row in frame.rows:
            same = tuple(sorted((key, value) for key, value in row.items() if not key.startswith("Value")))
            joined.setdefault(same, {}).update(row)
    return [Frame(list(joined.values()))]


def organized(frames: list[Frame], options: Mapping[str, Any]) -> list[Frame]:
    """Tables without some columns, and with other names for the rest."""
    out = {key for key, drop in options["excludeByName"].items() if drop}
    names, places = options["renameByName"], options["indexByName"]
    kept = [[sorted(row.keys() - out, key=places.__getitem__) for row in frame.rows] for frame in frames]
    return [
        Frame([{names.get(key, key): row[key] for key in keys} for keys, row in zip(own, frame.rows, strict=True)])
        for own, frame in zip(kept, frames, strict=True)
    ]


def parted(frames: list[Frame], options: Mapping[str, Any]) -> list[Frame]:
    """A table for each combination of values of some columns, which become labels."""
    assert options["naming"] == {"asLabels": True}
    assert options["keepFields"] is False
    parts: dict[tuple[str, ...], Frame] = {}
    for frame in frames:
        for row in frame.rows:
            labels = {name: row[name] for name in options["fields"]}
            part = parts.setdefault(tuple(labels.values()), Frame([], labels))
            part.rows.append({key: value for key, value in row.items() if key not in labels})
    return list(parts.values())


TRANSFORMATIONS = {"merge": merged, "organize": organized, "partitionByValues": parted}


def transformed(panel: Mapping[str, Any], frames: list[Frame]) -> list[Frame]:
    """The tables that are left after the transformations of a panel."""
    for step in panel.get("transformations", []):
        frames = TRANSFORMATIONS[step["id"]](frames, step["options"])
    return frames


def properties(panel: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What a panel says of a column: its defaults, and the overrides by name."""
    known = dict(panel["fieldConfig"]["defaults"])
    for override in panel["fieldConfig"]["overrides"]:
        assert override["matcher"]["id"] == "byName"
        if override["matcher"]["options"] == name:
            known |= {each["id"]: each["value"] for each in override["properties"]}
    return known


def legend_of(target: Mapping[str, Any], labels: Mapping[str, str]) -> str:
    """The legend of a series; a label that it does not have is empty."""
    words = target["legendFormat"]
    for name in [part.partition("}}")[0] for part in words.split("{{")[1:]]:
        words = words.replace(f"{{{{{name}}}}}", labels.get(name, ""))
    return str(words)


def colour(panel: Mapping[str, Any], value: float) -> str:
    """The colour of a value by the panel's limits; empty where it has none."""
    steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
    reached = [step["color"] for step in steps if step["value"] is None or value >= step["value"]]
    return reached[-1] if panel["options"]["colorMode"] == "value" else ""


def chart(panel: Mapping[str, Any], traces: list[Trace], across: str, unit: str) -> str:
    """Curves with their legend."""
    keys = (f'<span class="key f{n % 8}"></span>{escape(trace.name)}' for n, trace in enumerate(traces))
    items = " ".join(f'<span class="item">{key}</span>' for key in keys)
    return curves("", traces, across, UNITS[unit]) + f'<div class="legend">{items}</div>'


def timeseries(panel: dict[str, Any], answers: list[list[dict[str, Any]]], span: Span) -> Drawn:
    """Curves over minutes; stacked ones are drawn on top of one another."""
    traces, shown, below = [], {}, {}
    stacked = panel["fieldConfig"]["defaults"]["custom"]["stacking"]["mode"] == "normal"
    for target, found in zip(panel["targets"], answers, strict=True):
        shown[target["expr"]] = sum(len(one["values"]) for one in found)
        for one in found:
            points = []
            for time, value in one["values"]:
                below[time] = float(value) + (below.get(time, 0.0) if stacked else 0.0)
                points.append(((time - span.end) / 60, below[time]))
            traces.append(Trace(legend_of(target, one["metric"]), points))
    return Drawn(panel, chart(panel, traces, "minutes", panel["fieldConfig"]["defaults"]["unit"]), shown)


def stat(panel: dict[str, Any], answers: list[list[dict[str, Any]]], span: Span) -> Drawn:
    """The newest value of every series."""
    assert panel["options"]["reduceOptions"]["calcs"] == ["lastNotNull"]
    shown, words, several = {}, [], sum(len(found) for found in answers) > 1
    unit = UNITS[panel["fieldConfig"]["defaults"]["unit"]]
    for target, found in zip(panel["targets"], answers, strict=True):
        shown[target["expr"]] = len(found)
        for one in found:
            value = float(one["values"][-1][1])
            name = f"<small>{escape(legend_of(target, one['metric']))}</small>" if several else ""
            words.append(f'<div><b style="color:{colour(panel, value)}">{unit(value)}</b> {name}</div>')
    return Drawn(panel, f'<div class="stat">{"".join(words)}</div>', shown)


def listed(panel: dict[str, Any], answers: list[list[dict[str, Any]]], span: Span) -> Drawn:
    """A table; columns in the order in which they appear."""
    frames = [Frame(table(found, target["refId"])) for target, found in zip(panel["targets"], answers, strict=True)]
    [frame] = transformed(panel, frames)
    found = {key for row in frame.rows for key in row}
    titles = panel["transformations"][1]["options"]["renameByName"].values()
    names = [name for name in ("run", "end", *titles) if name in found]
    head, lines = "".join(f"<th>{escape(name)}</th>" for name in names), []
    for row in sorted(frame.rows, key=lambda row: row["run"]):
        cells = []
        for name in names:
            known, value = properties(panel, name), row.get(name)
            mapped = known.get("mappings", [{"options": {}}])[0]["options"].get(
                f"{value:g}" if isinstance(value, float) else ""
            )
            text = value if isinstance(value, str) else "" if value is None else UNITS[known["unit"]](value)
            cells.append(f"<td>{escape(mapped['text'] if mapped else text)}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    shown = {name: sum(name in row for row in frame.rows) for name in names}
    return Drawn(panel, f"<table><tr>{head}</tr>{''.join(lines)}</table>", shown)


def crossed(panel: dict[str, Any], answers: list[list[dict[str, Any]]], span: Span) -> Drawn:
    """The columns of each table over the one that the panel names."""
    frames = [Frame(table(found, target["refId"])) for target, found in zip(panel["targets"], answers, strict=True)]
    [across] = [each["x"]["matcher"]["options"] for each in panel["options"]["series"]]
    traces, unit, shown = [], "", {across: 0}
    for frame in transformed(panel, frames):
        for name in dict.fromkeys(key for row in frame.rows for key in row if key != across):
            known, points = properties(panel, name), [(row[across], row[name]) for row in frame.rows if name in row]
            unit, shown[name] = known["unit"], shown.get(name, 0) + len(points)
            shown[across] += len(points)
            title = known["displayName"].replace("${__field.labels.run}", frame.labels["run"])
            traces.append(Trace(title, points))
    return Drawn(panel, chart(panel, traces, across, unit or "short"), shown)


KINDS = {"timeseries": timeseries, "stat": stat, "table": listed, "xychart": crossed}


def drawn(server: Server, board: Mapping[str, Any], run: str, span: Span, window: str = "1m") -> list[Drawn]:
    """The panels of a dashboard in their order; headings show nothing."""
    found = []
    for panel in board["panels"]:
        if panel["type"] == "row":
            found.append(Drawn(panel, f"<h2>{escape(panel['title'])}</h2>", {}))
            continue
        variables = {"run": run, "node": ".*", "window": window}
        answers = [series(server, target, variables, span) for target in panel["targets"]]
        found.append(KINDS[panel["type"]](panel, answers, span))
    return found


LOOK = """
body { max-width: 1600px; } h2 { margin: 8px 0; } h3 { margin: 0; font-size: 14px; } .stat { font-size: 24px; }
.stat small { font-size: 12px; } .legend { max-height: 96px; overflow: hidden; font-size: 13px; }
.grid24 { display: grid; grid-template-columns: repeat(24, 1fr); gap: 8px; } .card { overflow: auto; }
"""


def page(board: Mapping[str, Any], panels: list[Drawn]) -> str:
    """A dashboard as one HTML page."""
    colours = (
        f".c{n} {{ stroke: {c}; }} circle.c{n} {{ fill: {c}; }} .f{n} {{ background: {c}; }}"
        for n, c in enumerate(PALETTE)
    )
    cards = []
    for one in panels:
        place, heading = one.panel["gridPos"], one.panel["type"] == "row"
        hint = escape(one.panel.get("description", ""))
        title = "" if heading else f'<h3 title="{hint}">{escape(one.panel["title"])}</h3>'
        where = f"grid-column: {place['x'] + 1} / span {place['w']}; grid-row: {place['y'] + 1} / span {place['h']}"
        cards.append(f'<div class="{"" if heading else "card"}" style="{where}">{title}{one.html}</div>')
    head = f'<meta charset="utf-8"><style>{STYLE}{"".join(colours)}{LOOK}</style>'
    body = f"<h1>{escape(board['title'])}</h1><div class=grid24>{''.join(cards)}</div>"
    return f"<!doctype html><html><head>{head}</head><body>{body}</body></html>"
