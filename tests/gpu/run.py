"""Runs the parts of the script for GPUs one after the other, each in its own processes and within its own time.

    python tests/gpu/run.py [--part a,c:resnet50] [--only resnet50] [--bars] [--device cuda] [--out FOLDER]
                            [--limit 540] [--steps 20] [--spent 0]

Whatever a part prints is passed on line by line. A part that is over its time is killed with all that it has started,
and the next one runs whatever the last one did. At the end stands a table of the bars; exit code 1 where a claim does
not hold or a bar is missed. This file needs nothing but Python (and psutil, where processes left their group).
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.gpu.report import BAD, Report, table

FOLDER = Path(__file__).resolve().parent
CPU_SECONDS = 240.0
"""Of every part without a GPU: sizes are small, but machines that test may be busy."""
QUIET = "ignore:Synchronization debug mode,ignore::UserWarning:torch.profiler.profiler"
"""Warnings of torch that say nothing about what is run."""


@dataclass(frozen=True)
class Part:
    """A script, its share of the time, and its subjects with their weights; each has a process of its own.

    `together`: all subjects share one process. `beside`: further scripts of the part, with their weights where the
    script's own is 1.
    """

    script: str
    seconds: float
    what: str
    subjects: Mapping[str, float] = field(default_factory=dict)
    together: bool = False
    beside: Mapping[str, float] = field(default_factory=dict)

    @property
    def scripts(self) -> dict[str, float]:
        """The scripts, with their weights."""
        return {self.script: 1.0, **self.beside}

    def processes(self, chosen: set[str], apart: bool) -> dict[tuple[str, str], float]:
        """Return scripts and subjects with their weights; subjects share one process unless they are `apart`.

        `chosen`: the subjects or scripts to run; empty: all.
        """
        if chosen & self.scripts.keys():
            return {(script, ""): weight for script, weight in self.scripts.items() if script in chosen}
        subjects = {name: weight for name, weight in self.subjects.items() if not chosen or name in chosen}
        if chosen and not subjects:
            return {}
        if not subjects or self.together or not apart:
            subjects = {"+".join(subjects) if chosen else "": 1.0}
        own = {(self.script, subject): weight for subject, weight in subjects.items()}
        return own | {(script, ""): weight for script, weight in self.beside.items()}


PARTS = {
    "a": Part("machine", 15, "versions, numba, pinned memory"),
    "b": Part("correct", 90, "the GPU's numbers are the CPU's", beside={"norms": 0.35, "colours": 0.35}),
    "c": Part("throughput", 130, "what a step costs", {"resnet50": 3, "vit_small": 2, "vit_base": 1}),
    "d": Part("compiled", 80, "compiled blocks", {"vit_small": 1, "resnet50": 1}),
    "e": Part(
        "feeding", 120, "from JPEG to weight update", dict.fromkeys(("resnet50", "vit_small", "vit_base"), 1), True
    ),
    "f": Part("resuming", 70, "killed and resumed"),
    "g": Part("engines", 35, "engines read what others wrote"),
}
"""Their seconds are shares of the time that is left: what a part does not need, those after it get."""


def selected(asked: str, only: str) -> dict[str, set[str]]:
    """Return the parts that are asked for, in that order, each with its chosen subjects or scripts.

    `asked`: as in a,c:resnet50+vit_base,b:norms. `only`: what parts run of their subjects where they name none.
    Raises ValueError.
    """
    found: dict[str, set[str]] = {}
    for item in filter(None, asked.split(",")):
        letter, _, names = item.partition(":")
        if letter not in PARTS:
            raise ValueError(f"part={item} is not known: parts are {', '.join(PARTS)}.")
        chosen = set(filter(None, names.split("+")))
        known = PARTS[letter].subjects.keys() | PARTS[letter].scripts.keys()
        if chosen - known:
            raise ValueError(f"part={item} is not known: {letter} has {', '.join(sorted(known))}.")
        found[letter] = found.get(letter, set()) | chosen
    wanted = set(filter(None, only.replace("+", ",").split(",")))
    known = {name for part in PARTS.values() for name in part.subjects}
    if wanted - known:
        raise ValueError(f"only={only} is not known: there are {', '.join(sorted(known))}.")
    return {letter: names or (wanted if PARTS[letter].subjects else set()) for letter, names in found.items()}


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

    def __init__(self, asked: argparse.Namespace, parts: Mapping[str, set[str]], scratch: Path) -> None:
        self.device, self.steps, self.out, self.bars = asked.device, asked.steps, asked.out, asked.bars
        self.parts = parts
        self.until: float = time.monotonic() + asked.limit - asked.spent
        self.report = Report(asked.device)
        own = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": QUIET}
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
        later = list(self.parts)[list(self.parts).index(letter) :]
        share = part.seconds / sum(PARTS[other].seconds for other in later)
        seconds = self.left * share if self.device == "cuda" else CPU_SECONDS
        weights = part.processes(self.parts[letter], self.device == "cuda")
        print(f"\n== {letter}: {part.what} (at most {seconds:.0f} s)", flush=True)
        while weights:
            (script, subject), share = next(iter(weights.items()))
            own = (seconds - (time.monotonic() - start)) * share / sum(weights.values())
            del weights[script, subject]
            begun = time.monotonic()
            self.process(letter, script, subject, min(own, self.left if self.device == "cuda" else own))
            self.report.seconds[f"{letter}: {script} {subject}".rstrip()] = round(time.monotonic() - begun, 1)
        self.report.seconds[letter] = round(time.monotonic() - start, 1)
        print(f"== {letter}: {self.report.seconds[letter]} s", flush=True)

    def process(self, letter: str, script: str, subject: str, seconds: float) -> None:
        """Run one process of a part, and kill it when its time is over."""
        if seconds < 5:
            self.line(letter, f"{script} {subject} | SKIPPED | no time was left")
            return
        words = ["--device", self.device, *(["--only", subject] if subject else [])]
        words += [*(["--bars"] if self.bars and script == "throughput" else []), "--seconds", f"{seconds:.1f}"]
        if script == "engines":  # it may start a claim just before its time is over
            words[-1] = f"{max(5.0, min(seconds - 12, 20 if self.device == 'cpu' else seconds)):.1f}"
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


def main() -> int:
    """Run what is asked for; 1 where something does not hold."""
    start = time.monotonic()
    parser = argparse.ArgumentParser(description="Runs the proofs and measurements that need a GPU.")
    parser.add_argument("--part", default=",".join(PARTS), help="letters, as in a,c:resnet50+vit_base")
    parser.add_argument("--only", default="", help="the nets that c, d and e run, as in resnet50")
    parser.add_argument("--bars", action="store_true", help="c: only what the bars need")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--limit", type=float, default=540.0, help="seconds of the whole on a GPU")
    parser.add_argument("--spent", type=float, default=0.0, help="seconds of them that are gone")
    parser.add_argument("--steps", type=int, default=20, help="that engines train after each checkpoint")
    parser.add_argument("--check", action="store_true", help="only whether parts and nets are known")
    asked = parser.parse_args()
    try:
        parts = selected(asked.part, asked.only)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if asked.check:
        return 0
    if asked.out:
        asked.out.mkdir(parents=True, exist_ok=True)
        for letter in parts:
            (asked.out / f"{letter}.txt").write_text("")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what runs is killed too
    with tempfile.TemporaryDirectory() as scratch:
        runner = Runner(asked, parts, Path(scratch))
        for letter in parts:
            try:
                runner.part(letter)
            except Exception as error:  # the next part runs whatever the last one did
                runner.line(letter, f"part {letter} | FAILED | {type(error).__name__}: {error}")
            runner.report.write(asked.out, parts)
    bad = table(runner.report, parts, asked.device == "cuda")
    print(f"\n{time.monotonic() - start + asked.spent:.0f} s in all; {bad} to look at" if bad else "\nall holds")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
