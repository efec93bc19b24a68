"""The command that writes the dashboards in Grafana's JSON model, from the layout and the metric table.

    python monitoring/dashboards.py

It needs the package grafana-foundation-sdk (pip install 'dist_ssl[test]'), whose types say what Grafana loads.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as model

from monitoring.boards import BOARDS, EVENTS, NODES
from monitoring.layout import Board, Row
from monitoring.looks import SOURCE, drawn

COLUMNS = 24
WINDOWS = ("5m", "15m", "1h", "6h")
FOLDER = Path(__file__).parent / "dashboards"


def dashboard(board: Board) -> model.Dashboard:
    """Return a dashboard in Grafana's model."""
    link = build.DashboardLink("dist_ssl").type(model.DashboardLinkType.DASHBOARDS).tags(["dist_ssl"])
    made = (
        build.Dashboard(board.title)
        .uid(board.uid)
        .tags(["dist_ssl"])
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .refresh("30s")
        .time(board.since, "now")
        .timezone("browser")
        .link(link.keep_time(True).include_vars(True))
        .variables([*variables(nodes=board is NODES)])
        .annotations([event(number, name) for number, name in enumerate(EVENTS)])
        .build()
    )
    made.panels = list(placed(board.rows))
    return made


def variables(*, nodes: bool) -> Iterator[Any]:
    """Yield the variables of a dashboard: data source, runs, their nodes, and the window over which rates are taken."""
    yield build.DatasourceVariable("datasource").label("Data source").type("prometheus")
    yield several("run", "Run", "label_values(dist_ssl_step, run)")
    if nodes:
        yield several("node", "Node", 'label_values(dist_ssl_node_workers{run=~"$run"}, node)')
    options = [model.VariableOption(window == WINDOWS[0], window, window) for window in WINDOWS]
    windows = build.CustomVariable("window").label("Rates over").values(",".join(WINDOWS)).options(options)
    yield windows.current(model.VariableOption(text=WINDOWS[0], value=WINDOWS[0]))


def several(name: str, label: str, query: str) -> build.QueryVariable:
    """Return a variable with the values of a query, of which all are chosen at first."""
    asked: dict[str, object] = {"query": query, "refId": name}
    made = build.QueryVariable(name).label(label).datasource(SOURCE).query(asked)
    made = made.refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED).sort(model.VariableSort.NATURAL_ASC)
    return made.multi(True).include_all(True).current(model.VariableOption(text=["All"], value=["$__all"]))


def event(number: int, name: str) -> build.AnnotationQuery:
    """Return an annotation that marks when something changed."""
    made = build.AnnotationQuery().name(name).datasource(SOURCE).expr(EVENTS[name])
    return made.enable(number < 2).icon_color(("red", "blue", "green")[number])


def placed(rows: tuple[Row, ...]) -> Iterator[model.Panel | model.RowPanel]:
    """Yield headings and panels with their numbers and their places on the grid."""
    number = top = 0
    for row in rows:
        number += 1
        yield model.RowPanel(title=row.title, id_val=number, grid_pos=model.GridPos(h=1, w=COLUMNS, x=0, y=top))
        left, top, height = 0, top + 1, 0
        for panel in row.panels:
            if left + panel.width > COLUMNS:
                left, top, height = 0, top + height, 0
            number += 1
            yield drawn(panel, number, model.GridPos(h=panel.height, w=panel.width, x=left, y=top))
            left, height = left + panel.width, max(height, panel.height)
        top += height


def text(board: Board) -> str:
    """Return a dashboard as the text of its file. An annotation's title is not among the SDK's types."""
    made = json.loads(json.dumps(dashboard(board), cls=JSONEncoder))
    for known in made["annotations"]["list"]:
        known["titleFormat"] = f"{known['name']}: {{{{run}}}}"
    return json.dumps(made, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for name, board in BOARDS.items():
        (FOLDER / f"{name}.json").write_text(text(board))
