"""The dashboards show every metric, once each its own way, in what Grafana can read."""

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest

from dist_ssl.metrics.table import METRICS
from monitoring.dashboards import FOLDER, dashboard, text
from monitoring.layout import BOARDS, Board
from tests.golden.agreed import agree
from tests.monitoring.promql import metrics_of, misused

UNITS = {"short", "s", "bytes", "Bps", "cps", "percentunit", "pixel"}
"""Units of Grafana (packages/grafana-data/src/valueFormats/categories.ts) that we use."""
every = pytest.mark.parametrize("name", BOARDS)


def panels(board: Board) -> list[dict[str, Any]]:
    """The panels that show something."""
    return [panel for panel in dashboard(board)["panels"] if panel["type"] != "row"]


def expressions(board: Board) -> list[str]:
    """Every query of a dashboard, annotations included."""
    found = [target["expr"] for panel in panels(board) for target in panel["targets"]]
    return found + [event["expr"] for event in dashboard(board)["annotations"]["list"]]


@pytest.mark.golden
@every
def test_the_file_is_what_is_generated(name: str) -> None:
    agree(FOLDER / f"{name}.json", text(BOARDS[name]))


def test_there_are_no_other_files() -> None:
    assert {path.name for path in FOLDER.iterdir()} == {f"{name}.json" for name in BOARDS}


@every
def test_panels_have_numbers_of_their_own_and_do_not_overlap(name: str) -> None:
    found = dashboard(BOARDS[name])["panels"]
    assert len({panel["id"] for panel in found}) == len(found)
    taken: set[tuple[int, int]] = set()
    for panel in found:
        place = panel["gridPos"]
        assert place["w"] > 0
        assert place["x"] + place["w"] <= 24
        cells = set(
            itertools.product(range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"]))
        )
        assert not cells & taken, f"{panel['title']} overlaps"
        taken |= cells


@every
def test_every_line_of_the_grid_is_full(name: str) -> None:
    widths: dict[int, int] = {}
    for panel in dashboard(BOARDS[name])["panels"]:
        widths[panel["gridPos"]["y"]] = widths.get(panel["gridPos"]["y"], 0) + panel["gridPos"]["w"]
    assert set(widths.values()) == {24}


@every
def test_every_panel_says_what_it_shows_from_which_source(name: str) -> None:
    for panel in panels(BOARDS[name]):
        assert len(panel["description"]) > 10
        assert panel["targets"], f"{panel['title']} shows nothing"
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        assert all(target["datasource"] == panel["datasource"] for target in panel["targets"])


@every
def test_units_are_grafanas_and_one_for_a_panel(name: str) -> None:
    for panel in BOARDS[name].rows:
        for shown in panel.panels:
            units = {query.unit for query in shown.queries}
            assert units <= UNITS
            assert len(units) == 1 or shown.kind == "table", f"{shown.title} has {units}"


@every
def test_queries_use_metrics_of_the_table_by_their_type_and_variables_that_exist(name: str) -> None:
    known = {variable["name"] for variable in dashboard(BOARDS[name])["templating"]["list"]}
    for expression in expressions(BOARDS[name]):
        metrics_of(expression)
        assert not misused(expression)
        assert set(re.findall(r"\$\{?(\w+)", expression)) <= known
        assert '{run=~"$run"}' in expression or 'run=~"$run"' in expression


@every
def test_the_model_is_the_one_that_grafana_loads(name: str) -> None:
    loaded = json.loads(text(BOARDS[name]))
    assert loaded == dashboard(BOARDS[name])
    assert loaded["schemaVersion"] == 41
    assert re.fullmatch(r"[a-z-]{8,40}", loaded["uid"])
    assert "id" not in loaded, "Grafana gives the number"


def test_every_metric_of_the_table_is_on_a_panel_of_the_run() -> None:
    shown = {metric.key for expression in expressions(BOARDS["run"]) for metric in metrics_of(expression)}
    assert shown == {metric.key for metric in METRICS}


def test_every_panel_that_the_table_names_is_there_once() -> None:
    titles = [panel["title"] for panel in panels(BOARDS["run"])]
    assert len(set(titles)) == len(titles)
    assert {metric.panel for metric in METRICS} <= set(titles)


def test_legends_tell_runs_and_metrics_apart() -> None:
    for panel in panels(BOARDS["run"]):
        legends = [target["legendFormat"] for target in panel["targets"]]
        assert len(set(legends)) == len(legends)
        assert all(legend.startswith("{{run}}") for legend in legends)


def test_provisioning_points_to_the_dashboards() -> None:
    monitoring = Path(FOLDER).parent
    provider = (monitoring / "grafana" / "dashboards" / "files.yml").read_text()
    compose = (monitoring / "compose.yaml").read_text()
    assert "path: /etc/dist_ssl/monitoring/dashboards" in provider
    assert compose.count("- .:/etc/dist_ssl/monitoring:ro") == 3
    for name in re.findall(r"/etc/dist_ssl/monitoring/([\w./]+)", compose + provider):
        assert (monitoring / name).exists(), name
