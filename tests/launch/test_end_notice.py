"""A run that ended by itself tells Prometheus which end it was, and one that a person ended tells nothing."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from dist_ssl.metrics.ends import END_METRICS, ENDED
from dist_ssl.runtime.end_names import ENDS, FAILED, FINISHED, OUT_OF_MEMORY, REFUSED, STOPPED
from launch.end_notice import announce, end_of
from launch.ending import DISAGREED_CODE, DIVERGED_CODE, Ending, of_ranks
from launch.run_dir import AttemptDir, RunDir
from monitoring.alert_rules import NAMED_ENDS

LABELS = {"run": "a run", "method": "mocov3", "instance": "a run"}


@pytest.fixture
def attempt(tmp_path: Path) -> AttemptDir:
    """An attempt whose processes are gone, with the target and the text file that they left."""
    made = RunDir(tmp_path / "runs" / "a run").new_attempt({"metrics": {"textfile": str(tmp_path / "collected")}})
    for file in left(made):
        file.parent.mkdir()
    target, collected = left(made)
    target.write_text(json.dumps([{"targets": ["127.0.0.1:9"], "labels": LABELS}]))
    collected.write_text("dist_ssl_loss 3.0\n")
    return made


def left(attempt: AttemptDir) -> tuple[Path, Path]:
    runs = attempt.run.folder.parent
    return runs / "targets" / "a run.json", runs.parent / "collected" / "a run.prom"


@pytest.mark.parametrize(
    ("code", "end"),
    [
        (DIVERGED_CODE, "loss not finite"),
        (DISAGREED_CODE, "plans differ"),
        (2, "refused"),
        (1, "worker died"),
        (-9, "worker died"),
    ],
)
def test_the_end_that_the_ranks_came_to_stands_in_the_target_and_in_the_text_file(
    attempt: AttemptDir, code: int, end: str
) -> None:
    announce(attempt, of_ranks(attempt, {0: code, 1: code}, 0))
    target, collected = left(attempt)
    assert json.loads(target.read_text()) == [{"targets": ["127.0.0.1:9"], "labels": {**LABELS, "end": end}}]
    lines = [line for line in collected.read_text().splitlines() if not line.startswith("#")]
    assert lines == [f'{ENDED.name}{{end="{end}",method="mocov3",run="a run"}} 1.0'], "nothing else seems to go on"


def test_every_end_has_a_name_and_the_alerts_know_them() -> None:
    assert set(NAMED_ENDS) < set(ENDS)
    assert [metric.label for metric in END_METRICS] == ["end"]
    assert end_of(Ending(FAILED, cause=OUT_OF_MEMORY)) == "out of memory"
    assert {end_of(Ending(outcome, cause="of a later version")) for outcome in (REFUSED, FAILED)} <= set(ENDS)
    assert [end_of(Ending(outcome)) for outcome in (FINISHED, STOPPED)] == ["", ""]


def test_what_a_person_ended_by_force_is_missed_by_nobody(attempt: AttemptDir) -> None:
    node = left(attempt)[0].with_name("a run.node_0001.json")
    node.write_text("[]")
    announce(attempt, Ending(FAILED))
    assert node.exists(), "a node that is lost is missed"
    announce(attempt, Ending(STOPPED, "Killed on request."))
    assert not any(file.exists() for file in (*left(attempt), node))


def test_the_files_of_a_newer_attempt_are_left_alone(attempt: AttemptDir) -> None:
    attempt.run.new_attempt({})
    before = [file.read_text() for file in left(attempt)]
    for ending in (Ending(STOPPED), Ending(REFUSED)):
        announce(attempt, ending)
        assert [file.read_text() for file in left(attempt)] == before


def test_an_attempt_that_never_had_an_endpoint_gets_none(attempt: AttemptDir) -> None:
    for file in left(attempt):
        file.unlink()
    announce(attempt, Ending(REFUSED))
    assert not any(file.exists() for file in left(attempt))


@pytest.mark.parametrize("text", ["", "[]", "[3]", '[{"targets": []}]', '{"labels"'])
def test_a_damaged_target_ends_no_attempt_otherwise(
    attempt: AttemptDir, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    target, _ = left(attempt)
    target.write_text(text)
    announce(attempt, Ending(FAILED))
    assert f"How the attempt ended cannot be added to {target}" in capsys.readouterr().out
    assert target.read_text() == text


def test_what_a_target_holds_acts_on_no_terminal(
    attempt: AttemptDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("a label \x1b[2J\udcff")

    monkeypatch.setattr("launch.end_notice.note_end", refuse)
    announce(attempt, Ending(FAILED))
    assert r"a label \x1b[2J\udcff" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["a pipe", "a link to a device", "nested", "labels that are no text"])
@pytest.mark.parametrize("ending", [FAILED, STOPPED])
def test_a_target_of_somebody_else_neither_holds_up_nor_ends_the_last_step(
    attempt: AttemptDir, kind: str, ending: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever used the folder of the runs first owns `targets/`, and can put anything there; a requeue comes next."""
    target, collected = left(attempt)
    target.unlink()
    if kind == "a pipe":
        os.mkfifo(target)
    elif kind == "a link to a device":
        target.symlink_to("/dev/zero")
    else:
        labels = "[" * 100_000 if kind == "nested" else '{"run": ["r"], "method": {"m": 1}}'
        target.write_text('[{"targets": [], "labels": ' + labels + "}]")
    before = collected.read_text()
    announce(attempt, Ending(ending))
    if ending == FAILED:
        assert f"How the attempt ended cannot be added to {target}" in capsys.readouterr().out
        assert collected.read_text() == before
    else:
        assert not target.is_symlink()
        assert not target.exists()


def test_a_node_that_failed_later_does_not_hide_the_cause(attempt: AttemptDir) -> None:
    diverged = of_ranks(attempt, {0: DIVERGED_CODE, 1: 76}, 0)
    assert end_of(diverged) == "loss not finite"
    assert end_of(replace(diverged, lost=True)) == "loss not finite"
