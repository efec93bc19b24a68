"""Sinks keep what is true after a resume, and a Prometheus can find and read the run."""

import json
import math
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from dist_ssl.core.plan import EpochPlan
from dist_ssl.core.progress import Progress
from dist_ssl.errors import ConfigError, UserError
from dist_ssl.metrics import evaluations, sinks
from dist_ssl.metrics.endpoint import PORTS
from dist_ssl.metrics.evaluations import ACCURACIES, Evaluations
from dist_ssl.metrics.sinks import COUNTERS, JsonLines, Prometheus, Series, Status, TextFile, read_totals
from dist_ssl.metrics.table import METRICS
from dist_ssl.runtime import jsonl

PLAN = EpochPlan(0, 32, 1.0, 2, 48, 48)


def at(step: int, attempt: int = 1) -> Progress:
    return Progress(epochs=4, step=step, epoch=step // 20, samples=48 * step, attempt=attempt, plans=(PLAN,))


def steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_a_report_is_one_line_with_its_time(tmp_path: Path) -> None:
    sink = JsonLines(tmp_path / "metrics.jsonl")
    sink.open(at(0))
    sink.write(at(5), {"step": 5, "loss": 0.5})
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert (line["step"], line["loss"]) == (5, 0.5)
    assert line["time"] == pytest.approx(time.time(), abs=60)


def test_lines_beyond_the_restored_step_are_dropped(tmp_path: Path) -> None:
    sink = JsonLines(tmp_path / "metrics.jsonl")
    sink.open(at(0))
    for step in (5, 10, 15, 20):
        sink.write(at(step), {"step": step})
    sink.close()
    again = JsonLines(tmp_path / "metrics.jsonl")
    again.open(at(12, attempt=2))
    assert steps(again.path) == [5, 10]
    again.write(at(15), {"step": 15})
    assert steps(again.path) == [5, 10, 15]


def test_lines_that_could_not_be_dropped_are_dropped_before_the_next_report(tmp_path: Path) -> None:
    sink = JsonLines(tmp_path / "metrics.jsonl")
    sink.path.mkdir()
    with pytest.raises(OSError, match=r"metrics\.jsonl"):
        sink.open(at(12))
    with pytest.raises(OSError, match=r"metrics\.jsonl"):
        sink.write(at(13), {"step": 13})
    sink.path.rmdir()
    sink.path.write_text('{"step": 5}\n{"step": 15}\n')
    for step in (14, 15):
        sink.write(at(step), {"step": step})
    assert steps(sink.path) == [5, 14, 15]


def test_a_line_cut_short_by_a_full_disk_does_not_spoil_the_next(tmp_path: Path) -> None:
    sink = JsonLines(tmp_path / "metrics.jsonl")
    sink.open(at(0))
    sink.path.write_text('{"step": 5}\n{"step": 1')
    sink.write(at(11), {"step": 11})
    assert [row["step"] for row in jsonl.read(sink.path)] == [5, 11]


def test_the_line_of_the_restored_step_stays(tmp_path: Path) -> None:
    sink = JsonLines(tmp_path / "metrics.jsonl")
    sink.write(at(10), {"step": 10})
    sink.open(at(10))
    assert steps(sink.path) == [10]


@pytest.mark.parametrize("cut", [1, 2, 9, 25])
def test_a_line_cut_short_by_a_kill_is_dropped(tmp_path: Path, cut: int) -> None:
    sink = JsonLines(tmp_path / "metrics.jsonl")
    sink.write(at(5), {"step": 5, "loss": 1.0})
    sink.write(at(6), {"step": 6, "loss": 1.0})
    os.truncate(sink.path, sink.path.stat().st_size - cut)
    sink.open(at(8))
    sink.write(at(7), {"step": 7, "loss": 1.0})
    assert steps(sink.path) == [5, 7]


@pytest.mark.parametrize(
    "left", ["\0" * 40 + '{"step": 6, "loss": 1.0}', "{5: 6}", '"}"', "{}", '{"step": null}', '{"step": "6"}', "[6]"]
)
def test_what_a_lost_disk_left_is_dropped_and_does_not_end_a_resume(tmp_path: Path, left: str) -> None:
    sink = JsonLines(tmp_path / "metrics.jsonl")
    sink.path.write_text(f'{{"step": 5}}\n{left}\n{{"step": 7}}\n')
    sink.open(at(8))
    assert steps(sink.path) == [5, 7]


def test_the_status_shows_the_position_at_once(tmp_path: Path) -> None:
    sink = Status(tmp_path / "status.json", total_samples=4800, total_steps=100)
    sink.open(at(20, attempt=3))
    found = json.loads(sink.path.read_text())
    position = {"step": 20, "epoch": 1, "samples": 960, "attempt": 3}
    assert found == {**position, "epochs": 4, "total_samples": 4800, "total_steps": 100}


def test_the_status_of_a_fresh_run_has_the_total_of_steps(tmp_path: Path) -> None:
    sink = Status(tmp_path / "status.json", total_samples=4800, total_steps=100)
    sink.open(Progress(epochs=4))
    assert json.loads(sink.path.read_text())["total_steps"] == 100


def test_a_number_that_is_not_new_keeps_its_last_value(tmp_path: Path) -> None:
    sink = Status(tmp_path / "status.json", total_samples=4800, total_steps=100)
    sink.open(at(0))
    sink.write(at(20), {"step": 20, "knn_accuracy": 0.4, "loss": 3.0})
    sink.write(at(25), {"step": 25, "loss": 2.0})
    sink.close()
    found = json.loads(sink.path.read_text())
    assert (found["step"], found["knn_accuracy"], found["loss"]) == (25, 0.4, 2.0)


LABELS = {"run": "mocov3-1121", "method": "mocov3"}


def prometheus(folder: Path) -> Prometheus:
    return Prometheus(LABELS, "127.0.0.1", 0, folder / "targets" / "run.json", folder / "checkpoints")


@pytest.fixture
def sink(tmp_path: Path) -> Iterator[Prometheus]:
    """An endpoint that listens."""
    made = prometheus(tmp_path)
    made.open(at(0, attempt=2))
    yield made
    made.close()


def place(sink: Prometheus) -> str:
    """The address that the target file announces."""
    [group] = json.loads(sink.target.read_text())
    assert group["labels"] == {**LABELS, "instance": "mocov3-1121"}, "every attempt is the same target"
    [address] = group["targets"]
    return str(address)


def fetch(address: str, page: str) -> str:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(f"http://{address}{page}", timeout=60) as answer:
        return str(answer.read().decode())


def scrape(address: str) -> str:
    return fetch(address, "/metrics")


def values(text: str) -> dict[str, float]:
    """Names and values of a scrape."""
    rows = [line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#")]
    return {name.replace(" ", "_"): float(value) for name, _, value in rows}


def test_the_endpoint_is_found_by_its_target_and_read(sink: Prometheus) -> None:
    sink.write(at(5), {"step": 5, "loss": 2.5, "lr": 1e-3, "samples": 240})
    found = values(scrape(place(sink)))
    assert (found["dist_ssl_loss"], found['dist_ssl_learning_rate{part="all"}']) == (2.5, 1e-3)
    assert (found["dist_ssl_step"], found["dist_ssl_samples"]) == (5.0, 240.0)
    assert found["dist_ssl_attempts_total"] == 2.0


def test_a_scrape_holds_the_table_and_nothing_else(sink: Prometheus) -> None:
    sink.write(at(5), {metric.key: 1.0 for metric in METRICS if not metric.label})
    text = scrape(place(sink))
    assert values(text).keys() == {metric.name for metric in METRICS if not metric.label and not metric.instead}
    for metric in [metric for metric in METRICS if not metric.instead]:
        assert f"# HELP {metric.name} {metric.help}" in text
        assert f"# TYPE {metric.name} {'counter' if metric.counter else 'gauge'}" in text


def test_a_gauge_appears_with_its_first_value_and_a_counter_from_zero(sink: Prometheus) -> None:
    found = values(scrape(place(sink)))
    assert "dist_ssl_knn_accuracy_ratio" not in found
    assert found["dist_ssl_fetch_retries_total"] == 0.0
    sink.write(at(5), {"knn_accuracy": 0.25, "save_seconds": math.nan})
    found = values(scrape(place(sink)))
    assert found["dist_ssl_knn_accuracy_ratio"] == 0.25
    assert "dist_ssl_save_seconds" not in found, "no save yet"


def test_increases_are_added_up_and_totals_are_taken_over(sink: Prometheus) -> None:
    for step in (5, 10):
        sink.write(at(step), {"fetch_retries": 3.0, "slow_images/cmyk": 2.0, "bad_samples/empty": 4.0, "loss": 1.5})
    sink.write(at(15), {"fetch_retries": 0.0, "bad_samples/too many pixels": 1.0, "bad_samples/not an image": 2.0})
    found = values(scrape(place(sink)))
    assert found["dist_ssl_fetch_retries_total"] == 6.0
    assert found['dist_ssl_slow_images_total{reason="any"}'] == 4.0
    assert found['dist_ssl_bad_samples_total{reason="another"}'] == 5.0, "rare reasons are one series"
    assert found['dist_ssl_bad_samples_total{reason="not_an_image"}'] == 2.0
    assert found["dist_ssl_loss"] == 1.5


def test_counters_continue_over_attempts_and_never_go_back(tmp_path: Path) -> None:
    first, second = Series(tmp_path / "checkpoints"), Series(tmp_path / "checkpoints")
    first.open(at(0))
    first.write({"fetch_retries": 3.0, "slow_images/cmyk": 2.0})
    second.open(at(7, attempt=2))  # the first was killed, after it had been scraped
    second.write({"fetch_retries": 1.0, "lost_steps": 2.0, "attempt": 2.0})
    found = second.current()
    assert [found[key, ""] for key in ("fetch_retries", "lost_steps", "attempt")] == [4.0, 2.0, 2.0]
    assert found["slow_images", "cmyk"] == 2.0
    assert found["fetched_bytes", ""] == 0.0


@pytest.mark.parametrize(
    "text", ["", "[]", '{"fetch_retries": "7"}', '{"fetch_retries": -1, "nothing": 3, "loss": 2}', "{"]
)
def test_counters_of_a_damaged_file_start_from_zero(tmp_path: Path, text: str) -> None:
    (tmp_path / "counters.json").write_text(text)
    series = Series(tmp_path / "checkpoints")
    series.open(at(0))
    assert series.current()["fetch_retries", ""] == 0.0
    assert ("loss", "") not in series.current()


def test_a_full_disk_keeps_no_counter_from_being_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sinks, "write_atomically", full)
    series = Series(tmp_path / "checkpoints")
    series.write({"fetch_retries": 1.0})
    assert series.current()["fetch_retries", ""] == 1.0
    assert "No space left on device" in caplog.text


def test_a_counter_with_a_label_has_no_series_for_what_never_happened(sink: Prometheus) -> None:
    sink.write(at(5), {"read_images/original": 0.0, "read_images/96": 1.0, "spent_seconds/lost": 0.0})
    found = values(scrape(place(sink)))
    assert 'dist_ssl_read_images_total{level="original"}' not in found
    assert found['dist_ssl_read_images_total{level="smaller"}'] == 1.0
    assert found['dist_ssl_spent_seconds{cause="lost"}'] == 0.0, "a gauge says that it is 0"


def test_a_metric_with_a_label_has_a_series_for_each_value(sink: Prometheus) -> None:
    sink.write(at(5), {"bad_samples/damaged image": 2.0, "bad_samples/not an image": 3.0})
    lines = scrape(place(sink)).splitlines()
    assert 'dist_ssl_bad_samples_total{reason="damaged image"} 2.0' in lines
    assert 'dist_ssl_bad_samples_total{reason="not an image"} 3.0' in lines


def test_the_rates_of_a_methods_parts_are_few_series_of_one_metric(sink: Prometheus) -> None:
    sink.write(at(5), {"lr": 0.5, "lr/predictor": 0.125, "lr/a_part_of_later": 0.03, "lr/student": 0.25})
    found = values(scrape(place(sink)))
    shown = {part: found[f'dist_ssl_learning_rate{{part="{part}"}}'] for part in ("all", "predictor", "others")}
    assert shown == {"all": 0.5, "predictor": 0.125, "others": 0.25}, "of other parts the largest"


def test_no_run_has_more_series_than_the_table_says_whatever_is_reported_of_it(sink: Prometheus) -> None:
    """All metrics of all methods, with each value that a label has, and with many that it does not have."""
    for value in range(30):
        names = {metric.key: [f"{value}"] if metric.rest else [] for metric in METRICS if metric.label}
        keys = [f"{m.key}/{label}" for m in METRICS if m.label for label in (*m.values, *names[m.key])]
        sink.write(at(5), dict.fromkeys([*keys, *(m.key for m in METRICS if not m.label)], 1.0 + value))
    sink.series.latest.parent.mkdir()
    sink.series.latest.write_text("step_00000005\n")
    rows = [
        {"step": step, "branch": f"{step}", "protocol": name, kind: 0.5}
        for step in (5, 9)
        for name, kind in ACCURACIES.items()
    ]
    jsonl.append(sink.series.latest.parent.parent / "evaluations.jsonl", rows)
    names = [name.partition("{")[0] for name in values(scrape(place(sink)))]
    found = Counter(names)
    assert found == {metric.name: metric.most for metric in METRICS if not metric.instead}


def test_values_that_a_label_does_not_have_are_refused_where_there_is_no_rest(sink: Prometheus) -> None:
    for key in ("spent_seconds/lunch", "step_parts/nap", "difficulty/second"):
        with pytest.raises(UserError, match=f"'{key}' has no row"):
            sink.write(at(5), {key: 1.0})


def test_a_key_without_a_row_is_refused_by_name(sink: Prometheus) -> None:
    with pytest.raises(UserError, match="'unheard_of' has no row"):
        sink.write(at(5), {"unheard_of": 1.0})


def test_the_checkpoints_time_is_unknown_until_there_is_one(sink: Prometheus) -> None:
    name = "dist_ssl_checkpoint_timestamp_seconds"
    assert name not in values(scrape(place(sink)))
    sink.series.latest.parent.mkdir()
    sink.series.latest.write_text("step_00000005\n")
    an_hour_ago = time.time() - 3600
    os.utime(sink.series.latest, (an_hour_ago, an_hour_ago))
    assert values(scrape(place(sink)))[name] == pytest.approx(an_hour_ago)


def test_the_newest_evaluations_best_branch_is_exported_by_kind(sink: Prometheus) -> None:
    linear = {"branch": "student", "protocol": "linear", "linear_accuracy": 0.7, "learning_rate": 0.1}
    path = sink.series.latest.parent.parent / "evaluations.jsonl"
    assert not any(name.startswith("dist_ssl_evaluat") for name in values(scrape(place(sink))))
    jsonl.append(path, [{"step": 40, **linear}, {"step": 20, **linear, "linear_accuracy": 0.9}])
    jsonl.append(path, [{"step": 40, "branch": "teacher", "protocol": "unlabelled", "effective_rank": 9.0}])
    assert evaluated(sink) == {"linear": 0.7}
    jsonl.append(path, [{"step": 40, **linear, "linear_accuracy": 0.6}])
    assert evaluated(sink) == {"linear": 0.6}, "it was made again"
    jsonl.append(path, [{"step": 40, **linear, "branch": "teacher", "linear_accuracy": 0.65}])
    knn = {"branch": "teacher", "protocol": "bag_of_patches", "knn_accuracy": 0.5}
    jsonl.append(path, [{"step": 20, **knn}])
    assert evaluated(sink) == {"linear": 0.65, "knn": 0.5}


def evaluated(sink: Prometheus) -> dict[str, float]:
    """The accuracies of evaluations that are exported, by kind."""
    found = values(scrape(place(sink)))
    return {name.partition('"')[2][:-2]: value for name, value in found.items() if "evaluat" in name}


@pytest.mark.parametrize(
    "row", [{}, {"step": None}, {"step": "5"}, {"protocol": ["knn"]}, {"branch": 3}, {"knn_accuracy": "high"}]
)
def test_a_line_that_is_no_evaluation_does_not_end_the_scrapes(sink: Prometheus, row: dict[str, object]) -> None:
    whole = {"step": 5, "branch": "student", "protocol": "knn", "knn_accuracy": 0.5}
    path = sink.series.latest.parent.parent / "evaluations.jsonl"
    jsonl.append(path, [{**whole, **row} if row else {}, {**whole, "step": 3, "knn_accuracy": 0.25}])
    assert evaluated(sink) == {"knn": 0.25}


def test_a_scrape_amid_another_ones_reading_sees_all_evaluations_or_those_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One has looked at the file before it grew, the other is reading it: the first must not see what is half done."""
    path = tmp_path / "evaluations.jsonl"
    rows = [{"step": 20, "branch": "student", "protocol": name, kind: 0.5} for name, kind in ACCURACIES.items()]
    jsonl.append(path, rows)
    found, before = Evaluations(path), path.stat()
    known = dict(found.values())
    assert known.keys() == {("evaluation", "knn"), ("evaluation", "linear")}
    jsonl.append(path, [{**row, "step": 40} for row in rows])
    seen: list[dict[tuple[str, str], float]] = []

    class Row(dict[str, object]):
        """A line of the file at which another scrape comes in between."""

        def __getitem__(self, key: str) -> object:
            found.path = SimpleNamespace(is_file=lambda: True, stat=lambda: before)  # type: ignore[assignment]
            seen.append(dict(found.values()))
            found.path = path
            return super().__getitem__(key)

    lines = [Row(row) for row in jsonl.read(path)]
    monkeypatch.setattr(evaluations.jsonl, "read", lambda _: lines)
    assert found.values().keys() == known.keys()
    assert len(seen) > 10, "at every line and value"
    assert all(one == known for one in seen)


def test_every_report_is_dated(sink: Prometheus) -> None:
    sink.write(at(5), {"loss": 1.0})
    assert values(scrape(place(sink)))["dist_ssl_report_timestamp_seconds"] == pytest.approx(time.time(), abs=60)


def test_the_free_space_of_the_disk_is_read_at_the_scrape(sink: Prometheus, monkeypatch: pytest.MonkeyPatch) -> None:
    free = 5e9
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    assert values(scrape(place(sink)))["dist_ssl_free_disk_bytes"] == 5e9
    free = 4e9
    assert values(scrape(place(sink)))["dist_ssl_free_disk_bytes"] == 4e9


def test_an_orderly_end_withdraws_the_target_and_closes_the_port(tmp_path: Path) -> None:
    sink = prometheus(tmp_path)
    sink.open(at(0))
    address = place(sink)
    sink.close()
    assert list(sink.target.parent.iterdir()) == []
    with pytest.raises(urllib.error.URLError):
        scrape(address)


def test_a_new_attempt_replaces_the_target_that_a_lost_node_left(tmp_path: Path, sink: Prometheus) -> None:
    lost = place(sink)
    again = prometheus(tmp_path)
    again.open(at(3, attempt=3))
    try:
        assert place(again) != lost
        assert values(scrape(place(again)))["dist_ssl_attempts_total"] == 3.0
        assert len(list(sink.target.parent.iterdir())) == 1
    finally:
        again.close()


def test_a_late_end_leaves_the_target_of_a_newer_attempt(tmp_path: Path, sink: Prometheus) -> None:
    forgotten = prometheus(tmp_path)
    forgotten.open(at(0))
    sink.close()
    sink.open(at(3, attempt=3))
    newer = place(sink)
    forgotten.close()
    assert sink.target.exists()
    assert place(sink) == newer


@pytest.mark.parametrize("kind", ["a pipe", "a link to a device"])
def test_an_end_does_not_wait_for_what_another_user_made_of_the_target(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever used the folder of the runs first owns `targets/`."""
    sink = prometheus(tmp_path)
    sink.open(at(0))
    address = place(sink)
    sink.target.unlink()
    os.mkfifo(sink.target) if kind == "a pipe" else sink.target.symlink_to("/dev/zero")
    sink.close()
    assert f"{sink.target} cannot be removed: " in caplog.text
    with pytest.raises(urllib.error.URLError):
        scrape(address)


def test_an_endpoint_that_never_opened_can_be_closed(tmp_path: Path) -> None:
    prometheus(tmp_path).close()
    assert list(tmp_path.iterdir()) == []


def test_a_port_that_is_taken_is_passed_over_for_the_next(tmp_path: Path, sink: Prometheus) -> None:
    taken = sink.server.server_port
    other = Prometheus(LABELS, "127.0.0.1", taken, tmp_path / "targets" / "other.json", tmp_path)
    other.open(at(0))
    try:
        assert taken < int(place(other).rpartition(":")[2]) < taken + PORTS
        assert values(scrape(place(other)))["dist_ssl_step"] == 0
    finally:
        other.close()


@pytest.mark.parametrize(("bind", "port"), [("127.0.0.1", 70000), ("192.0.2.1", 0), ("nowhere." + "x" * 64, 0)])
def test_where_nothing_can_listen_the_remedy_is_named(tmp_path: Path, bind: str, port: int) -> None:
    nowhere = Prometheus(LABELS, "127.0.0.1", port, tmp_path / "targets" / "run.json", tmp_path, bind=bind)
    with pytest.raises(ConfigError, match=f"metrics.port={port} on metrics.bind={bind} cannot .*\n.*metrics.port=0"):
        nowhere.open(at(0))
    assert not nowhere.target.exists()


def test_a_run_trains_where_the_folder_of_targets_is_somebody_elses(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "targets").write_text("a file where a folder is needed")
    sink = prometheus(tmp_path)
    sink.open(at(0))
    assert f"No Prometheus finds this run: {sink.target} cannot be written" in caplog.text
    assert sink.server is not None
    address = f"127.0.0.1:{sink.server.server_port}"
    sink.write(at(5), {"loss": 2.5})
    assert values(scrape(address))["dist_ssl_loss"] == 2.5
    sink.close()
    with pytest.raises(urllib.error.URLError):
        scrape(address)


def test_a_target_that_cannot_be_removed_ends_no_run_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """All that an attempt did is on disk when it closes its sinks."""

    def refuse(path: Path, **_: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    target, collected = prometheus(tmp_path), text_file(tmp_path)
    for sink in (target, collected):
        sink.open(at(0))
    address = place(target)
    monkeypatch.setattr(Path, "unlink", refuse)
    for sink in (target, collected):
        sink.close()
    assert caplog.text.count("cannot be removed: [Errno 13]") == 2
    with pytest.raises(urllib.error.URLError):
        scrape(address)


@pytest.mark.parametrize("name", ['a "b"', "größer 名前", "T=0.1,lr=3e-2 %~?+", "a\\nb", "<b>x</b>", "zeile\nzwei"])
def test_any_name_of_a_run_is_a_label_that_is_read_back_as_it_is(tmp_path: Path, name: str) -> None:
    labels = {"run": name, "method": "mocov3"}
    written = TextFile(tmp_path / "run.prom", labels, tmp_path / "checkpoints")
    written.open(at(0))
    [family] = [
        found for found in text_string_to_metric_families(written.path.read_text()) if found.name == "dist_ssl_step"
    ]
    assert family.samples[0].labels == labels
    sink = Prometheus(labels, "127.0.0.1", 0, tmp_path / "targets" / "run.json", tmp_path / "checkpoints")
    sink.open(at(0))
    [group] = json.loads(sink.target.read_text())
    sink.close()
    assert group["labels"] == {**labels, "instance": name}


def test_an_endpoint_with_an_address_of_version_6_is_found_too(tmp_path: Path) -> None:
    try:
        with socket.socket(socket.AF_INET6) as free:
            free.bind(("::1", 0))
    except OSError:
        pytest.skip("no loopback of version 6")
    sink = Prometheus(LABELS, "127.0.0.1", 0, tmp_path / "targets" / "run.json", tmp_path, bind="::1")
    sink.open(at(0))
    try:
        assert place(sink).startswith("[::1]:")
        assert values(scrape(place(sink)))["dist_ssl_step"] == 0
    finally:
        sink.close()


def test_only_metrics_and_health_are_served(sink: Prometheus) -> None:
    assert fetch(place(sink), "/health") == "ok\n"
    for page in ("/", "/metrics/", "/anything"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            fetch(place(sink), page)


def test_an_endpoint_listens_where_it_is_bound(tmp_path: Path) -> None:
    near = Prometheus(LABELS, "127.0.0.1", 0, tmp_path / "targets" / "run.json", tmp_path, bind="127.0.0.1")
    near.open(at(0))
    try:
        assert near.server.server_address[0] == "127.0.0.1"
    finally:
        near.close()


def test_two_runs_of_one_process_do_not_share_numbers(tmp_path: Path, sink: Prometheus) -> None:
    labels = {"run": "other", "method": "mocov3"}
    other = Prometheus(labels, "127.0.0.1", 0, tmp_path / "targets" / "other.json", tmp_path / "checkpoints")
    sink.write(at(1), {"loss": 1.0})
    other.write(at(1), {"loss": 2.0})
    assert values(scrape(place(sink)))["dist_ssl_loss"] == 1.0


def complaints(text: str) -> str:
    """What promtool says of the text of a scrape."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool")
    checked = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True)
    return checked.stdout + checked.stderr


def text_file(folder: Path) -> TextFile:
    return TextFile(folder / "collected" / "run.prom", LABELS, folder / "checkpoints")


def test_a_text_file_holds_what_a_scrape_would_with_the_labels_of_its_target(tmp_path: Path, sink: Prometheus) -> None:
    written = text_file(tmp_path)
    written.open(at(0, attempt=2))
    for each in (written, sink):
        each.write(at(5), {"step": 5, "loss": 2.5, "bad_samples/not an image": 2.0})
    found = values(written.path.read_text())
    assert found['dist_ssl_loss{method="mocov3",run="mocov3-1121"}'] == 2.5
    assert found['dist_ssl_bad_samples_total{method="mocov3",reason="not_an_image",run="mocov3-1121"}'] == 2.0
    assert {name.partition("{")[0] for name in found} == {
        name.partition("{")[0] for name in values(scrape(place(sink)))
    }


def test_an_orderly_end_removes_the_text_file_and_leaves_those_of_others(tmp_path: Path) -> None:
    written = text_file(tmp_path)
    written.open(at(0))
    other = written.path.with_name("other.prom")
    other.write_text("")
    assert sorted(written.path.parent.iterdir()) == [other, written.path]
    written.close()
    assert list(written.path.parent.iterdir()) == [other]


def test_a_text_file_that_cannot_be_written_is_refused_with_the_key(tmp_path: Path) -> None:
    (tmp_path / "collected").write_text("a file where a folder is needed")
    with pytest.raises(ConfigError, match=r"metrics\.textfile=.*collected cannot be written to"):
        text_file(tmp_path).open(at(0))


def test_a_text_file_that_cannot_be_replaced_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    written = text_file(tmp_path)
    written.open(at(0))
    shutil.rmtree(written.path.parent)
    written.write(at(5), {"loss": 2.5})
    assert "The metrics of step 5 cannot be written to" in caplog.text
    written.path.parent.mkdir()
    written.write(at(6), {"loss": 2.0})
    assert "dist_ssl_loss" in written.path.read_text()


def test_promtool_has_nothing_against_a_text_file(tmp_path: Path) -> None:
    written = text_file(tmp_path)
    written.open(at(0))
    assert complaints(written.path.read_text()) == ""


def test_promtool_has_nothing_against_a_scrape(sink: Prometheus) -> None:
    sink.write(at(5), {"step": 5, "loss": 2.5})
    assert complaints(scrape(place(sink))) == ""


@pytest.mark.parametrize("content", ["[" * 200_000, '{"steps": "3", "age": -1, "x": 1e999}', "[1]", "{", "\x00"])
def test_counters_that_are_none_begin_at_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / COUNTERS).write_text(content)
    assert read_totals(tmp_path / COUNTERS) == {}


@pytest.mark.parametrize("odd", ["NaN", "1e999", "1" + "0" * 400, "true", "null", '"0.5"'])
def test_an_accuracy_that_is_no_finite_number_is_not_exported(tmp_path: Path, odd: str) -> None:
    row = f'{{"step": 4, "branch": "student", "protocol": "knn", "knn_accuracy": {odd}}}\n'
    (tmp_path / "evaluations.jsonl").write_text(row)
    assert Evaluations(tmp_path / "evaluations.jsonl").values() == {}
