"""Part d: what torch's compiler makes of the blocks: how long it takes, whether the loss stays, how fast the step is.

python tests/gpu/compiled.py [--device cpu] [--seconds 80] [--only vit_small]
"""

import math
import sys
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.gpu import rows
from tests.gpu.profiles import profile
from tests.gpu.recipes import NETS, Form, engine_of, knobs_of, random_batch
from tests.gpu.rows import Claim, Row, Setting, judged, leave, main

PLAIN, COMPILED = Form("bf16"), Form("bf16", compile=True)


def compiled(net: str, setting: Setting) -> Iterator[Row]:
    """A step of compiled blocks has the loss of plain ones; time to compile, forms, speed and launches."""
    batch = random_batch(net, setting)
    plain = engine_of(net, PLAIN, setting)
    wanted = float(plain.step(batch, knobs_of(plain)).metrics["loss"])
    del plain
    yield rows.seen(f"{net}: first step of plain blocks", f"loss {wanted:.4f}")
    setting.forget()
    engine = engine_of(net, COMPILED, setting)
    hyper, start = knobs_of(engine), setting.wait()
    loss = float(engine.step(batch, hyper).metrics["loss"])
    first = setting.wait() - start
    good = math.isfinite(loss) and abs(loss - wanted) < 0.1 * abs(wanted)
    counters = torch._dynamo.utils.counters
    forms, breaks = counters["stats"].get("unique_graphs", 0), sum(counters["graph_break"].values())
    text = f"first step {first:.1f} s, {forms} graphs, {breaks} breaks, losses {wanted:.4f} and {loss:.4f}"
    yield judged(f"{net}: compiled blocks", good, text)
    rate = rows.speed(lambda: engine.step(batch, hyper), setting, 2.5)
    measures = {f"compiled_{net}": rate * len(batch.ids)}
    text = f"{rate * len(batch.ids):,.0f} images/s, {1e3 / rate:,.1f} ms, {setting.peak}"
    yield rows.seen(f"{net}: our step, {COMPILED}", text, **measures)
    told = profile(lambda: engine.step(batch, hyper), setting, 2)
    text = f"{told.launches:,.0f} launches, {told.milliseconds:,.1f} ms of kernels"
    yield rows.seen(f"{net}: a compiled step, profiled", text, **{f"compiled_launches_{net}": told.launches})
    yield rows.seen(f"{net}: compiled kernels by kind", told.by_kind)


def claims(setting: Setting) -> Iterable[Claim]:
    """All of this part."""
    nets = ("vit_small", "resnet50") if setting.gpu else ("vit_small",)
    for net in setting.only or nets:
        yield f"{net}: compiled blocks", partial(compiled, net, setting)


if __name__ == "__main__":
    leave(main(claims, list(NETS)))
