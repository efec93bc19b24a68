"""Part c: what a step costs, ours beside the same loop with torch's batch norm and plain AdamW.

    python tests/gpu/throughput.py [--device cpu] [--seconds 130] [--only resnet50] [--bars]

MoCo v3 as its recipes have it, on one batch again and again: images a second, memory, first loss, host stops, kernel
launches, and the kernels that take longest.
"""

import math
import sys
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dist_ssl.models import norm_cuda
from tests.gpu.plain import PlainLoop, PlainMoCo
from tests.gpu.profiles import profile
from tests.gpu.recipes import NETS, Form, composed, engine_of, knobs_of, random_batch
from tests.gpu.rows import Claim, Row, Setting, host_stops, judged, leave, main, seen, speed

FORMS = (Form("bf16"), Form("bf16", deterministic=True), Form("tf32"), Form("fp32", deterministic=True))
"""The fast one, and what determinism and precision cost."""
SLOWEST = FORMS[-1]
"""A minute for ResNet-50, which leaves it out."""
MEASURED_SECONDS = 2.5


def ours(net: str, form: Form, setting: Setting, firsts: dict[str, float]) -> Iterator[Row]:
    """Our step in one form; its first loss is that of the first form up to rounding."""
    engine, batch = engine_of(net, form, setting), random_batch(net, setting)
    hyper = knobs_of(engine)
    loss = float(engine.step(batch, hyper).metrics["loss"])
    first = firsts.setdefault(net, loss)
    rate = speed(lambda: engine.step(batch, hyper), setting, MEASURED_SECONDS, warm=4)
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


def plain(net: str, setting: Setting) -> Iterator[Row]:
    """The plain loop's step."""
    FORMS[0].set_backends()
    loop, views = plain_loop(net, setting), random_batch(net, setting).views
    rate = speed(lambda: loop.step(views), setting, MEASURED_SECONDS, warm=4)
    text = f"{rate * len(views[0]):,.0f} images/s, {1e3 / rate:,.1f} ms, {setting.peak}"
    yield seen(f"{net}: plain step, bf16", text, **{f"plain_{net}": rate * len(views[0])})


def by_triton(net: str, setting: Setting, firsts: dict[str, float]) -> Iterator[Row]:
    """The fast form with batch norms in Triton's kernels, which are no default before a GPU has shown them faster."""
    with patch.object(norm_cuda, "TRITON_DEVICES", ("cuda",)):
        engine, batch = engine_of(net, FORMS[0], setting), random_batch(net, setting)
        hyper = knobs_of(engine)
        loss = float(engine.step(batch, hyper).metrics["loss"])
        rate = speed(lambda: engine.step(batch, hyper), setting, MEASURED_SECONDS, warm=4)
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
