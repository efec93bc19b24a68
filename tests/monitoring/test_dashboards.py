"""The dashboards show every metric, once each its own way, in what Grafana can read."""

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
from grafana_foundation_sdk.models.prometheus import Dataquery

from monitoring.boards import BOARDS
from monitoring.dashboards import FOLDER, text
from monitoring.layout import Board
from monitoring.queries import TABLES
from tests.golden.agreed import agree
from tests.monitoring.promql import metrics_of, misused

UNITS = {"short", "s", "h", "bytes", "Bps", "cps", "percentunit", "pixel", "joule", "watt"}
"""Units of Grafana (packages/grafana-data/src/valueFormats/categories.ts) that we use."""
OWN = ("run", "reliability", "nodes")
"""The dashboards that show the metrics where the table puts them."""
STACKED = {"Wall clock by cause": "cause", "Step time by part": "part"}
"""Panels whose series add up, and the label of these."""
every = pytest.mark.parametrize("name", BOARDS)


def dashboard(board: Board) -> dict[str, Any]:
    """What Grafana reads."""
    return dict(json.loads(text(board)))


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
            assert len(units) == 1 or shown.kind in ("table", "xychart"), f"{shown.title} has {units}"


@every
def test_queries_use_metrics_of_the_table_by_their_type_and_variables_that_exist(name: str) -> None:
    known = {variable["name"] for variable in dashboard(BOARDS[name])["templating"]["list"]}
    assert known - {"node"} == {"datasource", "run", "window"}
    assert ("node" in known) == (name == "nodes")
    for expression in expressions(BOARDS[name]):
        metrics_of(expression)
        assert not misused(expression)
        assert set(re.findall(r"\$\{?(\w+)", expression)) <= known
        assert 'run=~"$run"' in expression
        assert ('node=~"$node"' in expression) == ("dist_ssl_node" in expression)


@every
def test_the_model_is_the_one_that_grafana_loads(name: str) -> None:
    """All that stands in the file has a place in the SDK's types, for a load and a dump lose nothing of it."""
    register_default_plugins()
    raw = dashboard(BOARDS[name])
    for event in raw["annotations"]["list"]:
        assert event.pop("titleFormat"), "Grafana's, and not among the types"
    loaded = Dashboard.from_json(raw)
    assert json.loads(json.dumps(loaded, cls=JSONEncoder)) == raw
    queries = [target for panel in loaded.panels for target in getattr(panel, "targets", [])]
    assert {type(target) for target in queries} == {Dataquery}
    assert raw["schemaVersion"] == 41
    assert re.fullmatch(r"[a-z-]{8,40}", raw["uid"])
    assert "id" not in raw, "Grafana gives the number"


def test_every_metric_of_the_table_is_on_the_panel_that_it_names_once() -> None:
    own = [panel for name in OWN for panel in panels(BOARDS[name])]
    for title in {metric.panel for metric in TABLES}:
        [panel] = [panel for panel in own if panel["title"] == title]
        metrics = [metric for metric in TABLES if metric.panel == title]
        queries = [target["expr"] for target in panel["targets"]]
        by_query = [metric.instead for metric in metrics if metric.instead]
        assert by_query == [query for query in queries if query in by_query]
        shown = {metric.key for query in queries if query not in by_query for metric in metrics_of(query)}
        assert shown == {metric.key for metric in metrics if not metric.instead}


@every
def test_titles_are_told_apart(name: str) -> None:
    titles = [panel["title"] for panel in panels(BOARDS[name])]
    assert len(set(titles)) == len(titles)


def test_runs_are_compared_by_a_frame_for_each_run_with_the_value_over_the_samples() -> None:
    shown = [panel for panel in panels(BOARDS["compare"]) if panel["type"] == "xychart"]
    assert len(shown) == 12
    for panel in shown:
        merge, organize, part = panel["transformations"]
        assert (merge["id"], organize["id"], part["id"]) == ("merge", "organize", "partitionByValues")
        across, value = organize["options"]["renameByName"].values()
        assert panel["options"]["series"] == [{"x": {"matcher": {"id": "byName", "options": across}}}]
        assert across in ("Samples seen", "Hours")
        assert [override["matcher"]["options"] for override in panel["fieldConfig"]["overrides"]] == [across, value]
        assert all(re.match(r"(max|sum) by \(run\) ", target["expr"]) for target in panel["targets"])
        assert part["options"]["fields"] == ["run"], "the only label that the queries leave"


@every
def test_limits_are_in_the_order_that_grafana_needs(name: str) -> None:
    for panel in panels(BOARDS[name]):
        first, *bounds = panel["fieldConfig"]["defaults"].get("thresholds", {"steps": [{"value": None}]})["steps"]
        assert first["value"] is None
        assert [step["value"] for step in bounds] == sorted(step["value"] for step in bounds)


def test_legends_tell_runs_and_metrics_apart() -> None:
    for panel in [panel for name in OWN for panel in panels(BOARDS[name])]:
        legends = [target["legendFormat"] for target in panel["targets"]]
        assert len(set(legends)) == len(legends)
        if panel["title"] in STACKED:
            assert legends == [f"{{{{{STACKED[panel['title']]}}}}}"], "a stack is a sum over the runs"
            assert panel["targets"][0]["expr"].startswith(f"sum by ({STACKED[panel['title']]}) (")
        else:
            assert all(legend.startswith("{{run}}") for legend in legends)


def test_links_lead_to_dashboards_that_exist() -> None:
    uids = {board.uid for board in BOARDS.values()}
    assert len(uids) == len(BOARDS)
    linked = re.findall(r"/d/([\w-]+)\?", "".join(text(board) for board in BOARDS.values()))
    assert set(linked) == {"dist-ssl-run"} <= uids


def test_provisioning_points_to_the_dashboards() -> None:
    monitoring = Path(FOLDER).parent
    provider = (monitoring / "grafana" / "dashboards" / "files.yml").read_text()
    compose = (monitoring / "compose.yaml").read_text()
    assert "path: ${DIST_SSL_MONITORING}/dashboards" in provider
    assert "DIST_SSL_MONITORING: /etc/dist_ssl/monitoring\n" in compose
    assert compose.count("- .:/etc/dist_ssl/monitoring:ro") == 3
    for name in re.findall(r"/etc/dist_ssl/monitoring/([\w./]+)", compose + provider):
        assert (monitoring / name).exists(), name
