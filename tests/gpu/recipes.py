"""Our recipes as engines, at the batch sizes that a single GPU is measured with."""

import contextlib
import gc
from dataclasses import dataclass
from typing import Any

import torch

from dist_ssl.config.instantiate import instantiate
from dist_ssl.core.batch import Batch
from dist_ssl.core.draws import Draws
from dist_ssl.core.plan import Hyperparameters
from dist_ssl.distributed.world import World
from dist_ssl.engines.parallel import Parallel
from dist_ssl.parts import make_method
from launch import settings
from launch.run_dir import PROJECT
from tests.gpu.rows import Setting

IMAGES = 1_281_167
LEARNING_RATE, DECAY = 1e-4, 1e-6


@dataclass(frozen=True)
class Net:
    """A recipe on one GPU. `small`: words that make it small enough for a CPU."""

    recipe: str
    batch: int
    small: tuple[str, ...]
    compiles: bool


VIT = ("encoder.width=24", "encoder.depth=1", "encoder.heads=2", "method.hidden=32", "method.dim=16")
NETS = {
    "resnet50": Net("mocov3_r50_in1k_100ep", 256, ("encoder=resnet18", *VIT[3:]), False),
    "vit_small": Net("mocov3_vit_small_in1k_300ep", 512, VIT, True),
    "vit_base": Net("mocov3_vit_base_in1k_300ep", 256, VIT, True),
}
"""What the bars are about. `compiles`: by default only what gains by it."""


@dataclass(frozen=True)
class Form:
    """How a recipe is computed."""

    precision: str = "bf16"
    deterministic: bool = False
    compile: bool = False

    def __str__(self) -> str:
        words = [self.precision, "deterministic" if self.deterministic else "", "compiled" if self.compile else ""]
        return ", ".join(filter(None, words))

    @property
    def words(self) -> list[str]:
        """As keys of a config, all but the precision."""
        flags = {"deterministic": self.deterministic, "compile": self.compile}
        return [f"engine.{key}={str(value).lower()}" for key, value in flags.items()]

    def set_backends(self) -> None:
        """Set torch's own switches as this form has them; an engine may set some of them again."""
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.deterministic = self.deterministic
        torch.backends.cudnn.benchmark = not self.deterministic
        with contextlib.suppress(RuntimeError):  # torch refuses, where an engine has used its newer switches
            torch.set_float32_matmul_precision("high" if self.precision == "tf32" else "highest")
            torch.backends.cudnn.allow_tf32 = self.precision != "fp32"


def batch_size(net: str, setting: Setting) -> int:
    """Samples in a step."""
    return NETS[net].batch if setting.gpu else 4


def side_of(setting: Setting) -> int:
    """The side of a view, px."""
    return 224 if setting.gpu else 32


def composed(net: str, form: Form, setting: Setting, *words: str) -> dict[str, Any]:
    """The recipe's config in this form."""
    found = NETS[net]
    small = () if setting.gpu else found.small
    return settings.compose([f"+recipe={found.recipe}", *form.words, *small, *words], PROJECT / "configs")


def engine_of(net: str, form: Form, setting: Setting) -> Parallel:
    """The recipe's engine, method, encoder and optimizer, always with the same weights."""
    gc.collect()
    form.set_backends()
    config, world = composed(net, form, setting), World(device=setting.device)
    torch.manual_seed(0)
    method = make_method(config, instantiate(config["encoder"], "encoder"), IMAGES, world)
    given: dict[str, Any] = {"method": method, "recipe": instantiate(config["optim"], "optim"), "world": world}
    given |= {"compute": torch.bfloat16} if form.precision == "bf16" else {"tf32": form.precision == "tf32"}
    engine: Parallel = instantiate(config["engine"], "engine", **given)
    return engine


def knobs_of(engine: Parallel) -> Hyperparameters:
    """Those of the method at its start, and small ones of the optimizer."""
    values = {name: curve.start for name, curve in engine.method.curves.items()}
    values |= {"lr": LEARNING_RATE, "weight_decay": DECAY}
    return Hyperparameters({name: torch.tensor(value) for name, value in values.items()})


def random_batch(net: str, setting: Setting) -> Batch:
    """Random views of a step, on the device."""
    size, side, device = batch_size(net, setting), side_of(setting), setting.device
    torch.manual_seed(1)
    views = [torch.randn(size, 3, side, side, device=device).to(memory_format=torch.channels_last) for _ in range(2)]
    valid = torch.ones(size, dtype=torch.bool, device=device)
    return Batch(views, torch.arange(size), valid, None, Draws(0), step=0)
