"""Part f: a run of the real command on one GPU, killed and resumed, ends with the bits of one that was left alone.

    python tests/gpu/resuming.py [--device cpu] [--seconds 70]

The two runs go beside each other: nearly all of the time is that of processes that start, import torch and find the
GPU. Every stage has a row of its own, so that a run which hangs tells where.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from shards import make
from shards.sources import demo
from tests.gpu.rows import Claim, Row, Setting, judged, leave, main, seen
from tests.jobs import same_bits
from tests.system.launching import Launch, losses, saved, status, weights, words

LONG = ("nodes=1", "epochs=12", "probe.every=200 epochs", "save_every=4 steps")
STEPS, KILLED_AFTER = 60, 10
END_SECONDS = 3.0
"""Before the part's end it gives up, to say how far it came."""


class StuckError(Exception):
    """A run has failed, or time is over."""


class Trial:
    """Two launches of the same run, and a third that resumes the one that was killed."""

    def __init__(self, folder: Path, setting: Setting) -> None:
        self.runs, self.setting, self.launches = folder / "runs", setting, dict[str, Launch]()
        self.data = folder / "data"

    def start(self, name: str, *given: str) -> None:
        """Run the command."""
        self.launches[name] = Launch(*given)

    def wait(self, name: str, run: str, holds: Callable[[], object], what: str) -> float:
        """Return after how many seconds something holds of a launch. Raises StuckError, with what the run has said."""
        start, process = time.monotonic(), self.launches[name].process
        while not holds():
            if process.poll() not in (None, 0):
                raise StuckError(f"{what}: {self.launches[name].finish()[1][-300:]} {self.tails(run)}")
            if self.setting.left < END_SECONDS:
                raise StuckError(f"{what}: not within {time.monotonic() - start:.0f} s; {self.tails(run)}")
            time.sleep(0.01)
        return time.monotonic() - start

    def tails(self, run: str) -> str:
        """The ends of the logs of a run's newest attempt, and its last step."""
        attempts = sorted((self.runs / run / "attempts").glob("*"))
        logs = sorted((attempts[-1] / "logs").glob("*.log")) if attempts else []
        ends = (f"{log.name}: {log.read_text(errors='replace')[-500:]}" for log in logs)
        return f"step {status(self.runs / run)['step']:.0f} of attempt {len(attempts)}; {'; '.join(ends)}"

    def close(self) -> None:
        """Kill what is left."""
        for launch in self.launches.values():
            if launch.process.poll() is None:
                launch.kill_all()


def resumed(setting: Setting) -> Iterator[Row]:
    """`kill -9` of the launcher and all that it has started, then resume."""
    with tempfile.TemporaryDirectory() as folder:
        trial = Trial(Path(folder), setting)
        try:
            yield from stages(trial)
        except StuckError as error:
            yield judged("a run of launch/slurm.py", False, str(error))
        finally:
            trial.close()


def stages(trial: Trial) -> Iterator[Row]:
    """The stages, one after the other."""
    start, killed = time.monotonic(), trial.runs / "killed"
    make.make("demo", trial.data, Console(quiet=True), demo.DemoOptions(train=60, val=20))
    for name in ("killed", "alone"):
        trial.start(name, *words(trial.data, trial.runs, f"name={name}", *LONG))
    yield seen("shards are drawn and two runs launched", f"{time.monotonic() - start:.1f} s")
    checked = trial.wait("killed", "killed", lambda: [*killed.glob("attempts/*/logs/rank_*.log")], "its first process")
    first = trial.wait("killed", "killed", lambda: status(killed)["step"] >= 1, "its first step")
    yield seen("a run starts", f"checked after {checked:.1f} s, its first step {first:.1f} s later")
    far = lambda: status(killed)["step"] >= KILLED_AFTER and saved(killed)  # noqa: E731
    until = trial.wait("killed", "killed", far, f"step {KILLED_AFTER} and a checkpoint")
    trial.launches["killed"].kill_all()
    at, newest = status(killed)["step"], max(saved(killed), default=0)
    early = at < STEPS and 0 < newest < STEPS
    yield judged("it is killed in the middle", early, f"at step {at:.0f}, {until:.1f} s later; step {newest} is saved")
    trial.start("resumed", f"resume={killed}")
    again = trial.wait("resumed", "killed", lambda: len([*killed.glob("attempts/*")]) == 2, "a second attempt")
    ended = [
        trial.wait(name, run, lambda name=name: trial.launches[name].process.poll() == 0, "its end")  # type: ignore[misc]
        for name, run in (("resumed", "killed"), ("alone", "alone"))
    ]
    yield seen("the resumed run ends", f"checked after {again:.1f} s, its end {ended[0]:.1f} s later")
    pair = [weights(run) for run in (killed, trial.runs / "alone")]
    curves = [losses(run) for run in (killed, trial.runs / "alone")]
    equal = same_bits(*pair) and curves[0] == curves[1] and len(curves[0]) == STEPS
    text = f"{len(pair[0])} tensors, {len(curves[0])} losses; {time.monotonic() - start:.1f} s in all"
    yield judged("killed and resumed, the same bits and losses", equal, text)


def claims(setting: Setting) -> Iterable[Claim]:
    """All of this part."""
    yield "killed and resumed, the same bits and losses", lambda: resumed(setting)


if __name__ == "__main__":
    leave(main(claims))
