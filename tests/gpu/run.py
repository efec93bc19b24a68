"""Runs the parts of the script for GPUs one after the other, each in its own processes and within its own time.

    python tests/gpu/run.py [--part a,c] [--device cuda] [--out FOLDER] [--limit 540] [--steps 20] [--spent 0]

Whatever a part prints is passed on line by line. A part that is over its time is killed with all that it has started,
and the next one runs whatever the last one did. At the end stands a table of the bars; exit code 1 where a claim does
not hold or a bar is missed. This file needs nothing but Python (and psutil, where processes left their group).
"""

import argparse
import contextlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

FOLDER = Path(__file__).resolve().parent
ROW = re.compile(r"^(.+?) \| (right|proved|seen|WRONG|FAILED|SKIPPED) \| (.*)$")
MEASURE = re.compile(r"^# (\w+)=(\S+)$")
BAD = ("WRONG", "FAILED")
CPU_SECONDS = 240.0
"""Of every part without a GPU: sizes are small, but machines that test may be busy."""
REST = 0.0


@dataclass(frozen=True)
class Part:
    """A script, its share of the time, and the subjects that get processes of their own, with their weights.

    `beside`: further scripts of the part, with their weights where the script's own is 1.
    """

    script: str
    seconds: float
    what: str
    subjects: Mapping[str, float] = field(default_factory=dict)
    beside: Mapping[str, float] = field(default_factory=dict)

    def processes(self, apart: bool) -> dict[tuple[str, str], float]:
        """Scripts and subjects with their weights; the subjects have one process together unless they are `apart`."""
        subjects = self.subjects if apart and self.subjects else {"": 1.0}
        own = {(self.script, subject): weight for subject, weight in subjects.items()}
        return own | {(script, ""): weight for script, weight in self.beside.items()}


PARTS = {
    "a": Part("machine", 25, "versions, numba, pinned memory"),
    "b": Part("correct", 110, "the GPU's numbers are the CPU's", beside={"norms": 0.4, "colours": 0.5}),
    "c": Part("throughput", 150, "what a step costs", {"resnet50": 3, "vit_small": 2, "vit_base": 1}),
    "d": Part("compiled", 60, "compiled blocks", {"vit_small": 1, "resnet50": 1}),
    "e": Part("feeding", 110, "from JPEG to weight update"),
    "f": Part("resuming", 40, "killed and resumed"),
    "g": Part("engines", REST, "engines read what others wrote"),
}


@dataclass(frozen=True)
class Bar:
    """What a measurement must reach: at least, or `most`. `star`: what would be better still."""

    name: str
    part: str
    key: str
    bar: float
    star: float | None = None
    most: bool = False

    def reached(self, value: float, target: float) -> bool:
        """Whether the value is as good as the target."""
        return value <= target if self.most else value >= target

    def verdict(self, value: float | None) -> str:
        """In a word."""
        if value is None or math.isnan(value):
            return "not measured"
        if self.star is not None and self.reached(value, self.star):
            return "star"
        return "reached" if self.reached(value, self.bar) else "MISSED"


BARS = (
    Bar("MoCo v3 ResNet-50 from JPEG, images/s", "e", "fed_resnet50", 1200, 1500),
    Bar("MoCo v3 ViT-S/16 from JPEG, images/s", "e", "fed_vit_small", 2800, 3500),
    Bar("MoCo v3 ViT-B/16 from JPEG, images/s", "e", "fed_vit_base", 850, 1130),
    Bar("idle share of the GPU, ResNet-50", "e", "idle_resnet50", 0.03, most=True),
    Bar("idle share of the GPU, ViT-S/16", "e", "idle_vit_small", 0.03, most=True),
    Bar("ours against the plain loop with a PIL loader", "e", "against_plain", 3, 5),
    Bar("launches in a step, ResNet-50", "c", "launches_resnet50", 1500, most=True),
    Bar("host stops in a step, ResNet-50", "c", "stops_resnet50", 0, most=True),
    Bar("host stops in a step, ViT-S/16", "c", "stops_vit_small", 0, most=True),
)


@dataclass
class Report:
    """All that is known so far."""

    device: str
    rows: list[dict[str, str]] = field(default_factory=list)
    measures: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def take(self, part: str, line: str) -> None:
        """Remember a line that a part has printed, if it is a row or a measurement."""
        if row := ROW.match(line):
            self.rows.append({"part": part, "name": row[1], "verdict": row[2], "seen": row[3]})
        elif measure := MEASURE.match(line):
            with contextlib.suppress(ValueError):
                self.measures[measure[1]] = float(measure[2])

    def bars(self, parts: str) -> Iterator[tuple[Bar, float | None, str]]:
        """The bars of these parts: what was measured, and the verdict."""
        found = dict(self.measures)
        if "fed_resnet50" in found and found.get("plain_fed_resnet50"):
            found["against_plain"] = found["fed_resnet50"] / found["plain_fed_resnet50"]
        for bar in BARS:
            if bar.part in parts:
                yield bar, found.get(bar.key), bar.verdict(found.get(bar.key))

    def write(self, out: Path | None, parts: str) -> None:
        """Write results.json."""
        if out is None:
            return
        bars = [
            {"name": bar.name, "bar": bar.bar, "seen": value, "verdict": word} for bar, value, word in self.bars(parts)
        ]
        content = {"device": self.device, "seconds": self.seconds, "bars": bars, "measures": self.measures}
        (out / "results.json").write_text(json.dumps({**content, "rows": self.rows}, indent=1))


def family(pid: int) -> list[Any]:
    """All processes below this one, also those that have left its group."""
    try:
        import psutil

        return list(psutil.Process(pid).children(recursive=True))
    except Exception:  # without psutil, or where it is gone already
        return []


def kill(process: "subprocess.Popen[str]") -> None:
    """Kill a part with all that it has started."""
    others = family(process.pid)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for other in others:
        with contextlib.suppress(Exception):
            other.kill()
    process.wait()


class Runner:
    """Runs parts within the time there is."""

    def __init__(self, asked: argparse.Namespace, scratch: Path) -> None:
        self.device, self.steps, self.out = asked.device, asked.steps, asked.out
        self.until: float = time.monotonic() + asked.limit - asked.spent
        self.report = Report(asked.device)
        own = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "PYTHONUNBUFFERED": "1"}
        own |= {"TORCHINDUCTOR_CACHE_DIR": str(scratch / "inductor"), "TRITON_CACHE_DIR": str(scratch / "triton")}
        own |= {"CUDA_VISIBLE_DEVICES": ""} if asked.device == "cpu" else {}
        self.environment = {**os.environ, **own}

    @property
    def left(self) -> float:
        """Seconds of the whole."""
        return self.until - time.monotonic()

    def part(self, letter: str) -> None:
        """Run a part: its subjects one after the other, each with its share of what is left of the part's time."""
        part, start = PARTS[letter], time.monotonic()
        seconds = min(part.seconds or self.left, self.left) if self.device == "cuda" else CPU_SECONDS
        weights = part.processes(self.device == "cuda")
        print(f"\n== {letter}: {part.what} (at most {seconds:.0f} s)", flush=True)
        while weights:
            (script, subject), share = next(iter(weights.items()))
            own = (seconds - (time.monotonic() - start)) * share / sum(weights.values())
            del weights[script, subject]
            self.process(letter, script, subject, min(own, self.left if self.device == "cuda" else own))
        self.report.seconds[letter] = round(time.monotonic() - start, 1)
        print(f"== {letter}: {self.report.seconds[letter]} s", flush=True)

    def process(self, letter: str, script: str, subject: str, seconds: float) -> None:
        """Run one process of a part, and kill it when its time is over."""
        if seconds < 5:
            self.line(letter, f"{script} {subject} | SKIPPED | no time was left")
            return
        words = ["--device", self.device, *(["--only", subject] if subject else [])]
        words += ["--seconds", f"{seconds:.1f}"]
        if script == "engines":  # it may start a claim just before its time is over
            words[-1] = f"{max(5.0, min(seconds - 25, 20 if self.device == 'cpu' else seconds)):.1f}"
            words += ["--steps", str(self.steps)]
        command = [sys.executable, str(FOLDER / f"{script}.py"), *words]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
            start_new_session=True, env=self.environment,
        )  # fmt: skip
        assert process.stdout
        before = len(self.report.rows)
        reader = threading.Thread(target=self.read, args=(letter, process.stdout), daemon=True)
        reader.start()
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            kill(process)
        reader.join(2)  # a process that was missed may hold the pipe open
        if code is None:
            self.line(letter, f"{script} {subject} | FAILED | killed: its {seconds:.0f} s were over")
        elif code and not any(row["verdict"] in BAD for row in self.report.rows[before:]):
            self.line(letter, f"{script} {subject} | FAILED | ended with exit code {code}")

    def read(self, letter: str, lines: IO[str]) -> None:
        """Pass on what a process prints."""
        with contextlib.suppress(ValueError, OSError):
            for line in lines:
                self.line(letter, line.rstrip("\n"))

    def line(self, letter: str, text: str) -> None:
        """Print a line, keep it, and remember what it says."""
        print(text, flush=True)
        self.report.take(letter, text)
        if self.out:
            with (self.out / f"{letter}.txt").open("a") as file:
                file.write(f"{text}\n")


def table(report: Report, parts: str, gpu: bool) -> int:
    """Print what did not hold and the bars; how many of both there are."""
    bad = [row for row in report.rows if row["verdict"] in BAD]
    counts = {verdict: sum(row["verdict"] == verdict for row in report.rows) for verdict in (*BAD, "SKIPPED")}
    print(f"\n{len(report.rows)} rows, {', '.join(f'{n} {verdict}' for verdict, n in counts.items())}")
    for row in bad:
        print(f"  {row['part']}: {row['name']} | {row['verdict']} | {row['seen']}")
    missed = 0
    print(f"\n{'bar':48} {'at':>9} {'star':>7} {'seen':>10}" + ("" if gpu else "   (bars are a GPU's)"))
    for bar, value, word in report.bars(parts):
        at, seen = f"{'<=' if bar.most else '>='} {bar.bar:g}", "-" if value is None else f"{value:,.4g}"
        star = "" if bar.star is None else f"{bar.star:g}"
        print(f"{bar.name:48} {at:>9} {star:>7} {seen:>10}  {word if gpu else ''}".rstrip())
        missed += word in ("MISSED", "not measured")
    return len(bad) + (missed if gpu else 0)


def main() -> int:
    """Run what is asked for; 1 where something does not hold."""
    start = time.monotonic()
    parser = argparse.ArgumentParser(description="Runs the proofs and measurements that need a GPU.")
    parser.add_argument("--part", default=",".join(PARTS), help="letters, as in a,c")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--limit", type=float, default=540.0, help="seconds of the whole on a GPU")
    parser.add_argument("--spent", type=float, default=0.0, help="seconds of them that are gone")
    parser.add_argument("--steps", type=int, default=20, help="that engines train after each checkpoint")
    asked = parser.parse_args()
    letters = asked.part.replace(",", "")
    if unknown := sorted(set(letters) - PARTS.keys()):
        print(f"part={','.join(unknown)} is not known: parts are {', '.join(PARTS)}.", file=sys.stderr)
        return 2
    if asked.out:
        asked.out.mkdir(parents=True, exist_ok=True)
        for letter in letters:
            (asked.out / f"{letter}.txt").write_text("")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what runs is killed too
    with tempfile.TemporaryDirectory() as scratch:
        runner = Runner(asked, Path(scratch))
        for letter in sorted(letters):
            try:
                runner.part(letter)
            except Exception as error:  # the next part runs whatever the last one did
                runner.line(letter, f"part {letter} | FAILED | {type(error).__name__}: {error}")
            runner.report.write(asked.out, letters)
    bad = table(runner.report, letters, asked.device == "cuda")
    print(f"\n{time.monotonic() - start + asked.spent:.0f} s in all; {bad} to look at" if bad else "\nall holds")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
