"""A record of what an attempt ran with is written by every node, and what changed on which bits depend is said."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from launch import environment_record
from launch.environment_record import changes, differences, packages, record, write_record
from launch.run_dir import AttemptDir, RunDir

OLD: dict[str, Any] = {
    "processor": "A 1",
    "gpus": ["H100", "H100"],
    "driver": "570",
    "packages": {"torch": "2.14.1", "numpy": "2.4", "rich": "14"},
}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, []),
        ({"packages": {**OLD["packages"], "rich": "15"}}, []),
        ({"packages": {**OLD["packages"], "torch": "2.15.0"}}, ["torch 2.14.1 -> 2.15.0"]),
        ({"packages": {"torch": "2.14.1"}}, ["numpy 2.4 -> none"]),
        ({"processor": "B 2"}, ["processor A 1 -> B 2"]),
        ({"gpus": []}, ["gpus H100, H100 -> none"]),
        ({"driver": "580", "gpus": ["H200"]}, ["gpus H100, H100 -> H200", "driver 570 -> 580"]),
    ],
)
def test_what_results_depend_on_is_compared(changed: dict[str, Any], said: list[str]) -> None:
    assert list(differences(OLD, {**OLD, **changed})) == said


def test_a_record_holds_this_machine(tmp_path: Path) -> None:
    for number in range(2):
        folder = tmp_path / "gpus" / str(number)
        folder.mkdir(parents=True)
        (folder / "information").write_text("Model: \t\t NVIDIA H100 PCIe\nIRQ: 5\n")
    (tmp_path / "version").write_text("NVRM version: 570.1\nGCC version: 12\n")
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: A Kind: of CPU\nprocessor\t: 1\nmodel name\t: B\n")
    found = record(tmp_path, tmp_path / "cpuinfo")
    assert found["gpus"] == ["NVIDIA H100 PCIe"] * 2
    assert found["driver"] == "NVRM version: 570.1"
    assert found["processor"] == "A Kind: of CPU"
    assert torch.__version__.startswith(found["packages"]["torch"])
    assert found["cores"] > 0
    assert found["memory"] > 0
    assert json.loads(json.dumps(found)) == found


def test_a_machine_that_says_nothing_has_a_record_too(tmp_path: Path) -> None:
    found = record(tmp_path / "none", tmp_path / "none")
    assert (found["gpus"], found["driver"]) == ([], "")
    assert found["processor"]


def test_of_a_package_that_is_there_twice_the_first_counts(tmp_path: Path) -> None:
    for folder, name in (("a", "Big_Thing-1.0"), ("b", "big_thing-2.0"), ("b", "other-3")):
        (tmp_path / folder / f"{name}.dist-info").mkdir(parents=True)
    places = [str(tmp_path / name) for name in ("absent", "a", "b")]
    assert dict(packages(places)) == {"big-thing": "1.0", "other": "3"}


def test_the_newest_attempt_with_a_record_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, now = RunDir(tmp_path / "run"), dict(OLD)
    monkeypatch.setattr(environment_record, "record", lambda: now)
    assert not changes(run, 0)
    for _ in range(3):
        run.new_attempt({})
    assert not changes(run, 3)
    write_record(AttemptDir(run, 1), 0)
    write_record(AttemptDir(run, 2), 0)
    write_record(AttemptDir(run, 3), 1)
    now["processor"] = "B 2"
    expected = "Since attempt 2: processor A 1 -> B 2. Equal bits are not to be expected from here on."
    assert changes(run, 3) == expected
    AttemptDir(run, 2).environment(0).write_text("{")
    assert changes(run, 3).startswith("Since attempt 1: ")
