"""The folder of somebody else's run: whatever its files hold, it can be looked at, and a message names what is damaged.

A hundred inputs in the suite, 20,000 under `make chaos`.
"""

import io
import json
import math
import os
import random
import shutil
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from dist_ssl.config.command import Screen, run_command
from dist_ssl.core.plan import EpochPlan
from dist_ssl.data.order.ledger_blocks import ROW, encode
from dist_ssl.errors import EXIT_CODE
from dist_ssl.metrics.evaluations import Evaluations
from dist_ssl.runtime.end_names import FAILED
from launch import audit, following, model_card, report, scheduler, slurm, status
from launch.ending import STOPPED_CODE, Ending
from launch.prediction import Prediction
from launch.run_dir import RunDir
from tests.fuzzing import edited, mutated, shares, some, tried

Found = tuple[Path, dict[str, bytes]]
DEEP = 3000
"""Levels of brackets within each other, more than Python nests calls."""
STEPS = 4
PLACE = {"time": 1_700_000_000.0, "samples": 96, "attempt": 1, "progress": 0.5, "spent_seconds/train": 5.0}
NUMBERS = {"step": 4, "epoch": 0, "epochs": 2, "total_steps": 8, "loss": 7.2, "knn_accuracy": 0.5, "queries": 30}
KEYS = {"format": 1, "seed": 3, "window": 8, "epochs": 2, "extend": ["1 epochs"], "batch_size": 12, "lanes": 4}
ENDING = {"outcome": FAILED, "reason": "The disk\nis full.", "time": 1.5, "again": "", "lost": False}
TEXTS = (
    "\x1b]52;c;aGk=\x07",
    "\x1b[2J",
    "[link=file:///etc]x[/link]",
    "1;touch x",
    "\u202e",
    "{",
    "!!int ''",
    "a: &a [*a]",
    "\ud800",
    "x" * 300_000,
)
MANY = json.dumps({str(row): row for row in range(100_000)}).encode()
"""Numbers in a file of more than a megabyte."""
BLOCKS = "ledger/attempt_0002_node_00000.ledger"
ATTEMPTS = ("99999999999", "9" * 18, "9" * 200, "00001", "0007", "\u0663\u0663\u0663\u0663", "0001_old", "1\x1b[2J")


def run_folder(folder: Path, shards: Path) -> dict[str, bytes]:
    """Write the folder of a run that a colleague trained; return its files."""
    config = {
        **KEYS,
        "data": {"path": str(shards), "train": "train", "mean": [0.5] * 3, "std": [0.5] * 3, "max_bad": "1%"},
        "probe": {"branch": "student"},
    }
    plans = [EpochPlan(epoch, 32, 1.0, 2, 12, 4).__dict__ | {"step": 5 * epoch} for epoch in range(2)]
    lines = [{"step": step, "epoch": 0, "ranks": 2, "count": 6, "hash": 2**63 + step} for step in range(STEPS)]
    rows = {
        "metrics.jsonl": [PLACE | NUMBERS | {"step": step} for step in range(1, STEPS)],
        "plan.jsonl": plans,
        "quarantine.jsonl": [{"number": 3, "split": "train", "step": 1, "key": "a", "reason": "broken"}],
        "evaluations.jsonl": [{"step": 4, "branch": "student", "protocol": "knn", "knn_accuracy": 0.5}],
        **{f"ledger/attempt_0001_rank_0000{rank}.jsonl": [*lines, {"saved": STEPS}] for rank in range(2)},
    }
    files = {
        "config.yaml": yaml.safe_dump(config),
        "overrides.yaml": yaml.safe_dump(["method=mocov3", "epochs=2"]),
        "attempts/0001/config.yaml": yaml.safe_dump(config),
        "attempts/0001/outcome.json": json.dumps(ENDING),
        "attempts/0001/energy_0000.json": json.dumps({"gpus": 3.6e6, "processors": 5.0}),
        "status.json": json.dumps(NUMBERS | {"seconds_left": 60.0, "images_per_second": 580.0}),
        "counters.json": json.dumps({"steps": 4.0}),
        "job": "71 0\n",
        "launcher.lock": "elsewhere 12\n",
        **{name: "".join(json.dumps(row) + "\n" for row in found) for name, found in rows.items()},
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "checkpoints" / "step_00000004").mkdir(parents=True)
    blocks = b"".join(encode(np.array([(n, 0, 1, 12, 0, n, 0)], dtype=ROW), 0, 1, n + 1) for n in range(STEPS))
    (folder / BLOCKS).write_bytes(blocks)
    return {BLOCKS: blocks, **{name: text.encode() for name, text in files.items()}}


def changed(name: str, data: bytes, chance: random.Random) -> bytes:
    """Return the content of a file after somebody has changed a value, nested one too deeply, or changed any bytes."""
    kind = chance.randrange(8)
    if kind == 0 or name == BLOCKS:
        return mutated(data, chance)
    if kind == 1:
        return chance.choice(["[" * DEEP, '{"a":' * DEEP, "- " * DEEP]).encode()
    if kind == 3 and name.endswith(".json"):
        return MANY
    if name == "job" or kind == 2:
        return chance.choice([*TEXTS, "7 -1", "71_3 2", "\u0667 0"]).encode("utf-8", "replace")
    if name.endswith(".yaml"):
        return yaml.safe_dump(spoken(yaml.safe_load(data), chance)).encode()
    rows = [json.loads(line) for line in data.decode().splitlines() if line[:1] == "{"]
    if not rows:
        return mutated(data, chance)
    place = chance.randrange(len(rows))
    rows[place] = spoken(rows[place], chance)
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def spoken(value: Any, chance: random.Random) -> Any:
    """Return the value with something else in it, now and then a text that acts on a terminal."""
    if isinstance(value, dict) and value and chance.random() < 0.2:
        return {**value, chance.choice(sorted(value)): chance.choice(TEXTS)}
    return edited(value, chance)


def doctored(folder: Path, whole: dict[str, bytes], chance: random.Random) -> None:
    """Write the folder with one to three files changed, or one that is something else, or attempts that never were."""
    shutil.rmtree(folder / "attempts")
    for name, data in whole.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink() or not path.is_file():
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
        elif path.read_bytes() == data:
            continue  # some file systems wait for the disk before a file is written anew
        path.write_bytes(data)
    for name in chance.choices(sorted(whole), k=chance.randint(1, 3)):
        (folder / name).write_bytes(changed(name, whole[name], chance))
    if chance.random() < 0.3:
        (folder / "attempts" / chance.choice(ATTEMPTS)).mkdir(exist_ok=True)
    if chance.random() < 0.2:
        path = folder / chance.choice(sorted(whole))
        path.unlink()
        [os.mkfifo, Path.mkdir, lambda own: own.symlink_to("/dev/zero"), lambda own: own.symlink_to(own)][
            chance.randrange(4)
        ](path)
    if chance.random() < 0.1:
        energy = folder / "attempts" / "0001" / "energy_0000.json"
        for node in range(1, 30):
            energy.with_name(f"energy_{node:04d}.json").symlink_to(energy.name)


@pytest.fixture
def theirs(tmp_path: Path, demo_shards: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Found]:
    """The folder of a run beside a file that nothing may change, and its files; Slurm knows none of its jobs."""
    monkeypatch.setattr(scheduler, "queue_state", lambda job: "" if a_number(job) else None)
    monkeypatch.setattr(scheduler, "record", lambda job: {} if a_number(job) else None)
    monkeypatch.setattr(following, "LATE_SECONDS", 0.0)
    monkeypatch.setattr(following, "LOOK_SECONDS", 0.0)
    canary, folder = tmp_path / "thesis.tar", tmp_path / "runs" / "theirs"
    canary.write_text("years of work")
    yield folder, run_folder(folder, demo_shards)
    assert canary.read_text() == "years of work"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs", "thesis.tar"]


def a_number(job: str) -> bool:
    """Return True. Raises AssertionError for a job that is no number: nothing else reaches Slurm's commands."""
    assert job.replace("_", "").isdigit()
    assert job.isascii()
    return True


def printed(file: io.StringIO) -> str:
    """The text that was shown; nothing of it acts on a terminal."""
    text = file.getvalue()
    acting = {character for character in text if unicodedata.category(character) in ("Cc", "Cf")} - {"\n", "\t"}
    assert not acting, text
    return text


def accepted(run: Any, *arguments: str) -> bool:
    """Whether a command has an answer; otherwise it says what is damaged."""
    file = io.StringIO()
    code = run_command(run, [*arguments], Screen(file=file, width=120))
    said = printed(file)
    assert code in (0, 1, EXIT_CODE, STOPPED_CODE)
    assert said.strip()
    return code != EXIT_CODE


@pytest.mark.parametrize("inputs", shares(100))
def test_a_colleagues_run_is_in_the_table_or_named(inputs: range, theirs: Found) -> None:
    folder, whole = theirs

    def work(chance: random.Random) -> bool:
        doctored(folder, whole, chance)
        assert accepted(status.run, f"runs={folder.parent}"), "one run must not hide the others"
        return accepted(status.run, f"run={folder}")

    assert some(tried(inputs, work, folder), inputs)


@pytest.mark.parametrize("inputs", shares(100))
def test_a_report_of_a_colleagues_run_is_a_page_or_one_message(inputs: range, theirs: Found) -> None:
    folder, whole = theirs

    def work(chance: random.Random) -> bool:
        doctored(folder, whole, chance)
        page = folder / "report.html"
        page.unlink(missing_ok=True)
        return accepted(report.run, f"run={folder}", f"out={page}")

    assert some(tried(inputs, work, folder), inputs)


@pytest.mark.parametrize("inputs", shares(100))
def test_an_audit_of_a_colleagues_run_has_an_answer(inputs: range, theirs: Found) -> None:
    folder, whole = theirs

    def work(chance: random.Random) -> bool:
        doctored(folder, whole, chance)
        return accepted(audit.run, f"run={folder}")

    assert some(tried(inputs, work, folder), inputs)


@pytest.mark.parametrize("inputs", shares(100))
def test_a_followed_run_is_shown_to_its_end(inputs: range, theirs: Found) -> None:
    folder, whole = theirs

    def work(chance: random.Random) -> bool:
        doctored(folder, whole, chance)
        return accepted(slurm.command, f"follow={folder}")

    assert some(tried(inputs, work, folder), inputs)


@pytest.mark.parametrize("inputs", shares(100))
def test_evaluations_of_a_colleagues_run_are_numbers_or_left_out(inputs: range, theirs: Found) -> None:
    folder, whole = theirs
    (folder / "attempts" / "0001" / "config.yaml").write_bytes(whole["config.yaml"])

    def work(chance: random.Random) -> bool:
        for name in ("evaluations.jsonl", "metrics.jsonl"):
            (folder / name).write_bytes(changed(name, whole[name], chance))
        exported = Evaluations(folder / "evaluations.jsonl").values()
        assert all(math.isfinite(value) for value in exported.values())
        return bool(list(model_card.measured(RunDir(folder), STEPS, "student")))

    assert some(tried(inputs, work, folder), inputs)


@pytest.mark.parametrize("inputs", shares(100))
def test_any_plan_is_a_prediction_or_refused(inputs: range, tmp_path: Path) -> None:
    plan, path = {"source": "Measured.", "points": [[0, 0], [2400, 40], [4800, 50]]}, tmp_path / "plan.json"

    def read(arguments: list[str], console: Any) -> int:
        console.print(Prediction.read(path).seconds(100))
        return 0

    def work(chance: random.Random) -> bool:
        path.write_bytes(changed("plan.json", json.dumps(plan).encode(), chance))
        return accepted(read)

    assert some(tried(inputs, work, tmp_path), inputs)


def test_the_folder_of_these_tests_is_one_that_every_command_accepts(theirs: Found) -> None:
    folder, _ = theirs
    for run in (status.run, report.run, audit.run):
        assert accepted(run, f"run={folder}")
    assert Ending.read(folder / "attempts" / "0001" / "outcome.json") == Ending(**ENDING)
