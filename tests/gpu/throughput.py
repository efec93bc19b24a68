"""Part c: what a step costs, ours beside the same loop with torch's batch norm and plain AdamW.

    python tests/gpu/throughput.py [--device cpu] [--seconds 130] [--only resnet50] [--bars]

MoCo v3 as its recipes have it, on one batch again and again: images a second, memory, first loss, host stops, kernel
launches, and the kernels that take longest. The photometry that `correct.py` checks is measured here too.
"""

import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dist_ssl.core.draws import Draws
from dist_ssl.data.images.photometric import Photometry
from dist_ssl.models import norm_cuda
from tests.colours import MOCO
from tests.gpu import rows
from tests.gpu.plain import PlainLoop, PlainMoCo
from tests.gpu.profiles import profile
from tests.gpu.recipes import NETS, Form, composed, engine_of, knobs_of, random_batch
from tests.gpu.rows import Claim, Setting, host_stops, judged, leave, main, seen

COLOURS = MOCO
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


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


FORMS = (Form("bf16"), Form("bf16", deterministic=True), Form("tf32"), Form("fp32", deterministic=True))
"""The fast one, and what determinism and precision cost."""
SLOWEST = FORMS[-1]
"""A minute for ResNet-50, which leaves it out."""
MEASURED_SECONDS = 2.5


def ours(net: str, form: Form, setting: Setting, firsts: dict[str, float]) -> Iterator[rows.Row]:
    """Our step in one form; its first loss is that of the first form up to rounding."""
    engine, batch = engine_of(net, form, setting), random_batch(net, setting)
    hyper = knobs_of(engine)
    loss = float(engine.step(batch, hyper).metrics["loss"])
    first = firsts.setdefault(net, loss)
    rate = rows.speed(lambda: engine.step(batch, hyper), setting, MEASURED_SECONDS, warm=4)
    fast = form == FORMS[0]
    yield judged(
        f"{net}: our step, {form}",
        math.isfinite(loss) and abs(loss - first) < 0.1 * abs(first),
        f"{rate * len(batch.ids):,.0f} images/s, {1e3 / rate:,.1f} ms, {setting.peak}, first loss {loss:.4f}",
        **({f"alone_{net}": rate * len(batch.ids)} if fast else {}),
    )
    if fast:
        stops, places = host_stops(lambda: engine.step(batch, hyper), setting)
        yield seen(f"{net}: host stops in a step", f"{stops}: {places}", **{f"stops_{net}": float(stops)})
        told = profile(lambda: engine.step(batch, hyper), setting, 3 if setting.gpu else 1)
        text = f"{told.launches:,.0f} launches, {told.copies:,.0f} copies, {told.milliseconds:,.1f} ms of kernels"
        yield seen(f"{net}: a step, profiled", text, **{f"launches_{net}": told.launches})
        yield seen(f"{net}: kernels by kind", told.by_kind)


def plain_loop(net: str, setting: Setting, compute: torch.dtype | None = torch.bfloat16) -> PlainLoop:
    """The plain loop around the recipe's encoder."""
    node = composed(net, FORMS[0], setting)
    encoder, method, given = node["encoder"], node["method"], {}
    if "width" in encoder:
        given = {"embed_dim": encoder["width"], "depth": encoder["depth"], "num_heads": encoder["heads"]}
    options: dict[str, Any] = {**given, "img_size": 224 if setting.gpu else 32} if given else {}
    name = "vit_small_patch16_224" if given else encoder["name"]
    made = PlainMoCo(name, method["hidden"], method["dim"], method["temperature"], **options)
    return PlainLoop(made, setting.device, compute)


def plain(net: str, setting: Setting) -> Iterator[rows.Row]:
    """The plain loop's step."""
    FORMS[0].set_backends()
    loop, views = plain_loop(net, setting), random_batch(net, setting).views
    rate = rows.speed(lambda: loop.step(views), setting, MEASURED_SECONDS, warm=4)
    text = f"{rate * len(views[0]):,.0f} images/s, {1e3 / rate:,.1f} ms, {setting.peak}"
    yield seen(f"{net}: plain step, bf16", text, **{f"plain_{net}": rate * len(views[0])})


def by_triton(net: str, setting: Setting, firsts: dict[str, float]) -> Iterator[rows.Row]:
    """The fast form with batch norms in Triton's kernels, which are no default before a GPU has shown them faster."""
    with patch.object(norm_cuda, "TRITON_DEVICES", ("cuda",)):
        engine, batch = engine_of(net, FORMS[0], setting), random_batch(net, setting)
        hyper = knobs_of(engine)
        loss = float(engine.step(batch, hyper).metrics["loss"])
        rate = rows.speed(lambda: engine.step(batch, hyper), setting, MEASURED_SECONDS, warm=4)
        found = profile(lambda: engine.step(batch, hyper), setting, 3 if setting.gpu else 1)
    first = firsts.setdefault(net, loss)
    name = f"{net}: our step, bf16, batch norms by Triton"
    text = f"{rate * len(batch.ids):,.0f} images/s, {1e3 / rate:,.1f} ms, {found.launches:,.0f} launches"
    near = math.isfinite(loss) and abs(loss - first) < 0.02 * abs(first)
    yield judged(name, near, f"{text}, first loss {loss:.4f}", **{f"triton_{net}": rate * len(batch.ids)})
    yield seen(f"{net}: kernels by kind, batch norms by Triton", found.by_kind)


def forms(net: str, setting: Setting) -> tuple[Form, ...]:
    """The forms in which a net is measured."""
    if net == "vit_base" or setting.bars:
        return FORMS[:1]
    if not setting.gpu:
        return FORMS[:2]
    return tuple(form for form in FORMS if net != "resnet50" or form != SLOWEST)


def claims(setting: Setting) -> Iterable[Claim]:
    """All of this part, what the bars ask for first."""
    firsts: dict[str, float] = {}
    for net in setting.only or (list(NETS) if setting.gpu else ["resnet50", "vit_small"]):
        for form in forms(net, setting):
            yield f"{net}: our step, {form}", partial(ours, net, form, setting, firsts)
            if form == FORMS[0]:
                yield f"{net}: plain step", partial(plain, net, setting)
                if net == "resnet50":
                    yield f"{net}: batch norms by Triton", partial(by_triton, net, setting, firsts)


if __name__ == "__main__":
    leave(main(claims, list(NETS)))
