"""The script for GPUs runs on a CPU in small sizes, and keeps going whatever a part does."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.gpu import run
from tests.gpu.run import BARS, PARTS, Bar, Part, Report
from tests.gpu.throughput import uncovered

SCRIPT = Path(run.__file__).with_name("run.sh")
ROWS = {
    "a": ("Python", "numba compiles", "a JPEG is decoded"),
    "b": (
        "DINO's recipe, bf16",
        "mocov3, as on the CPU",
        "swav + rotation",
        "LARS",
        "batch norm, bfloat16",
        "photometry",
    ),
    "c": ("resnet50: our step, bf16", "resnet50: plain step", "resnet50: host stops", "vit_small: a step, profiled"),
    "d": ("vit_small: compiled blocks", "vit_small: our step, bf16, compiled"),
    "e": ("loader alone", "resnet50: fed from JPEG", "resnet50: idle share", "resnet50: plain loop with a PIL loader"),
    "f": ("killed and resumed, the same bits and losses",),
    "g": ("ddp alone, float64: saves beside training", "ddp alone, float64: reads its own"),
}
"""What each part has to say, by the start of its rows."""


def ran(out: Path, parts: str) -> dict[str, Any]:
    """Run these parts on the CPU; they all hold, and each printed its rows. What results.json says."""
    words = ["device=cpu", f"python={sys.executable}", f"out={out}", f"part={parts}", "steps=2"]
    found = subprocess.run(["sh", str(SCRIPT), *words], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout[-4000:] + found.stderr[-2000:]
    results: dict[str, Any] = json.loads((out / "results.json").read_text())
    for letter in parts.split(","):
        printed = (out / f"{letter}.txt").read_text()
        for name in ROWS[letter]:
            assert any(line.startswith(name) for line in printed.splitlines()), f"{letter}: no row {name}"
        own = [row for row in results["rows"] if row["part"] == letter]
        assert {row["verdict"] for row in own} <= {"right", "proved", "seen", "SKIPPED"}
        assert printed in found.stdout
    return results


def test_the_shorter_parts_hold_on_a_cpu(tmp_path: Path) -> None:
    results = ran(tmp_path, "a,b,c,e")
    measured = {bar.key for bar in BARS if "vit_base" not in bar.key} - {"against_plain"}
    assert measured <= results["measures"].keys()
    assert all(bar["seen"] is not None for bar in results["bars"] if "ViT-B" not in bar["name"])


@pytest.mark.chaos
def test_the_whole_script_holds_on_a_cpu(tmp_path: Path) -> None:
    ran(tmp_path, ",".join(PARTS))


def test_a_word_or_a_part_that_is_not_known_is_refused() -> None:
    for word in ("device", "prat=a", "part=x"):
        found = subprocess.run(
            ["sh", str(SCRIPT), "device=cpu", f"python={sys.executable}", word],
            capture_output=True,
            text=True,
            check=False,
        )
        assert found.returncode == 2
        assert "is not known" in found.stderr


FAKE = """
import subprocess, sys, time
print("first | right | a row before the fault", flush=True)
print("# stops_resnet50=0.0", flush=True)
{fault}
"""
FAULTS = {
    "crashes": "import os; os.abort()",
    "raises": "raise ValueError('no')",
    "hangs": "subprocess.Popen(['sleep', '987654'], start_new_session=True); time.sleep(600)",
    "lies": "print('second | WRONG | it is not so', flush=True); sys.exit(1)",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_a_part_does_stops_no_other_and_what_it_printed_counts(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, code in (("bad", FAULTS[fault]), ("good", "")):
        (tmp_path / f"{name}.py").write_text(FAKE.format(fault=code))
    monkeypatch.setattr(run, "FOLDER", tmp_path)
    monkeypatch.setattr(run, "PARTS", {"a": Part("bad", 6, "bad"), "b": Part("good", 60, "good")})
    monkeypatch.setattr(sys, "argv", ["run.py", "--device", "cuda", "--out", str(tmp_path / "out"), "--part", "a,b"])
    start = time.monotonic()
    assert run.main() == 1
    assert time.monotonic() - start < 40
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    verdicts = [(row["part"], row["verdict"]) for row in results["rows"]]
    assert verdicts == [("a", "right"), ("a", "WRONG" if fault == "lies" else "FAILED"), ("b", "right")]
    assert "first | right" in (tmp_path / "out" / "b.txt").read_text()
    assert "1 WRONG" in capsys.readouterr().out if fault == "lies" else True
    assert not still_there("987654"), "a part that was killed left a process behind"


def still_there(word: str) -> bool:
    """Whether a process with this word in its command line runs."""
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if word.encode() in entry.read_bytes() and int(entry.parent.name) != os.getpid():
                return True
        except OSError:
            continue
    return False


def test_bars_are_judged_by_what_was_measured() -> None:
    at_least, most = Bar("", "c", "x", 3, 5), Bar("", "c", "x", 0.03, most=True)
    assert [at_least.verdict(value) for value in (None, float("nan"), 2.9, 3, 5)] == [
        *("not measured", "not measured", "MISSED", "reached", "star")
    ]
    assert [most.verdict(value) for value in (0.029, 0.031)] == ["reached", "MISSED"]
    report = Report("cuda")
    for line in (
        "# fed_resnet50=1300.0",
        "# plain_fed_resnet50=200",
        "# stops_resnet50=nan",
        "a | b",
        "x | right | y | z",
    ):
        report.take("e", line)
    found = {bar.key: word for bar, _, word in report.bars("e")}
    assert found["against_plain"] == "star"
    assert found["fed_resnet50"] == "reached"
    assert found["fed_vit_small"] == "not measured"
    assert report.rows == [{"part": "e", "name": "x", "verdict": "right", "seen": "y | z"}]


def test_the_idle_share_is_what_no_kernel_covers() -> None:
    assert uncovered([(0, 4), (1, 2), (3, 5), (7, 10)]) == pytest.approx(0.2)
    assert uncovered([(0, 5), (5, 10)]) == 0
    assert uncovered([]) != uncovered([]), "nothing was measured"
