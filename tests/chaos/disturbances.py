"""What may happen to a run: how it is interrupted, and what becomes of its files until it is resumed."""

import contextlib
import json
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from dist_ssl.data.storage import manifest
from dist_ssl.runtime.files import remove
from tests.chaos.forked import Command
from tests.system.launching import status

MOMENTS = ("early", "step", "step", "save", "save")
INTERRUPTIONS = ("rank", "rank", "agent", "launcher", "all", "all", "stop", "ctrl-c", "stop in a hurry", "pause")
RECORDS = (
    *("status.json", "metrics.jsonl", "counters.json", "quarantine.jsonl", "overrides.yaml", "config.yaml"),
    *("attempts/*/outcome.json", "attempts/*/config.yaml", "attempts/*/node_*.json", "checkpoints/LATEST"),
    *("launcher.lock", "source.json"),
)
"""Files of a run folder that may be damaged: a plan or a ledger that is, is no evidence for an audit."""
CLEAR = "\n  "
"""What parts the problem from the remedy in a message."""


@dataclass(frozen=True)
class Moment:
    """When an attempt is interrupted. `place`, `delay`: 0 to 1, of the steps that are left, and of a short time."""

    kind: str
    place: float
    delay: float

    def __str__(self) -> str:
        return self.kind


@dataclass(frozen=True)
class Damage:
    """What has become of the files of a run. `names`: what a message that refuses them says."""

    what: str
    undo: Callable[[], None]
    names: str = ""


def step_of(run: Path, attempt: int) -> int:
    """The step that an attempt has reached, as it reports after each; -1 before its first report."""
    found = status(run)
    return int(found["step"]) if found.get("attempt") == attempt else -1


def saving(run: Path) -> bool:
    """Whether a checkpoint is being written."""
    return any((run / "checkpoints").glob(".step_*.part"))


def await_moment(moment: Moment, command: Command, run: Path, attempt: int, steps: int) -> None:
    """Wait for the moment, or the end of the command."""
    if moment.kind == "early":
        time.sleep(moment.delay * (6.0 if command.cold else 1.5))
        return
    first: int | None = None
    while command.running:
        now = step_of(run, attempt)
        first = now if first is None and now >= 0 else first
        if first is not None and now >= first + moment.place * (steps - 1 - first):
            break
        time.sleep(0.002)
    if moment.kind == "save":
        while command.running and not saving(run):
            time.sleep(0.0005)
    time.sleep(0.02 * moment.delay)


def send(process: psutil.Process, number: int) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def interrupt(kind: str, command: Command, moment: Moment, chance: random.Random) -> None:
    """End an attempt, or a part of it, or stop it for a while."""
    victims = {"rank": command.ranks, "agent": command.agents, "pause": command.ranks}
    if kind in victims:
        if not (found := victims[kind]()):
            return
        victim = chance.choice(found)
        if kind == "pause":
            send(victim, signal.SIGSTOP)
            time.sleep(moment.delay)
            send(victim, signal.SIGCONT)
        else:
            send(victim, signal.SIGKILL)
        return
    if kind == "all":
        command.kill_all()
        return
    number = {"launcher": signal.SIGKILL, "ctrl-c": signal.SIGINT}.get(kind, signal.SIGTERM)
    command.process.send_signal(number)
    if kind == "stop in a hurry":
        time.sleep(0.3 * moment.delay)
        command.kill_all()


def keeping(path: Path) -> Callable[[], None]:
    """A function that makes a file or a folder again what it is now."""
    kept = {own: own.read_bytes() for own in ([path] if path.is_file() else path.rglob("*")) if own.is_file()}

    def undo() -> None:
        remove(path)
        for own, content in kept.items():
            own.parent.mkdir(parents=True, exist_ok=True)
            own.write_bytes(content)
        for own in kept:
            own.chmod(0o644)

    return undo


def spoil(path: Path, chance: random.Random) -> str:
    """Do one of the things to a file that happen to files; return which."""
    content = path.read_bytes()
    way = chance.choice(["cut", "emptied", "flipped", "removed", "a folder", "strange rows"])
    if way in ("removed", "a folder"):
        path.unlink()
    if way == "a folder":
        path.mkdir()
        path.chmod(0o755)  # this process may have any umask
    if way == "cut":
        path.write_bytes(content[: chance.randrange(max(1, len(content)))])
    if way == "emptied":
        path.write_bytes(b"")
    if way == "flipped" and content:
        place = chance.randrange(len(content))
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << chance.randrange(8)]) + content[place + 1 :])
    if way == "strange rows":
        rows = [{"number": "x"}, {"number": 2}, {"step": []}, {"step": 3, "loss": "low"}, {"format": None}, {}]
        path.write_bytes(content + b"".join(json.dumps(row).encode() + b"\n" for row in chance.sample(rows, 3)))
    return way


def damage_record(run: Path, data: Path, chance: random.Random) -> Damage | None:
    """Damage a file of the run folder."""
    found = [path for name in RECORDS for path in sorted(run.glob(name)) if path.is_file()]
    path = chance.choice(found)
    undo = keeping(path)
    way = spoil(path, chance)
    return Damage(f"{path.relative_to(run)} {way}", undo)


def checkpoints(run: Path) -> list[Path]:
    """The published checkpoints, the oldest first."""
    return sorted(path for path in (run / "checkpoints").glob("step_*") if path.is_dir())


def damage_checkpoint(run: Path, data: Path, chance: random.Random) -> Damage | None:
    """Damage the newest checkpoint, or put something strange beside it."""
    if not (whole := checkpoints(run)):
        return None
    newest = whole[-1]
    undo, path = keeping(newest), chance.choice(sorted(newest.iterdir()))
    way = chance.choice(["file", "file", "emptied state", "empty", "foreign file", "foreign names"])
    if way == "file":
        way = f"{path.name} {spoil(path, chance)}"
    if way == "emptied state":
        (newest / "state.json").write_bytes(b"")
    if way == "empty":
        for own in newest.iterdir():
            own.unlink()
    if way == "foreign file":
        (newest / chance.choice(["notes.txt", "rank_00099.safetensors", ".nfs0001"])).write_bytes(b"not ours")
    if way == "foreign names":
        (newest.parent / f"damaged_{newest.name}").write_text("a file")
        (newest / "state.json").write_text("{}")
        (newest.parent / "step_00099999").write_text("a file")
        (newest.parent / "step_00000001_good").mkdir(mode=0o755, exist_ok=True)
        (run / "attempts" / "0001_old").mkdir(mode=0o755, exist_ok=True)
    return Damage(f"{newest.name}: {way}", undo)


def overwrite(split: manifest.Split, number: int, head: bytes) -> None:
    """Let a sample consist of these bytes, followed by zeros."""
    with split.path(split.shard_of(number)).open("r+b") as file:
        file.seek(int(split.samples.offsets[number]))
        file.write(head.ljust(int(split.samples.sizes[number]), b"\0"))


def damage_shard(run: Path, data: Path, chance: random.Random) -> Damage:
    """Change some bytes within one training image."""
    split = manifest.read(data).split("train")
    number = chance.randrange(len(split.samples))
    tar = split.path(split.shard_of(number))
    undo, offset, size = keeping(tar), int(split.samples.offsets[number]), int(split.samples.sizes[number])
    with tar.open("r+b") as file:
        file.seek(offset + size // 2)
        old = file.read(min(40, size // 4))
        file.seek(offset + size // 2)
        file.write(bytes(byte ^ 0x15 for byte in old))
    return Damage(f"sample {number} of {tar.name} changed", undo, names=tar.name)


def open_to_others(run: Path, data: Path, chance: random.Random) -> Damage:
    """Let others write to the folder, its config or its code."""
    path = chance.choice([run, run / "config.yaml", run / "code", run / "code" / "launch" / "worker.py"])
    mode = path.stat().st_mode
    path.chmod(0o777)
    return Damage(f"chmod 777 {path.name}", lambda: path.chmod(mode), names="is not yours alone")


def damage_code(run: Path, data: Path, chance: random.Random) -> Damage:
    """Remove a file of the run's code, or a folder of it, or all of it."""
    files = sorted((run / "code").rglob("*.py")) + sorted((run / "code").rglob("*.yaml"))
    path = chance.choice([chance.choice(files), chance.choice(files), run / "code" / "dist_ssl", run / "code"])
    undo = keeping(path)
    remove(path)
    return Damage(f"{path.relative_to(run)} removed", undo)


def lose_checkpoints(run: Path, data: Path, chance: random.Random) -> Damage | None:
    """Remove the folder of the checkpoints."""
    if not checkpoints(run):
        return None
    undo = keeping(run / "checkpoints")
    remove(run / "checkpoints")
    return Damage("checkpoints removed", undo, names="checkpoint")


def nothing(run: Path, data: Path, chance: random.Random) -> None:
    """Leave everything as it is."""


DAMAGES: dict[str, Callable[[Path, Path, random.Random], Damage | None]] = {
    "nothing": nothing,
    "record": damage_record,
    "checkpoint": damage_checkpoint,
    "shard": damage_shard,
    "chmod": open_to_others,
    "code": damage_code,
    "checkpoints": lose_checkpoints,
}
WEIGHTS = {"nothing": 5, "record": 6, "checkpoint": 5, "shard": 2, "chmod": 1, "code": 1, "checkpoints": 1}


def ballast(disk: Path, left: int) -> Path:
    """Leave so many bytes free on a file system; return the file that takes the others."""
    room, path = os.statvfs(disk), disk / "ballast"
    with path.open("wb") as file, contextlib.suppress(OSError):
        os.posix_fallocate(file.fileno(), 0, max(room.f_bavail * room.f_frsize - left, 1))
    return path
