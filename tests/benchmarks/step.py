"""The step itself: what it costs beside a plain loop of the same method, and which part of it is not the encoder.

    python tests/benchmarks/step.py [methods=simclr,mocov3,byol] [steps=40] [layout=usual] [WORD...]

A real run of every method's demo recipe trains in one process of one thread: shards, loader, colours, engine, metrics,
agreement. After each of its steps a plain loop (`plain_step.py`: torch's modules and AdamW, the same encoder and heads,
started from the same weights) makes its own step from the same ready views. So the two take turns, and neither pays for
loading or colours in `ours / plain`; `whole / plain` compares all that the run does for a step with the plain step
alone. With `layout=channels_last` the plain loop keeps weights and views in the memory layout that ours has, which is
faster and which no tutorial does. Seconds are processor time of the thread that trains, the loader's threads counted
apart; wall time is shown too. Both loops keep freed memory, as the ranks that an agent starts do.

The second table shares out what the run spends on a step. The encoder's share is its forward and backward pass, the
teacher's encoder included; heads and loss are not. Exits with 1 where a bar is missed: ours / plain <= 1.0, and 12 % of
a step outside of the encoder. The words compose the config as those of `launch/slurm.py` do.
"""

import os
import platform
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dist_ssl.build import Place, build
from dist_ssl.config.command import run_command
from dist_ssl.config.instantiate import instantiate
from dist_ssl.data import epoch_views
from dist_ssl.distributed.world import World
from dist_ssl.engines import parallel
from dist_ssl.models import ema, norm
from dist_ssl.runtime.signals import Signals
from dist_ssl.train import Job, train
from launch import settings
from launch.agent import MALLOC
from launch.run_dir import PROJECT
from tests.benchmarks.one_row import HELD
from tests.benchmarks.plain_step import PLAIN, plain_step
from tests.benchmarks.turns import quotient

WARM = 8
"""Steps at the start that are not counted: first compilations, empty caches."""
BAR, OUTSIDE = 1.0, 0.12
ENCODER, HEADS = "encoder, forward and backward", "heads and loss, forward and backward"
PLAIN_TURN, LOADER, BESIDE = "plain", "decoding and cutting (the loader's threads)", "the rest of the loop"
AROUND = ("colours", "metrics", "ledger and agreement", LOADER, BESIDE)
"""Parts of the run that a plain loop from ready views does not have."""


class Clock:
    """Seconds of processor time by part; what a part calls that is a part itself counts there alone."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.parts = [BESIDE]
        self.last = time.thread_time()
        self.before: list[tuple[Any, str, Any]] = []

    def charge(self) -> None:
        """Charge the time since the last call to the current part."""
        now = time.thread_time()
        self.seconds[self.parts[-1]] += now - self.last
        self.last = now

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Charge what happens within to a part."""
        self.charge()
        self.parts.append(name)
        yield
        self.charge()
        self.parts.pop()

    def switch(self, name: str) -> None:
        """Charge from here on to another part, in place of the current one."""
        self.charge()
        self.parts[-1] = name

    def time(self, owner: Any, attribute: str, name: str) -> None:
        """Charge all calls of a function to a part, from now on; the function is looked up where it is called."""
        work = getattr(owner, attribute)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return work(*args, **kwargs)

        self.before.append((owner, attribute, work))
        setattr(owner, attribute, timed)

    def forget(self) -> None:
        """Make the functions what they were."""
        for owner, attribute, work in reversed(self.before):
            setattr(owner, attribute, work)


@dataclass
class Measured:
    """What the steps cost after the first ones: by part, [steps] each, and on the wall."""

    parts: list[dict[str, float]] = field(default_factory=list)
    wall: list[tuple[float, float]] = field(default_factory=list)
    """Wall seconds of our step, from ready views, and of the plain one."""
    beside: float = 0.0
    """Processor seconds of other threads in all these steps."""

    def plain(self) -> list[float]:
        """Return the seconds of each plain step."""
        return [one[PLAIN_TURN] for one in self.parts]

    def ours(self, *, whole: bool) -> list[float]:
        """Return the seconds of each of our steps: `whole`, or from ready views on."""
        left = (PLAIN_TURN,) if whole else (PLAIN_TURN, *AROUND)
        extra = self.beside / len(self.parts) if whole else 0.0
        return [sum(seconds for name, seconds in one.items() if name not in left) + extra for one in self.parts]

    def shares(self) -> dict[str, float]:
        """Return the mean seconds of a step by part, the largest first."""
        names = {name for one in self.parts for name in one} - {PLAIN_TURN}
        total = {name: sum(one.get(name, 0.0) for one in self.parts) for name in names} | {LOADER: self.beside}
        return {name: total[name] / len(self.parts) for name in sorted(total, key=total.__getitem__, reverse=True)}


def time_parts(clock: Clock, job: Job) -> None:
    """Make the parts of a run charge their time."""
    engine: Any = job.engine
    for branch in (engine.method.student, engine.method.teacher):
        if branch is not None:
            clock.time(branch.encoder, "forward", ENCODER)
    student = engine.method.encoder.forward

    def forward(x: Tensor) -> Tensor:
        features: Tensor = student(x)
        if features.requires_grad:  # its gradient is complete when all that comes after the encoder has been through
            features.register_hook(lambda _: clock.switch(ENCODER))
        return features

    engine.method.encoder.forward = forward
    for owner, attribute, name in (
        (engine, "gradients", HEADS),
        (engine, "backward", HEADS),
        (engine, "_check_and_clip", "norm of the gradient"),
        (engine, "update", "optimizer"),
        (parallel, "apply_hyperparameters", "optimizer"),
        (norm, "update_running_statistics", "running statistics"),
        (ema, "update", "EMA update"),
        (ema, "distance", "distance of the teacher"),
        (engine, "step", "the rest of the step"),
        (job.schedule.curves, "hyperparameters", "hyperparameters"),
        (epoch_views, "colour", "colours"),
        (job.meter, "record", "metrics"),
        (job.meter, "flush", "metrics"),
        (job.ledger, "record", "ledger and agreement"),
        (job.quarantine, "record", "ledger and agreement"),
        (job.agreement, "step", "ledger and agreement"),
    ):
        clock.time(owner, attribute, name)


class EnoughError(Exception):
    """Raised in place of the next step."""


def measure(config: dict[str, Any], name: str, steps: int, layout: torch.memory_format, folder: Path) -> Measured:
    """Train the run and the plain loop in turns."""
    job = build(config, World(), Signals(), Place(folder, 1, lambda: True))
    engine: Any = job.engine
    plain: nn.Module = PLAIN[name](instantiate(config["encoder"], "encoder"), config["method"])
    plain.load_state_dict(engine.method.state_dict(), strict=False)  # torch's batch norm counts its batches
    plain.to(memory_format=layout)
    theirs = plain_step(plain, config["optim"]["base_lr"] * config["batch_size"] / 256, tuple(config["optim"]["betas"]))
    clock, found = Clock(), Measured()
    time_parts(clock, job)
    ours, threads = engine.step, [0.0]

    def turn(batch: Any, hyper: Any) -> Any:
        started = time.perf_counter()
        out = ours(batch, hyper)
        middle = time.perf_counter()
        views = [view.contiguous(memory_format=layout) for view in batch.views]
        ready = time.perf_counter()
        with clock.part(PLAIN_TURN):
            loss = theirs(*views)
        if batch.step == 0:
            torch.testing.assert_close(torch.tensor(loss), out.metrics["loss"], rtol=1e-4, atol=1e-4)
        others = time.process_time() - time.thread_time()
        if batch.step >= WARM:
            found.parts.append(clock.seconds)
            found.wall.append((middle - started, time.perf_counter() - ready))
            found.beside += others - threads[0]
        clock.seconds, threads[0] = defaultdict(float), others
        if len(found.parts) == steps:
            raise EnoughError
        return out

    engine.step = turn
    try:
        train(job)
    except EnoughError:
        clock.forget()
    job.stream.close()
    job.agreement.drain()
    job.meter.close()
    job.ledger.close()
    return found


def in_ms(values: list[float]) -> str:
    """Return the median and the 10th and 90th of a hundred, in ms."""
    cuts = statistics.quantiles(values, n=10)
    return f"{1e3 * statistics.median(values):6.1f} ms ({1e3 * cuts[0]:.1f} to {1e3 * cuts[-1]:.1f})"


def report(name: str, found: Measured) -> bool:
    """Print the tables of one method; return whether it keeps both bars."""
    plain, step, whole = found.plain(), found.ours(whole=False), found.ours(whole=True)
    ratio, harder = quotient(step, plain), quotient(whole, plain)
    walls = [statistics.median(pair) for pair in zip(*found.wall, strict=True)]
    print(f"\n{name}: {len(plain)} steps in turns, processor time, median (10 to 90 %)")
    print(f"  plain step               {in_ms(plain)}   wall {1e3 * walls[1]:.1f} ms")
    print(f"  ours, from ready views   {in_ms(step)}   wall {1e3 * walls[0]:.1f} ms")
    print(f"  ours, whole              {in_ms(whole)}")
    print(f"  ours / plain    {ratio.mean:.3f} ({ratio.low:.3f} to {ratio.high:.3f})   bar {BAR:g}")
    print(f"  whole / plain   {harder.mean:.3f} ({harder.low:.3f} to {harder.high:.3f})")
    parts = found.shares()
    total = sum(parts.values())
    for part, seconds in parts.items():
        print(f"    {part:45} {1e3 * seconds:7.2f} ms   {seconds / total:6.1%}")
    outside = 1 - parts[ENCODER] / total
    print(f"    outside of the encoder {outside:.1%}   bar {OUTSIDE:.0%}")
    return ratio.mean <= BAR and outside <= OUTSIDE


def command(words: list[str], _console: Console) -> int:
    """Print all tables; return the exit code. Raises UserError."""
    own = {"methods": ",".join(PLAIN), "steps": "40", "layout": "usual"}
    own |= dict(w.split("=", 1) for w in words if w.split("=")[0] in own)
    rest = [word for word in words if word.split("=")[0] not in own]
    layout = {"usual": torch.contiguous_format, "channels_last": torch.channels_last}[own["layout"]]
    print(f"{machine()}; one thread; the plain loop's memory layout: {own['layout']}")
    torch.set_num_threads(1)
    kept = [report(name, one(name, int(own["steps"]), layout, rest)) for name in own["methods"].split(",")]
    return 0 if all(kept) else 1


def machine() -> str:
    """Return the processor's name, the number of cores, and how busy they are."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores, load {load}"


def one(name: str, steps: int, layout: torch.memory_format, words: list[str]) -> Measured:
    """Measure one method's demo recipe. Images are decoded two batches ahead, so that each step pays for one batch."""
    words = [f"+recipe=demo_{name}", "data.ahead_bytes=1KB", *HELD, *words]
    config = settings.compose(words, PROJECT / "configs")
    with tempfile.TemporaryDirectory() as scratch:
        return measure(config, name, steps, layout, Path(scratch))


def restart_as_a_rank() -> None:
    """Start this process anew with the options of the C library's memory that an agent gives its ranks."""
    if MALLOC not in (given := os.environ.get("GLIBC_TUNABLES", "")):
        tunables = ":".join(filter(None, [given, MALLOC]))
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "GLIBC_TUNABLES": tunables})


if __name__ == "__main__":
    restart_as_a_rank()
    sys.exit(run_command(command, sys.argv[1:], Console(highlight=False)))
