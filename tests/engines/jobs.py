"""Small trainings of an engine on any number of ranks, without data and schedule."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from dist_ssl.checkpoint.index import read
from dist_ssl.config.instantiate import instantiate
from dist_ssl.core.batch import Batch
from dist_ssl.core.draws import Draws
from dist_ssl.core.plan import Hyperparameters
from dist_ssl.core.tokens import ALL_TOKENS, Tokens
from dist_ssl.distributed.world import World
from dist_ssl.engines.parallel import Parallel
from dist_ssl.methods.rotation import Rotation
from dist_ssl.models.encoders import ResidualBlock
from dist_ssl.models.vit import vit
from dist_ssl.optim.recipes import AdamW, OptimizerRecipe
from dist_ssl.protocols.engine import Piece
from dist_ssl.protocols.method import Method
from tests.ranks import collect_tensors

CONFIGS = Path(__file__).parents[2] / "configs"
SAMPLES, IMAGES = 8, 40
SMALL = {
    "hidden": 10,
    "dim": 6,
    "narrow": 6,
    "outputs": 12,
    "prototypes": 6,
    "slots": 20,
    "patches": 3,
    "loss_group": 8,
}
"""Widths of which four ranks hold uneven shards, and of some rows none."""
ENGINES: dict[str, dict[str, Any]] = {"ddp": {}, "fsdp": {"block_parameters": 500}} | {
    f"deepspeed {stage}": {"stage": stage} for stage in range(4)
}


class SmallNet(nn.Module):
    """A stem and one block, pooled by means: among maxima Adam would make steps of rounding errors."""

    num_features = 10

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 5, 3, 2, bias=False), nn.BatchNorm2d(5), nn.ReLU())
        self.stages = nn.Sequential(ResidualBlock(5, 10, stride=2))

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.stages(self.stem(x)).mean((2, 3))
        return features


def small_method(world: World, name: str, seed: int = 0, **own: Any) -> Method:
    """A method around a small net, with `vit` a transformer, its teacher drifted from its student."""
    node = yaml.safe_load((CONFIGS / "method" / f"{name}.yaml").read_text())
    keys = {key: value for key, value in {**SMALL, **own}.items() if key in node}
    torch.manual_seed(seed)
    encoder = vit(width=8, depth=2, heads=2, patch=4, frozen_patches=False) if own.get("vit") else SmallNet()
    method: Method = instantiate(
        {**node, **keys}, "method", offered={"num_samples": IMAGES}, encoder=encoder, world=world
    )
    if own.get("rotation"):
        method = Rotation(method, world=world, hidden=8)
    if method.teacher is not None:
        with torch.no_grad():
            for parameter in method.teacher.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    return method


def small_engine(
    world: World,
    name: str,
    method: Method,
    optimizer: OptimizerRecipe | None = None,
    dtype: Any = torch.float64,
    **own: Any,
) -> Parallel:
    """The engine that a config describes, with units of a few weights; `own` replaces keys of it."""
    node = yaml.safe_load((CONFIGS / "engine" / f"{name.split()[0]}.yaml").read_text())
    given = {"method": method, "recipe": optimizer or AdamW(1e-3, 0.05), "world": world, "dtype": dtype}
    compute = {"compute": own.pop("compute")} if "compute" in own else {}
    if name.startswith("deepspeed"):
        forget_worlds()
    engine: Parallel = instantiate({**node, **ENGINES[name], **own}, "engine", **given, **compute)
    return engine


def batch(world: World, views: int, step: int, dtype: torch.dtype = torch.float64, *, local_views: int = 0) -> Batch:
    """This rank's part of the global batch of a step; all but one sample can be read."""
    generator = torch.Generator().manual_seed(step)
    ids = torch.arange(SAMPLES) + step * SAMPLES % IMAGES
    shapes = [(SAMPLES, 3, side, side) for side in [12] * views + [8] * local_views]
    pixels = [torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype) for shape in shapes]
    valid = torch.arange(SAMPLES) != step % SAMPLES
    own = slice(world.rank * SAMPLES // world.size, (world.rank + 1) * SAMPLES // world.size)
    mine = [view[own].to(world.device) for view in pixels]
    return Batch(mine, ids[own], valid[own].to(world.device), None, Draws(0), step=step)


def forget_worlds() -> None:
    """DeepSpeed keeps groups and numbers of modules for a process's life; here one joins one world after the other."""
    import deepspeed
    from deepspeed.runtime.zero.parameter_offload import DeepSpeedZeRoOffload
    from deepspeed.runtime.zero.partition_parameters import Init

    deepspeed.comm.comm.cdb = None
    deepspeed.utils.groups._release_process_group_references()
    DeepSpeedZeRoOffload._register_deepspeed_module.__defaults__[0][0] = 0
    Init.param_id = 0


def filled(engine: Parallel) -> Parallel:
    """Show the engine all images, where it wants to see them."""
    for step in range(IMAGES // SAMPLES if engine.needs_initial_pass else 0):
        engine.initialise_memory(batch(engine.world, engine.method.num_views, step, engine.dtype))
    return engine


def hyper(method: Method, lr: float = 0.01) -> Hyperparameters:
    """Those of the method at its start, and the optimizer's."""
    values = {name: curve.start for name, curve in method.curves.items()} | {"lr": lr, "weight_decay": 0.05}
    return Hyperparameters({name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()})


def trained(engine: Parallel, steps: range, tokens: Tokens = ALL_TOKENS) -> list[float]:
    """Take these steps: the job's losses."""
    world, method = engine.world, engine.method
    dtype = engine.dtype
    views, local = method.num_views, method.local_views
    batches = [replace(batch(world, views, step, dtype, local_views=local), tokens=tokens) for step in steps]
    outs = [engine.step(each, hyper(method)) for each in batches]
    return [float(world.sum_const(out.metrics["loss"]) / world.size) for out in outs]


def whole_state(engine: Parallel) -> dict[str, Tensor]:
    """The canonical state with all pieces put together, on every rank."""
    found = {}
    for name, value in engine.state().items():
        if isinstance(value, Piece):
            starts = engine.world.collect(value.start)
            parts = zip(starts, collect_tensors(engine.world, value.tensor.flatten().cpu()), strict=True)
            joined = torch.cat([part for _, part in sorted(parts, key=lambda part: (part[0], len(part[1])))])
            found[name] = joined.view(value.shape)
        else:
            found[name] = value.clone()
    return found


def differing(engine: Parallel, folder: Path) -> list[str]:
    """The names of what this rank does not hold as it was written, bit for bit."""
    whole, held = read(folder)[1], engine.state()
    wrong = sorted(whole.keys() ^ held.keys())
    for name in whole.keys() & held.keys():
        value, wanted = held[name], whole[name]
        assert isinstance(wanted, Tensor)
        if isinstance(value, Piece):
            wanted, value = wanted.flatten()[value.start : value.span.stop], value.tensor.flatten()
        wrong += [] if value.dtype == wanted.dtype and torch.equal(value, wanted) else [name]
    return wrong
