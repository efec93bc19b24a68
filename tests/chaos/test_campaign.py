"""A campaign of random disturbances: methods x engines x worlds x interruptions x damage, each case from its number.

A case trains a small run, interrupts it one to three times, does something to its files in between, and resumes it
until it has finished. It must end with the weights, losses and samples of a run that nothing happened to, and with a
clean audit; or be refused by one clear message and exit code 2, and go on once the cause is undone. No case may hang,
print a stack trace anywhere, or leave a process or shared memory behind.

CAMPAIGN_SEED, CAMPAIGN_CASES (200) and CAMPAIGN_FIRST (0) choose the cases; a case that fails prints its command.
"""

import json
import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from rich.table import Table

from dist_ssl.checkpoint.folder_names import published
from dist_ssl.data.storage import manifest
from dist_ssl.distributed import shared_memory
from dist_ssl.runtime import jsonl
from launch.run_dir import RunDir
from tests.chaos import disturbances, forked
from tests.chaos.cases import STEPS, Case, Event
from tests.chaos.disturbances import CLEAR, DAMAGES, Damage
from tests.chaos.forked import Command
from tests.disks import small_disk
from tests.readers import rehashed
from tests.system.launching import await_that, delivered, weights, words

SEED = int(os.environ.get("CAMPAIGN_SEED") or time.time())
FIRST, COUNT = (int(os.environ.get(f"CAMPAIGN_{name}", usual)) for name, usual in (("FIRST", 0), ("CASES", 200)))

LENGTH = ("epochs=4", "probe.every=3 epochs", "keep_last=3", "data.max_bad=10%")
TRACES = ("Traceback (most recent call last)", "Exception ignored in", "Fatal Python error", "terminate called")
DISK_MB = 48
ORDERLY = (0, 75, 130, -int(signal.SIGINT), -int(signal.SIGTERM))
"""Exit codes of a command that was asked to stop; a signal ends one that does not listen yet."""
EXPECTED = {"": (0, 1, -9), "stop": ORDERLY, "ctrl-c": ORDERLY, "pause": (0,), "stop in a hurry": (*ORDERLY, -9)}
"""Exit codes by what was done to the command."""
SHARED = Path("/dev/shm")


def command(data: Path, runs: Path, *more: str) -> list[str]:
    """The words of a new run: those of the system tests without the keys that not every method has."""
    usual = [word for word in words(data, runs) if not word.startswith("method")]
    return [*usual, *LENGTH, *more]


@dataclass
class Reference:
    """What a run came to that nothing happened to."""

    weights: dict[str, Any]
    losses: dict[int, float]
    samples: dict[int, int]

    @classmethod
    def of(cls, run: Path) -> "Reference":
        return cls(weights(run, STEPS), losses(run), delivered(run))


def losses(run: Path) -> dict[int, float]:
    """The logged loss of every step that has one: some may have been lost with the file."""
    rows = [row for row in jsonl.read(run / "metrics.jsonl") if "loss" in row and isinstance(row.get("step"), int)]
    return {row["step"]: row["loss"] for row in rows}


class Campaign:
    """The references so far, and what has been done."""

    def __init__(self, data: Path, folder: Path) -> None:
        self.data, self.folder = data, folder
        self.references: dict[tuple[str, ...], Reference] = {}
        self.counts: Counter[str] = Counter()

    def reference(self, case: Case) -> Reference:
        """The undisturbed run of this science on this number of nodes."""
        return self._undisturbed((*case.science, f"nodes={case.nodes}"))

    def rounding(self, case: Case) -> dict[int, float]:
        """How far single precision alone has moved the loss by each step: from that of double precision, the largest.

        DeepSpeed knows no double precision; plain DDP stands in for it, as it has the same losses.
        """
        ours = [word for word in case.science if not word.startswith("engine")]
        single = self.reference(case).losses
        double = self._undisturbed((*ours, "precision=fp64", f"nodes={case.nodes}")).losses
        steps = sorted(single.keys() & double.keys())
        return dict(zip(steps, accumulate((abs(single[step] - double[step]) for step in steps), max), strict=True))

    def _undisturbed(self, key: tuple[str, ...]) -> Reference:
        if key not in self.references:
            runs = self.folder / f"{len(self.references)}"
            runs.mkdir()
            code, text = Command(command(self.data, runs, *key, "name=undisturbed"), runs / "printed").finish()
            assert code == 0, text
            self.references[key] = Reference.of(runs / "undisturbed")
            shutil.rmtree(runs)
        return self.references[key]


@pytest.fixture(scope="module")
def campaign(demo_shards: Path, tmp_path_factory: pytest.TempPathFactory, request: Any) -> Iterator[Campaign]:
    """The campaign, with a table of what was done at its end."""
    forked.load()
    folder = tmp_path_factory.mktemp("references")
    data = Path(shutil.copytree(demo_shards, folder / "data"))
    for number, head in ((7, b"GIF89a"), (48, b"")):
        disturbances.overwrite(manifest.read(data).split("train"), number, head)
    found = Campaign(rehashed(data), folder)
    yield found
    table = Table("", "times", title=f"campaign, seed {SEED}")
    for name, count in sorted(found.counts.items()):
        table.add_row(name, str(count))
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        Console(width=120).print("\n", table)


class Disturbed:
    """The run of a case, wherever it lies by now."""

    def __init__(self, case: Case, campaign: Campaign, folder: Path) -> None:
        self.case, self.counts, self.folder = case, campaign.counts, folder
        self.disk: Path | None = None
        self.data = Path(shutil.copytree(campaign.data, folder / "data"))
        self.run, self.nodes, self.printed = folder / "runs" / "run", case.nodes, 0
        self.outstanding: list[Damage] = []
        self.done: list[str] = []
        self.traced: list[str] = []

    def start(self) -> Command:
        """Begin the run, or resume it."""
        self.printed += 1
        log = self.folder / f"printed_{self.printed}"
        if (self.run / "config.yaml").exists() or self.outstanding:
            given = [f"resume={self.run}", f"nodes={self.nodes}", f"data.path={self.data}"]
        else:
            name = f"name={self.run.name}"
            given = command(self.data, self.run.parent, *self.case.science, *self.case.machine, name)
            given.append(f"nodes={self.nodes}")
        return Command(given, log, cold=self.case.cold)

    def refused(self, text: str) -> None:
        """Judge a refusal, and undo what it was about."""
        assert self.outstanding, f"refused, and nothing is wrong:\n{text}"
        assert CLEAR in text, f"no remedy:\n{text}"
        assert all(damage.names in text for damage in self.outstanding[-1:]), f"not named:\n{text}"
        self.done.append(f"refused ({text.strip().splitlines()[-2][:150]})")
        for damage in reversed(self.outstanding):
            damage.undo()
        self.outstanding.clear()
        self.counts["outcome: refused"] += 1

    def until_moment(self, event: Event) -> bool:
        """Run an attempt until the event interrupts it; whether the run has finished before."""
        while True:
            attempt = RunDir(self.run).newest_attempt() + 1
            going = self.start()
            disturbances.await_moment(event.moment, going, self.run, attempt, STEPS)
            early, filled = not going.running, False
            if not early and self.case.disk == "full":
                filled = True
                self.fill()
            elif not early:
                disturbances.interrupt(event.kind, going, event.moment, self.case.chance)
            code, text = going.finish()
            self.look(text)
            if code != 2:
                allowed = (0,) if early or filled else EXPECTED.get(event.kind, EXPECTED[""])
                assert code in allowed, f"exit code {code}:\n{text}"
                return code == 0
            self.refused(text)
            if filled:
                return False

    def fill(self) -> None:
        """Leave little or no room on the disk, until it is freed after the refusal or the end."""
        assert self.disk
        file = disturbances.ballast(self.disk, self.case.chance.choice([0, 0, 4096, 50_000, 300_000]))
        self.outstanding.append(Damage("disk full", lambda: file.unlink(missing_ok=True), names="No space left"))
        self.done.append("disk full")

    def harm(self, event: Event) -> None:
        """Do to the files what the event says."""
        await_that(lambda: not forked.left_over(self.known), "no process left behind")
        complete = all((self.run / name).exists() for name in ("code", "config.yaml"))  # or the next start replaces it
        if complete and (found := DAMAGES[event.damage](self.run, self.data, self.case.chance)):
            self.outstanding.append(found)
            self.done.append(found.what)
        if event.moved and (self.run / "attempts").is_dir():
            target = self.run.with_name(f"{self.run.name}-{event.moved}")
            if event.moved == "moved":
                self.run.rename(target)
            else:
                shutil.copytree(self.run, target)
            self.restore_at(target)
        self.nodes = event.nodes

    def restore_at(self, target: Path) -> None:
        """Go on with the run at another place; what was damaged here stays so there, and is undone by a copy."""
        old, self.run = self.run, target
        was = [damage for damage in self.outstanding if damage.what != "disk full"]
        if was and old.exists():

            def undo() -> None:
                for damage in reversed(was):
                    damage.undo()
                shutil.rmtree(target)
                shutil.copytree(old, target)

            self.outstanding = [replace(was[-1], undo=undo)]
        elif was:

            def undo_there() -> None:
                target.rename(old)
                for damage in reversed(was):
                    damage.undo()
                old.rename(target)

            self.outstanding = [replace(was[-1], undo=undo_there)]

    def to_the_end(self) -> None:
        """Resume the run until it has finished."""
        for _ in range(6):
            going = self.start()
            code, text = going.finish()
            self.look(text)
            if code == 0:
                return
            assert code == 2, f"exit code {code}:\n{text}"
            self.refused(text)
        raise AssertionError("refused again and again")

    def look(self, text: str) -> None:
        """Remember every stack trace: in what was printed, and in the logs."""
        logs = self.run.glob("attempts/*/logs/*.log") if self.run.is_dir() else ()
        found = {"printed": text, **{str(log.relative_to(self.run)): log.read_text(errors="replace") for log in logs}}
        self.traced += [f"{name}:\n{said}" for name, said in found.items() if any(word in said for word in TRACES)]
        assert not self.traced, self.traced[0]

    @cached_property
    def known(self) -> set[int]:
        """The processes that were there before."""
        return {process.pid for process in forked.left_over(set())}


def compare(case: Case, run: Path, campaign: Campaign, done: list[str]) -> None:
    """The run has the weights, losses and samples of the undisturbed one: bit by bit, or by rounding elsewhere."""
    same = all(event.nodes == case.nodes for event in case.events)
    found, expected = Reference.of(run), campaign.reference(case)
    assert found.samples == expected.samples
    assert found.weights.keys() == expected.weights.keys()
    if same:
        wrong = [name for name, value in found.weights.items() if not torch.equal(value, expected.weights[name])]
        assert not wrong, f"a silent difference: {len(wrong)} of {len(found.weights)} tensors, such as {wrong[0]}"
    single = not same and case.engine == "deepspeed"
    rounding = campaign.rounding(case) if single else {}
    near = 0.0 if same else 1e-3 if single else 1e-9
    if not same and not single:
        far = [n for n, x in found.weights.items() if not torch.allclose(x, expected.weights[n], rtol=0, atol=1e-7)]
        assert not far, f"a silent difference: {len(far)} of {len(found.weights)} tensors, such as {far[0]}"
    spoilt = any("metrics.jsonl" in what for what in done)  # a digit that was flipped there is nobody's to notice
    for step, loss in found.losses.items() if not spoilt else ():
        bound = max(near, 4 * rounding.get(step, 0.0))  # a unit that rounding switches on moves all later losses
        assert loss == pytest.approx(expected.losses[step], rel=0, abs=bound), f"loss of step {step}"


def audited(run: Path, data: Path, log: Path) -> None:
    code, text = Command([f"run={run}", f"data.path={data}"], log, name="audit").finish()
    assert code == 0, text
    assert "Clean" in text


def disturb(case: Case, campaign: Campaign, folder: Path) -> list[str]:
    """Run a case; what was done."""
    with ExitStack() as stack:
        it = Disturbed(case, campaign, folder)
        shared = {*SHARED.glob("dist_ssl-*")}
        assert it.known is not None
        if case.disk:
            it.disk = stack.enter_context(small_disk(folder, DISK_MB))
            it.run = it.disk / "runs" / "run"
        it.run.parent.mkdir()
        finished = False
        for event in case.events:
            finished = it.until_moment(event)
            campaign.counts[f"interrupted: {event.kind}"] += 1
            if finished:
                break
            it.harm(event)
            campaign.counts[f"damage: {event.damage}"] += 1
            if case.disk == "read-only":
                read_only(it)
        if not finished:
            it.to_the_end()
        for damage in it.outstanding:
            if damage.what == "disk full":
                damage.undo()
        compare(case, it.run, campaign, it.done)
        audited(it.run, it.data, folder / "audited")
        await_that(lambda: not forked.left_over(it.known), "no process left behind")
        await_that(lambda: not left_in_memory(shared), "what a killed rank has left is removed by the next one")
        assert STEPS in published(it.run / "checkpoints")
        return it.done


def left_in_memory(before: set[Path]) -> set[Path]:
    """The shared memory that is still there after another start of a run."""
    shared_memory.remove_left_over(SHARED)
    return {*SHARED.glob("dist_ssl-*")} - before


def read_only(it: Disturbed) -> None:
    """A resume on a disk that cannot be written is refused."""
    disk = str(it.disk)
    remount = ["mount", "-o", "remount,ro", disk]
    await_that(lambda: not subprocess.run(remount, capture_output=True).returncode, "nobody writes to the disk")
    undo = Damage("disk read-only", lambda: os.system(f"mount -o remount,rw {disk}"), names="Read-only")
    try:
        if (it.run / "attempts").is_dir() and not it.outstanding:
            code, text = it.start().finish()
            it.look(text)
            it.outstanding.append(undo)
            assert code == 2, f"exit code {code}:\n{text}"
            it.refused(text)
    finally:
        undo.undo()


@pytest.mark.chaos
@pytest.mark.parametrize("number", range(FIRST, FIRST + COUNT))
def test_case(number: int, campaign: Campaign, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case, started = Case(SEED, number), time.monotonic()
    campaign.counts[f"method: {case.method}"] += 1
    campaign.counts[f"engine: {case.engine}"] += 1
    verdict, done = "FAILED", ["?"]
    try:
        done = disturb(case, campaign, tmp_path)
        verdict = "ok"
    finally:
        campaign.counts[f"outcome: {verdict}"] += 1
        with capsys.disabled():
            print(f"\n{number} {verdict} {time.monotonic() - started:.0f} s  {case}  {json.dumps(done)}", flush=True)
            if verdict != "ok":
                again = f"CAMPAIGN_SEED={SEED} CAMPAIGN_FIRST={number} CAMPAIGN_CASES=1"
                print(f"Again: {again} python -m pytest -q -s -m chaos tests/chaos/test_campaign.py", flush=True)
    shutil.rmtree(tmp_path, ignore_errors=True)
