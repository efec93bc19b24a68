"""The report draws what the run folders hold, on one page that needs nothing else."""

import json
import math
import os
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from launch import report
from launch.charts import LONGEST, MOST_POINTS, Trace, bounds, curves, number, percent, ticks
from launch.prediction import Prediction
from launch.report import CHARTS, HEADINGS, RunRecord, page
from launch.run_dir import FORMAT, RunDir

CREATED = 1_700_000_000.0
CAUSES = {"spent_seconds/train": 60.0, "spent_seconds/queue": 30.0, "spent_seconds/lost": 10.0}


def run_folder(runs: Path, name: str, reports: list[dict[str, Any]], outcomes: tuple[str, ...] = ()) -> Path:
    """The folder of a run with these reports, and an attempt per outcome; an empty one: none yet."""
    folder = runs / name
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"format": FORMAT}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(report) + "\n" for report in reports))
    os.utime(folder / "config.yaml", (CREATED, CREATED))
    for count, outcome in enumerate(outcomes, 1):
        attempt = folder / "attempts" / f"{count:04d}"
        attempt.mkdir(parents=True)
        (attempt / "config.yaml").write_text("{}")
        started = CREATED + 3600 * count
        os.utime(attempt / "config.yaml", (started, started))
        if outcome:
            (attempt / "outcome.json").write_text(json.dumps({"outcome": outcome, "reason": "a <bad> disk"}))
            os.utime(attempt / "outcome.json", (started + 1800, started + 1800))
    return folder


def reported(step: int, **values: float) -> dict[str, Any]:
    place = {"time": CREATED + 36 * step, "step": step, "samples": 48 * step, "progress": step / 100, "attempt": 1}
    return {**place, "lost_steps": 5.0, **CAUSES, **values}


REPORTS = [reported(10, loss=4.0), reported(50, loss=3.0, knn_accuracy=0.25), reported(100, loss=2.5)]


def written(*arguments: str) -> int:
    return report.main(list(arguments))


def drawings(text: str) -> list[ET.Element]:
    """The drawings of a page; each must be well-formed."""
    return [ET.fromstring(found) for found in re.findall(r"<svg.*?</svg>", text)]


def titled(text: str, title: str) -> list[ET.Element]:
    """The drawings under a title."""
    return [found for found in drawings(text) if any(part.text == title for part in found.iter("text"))]


def test_a_page_shows_the_curves_of_its_runs_over_one_another(tmp_path: Path) -> None:
    for name in ("one", "other"):
        run_folder(tmp_path, name, REPORTS)
    assert written(f"run={tmp_path / 'one'}", f"run={tmp_path / 'other'}") == 0
    text = (tmp_path / "one" / "report.html").read_text()
    by_samples, by_hours = titled(text, "Loss")
    for drawing in (by_samples, by_hours):
        names = [line.findtext("title") for line in drawing.iter("polyline")]
        assert names == ["one", "other"]
    assert len(titled(text, "kNN accuracy")) == 2
    assert not titled(text, "Learning rate"), "no run has one"


def test_a_page_loads_nothing(tmp_path: Path) -> None:
    text = page([RunRecord(RunDir.open(run_folder(tmp_path, "one", REPORTS, ("failed", ""))))])
    assert not re.findall(r"https?://|src=|href=|url\(|<script|@import", text)


def test_the_first_table_holds_what_a_run_has_come_to(tmp_path: Path) -> None:
    run = RunRecord(RunDir.open(run_folder(tmp_path, "one", REPORTS, ("failed", "finished"))))
    assert run.cells() == ["finished", "100", "4.8k", "100 %", "25 %", "100 s", "60 %", "2", "5", "unknown"]


def test_energy_is_summed_over_nodes_and_attempts_as_far_as_they_count_it(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, "one", REPORTS, ("failed", "finished"))
    records = {"0001/energy_0000": {"gpus": 3.6e6}, "0001/energy_0001": {"gpus": 1.8e6, "processors": 1.8e6}}
    for name, joules in records.items():
        (folder / "attempts" / f"{name}.json").write_text(json.dumps(joules))
    run = RunRecord(RunDir.open(folder))
    assert run.energy() == "at least 2 kWh (gpus, processors)"
    (folder / "attempts" / "0002" / "energy_0000.json").write_text(json.dumps({"gpus": 0.36e6}))
    assert run.energy() == "2.1 kWh (gpus, processors)"


def test_a_run_that_has_not_started_is_shown_too(tmp_path: Path) -> None:
    run = RunRecord(RunDir.open(run_folder(tmp_path, "none", [])))
    assert run.cells()[0] == "not started"
    assert not titled(page([run]), "Loss")


PLAN = {"source": "Measured <here>.", "points": [[0, 0], [2400, 40], [4800, 50], [9600, 150]]}


def planned(tmp_path: Path, content: str) -> str:
    (tmp_path / "plan.json").write_text(content)
    return f"plan={tmp_path / 'plan.json'}"


def test_a_run_is_held_against_the_plan_by_the_time_of_its_steps_and_probes(tmp_path: Path) -> None:
    spent = [{**CAUSES, "spent_seconds/train": train, "spent_seconds/probe": 5.0} for train in (10.0, 40.0, 60.0)]
    reports = [{**report, **causes} for report, causes in zip(REPORTS, spent, strict=True)]
    folder = run_folder(tmp_path, "one", reports)
    assert written(f"run={folder}", planned(tmp_path, json.dumps(PLAN))) == 0
    text = (folder / "report.html").read_text()
    [drawing] = titled(text, "Steps and probes, min")
    run, plan = drawing.iter("polyline")
    assert [run.findtext("title"), plan.findtext("title")] == ["one", "plan"]
    assert "<p>Measured &lt;here&gt;.</p>" in text
    assert "one took 65 s for 4.8k samples, planned 50 s: 1.30 times as long." in text
    assert written(f"run={folder}") == 0
    assert "plan" not in (folder / "report.html").read_text(), "there is none"


def test_a_run_without_a_report_can_be_held_against_a_plan(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, "none", [])
    assert written(f"run={folder}", planned(tmp_path, json.dumps(PLAN))) == 0
    assert "times as long" not in (folder / "report.html").read_text()


@pytest.mark.parametrize(
    "content", ["", "[]", '{"points": [], "source": ""}', '{"points": [[0, 0], [5, NaN]], "source": ""}',
                "[" * 200_000, '{"points": [[0, 0], [5, 1' + "0" * 400 + ']], "source": ""}',
                '{"points": [[0, 0], [0, 1]], "source": ""}', '{"points": [[0, 0]]}', '{"points": 3, "source": ""}']
)  # fmt: skip
def test_what_is_no_plan_is_refused(tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run_folder(tmp_path, "one", REPORTS)
    assert written(f"run={folder}", planned(tmp_path, content)) == 2
    assert "is no prediction" in (text := capsys.readouterr().out)
    assert "launch/plan.py" in text


def test_between_its_points_a_plan_rises_evenly_and_ends_with_the_last() -> None:
    plan = Prediction([(0, 0), (10, 100), (20, 100), (30, 160)], "")
    assert [plan.seconds(samples) for samples in (0, 5, 10, 15, 25, 30, 99)] == [0, 50, 100, 100, 130, 160, 160]


def test_attempts_lie_where_they_were_and_say_how_they_ended(tmp_path: Path) -> None:
    run = RunRecord(RunDir.open(run_folder(tmp_path, "one", REPORTS, ("failed", ""))))
    first, second = run.attempts()
    assert (first.start, first.end) == (1.0, 1.5)
    assert first.note == "attempt 1: failed, a <bad> disk"
    assert (second.start, second.note) == (2.0, "attempt 2: no outcome")
    [drawing] = titled(page([run]), "Attempts")
    assert [bar.findtext("title") for bar in drawing.iter("rect")] == [first.note, second.note]


def test_the_parts_of_the_wall_clock_fill_the_bar_by_their_shares(tmp_path: Path) -> None:
    text = page([RunRecord(RunDir.open(run_folder(tmp_path, "one", REPORTS)))])
    [drawing] = titled(text, "Wall clock by cause")
    widths = {str(bar.findtext("title")).partition(":")[0]: float(bar.attrib["width"]) for bar in drawing.iter("rect")}
    whole = sum(widths.values())
    assert widths["train"] / whole == pytest.approx(0.6, abs=0.01)
    assert widths["queue"] / whole == pytest.approx(0.3, abs=0.01)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ((), "No run is given."),
        (("runs=x",), "There is no key 'runs'."),
        (("run=nowhere",), "nowhere is not a run folder."),
    ],
)
def test_what_cannot_be_reported_is_named(
    words: tuple[str, ...], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert written(*words) == 2
    assert problem in capsys.readouterr().out


def test_a_page_that_cannot_be_written_names_another_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run_folder(tmp_path, "one", REPORTS)
    assert written(f"run={folder}", f"out={tmp_path / 'nowhere' / 'page.html'}") == 2
    assert "out=report.html" in capsys.readouterr().out


def test_an_extension_does_not_make_a_run_younger(tmp_path: Path) -> None:
    """It rewrites the config; the overrides are as old as the run."""
    folder = run_folder(tmp_path, "one", REPORTS)
    (folder / "overrides.yaml").write_text("[]")
    os.utime(folder / "overrides.yaml", (CREATED, CREATED))
    os.utime(folder / "config.yaml", (CREATED + 7200, CREATED + 7200))
    assert RunRecord(RunDir.open(folder)).trace("loss", "hours").points[0] == (0.1, 4.0)


def test_runs_of_the_same_name_are_drawn_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [run_folder(tmp_path / place, "one", REPORTS) for place in ("a", "b")]
    assert written(*(f"run={folder}" for folder in (*folders, folders[0])), f"out={tmp_path / 'page.html'}") == 0
    [drawing] = titled((tmp_path / "page.html").read_text(), "Wall clock by cause")
    named = {
        words.findtext("title"): str(words.text) for words in drawing.iter("text") if words.find("title") is not None
    }
    assert list(named) == [str(folder) for folder in folders]
    assert all(len(shown) <= LONGEST for shown in named.values()), "there is room for it on a phone too"


def test_what_a_disk_or_a_later_version_left_does_not_break_the_page(tmp_path: Path) -> None:
    odd = [math.nan, math.inf, None, "3", [], {}, True, 10**400]
    reports = [*REPORTS, *({**reported(120), "loss": value, "lr": value, "lost_steps": value} for value in odd)]
    reports += [{**reported(130), key: None} for key in ("time", "step", "samples", "spent_seconds/train")]
    reports += [{"loss": 3.0}, {}]
    folder = run_folder(tmp_path, "caf\udce9 <b>", reports, ("paused",))
    assert written(f"run={folder}", f"out={tmp_path / 'page.html'}") == 0
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<b>" not in text
    for drawing in drawings(text):
        for line in drawing.iter("polyline"):
            assert all(math.isfinite(float(number)) for number in re.split(r"[ ,]", line.attrib["points"]))


@pytest.mark.parametrize("torn", [b"", b"{", b'{"step": 5, "lo', b"\0" * 4096, b"\xff\xfe\n[1]\n3\n"])
def test_a_report_of_an_empty_or_torn_file_is_a_page(tmp_path: Path, torn: bytes) -> None:
    folder = run_folder(tmp_path, "one", [], ("failed",))
    (folder / "metrics.jsonl").write_bytes(torn)
    assert written(f"run={folder}") == 0
    (folder / "metrics.jsonl").unlink()
    assert written(f"run={folder}") == 0


def test_a_clock_that_was_set_back_breaks_no_drawing(tmp_path: Path) -> None:
    reports = [reported(10, loss=4.0), {**reported(20, loss=3.0), "time": CREATED - 9000}, reported(30, loss=2.0)]
    folder = run_folder(tmp_path, "one", reports, ("failed",))
    os.utime(folder / "attempts" / "0001" / "outcome.json", (CREATED - 9000, CREATED - 9000))
    for drawing in drawings(page([RunRecord(RunDir.open(folder))])):
        for bar in drawing.iter("rect"):
            assert float(bar.attrib["width"]) >= 0
            assert float(bar.attrib["x"]) >= 0


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "a\"b'c&d", "zeile\nzwei", "名前 \u202e", "x" * 200])
def test_the_name_of_a_run_is_shown_and_does_nothing(tmp_path: Path, name: str) -> None:
    path = run_folder(tmp_path, "one", REPORTS, ("failed",))
    record = RunRecord(RunDir.open(path))
    record.name = name
    text = page([record, record], Prediction([(0, 0), (10, 100)], f"{name}"))
    assert "<script" not in text
    shown = [found.findtext("title") for part in drawings(text.replace("\n", " ")) for found in part.iter("polyline")]
    assert name.replace("\n", " ") in shown


def test_every_row_of_bars_has_its_name_above_it_from_the_left(tmp_path: Path) -> None:
    """A name that ended beside its bar lost its first letters on a narrow screen."""
    name = "accelerated-mocov3-resnet50-imagenet-batch4096-seed0-second-try"
    text = page([RunRecord(RunDir.open(run_folder(tmp_path, name, REPORTS, ("failed", "finished"))))])
    for title in ("Wall clock by cause", "Attempts"):
        [drawing] = titled(text, title)
        [row] = [words for words in drawing.iter("text") if words.findtext("title") == name]
        assert (row.attrib["x"], "end" in row.attrib["class"]) == ("0", False)
        assert str(row.text).startswith("accelerated-mocov3")
        assert str(row.text).endswith("second-try")
        assert all(float(bar.attrib["y"]) > float(row.attrib["y"]) for bar in drawing.iter("rect"))


def test_on_a_narrow_screen_every_cell_says_what_it_is(tmp_path: Path) -> None:
    text = page([RunRecord(RunDir.open(run_folder(tmp_path, "one", REPORTS)))])
    assert re.findall(r'<td data-heading="([^"]+)">', text) == list(HEADINGS[1:])
    narrow = text.partition("@media (max-width: 600px)")[2]
    assert "content: attr(data-heading)" in narrow


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e9))
def test_ticks_are_few_round_numbers_at_equal_distances(low: float, span: float) -> None:
    lowest, highest = bounds([low, low + span])
    found = ticks(lowest, highest)
    assert 1 <= len(found) <= 7
    assert all(lowest - 1e-6 * (highest - lowest) <= tick <= highest + 1e-6 * (highest - lowest) for tick in found)


def test_ticks_of_simple_bounds() -> None:
    assert ticks(0, 100) == [0, 20, 40, 60, 80, 100]
    assert ticks(0.1, 0.9) == pytest.approx([0.2, 0.4, 0.6, 0.8])


def test_the_labels_of_an_axis_differ_however_little_a_curve_moves() -> None:
    for label in (number, percent):
        drawing = ET.fromstring(curves("a", [Trace("a", [(0, 0.8601), (1, 0.8606)])], "samples", label))
        words = [words.text for words in drawing.iter("text") if words.attrib["class"] == "axis end"]
        assert len({*words}) == len(words) >= 4


def test_a_long_curve_is_thinned_to_means() -> None:
    trace = Trace("one", [(float(x), float(x)) for x in range(10 * MOST_POINTS)])
    points = trace.thinned()
    assert len(points) == MOST_POINTS
    assert points[0] == (4.5, 4.5)
    assert all(x == y for x, y in points)


def test_a_constant_curve_and_one_point_can_be_drawn() -> None:
    for points in ([(0.0, 3.0), (1.0, 3.0)], [(5.0, 0.0)]):
        [line] = ET.fromstring(curves("Loss", [Trace("a", points)], "samples")).iter("polyline")
        assert all(math.isfinite(float(number)) for number in re.split(r"[ ,]", line.attrib["points"]))


def test_the_curves_are_metrics_of_the_table() -> None:
    from dist_ssl.metrics.table import check_keys

    check_keys(key for _, key, _ in CHARTS)


def test_a_link_in_the_place_of_the_page_is_replaced_and_not_followed(tmp_path: Path) -> None:
    run = RunDir(run_folder(tmp_path, "mine", REPORTS))
    keys = tmp_path / "authorized_keys"
    keys.write_text("mine")
    (run.folder / "report.html").symlink_to(keys)
    assert report.main([f"run={run.folder}"]) == 0
    assert keys.read_text() == "mine"
    assert "<!doctype html>" in (run.folder / "report.html").read_text()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
def test_into_another_users_folder_nothing_is_written_unless_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A link there may lead to curves of one's own, which its owner would read in the page."""
    private = run_folder(tmp_path, "private", REPORTS) / "metrics.jsonl"
    folder = run_folder(tmp_path, "theirs", REPORTS)
    (folder / "metrics.jsonl").unlink()
    (folder / "metrics.jsonl").symlink_to(private)
    os.chown(folder, 12345, 12345)
    assert report.main([f"run={folder}"]) == 2
    assert "belongs to another user" in capsys.readouterr().out
    assert not (folder / "report.html").exists()
    assert report.main([f"run={folder}", f"out={tmp_path / 'mine.html'}"]) == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
def test_a_report_of_ones_own_run_and_of_somebody_elses_is_for_its_owner_alone(tmp_path: Path) -> None:
    """Their files may be links to what only its owner can read, and the folder of one's own run is open to them."""
    mine, theirs = (run_folder(tmp_path, name, REPORTS, ("failed",)) for name in ("mine", "theirs"))
    ending = theirs / "attempts" / "0001" / "outcome.json"
    (tmp_path / "private.json").write_text(json.dumps({"outcome": "failed", "reason": "opensesame"}))
    ending.unlink()
    ending.symlink_to(tmp_path / "private.json")
    os.chown(theirs, 12345, 12345)
    assert report.main([f"run={mine}", f"run={theirs}"]) == 0
    assert "opensesame" in (mine / "report.html").read_text()
    assert (mine / "report.html").stat().st_mode & 0o077 == 0
    assert report.main([f"run={mine}"]) == 0
    assert (mine / "report.html").stat().st_mode & 0o044 == 0o044


def test_energy_that_is_no_number_counts_as_none(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, "one", REPORTS, ("failed",))
    (folder / "attempts" / "0001" / "energy_0000.json").write_text(
        json.dumps({"gpus": 3.6e6, "sun": "x", "wind": None})
    )
    assert RunRecord(RunDir.open(folder)).energy() == "1 kWh (gpus)"


def test_energy_is_that_of_known_sources_in_small_files(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, "one", REPORTS, ("failed",)) / "attempts" / "0001"
    (folder / "energy_0000.json").write_text(json.dumps({"gpus": 3.6e6, "\ud800": 7.0, "x" * 1000: 7.0}))
    (folder / "energy_0001.json").write_text(json.dumps({"gpus": 3.6e6, **{str(row): 1 for row in range(1 << 15)}}))
    for node in range(2, 9):
        (folder / f"energy_{node:04d}.json").symlink_to("energy_0001.json")
    assert RunRecord(RunDir.open(folder.parents[1])).energy() == "1 kWh (gpus)"


def test_halves_of_characters_do_not_keep_the_page_from_being_written(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, "one", REPORTS, ("failed",))
    (folder / "attempts" / "0001" / "outcome.json").write_text(r'{"outcome": "failed", "reason": "a \ud800 disk"}')
    (tmp_path / "plan.json").write_text(json.dumps({**PLAN, "source": "b \udfff"}))
    assert written(f"run={folder}", f"plan={tmp_path / 'plan.json'}") == 0
    text = (folder / "report.html").read_text()
    assert "a ? disk" in text
    assert "b ?" in text


def test_an_attempt_of_an_absurd_number_does_not_hold_up_the_report(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, "one", REPORTS, ("failed",))
    (folder / "attempts" / "99999999999").mkdir()
    assert written(f"run={folder}") == 0
    assert len(RunRecord(RunDir.open(folder)).attempts()) == 1


@pytest.mark.parametrize(
    "ending",
    [
        {"outcome": 5},
        {"outcome": "failed", "reason": 5},
        {"outcome": ["failed"]},
        {"outcome": "failed", "again": "x" * 99},
    ],
)
def test_an_outcome_of_another_kind_is_none(tmp_path: Path, ending: dict[str, Any]) -> None:
    folder = run_folder(tmp_path, "one", REPORTS, ("failed",))
    (folder / "attempts" / "0001" / "outcome.json").write_text(json.dumps(ending))
    assert RunRecord(RunDir.open(folder)).attempts()[0].note == "attempt 1: no outcome"
    assert written(f"run={folder}") == 0
