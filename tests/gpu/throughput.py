"""Measures what a GPU makes of the parts that were built for it, and checks what they compute.

    python tests/gpu/throughput.py [--device cpu] [--seconds 5] [--limit 240]

Photometry on the device against the same on the CPU in double precision; a step of MoCo v3 as it is, with compiled
blocks and with blocks that are computed twice (time, memory, loss); and training from shards against training on one
batch again and again, which tells whether the loader keeps up. A row is printed as soon as it is known; what fails
costs its own rows alone, and what has no time within the limit is named as skipped. Prints one table and exits 1 where
numbers are wrong; speeds are for information. Without a GPU it says what is skipped; `--device cpu` runs small sizes.
"""

import argparse
import itertools
import math
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dist_ssl.core.batch import Batch
from dist_ssl.core.draws import Draws
from dist_ssl.core.plan import Hyperparameters
from dist_ssl.core.progress import Progress
from dist_ssl.data.images.photometric import Photometry
from dist_ssl.data.images.views import Augmentation
from dist_ssl.distributed.world import World
from dist_ssl.engines.ddp import DDP
from dist_ssl.methods.mocov3 import MoCoV3
from dist_ssl.models.encoders import timm_encoder
from dist_ssl.models.vit import vit
from dist_ssl.optim.recipes import AdamW
from shards import make
from shards.sources import demo
from tests.jobs import small_config, small_job

COLOURS = Augmentation(
    crop_min=0.2,
    brightness=0.4,
    contrast=0.4,
    saturation=0.2,
    hue=0.1,
    jitter_p=0.8,
    gray_p=0.2,
    blur_p=0.5,
    solarize_p=0.2,
)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HYPER = Hyperparameters({"lr": torch.tensor(1e-4), "weight_decay": torch.tensor(0.1), "momentum": torch.tensor(0.99)})


@dataclass(frozen=True)
class Scale:
    """How large the work is. `side` px; `batch` samples a step; `images` in the shards."""

    device: torch.device
    seconds: float
    side: int
    batch: int
    images: int

    @property
    def gpu(self) -> bool:
        return self.device.type == "cuda"


def speed(work: Callable[[], Any], scale: Scale) -> float:
    """How often a second something is done, after three times of warming up."""

    def await_device() -> float:
        if scale.gpu:
            torch.cuda.synchronize()
        return time.perf_counter()

    for _ in range(3):
        work()
    started, times = await_device(), 0
    while await_device() - started < scale.seconds:
        work()
        times += 1
    return times / (await_device() - started)


Row = tuple[str, bool, str]
"""What was done, whether its numbers are right, and what was seen."""
Section = tuple[str, Callable[[], Iterator[Row]]]


def photometry(scale: Scale) -> Iterator[Row]:
    """Colours on the device: the numbers of the CPU's, and how fast they come."""
    pixels = np.random.default_rng(0).integers(0, 256, (scale.batch, scale.side, scale.side, 3), dtype=np.uint8)
    ids, change = np.arange(scale.batch), Photometry(COLOURS, 0, MEAN, STD)
    here, there = torch.from_numpy(pixels), torch.from_numpy(pixels).to(scale.device)
    wanted = change(here, ids, Draws(0), torch.float64)
    apart = (change(there, ids, Draws(0), torch.float64).cpu() - wanted).abs()
    yield "photometry: as on the CPU, fp64", float(apart.max()) < 1e-9, f"apart by {float(apart.max()):.1e}"
    single = (change(there, ids, Draws(0), torch.float32).cpu() - wanted).abs()
    # a pixel within rounding of the threshold may be solarized in one of the two
    share = float((single > 1e-3).double().mean())
    yield "photometry: as on the CPU, fp32", share < 1e-4, f"{share:.1e} of the values apart by more than 1e-3"
    rate = speed(lambda: change(there, ids, Draws(0), torch.float32), scale) * scale.batch
    yield f"photometry: views of {scale.side} px", True, f"{rate:,.0f} per second"


def steps(scale: Scale) -> Iterator[Section]:
    """Steps of MoCo v3 in every form of the blocks, in bf16 on a GPU; the first losses must agree."""
    small: dict[str, Any] = {"width": 32, "depth": 2, "heads": 2, "patch": 8}
    size: dict[str, Any] = {"width": 384, "depth": 12, "heads": 12, "patch": 16} if scale.gpu else small
    nets: dict[str, Callable[[], torch.nn.Module]] = {
        "vit": lambda: vit(**size),
        "resnet": lambda: timm_encoder("resnet50" if scale.gpu else "resnet18"),
    }
    forms: dict[str, dict[str, Any]] = {"plain": {}, "computed twice": {"activation_checkpointing": True}}
    forms |= {"compiled": {"compile": True}} if scale.gpu else {}
    generator = torch.Generator().manual_seed(0)
    views = [torch.randn(scale.batch, 3, scale.side, scale.side, generator=generator) for _ in range(2)]
    views = [view.to(scale.device, memory_format=torch.channels_last) for view in views]
    valid = torch.ones(scale.batch, dtype=torch.bool, device=scale.device)
    batch = Batch(views, torch.arange(scale.batch), valid, None, Draws(0), step=0)
    firsts: dict[str, float] = {}

    def taken(net: str, form: str) -> Iterator[Row]:
        encoder, options = nets[net], forms[form]
        torch.manual_seed(0)
        world = World(device=scale.device)
        method = MoCoV3(encoder(), world=world, hidden=1024, temperature=0.2)
        low: dict[str, Any] = {"compute": torch.bfloat16} if scale.gpu else {}
        engine = DDP(method, AdamW(1e-4, 0.1), world=world, deterministic=False, **low, **options)
        loss = float(engine.step(batch, HYPER).metrics["loss"])
        first = firsts.setdefault(net, loss)
        if scale.gpu:
            torch.cuda.reset_peak_memory_stats()
        rate = speed(lambda: engine.step(batch, HYPER), scale)
        memory = f", {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB" if scale.gpu else ""
        good = abs(loss - first) < 0.02 * abs(first)
        yield f"step: {net}, {form}", good, f"{1e3 / rate:,.1f} ms{memory}, first loss {loss:.4f}"

    for net, form in itertools.product(nets, forms):
        yield f"step: {net}, {form}", partial(taken, net, form)


def from_shards(scale: Scale) -> Iterator[Row]:
    """Training from shards against training on one batch again and again."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make.make("demo", folder / "data", Console(quiet=True), demo.DemoOptions(train=scale.images, val=20))
        threads = len(os.sched_getaffinity(0))
        words = (f"batch_size={scale.batch}", "lanes=1", "method.hidden=512", "method.dim=128", "encoder.width=32")
        more = ("schedule.image_size=48", f"threads={threads}", f"decode_threads={threads}", "window=256")
        config = small_config(folder / "data", *words, *more)
        job = small_job(World(device=scale.device), config, folder / "run")
        plan = job.coordinator.plan(Progress(epochs=job.fresh.epochs))
        progress = job.fresh.begin(plan)
        batches = itertools.chain.from_iterable(job.stream.epoch(plan) for _ in itertools.count())
        kept, hyper = next(batches), job.schedule.hyperparameters(progress)
        kept.views = [view.clone() for view in kept.views]
        alone = speed(lambda: job.engine.step(kept, hyper), scale) * scale.batch
        fed = speed(lambda: job.engine.step(next(batches), hyper), scale) * scale.batch
        job.meter.close()
        job.ledger.close()
        job.stream.close()
    yield "training on one batch", True, f"{alone:,.0f} images per second"
    yield "training from shards", True, f"{fed:,.0f} images per second with {threads} cores ({fed / alone:.0%})"


def measured(sections: Iterable[Section], until: float) -> Iterator[tuple[str, str, str]]:
    """Every row as soon as it is known."""
    for what, section in sections:
        if time.monotonic() > until:
            yield what, "SKIPPED", "no time was left"
            continue
        try:
            for row in section():
                yield row[0], "right" if row[1] else "WRONG", row[2]
        except Exception as error:  # what comes after it can still be measured
            traceback.print_exc()
            yield what, "FAILED", f"{type(error).__name__}: {error}"[:500]


def main() -> int:
    """Measure all, print the table; 1 where a number is wrong."""
    parser = argparse.ArgumentParser(description="Measures what a GPU makes of photometry, steps and loading.")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--limit", type=float, default=math.inf, help="seconds after which nothing more is begun")
    asked, started = parser.parse_args(), time.monotonic()
    if asked.device == "cuda" and not torch.cuda.is_available():
        print("SKIPPED tests/gpu/throughput.py: speeds on a GPU, none is here (--device cpu runs small sizes without)")
        return 0
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # a job asks for determinism
    large = {"side": 224, "batch": 128, "images": 4096} if asked.device == "cuda" else {}
    scale = Scale(torch.device(asked.device), asked.seconds, **{"side": 32, "batch": 16, "images": 64, **large})
    title = torch.cuda.get_device_name() if scale.gpu else "cpu"
    table, failed = Table("what", "", "seen", title=title), 0
    colours, shards = ("photometry", partial(photometry, scale)), ("training from shards", partial(from_shards, scale))
    for row in measured([colours, *steps(scale), shards], started + asked.limit):
        print(*row, sep=" | ", flush=True)  # whoever is killed has said what it knew
        table.add_row(row[0], row[1], escape(row[2]))
        failed += row[1] in ("WRONG", "FAILED")
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
