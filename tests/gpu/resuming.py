"""Part f: a run of the real command on one GPU, killed and resumed, ends with the bits of one that was left alone.

python tests/gpu/resuming.py [--device cpu] [--seconds 40]
"""

import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from shards import make
from shards.sources import demo
from tests.gpu.rows import Claim, Row, Setting, judged, leave, main
from tests.jobs import same_bits
from tests.system.launching import Launch, await_that, losses, status, weights, words

LONG = ("nodes=1", "epochs=24", "probe.every=200 epochs", "save_every=3 steps")
KILLED_AFTER = 20
"""Steps, of 120."""


def resumed(setting: Setting) -> Iterator[Row]:
    """`kill -9` of the launcher and all that it has started, then resume."""
    with tempfile.TemporaryDirectory() as folder:
        data, runs = Path(folder) / "data", Path(folder) / "runs"
        make.make("demo", data, Console(quiet=True), demo.DemoOptions(train=60, val=20))
        launches = [Launch(*words(data, runs, f"name={name}", *LONG)) for name in ("alone", "killed")]
        try:
            yield from _disturbed(launches, runs, setting)
        finally:
            for launch in launches:
                if launch.process.poll() is None:
                    launch.kill_all()


def _disturbed(launches: list[Launch], runs: Path, setting: Setting) -> Iterator[Row]:
    alone, killed = launches
    start = time.monotonic()
    await_that(
        lambda: status(runs / "killed")["step"] >= KILLED_AFTER or killed.process.poll() is not None,
        "enough steps",
        max(1.0, setting.left),
    )
    first = time.monotonic() - start
    if killed.process.poll() is not None:
        yield judged("a run of launch/slurm.py", False, killed.finish()[1][-600:])
        return
    killed.kill_all()
    at, start = status(runs / "killed")["step"], time.monotonic()
    launches.append(Launch(f"resume={runs / 'killed'}"))
    ends = [launch.finish(max(1.0, setting.left)) for launch in (launches[-1], alone)]
    if any(code for code, _ in ends):
        text = next(text for code, text in ends if code)
        yield judged("a run of launch/slurm.py", False, text[-600:])
        return
    pair = [weights(runs / name) for name in ("killed", "alone")]
    equal = same_bits(*pair) and losses(runs / "killed") == losses(runs / "alone")
    seconds = (
        f"{KILLED_AFTER} steps after {first:.1f} s, killed at {at:.0f}, the end {time.monotonic() - start:.1f} s later"
    )
    yield judged("killed and resumed, the same bits and losses", equal, f"{len(pair[0])} tensors; {seconds}")


def claims(setting: Setting) -> Iterable[Claim]:
    """All of this part."""
    yield "killed and resumed, the same bits and losses", lambda: resumed(setting)


if __name__ == "__main__":
    leave(main(claims))
