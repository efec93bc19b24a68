"""Part e: from JPEG to weight update. The loader alone, training fed by it, and the plain loop fed by PIL.

    python tests/gpu/feeding.py [--device cpu] [--seconds 120] [--only resnet50+vit_base]

JPEGs of 500 x 375 px in shards, cut to 224 px by as many threads as there are cores. A run is built from its config as
a worker builds it, so what is measured is what a person gets.
"""

import itertools
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dist_ssl.build import Place, build
from dist_ssl.core.batch import Batch
from dist_ssl.core.progress import Progress
from dist_ssl.distributed.world import World
from dist_ssl.runtime.own_cores import own_cores
from dist_ssl.runtime.signals import Signals
from dist_ssl.train import Job
from tests.gpu.pictures import drawn, write_shards
from tests.gpu.plain import Pictures, batches
from tests.gpu.profiles import idle_share
from tests.gpu.recipes import NETS, Form, batch_size, composed, side_of
from tests.gpu.rows import Claim, Row, Setting, leave, seen, speed
from tests.gpu.rows import main as run
from tests.gpu.throughput import plain_loop

CORES = own_cores()
IMAGES, SHARDS = 192, 128
"""Pictures that are drawn, and shards that hold all of them."""


class Data:
    """Pictures in a temporary folder, made when they are first asked for. `rates`: how fast each net was fed."""

    def __init__(self, folder: Path, setting: Setting) -> None:
        self.folder, self.setting = folder, setting
        self.pictures: list[bytes] = []
        self.rates: dict[str, float] = {}

    def shards(self) -> Path:
        """The folder of the shards."""
        if not self.pictures:
            self.pictures = drawn(IMAGES if self.setting.gpu else 8)
            write_shards(self.folder / "shards", self.pictures, SHARDS if self.setting.gpu else 4)
        return self.folder / "shards"


class Fed:
    """A run of a recipe, and its batches for ever. `threads`: that decode."""

    def __init__(self, net: str, data: Data, setting: Setting) -> None:
        size, small = batch_size(net, setting), [] if setting.gpu else [f"schedule.image_size={side_of(setting)}"]
        words = [f"data.path={data.shards()}", "data.val=null", f"batch_size={size}", f"lanes={min(size, 16)}"]
        words += ["window=256" if setting.gpu else "window=4", "precision=bf16", f"decode_threads={CORES}", *small]
        words += [f"threads={CORES}", "epochs=1000"]
        form = Form("bf16", compile=NETS[net].compiles and setting.gpu)
        form.set_backends()
        config = composed(net, form, setting, *words)
        self.folder = tempfile.TemporaryDirectory()
        place = Place(Path(self.folder.name), 1, lambda: True)
        self.job: Job = build(config, World(device=setting.device), Signals(), place)
        self.size = size
        self.plan = self.job.coordinator.plan(Progress(epochs=self.job.fresh.epochs))
        self.curves = self.job.schedule.hyperparameters(self.job.fresh.begin(self.plan))
        self.batches = self._batches()

    def _batches(self) -> Iterator[Batch]:
        return itertools.chain.from_iterable(self.job.stream.epoch(self.plan) for _ in itertools.count())

    def step(self) -> Any:
        """A weight update on the next batch."""
        return self.job.engine.step(next(self.batches), self.curves)

    def close(self) -> None:
        """End what it has started."""
        self.job.stream.close()
        self.job.meter.close()
        self.job.ledger.close()
        self.folder.cleanup()


def fed(net: str, data: Data, setting: Setting) -> Iterator[Row]:
    """The loader alone, the step alone, and both together."""
    start, first = time.perf_counter(), not data.pictures
    data.shards()
    drawn_at = time.perf_counter()
    run = Fed(net, data, setting)
    try:
        built_at = time.perf_counter()
        kept = next(run.batches)
        kept.views = [view.clone() for view in kept.views]
        if first:
            spans = (drawn_at - start, built_at - drawn_at, setting.wait() - built_at)
            texts = ("{:.1f} s for pictures and shards", "{:.1f} s for a run", "{:.1f} s for its first batch")
            text = ", ".join(text.format(span) for text, span in zip(texts, spans, strict=True))
            yield seen("until the first batch", text)
            rate = speed(lambda: next(run.batches), setting, 4.0) * run.size
            yield seen(f"loader alone, {CORES} cores", f"{rate:,.0f} images/s with colours", loader=rate)
        alone = speed(lambda: run.job.engine.step(kept, run.curves), setting, 1.5) * run.size
        both = data.rates[net] = speed(run.step, setting, 5.0, warm=5) * run.size
        text = f"{both:,.0f} images/s, {both / alone:.0%} of {alone:,.0f} on one batch, {setting.peak}"
        yield seen(f"{net}: fed from JPEG", text, **{f"fed_{net}": both})
        idle = idle_share(run.step, setting, 10 if setting.gpu else 2)
        yield seen(f"{net}: idle share while fed", f"{idle:.1%}", **{f"idle_{net}": idle})
    finally:
        run.close()


def plain_fed(net: str, data: Data, setting: Setting) -> Iterator[Row]:
    """The plain loop with a PIL loader, and how many times faster ours was."""
    Form("bf16").set_backends()
    data.shards()
    loop, size = plain_loop(net, setting), batch_size(net, setting)
    times = 300 if setting.gpu else 4
    views = batches(Pictures(data.pictures, side_of(setting), times), size, CORES if setting.gpu else 0, setting.device)
    rate = speed(lambda: loop.step(next(views)), setting, 4.0, warm=5) * size
    yield seen(f"{net}: plain loop with a PIL loader", f"{rate:,.0f} images/s", **{f"plain_fed_{net}": rate})
    if net in data.rates:
        ratio = data.rates[net] / rate
        text = f"{ratio:.2f} times: {data.rates[net]:,.0f} and {rate:,.0f} images/s"
        yield seen(f"{net}: ours against the plain loop with a PIL loader", text, **{f"against_plain_{net}": ratio})


def claims(setting: Setting, folder: Path) -> Iterable[Claim]:
    """All of this part: our own first, for what a bar needs must not be cut off by what it is compared with."""
    data = Data(folder, setting)
    nets = setting.only or (list(NETS) if setting.gpu else ["resnet50", "vit_small"])
    for net in nets:
        yield f"{net}: fed from JPEG", partial(fed, net, data, setting)
    for net in nets:
        if net != "vit_base":
            yield f"{net}: plain loop with a PIL loader", partial(plain_fed, net, data, setting)


def main() -> int:
    """Run the part; 1 where a claim does not hold."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(max(1, CORES // 2))
    with tempfile.TemporaryDirectory() as folder:
        return run(lambda setting: claims(setting, Path(folder)), list(NETS))


if __name__ == "__main__":
    leave(main())
