"""A real Prometheus finds a run, follows it over a lost node and a resume, and answers the dashboards' queries."""

import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dist_ssl.core.plan import EpochPlan
from dist_ssl.core.progress import Progress
from dist_ssl.distributed.world import World
from dist_ssl.metrics.endpoint import Endpoint, Exported
from dist_ssl.metrics.ends import END_METRICS, ENDED
from dist_ssl.metrics.node_table import NODE_JOB, NODE_METRICS
from dist_ssl.metrics.sinks import Prometheus
from dist_ssl.metrics.table import METRICS
from dist_ssl.runtime import jsonl
from dist_ssl.runtime.step_clock import PARTS
from dist_ssl.train import Job, Outcome, train
from monitoring.boards import BOARDS, EVENTS
from monitoring.dashboards import FOLDER
from monitoring.layout import Panel
from monitoring.recordings import RECORDED
from tests.jobs import small_config, small_job
from tests.monitoring import drawing
from tests.monitoring.prometheus import PROGRAM, Server, await_that, serving
from tests.monitoring.promql import metrics_of

if PROGRAM is None:
    pytest.skip("no prometheus", allow_module_level=True)

MOST_SERIES = 80
ABSENT = {
    ENDED.key: "no attempt of it ended with an error",
    "device_memory": "there is no GPU",
    "flops_utilisation": "there is no GPU",
    "coding_rate": "of EMP-SSL",
    "teacher_temperature": "of DINO",
    "frozen": "no part of the method is frozen for a while",
    "bad_samples": "every sample can be read",
    "slow_images": "every image is a JPEG as cameras make them",
    "read_images": "the data has no pyramid",
    "difficulty": "every view is drawn once",
}
"""Metrics that this run does not have, and why."""
TITLES = [(name, panel) for name, board in BOARDS.items() for row in board.rows for panel in row.panels]


@dataclass
class Watched:
    """A Prometheus, and the folder of the runs that it finds."""

    server: Server
    runs: Path

    def start(self, data: Path, epochs: int) -> Job:
        """Train the run to its last epoch; its endpoint stays open."""
        config = small_config(
            data, "method=mocov2", "method.slots=24", "aux=rotation", "tracker=tensorboard", f"epochs={epochs}"
        )
        job = small_job(World(), config, self.runs / "real", attempt=epochs)
        assert train(job) is Outcome.FINISHED
        return job

    def evaluate(self) -> None:
        """Write what launch/evaluate.py does."""
        row = {"step": 10, "branch": "student", "protocol": "linear", "linear_accuracy": 0.4}
        jsonl.append(self.runs / "real" / "evaluations.jsonl", [row])

    def names(self) -> set[str]:
        """The runs whose endpoints are scraped."""
        return {target["labels"]["run"] for target in self.server.ask("targets")["activeTargets"]}

    def one(self, expression: str) -> float:
        """The value of the only series of an expression; NaN where there is none."""
        values = self.server.values(expression)
        assert len(values) <= 1, f"{expression} has {len(values)} series"
        return values[0] if values else float("nan")


def endpoint(job: Job) -> Prometheus:
    """The endpoint of a job."""
    return next(sink for sink in job.meter.sinks if isinstance(sink, Prometheus))


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, demo_shards: Path) -> Iterator[Watched]:
    """A run that lost its node after two epochs and was resumed for a third, and an endpoint with the whole table."""
    folder = tmp_path_factory.mktemp("watched")
    with serving(folder, folder / "runs" / "targets") as server:
        found = Watched(server, folder / "runs")
        found.evaluate()
        first, short = found.start(demo_shards, 2), short_run(folder)
        await_that(lambda: "short" in found.names(), "the run that will end is found")
        await_that(lambda: found.one('dist_ssl_step{run="real"}') == 10, "the first attempt is scraped")
        lost = endpoint(first).server
        lost.shutdown()
        lost.server_close()
        await_that(lambda: found.one('up{run="real"}') == 0, "the lost node is seen")
        await_that(lambda: server.labels('ALERTS{alertname="RunLost"}'), "the alert waits for its time")
        second = found.start(demo_shards, 3)
        short.close()
        whole, node, collected = whole_table(folder), whole_node(folder), ended(folder)
        await_that(lambda: server.values('up{job="dist_ssl_node"}') == [1.0], "the node is scraped")
        await_that(lambda: server.values("dist_ssl_ended"), "the text file is scraped")
        for run, attempts in (("real", 3), ("table", 1)):
            expression = f'count_over_time(dist_ssl_attempts_total{{run="{run}"}}[1m]) > 3'
            await_that(
                lambda run=run, attempts=attempts: found.one(f'dist_ssl_attempts_total{{run="{run}"}}') == attempts,
                "the newest attempt is scraped",
            )
            await_that(lambda expression=expression: server.values(expression), "some scrapes")
        await_that(lambda: server.values("count_over_time(dist_ssl_node_workers[1m]) > 3"), "some scrapes of the node")
        yield found
        second.meter.close()
        whole.close()
        node.stop()
        collected.stop()


def short_run(folder: Path) -> Prometheus:
    """The endpoint of a run that will end in order."""
    labels = {"run": "short", "method": "none"}
    sink = Prometheus(labels, "127.0.0.1", 0, folder / "runs" / "targets" / "short.json", folder)
    sink.open(Progress(epochs=1))
    return sink


def whole_table(folder: Path) -> Prometheus:
    """An endpoint on which every metric of the table has a value."""
    checkpoints = folder / "checkpoints"
    checkpoints.mkdir()
    (checkpoints / "LATEST").write_text("step_00000005\n")
    labels = {"run": "table", "method": "none"}
    sink = Prometheus(labels, "127.0.0.1", 0, folder / "runs" / "targets" / "table.json", checkpoints)
    here = Progress(epochs=1, step=5, plans=(EpochPlan(0, 32, 1.0, 2, 48, 48),))
    sink.open(here)
    keys = [f"{m.key}/{value}" for m in METRICS if m.label for value in (*m.values, *filter(None, [m.rest]))]
    sink.write(here, dict.fromkeys([*keys, *(m.key for m in METRICS if not m.label)], 1.0))
    return sink


def whole_node(folder: Path) -> Endpoint:
    """An endpoint of a node on which every metric of a node has a value."""
    series = Exported(NODE_METRICS)
    series.values = {(metric.key, value): 1.0 for metric in NODE_METRICS for value in metric.values or ("",)}
    labels = {"run": "table", "node": "0", "instance": "host", "job": NODE_JOB}
    made = Endpoint(series, labels, "127.0.0.1", 0, folder / "runs" / "targets" / "table.node_0000.json", "127.0.0.1")
    made.start()
    return made


def ended(folder: Path) -> Endpoint:
    """What a node_exporter serves of the text file of a run that has failed."""
    series = Exported(END_METRICS)
    series.values = {(ENDED.key, "worker died"): 1.0}
    labels = {"run": "table", "method": "none", "instance": "collector", "job": "node"}
    made = Endpoint(series, labels, "127.0.0.1", 0, folder / "runs" / "targets" / "collected.json", "127.0.0.1")
    made.start()
    return made


def asked(expression: str, run: str) -> str:
    """An expression of a dashboard for one run."""
    return expression.replace("$run", run).replace("$node", "0").replace("$window", "1m")


@pytest.mark.parametrize(("board", "panel"), TITLES, ids=[f"{name}: {panel.title}" for name, panel in TITLES])
def test_every_query_of_a_panel_returns_data(watched: Watched, board: str, panel: Panel) -> None:
    for query in panel.queries:
        assert watched.server.values(asked(query.expression, "table")), query.expression
        found = watched.server.values(asked(query.expression, "real"))
        if not {metric.key for metric in metrics_of(query.expression)} & ABSENT.keys() and board != "nodes":
            assert found, query.expression


@pytest.mark.parametrize("name", BOARDS)
def test_every_panel_can_be_drawn_from_its_json(watched: Watched, name: str) -> None:
    """Legends, transformations, units and limits included; what the run does not have, the other endpoint has."""
    board = json.loads((FOLDER / f"{name}.json").read_text())
    end = time.time()
    panels = drawing.drawn(watched.server, board, "real|table", drawing.Span(end - 30, end, 0.5))
    for one in panels:
        assert all(one.shown.values()), f"{one.panel['title']} is empty: {one.shown}"
        assert one.panel["type"] == "row" or "<svg" in one.html or "<td>" in one.html or "<b " in one.html
    html = drawing.page(board, panels)
    assert html.count('class="card"') == sum(panel["type"] != "row" for panel in board["panels"])
    assert "real" in html
    assert not re.search(r"\bnan\b", html, re.IGNORECASE)


def test_only_what_the_list_names_is_absent_and_nothing_else_is_there(watched: Watched) -> None:
    found = watched.server.labels('{run="real",__name__=~"dist_ssl_.*"}')
    names = {labels["__name__"] for labels in found}
    exported = {metric.name for metric in METRICS if not metric.instead}
    assert {m.key for m in (*METRICS, ENDED) if not m.instead and m.name not in names} == ABSENT.keys()
    assert names <= exported
    assert len(found) <= MOST_SERIES
    own = {"__name__", "job", "instance", "run", "method"}
    assert {label for labels in found for label in labels} - own <= {metric.label for metric in METRICS}
    assert {labels["method"] for labels in found} == {"mocov2"}


def test_a_node_is_a_target_of_its_own_beside_that_of_its_run(watched: Watched) -> None:
    [labels] = watched.server.labels("dist_ssl_node_memory_bytes")
    del labels["__name__"]
    assert labels == {"job": "dist_ssl_node", "run": "table", "node": "0", "instance": "host"}
    assert watched.server.values('up{job="dist_ssl",run="table"}') == [1.0]


def test_the_parts_of_a_step_add_up_to_no_more_than_the_training(watched: Watched) -> None:
    """Those of the newest attempt; the rest of its time went to its start, probes and saves."""
    parts = watched.server.labels('dist_ssl_step_part_seconds_total{run="real"}')
    assert {labels["part"] for labels in parts} == set(PARTS)
    whole = watched.one('sum(dist_ssl_step_part_seconds_total{run="real"})')
    own = watched.one('sum(dist_ssl_spent_seconds{run="real"})')
    assert 0 < whole < own


def test_a_resume_continues_the_series_and_no_total_goes_back(watched: Watched) -> None:
    """No second series appears beside the old one, though the new attempt has another address."""
    assert watched.server.values('count_over_time(dist_ssl_step{run="real"}[10m])')
    names = [metric.name for metric in METRICS if metric.counter and metric.key not in ABSENT]
    assert len(names) >= 10
    for name in names:
        assert set(watched.server.values(f'resets({name}{{run="real"}}[10m])')) == {0.0}, name
    assert watched.one('changes(dist_ssl_attempts_total{run="real"}[10m])') == 1
    assert watched.one('dist_ssl_lost_steps_total{run="real"}') == 0
    assert watched.one('min_over_time(up{run="real"}[10m])') == 0


@pytest.mark.parametrize("name", EVENTS)
def test_annotations_mark_what_has_changed(watched: Watched, name: str) -> None:
    since = asked(EVENTS[name], "real").replace("[1m]", "[10m]")
    assert bool(watched.server.values(since)) == (name != "New plan")


def test_the_causes_of_the_account_add_up_to_the_age_of_the_run(watched: Watched) -> None:
    created = watched.one(
        'dist_ssl_report_timestamp_seconds{run="real"} - on (run) sum by (run) (dist_ssl_spent_seconds)'
    )
    first = watched.one('min_over_time(dist_ssl_report_timestamp_seconds{run="real"}[10m])')
    assert psutil.Process().create_time() - 1 <= created <= first, "a run without a config is as old as its process"
    for cause in ("train", "data", "probe", "start"):
        assert watched.one(f'dist_ssl_spent_seconds{{run="real",cause="{cause}"}}') > 0


def test_tensorboard_has_every_step_of_the_resumed_run_once(watched: Watched) -> None:
    curves = EventAccumulator(str(watched.runs / "real" / "tensorboard"))
    curves.Reload()
    assert [point.step for point in curves.Scalars("loss")] == list(range(1, 16))


def test_no_alert_fires_for_a_run_that_is_well(watched: Watched) -> None:
    rules = [rule for group in watched.server.ask("rules")["groups"] for rule in group["rules"]]
    assert {rule["health"] for rule in rules} == {"ok"}
    assert len([rule for rule in rules if rule["type"] == "alerting"]) > 20
    for name in RECORDED:
        assert watched.server.values(f'{{__name__="{name}",run="real"}}'), f"{name} is recorded"
    firing = watched.server.labels('ALERTS{run="real",alertstate="firing"}')
    assert not firing


def test_an_orderly_end_takes_the_target_away(watched: Watched) -> None:
    await_that(lambda: watched.names() == {"real", "table"}, "the run that ended is forgotten")
    assert watched.server.values('count_over_time(up{run="short"}[10m])'), "it was there"
