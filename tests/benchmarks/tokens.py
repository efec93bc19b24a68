"""What a step costs with fewer tokens: of the demo's transformer, or of any other, without the loader.

    python tests/benchmarks/tokens.py [rounds=20] [sides=20,32] [WORD...]

For every side of the views it takes turns at steps with all tokens, half of them (`schedule.keep_tokens=0.5`), patches
twice as large or as near to it as the side allows (`schedule.patch_size`), and both. Seconds are processor time of one
thread. The words compose the config as those of `launch/slurm.py` do, after `+recipe=demo_mocov3_vit`. Exits with 1
where fewer tokens do not make a step cheaper.
"""

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dist_ssl.config.instantiate import instantiate
from dist_ssl.core.batch import Batch
from dist_ssl.core.draws import Draws
from dist_ssl.core.plan import Hyperparameters
from dist_ssl.core.tokens import Tokens
from dist_ssl.distributed.world import World
from dist_ssl.models.patches import projections
from dist_ssl.parts import make_method
from dist_ssl.protocols.engine import Engine
from dist_ssl.protocols.method import Method
from launch import settings
from launch.run_dir import PROJECT
from tests.benchmarks.turns import in_turns, quotient

IMAGES = 6000


def made(config: dict[str, Any]) -> tuple[Method, Engine]:
    """Return the method and the engine of the config, alone in the world."""
    torch.manual_seed(0)
    method = make_method(config, instantiate(config["encoder"], "encoder"), IMAGES, World())
    recipe = instantiate(config["optim"], "optim")
    engine: Engine = instantiate(
        config["engine"], "engine", method=method, recipe=recipe, world=World(), dtype=torch.float32, compute=None
    )
    return method, engine


def step(config: dict[str, Any], side: int, tokens: Tokens) -> Callable[[], float]:
    """Return a function that takes a step on random views of a side and returns its processor seconds."""
    method, engine = made(config)
    size = config["batch_size"]
    views = [torch.randn(size, 3, side, side) for _ in range(method.num_views)]
    batch = Batch(views, torch.arange(size), torch.ones(size, dtype=torch.bool), None, Draws(0), 0, tokens=tokens)
    values = {name: curve.start for name, curve in method.curves.items()} | {"lr": 1e-3, "weight_decay": 0.1}
    hyper = Hyperparameters({name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()})

    def measured() -> float:
        started = time.process_time()
        engine.step(batch, hyper)
        return time.process_time() - started

    return measured


def larger(own: int, side: int) -> int:
    """Return the side of a patch that divides a view's and is nearest to twice the encoder's own, but larger."""
    return min((n for n in range(own + 1, side + 1) if side % n == 0), key=lambda n: (abs(n - 2 * own), n))


def table(config: dict[str, Any], side: int, rounds: int) -> bool:
    """Print the table of one side; return whether every setting with fewer tokens is cheaper than all tokens."""
    own = projections(made(config)[0].encoder)[0].multiple_of
    patch = larger(own, side)
    chosen = [Tokens(), Tokens(0.5), Tokens(patch=patch), Tokens(0.5, patch)]
    times = in_turns(rounds, *(step(config, side, tokens) for tokens in chosen))
    cheaper = True
    for tokens, found in zip(chosen, times, strict=True):
        share, count = quotient(found, times[0]), tokens.kept((side // (tokens.patch or own)) ** 2)
        cheaper &= tokens == Tokens() or share.high < 1
        print(
            f"{side:4} px   keep_tokens={tokens.keep:<4g} patch_size={tokens.patch or own:<3} {count:5} tokens   "
            f"{1e3 * statistics.median(found):7.1f} ms   x {share.mean:.2f} ({share.low:.2f} to {share.high:.2f})"
        )
    return cheaper


def main(words: list[str]) -> int:
    """Print all tables; return the exit code."""
    own = {"rounds": "20", "sides": "20,32"} | dict(
        w.split("=", 1) for w in words if w.startswith(("rounds=", "sides="))
    )
    rest = [word for word in words if word.split("=")[0] not in own]
    config = settings.compose(["+recipe=demo_mocov3_vit", "threads=1", *rest], PROJECT / "configs")
    torch.set_num_threads(1)
    cheaper = [table(config, int(side), int(own["rounds"])) for side in own["sides"].split(",")]
    return 0 if all(cheaper) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
