"""Part b: a GPU computes what the CPU computes.

    python tests/gpu/correct.py [--device cpu] [--seconds 60]

Every method, alone and with rotation, encoders and optimizers: three deterministic steps in double precision, twice on
the GPU to the same bits, and on the CPU to 1e-9, losses and weights. DINO's recipe takes steps at 224 and 96 px. Then
what has kernels of its own: batch norm beside torch's, and colours.
"""

import copy
import math
import sys
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dist_ssl.config.instantiate import instantiate
from dist_ssl.core.batch import Batch
from dist_ssl.core.draws import Draws
from dist_ssl.core.plan import Hyperparameters
from dist_ssl.data.images.photometric import Photometry
from dist_ssl.distributed.world import World
from dist_ssl.engines.parallel import Parallel
from dist_ssl.models import norm
from dist_ssl.models.encoders import TinyResNet, timm_encoder
from dist_ssl.models.vit import vit
from dist_ssl.optim.recipes import LARS, SGD, AdamW, OptimizerRecipe
from dist_ssl.parts import make_method
from dist_ssl.protocols.method import Method
from launch import settings
from launch.run_dir import PROJECT
from shards.picture_rules import IMAGENET
from tests.colours import MOCO
from tests.engines.jobs import CONFIGS, batch, filled, hyper, small_engine, small_method, whole_state
from tests.gpu.recipes import IMAGES, Form
from tests.gpu.rows import Claim, Row, Setting, judged, leave, main, seen, speed

METHODS = sorted(path.stem for path in (CONFIGS / "method").glob("*.yaml"))
PRECISE = 1e-9
STEPS = 3
PLAIN = SGD(1e-2, 1e-3)
"""Moves weights by their gradients alone, so that rounding stays rounding."""
Answer = tuple[list[float], dict[str, Tensor]]
"""The losses, and then all weights, statistics and memories."""


def encoders() -> dict[str, nn.Module]:
    """Of every kind, small."""
    dino: dict[str, Any] = {
        "img_size": 16,
        "patch_size": 4,
        "embed_dim": 16,
        "depth": 2,
        "num_heads": 2,
        "dynamic_img_size": True,
    }
    return {
        "tiny": TinyResNet(4),
        "resnet18": timm_encoder("resnet18"),
        "resnet50, small stem": timm_encoder("resnet50", "small"),
        "vit": vit(width=16, depth=2, heads=2, patch=4),
        "vit of dino": timm_encoder("vit_small_patch16_224", **dino),
    }


def method_of(world: World, name: str, encoder: str, rotation: bool) -> Method:
    """A small method, always with the same weights; `encoder`: other than the one that small methods have."""
    if not encoder:
        return small_method(world, name, rotation=rotation, local_views=2)
    node = {"_target_": f"dist_ssl.methods.{name}.{'DINO' if name == 'dino' else 'MoCoV3'}", "hidden": 10}
    node |= {"narrow": 6, "outputs": 12, "local_views": 2} if name == "dino" else {"dim": 6}
    torch.manual_seed(0)
    made: Method = instantiate(node, "method", encoder=encoders()[encoder], world=world)
    return made


def answer(
    device: torch.device, name: str, encoder: str = "", rotation: bool = False, recipe: OptimizerRecipe = PLAIN
) -> Answer:
    """Three steps in double precision on this device."""
    world = World(device=device)
    method = method_of(world, name, encoder, rotation)
    engine = filled(small_engine(world, "ddp", method, recipe))
    losses = []
    for step in range(STEPS):
        views = batch(world, method.num_views, step, local_views=method.local_views)
        losses.append(float(engine.step(views, hyper(method)).metrics["loss"]))
    return losses, {key: value.cpu() for key, value in whole_state(engine).items()}


def compared(setting: Setting, what: str, bound: float = PRECISE, **which: Any) -> Iterator[Row]:
    """The same bits twice on the device, and the CPU's numbers."""
    Form("fp64", deterministic=True).set_backends()
    losses, state = answer(setting.device, **which)
    again, repeated = answer(setting.device, **which) if setting.gpu else (losses, state)
    wanted, known = answer(torch.device("cpu"), **which)
    equal = losses == again and all(torch.equal(state[key], repeated[key]) for key in state)
    apart = max(abs(a - b) for a, b in zip(losses, wanted, strict=True))
    numbers = {key: value for key, value in known.items() if value.is_floating_point()}
    distances = {key: float((state[key] - value).abs().max()) for key, value in numbers.items() if value.numel()}
    worst = max(distances, key=lambda key: distances[key])
    good = equal and math.isfinite(apart) and apart <= bound and distances[worst] <= bound
    bits = "same bits twice" if equal else "NOT the same bits twice"
    yield judged(what, good, f"{bits}; losses apart by {apart:.1e}, {worst} by {distances[worst]:.1e}")


def dino_recipe(setting: Setting) -> Iterator[Row]:
    """Steps of DINO's recipe, deterministic as it is, with views of 224 and 96 px."""
    small = ("encoder.name=vit_tiny_patch16_224", "+encoder.depth=1", "method.hidden=32", "method.outputs=64")
    words = ["+recipe=dino_vit_small_in1k_100ep", *(() if setting.gpu else (*small, "method.local_views=2"))]
    config, size = settings.compose(words, PROJECT / "configs"), 16 if setting.gpu else 2
    Form("fp32", deterministic=True).set_backends()
    for compute in (torch.bfloat16, None):
        world = World(device=setting.device)
        torch.manual_seed(0)
        method = make_method(config, instantiate(config["encoder"], "encoder"), IMAGES, world)
        given: dict[str, Any] = {"method": method, "recipe": instantiate(config["optim"], "optim"), "world": world}
        given |= {"compute": compute} if compute else {}
        engine: Parallel = instantiate(config["engine"], "engine", **given)
        sides = [224] * method.num_views + [96] * method.local_views
        views = [torch.randn(size, 3, side, side).to(setting.device) for side in sides]
        valid = torch.ones(size, dtype=torch.bool, device=setting.device)
        values = {name: curve.start for name, curve in method.curves.items()} | {"lr": 1e-4, "weight_decay": 0.04}
        own = Hyperparameters({name: torch.tensor(value) for name, value in values.items()})
        steps = (Batch(views, torch.arange(size), valid, None, Draws(0), step=step) for step in range(2))
        losses = [float(engine.step(step, own).metrics["loss"]) for step in steps]
        precision = "bf16" if compute else "fp32"
        yield judged(f"DINO's recipe, {precision}, 224 and 96 px", all(map(math.isfinite, losses)), f"losses {losses}")


def normed(net: nn.Module, x: Tensor, weight: Tensor) -> list[Tensor]:
    """What a norm answers, the gradients of a weighted sum of that, and its running statistics."""
    leaf = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = net(leaf)
    (y.to(weight.dtype) * weight).sum().backward()
    norm.update_running_statistics(net)
    assert leaf.grad is not None
    gradients = [p.grad for p in net.parameters() if p.grad is not None]
    found = [y.detach(), leaf.grad, *gradients, *(b for b in net.buffers() if b.is_floating_point())]
    net.zero_grad()
    return [value.double().cpu() for value in found]


def norms(setting: Setting) -> Iterator[Row]:
    """Our batch norm is no further from the numbers of double precision than torch's own; and what both take."""
    torch.manual_seed(0)
    shape = (32, 256, 56, 56) if setting.gpu else (4, 8, 6, 6)
    x = (2 * torch.randn(shape) + 1).contiguous(memory_format=torch.channels_last)
    weight, plain = torch.randn(shape), nn.Sequential(nn.BatchNorm2d(shape[1]))
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.normal_(1.0, 0.2)
    known = normed(copy.deepcopy(plain).double(), x.double(), weight.double())
    for dtype in (torch.float32, torch.bfloat16):
        given, there = x.to(setting.device, dtype), weight.to(setting.device)
        own = norm.convert(copy.deepcopy(plain), norm.ONE_RANK).to(setting.device)
        torchs = copy.deepcopy(plain).to(setting.device)
        apart = [distances(normed(net, given, there), known) for net in (own, torchs)]
        name = str(dtype).removeprefix("torch.")
        good = all(a <= 3 * b + 1e-6 for a, b in zip(*apart, strict=True))
        texts = [", ".join(f"{a:.0e}" for a in numbers) for numbers in apart]
        yield judged(
            f"batch norm, {name}", good, f"output, gradients, statistics off by {texts[0]}; torch's {texts[1]}"
        )
        gradient = torch.ones_like(given)
        times = [1e3 / speed(partial(forth_and_back, net, given, gradient), setting, 0.5) for net in (own, torchs)]
        yield seen(f"batch norm, {name}, forward and backward", f"{times[0]:.2f} ms; torch's {times[1]:.2f} ms")


def distances(found: list[Tensor], known: list[Tensor]) -> list[float]:
    """The largest difference in each tensor, relative to its largest number."""
    return [float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, known, strict=True)]


def forth_and_back(net: nn.Module, x: Tensor, gradient: Tensor) -> None:
    """A forward and a backward pass, and what follows them once a step."""
    leaf = x.detach().requires_grad_()
    net(leaf).backward(gradient)
    norm.update_running_statistics(net)


def photometry(setting: Setting) -> Iterator[Row]:
    """Colours on the device: the numbers of the CPU's, and how fast they come."""
    side, batch = (224, 128) if setting.gpu else (32, 16)
    pixels = np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), dtype=np.uint8)
    ids, change = np.arange(batch), Photometry(MOCO, 0, *IMAGENET)
    here, there = torch.from_numpy(pixels), torch.from_numpy(pixels).to(setting.device)
    wanted = change(here, ids, Draws(0), torch.float64)
    apart = float((change(there, ids, Draws(0), torch.float64).cpu() - wanted).abs().max())
    yield judged("photometry: as on the CPU, fp64", apart < PRECISE, f"apart by {apart:.1e}")
    single = (change(there, ids, Draws(0), torch.float32).cpu() - wanted).abs()
    # a pixel within rounding of the threshold may be solarized in one of the two
    share = float((single > 1e-3).double().mean())
    yield judged("photometry: as on the CPU, fp32", share < 1e-4, f"{share:.1e} of the values apart by more than 1e-3")
    rate = speed(lambda: change(there, ids, Draws(0), torch.float32), setting, 1.0) * batch
    yield seen(f"photometry: views of {side} px", f"{rate:,.0f} per second")


def claims(setting: Setting) -> Iterable[Claim]:
    """All of this part; what has kernels of its own comes last, for a fault there ends the process."""
    yield "DINO's recipe at 224 and 96 px", partial(dino_recipe, setting)
    for name in METHODS:
        for rotation in (False, True) if setting.gpu else (name == "swav",):
            what = f"{name}{' + rotation' if rotation else ''}, as on the CPU"
            yield what, partial(compared, setting, what, name=name, rotation=rotation)
    for encoder in encoders() if setting.gpu else ("tiny", "vit of dino"):
        what, name = f"encoder {encoder}, as on the CPU", "dino" if "vit" in encoder else "mocov3"
        # norms enlarge what is zero up to rounding
        yield what, partial(compared, setting, what, 1e-8, name=name, encoder=encoder)
    for recipe, bound in ((LARS(0.1, 1e-4), PRECISE), (AdamW(1e-3, 0.05), 1e-7)):
        what = f"{type(recipe).__name__}, as on the CPU"
        yield what, partial(compared, setting, what, bound, name="mocov3", recipe=recipe)
    yield "batch norm", partial(norms, setting)
    yield "photometry", partial(photometry, setting)


if __name__ == "__main__":
    leave(main(claims))
