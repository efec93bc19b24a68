"""Any engine reads what any other wrote, on any number of ranks, and goes on as if nothing had happened."""

import itertools
from pathlib import Path

import pytest
import torch
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from dist_ssl.checkpoint.index import read
from dist_ssl.checkpoint.saver import Checkpoint
from dist_ssl.core.progress import Progress
from dist_ssl.distributed.world import World
from dist_ssl.engines.parallel import Parallel
from tests.engines.jobs import differing, filled, small_engine, small_method, trained
from tests.ranks import Ranks

METHODS = {"mocov3": (), "mocov2": ("queue.keys",), "single_branch": ("bank.rows",)}
"""Methods, and what each remembers."""
WRITERS = [("ddp", 1), ("ddp", 2), ("fsdp", 2)]
READ_BY = {"ddp": ["fsdp"], "fsdp": ["ddp", "fsdp"]}
"""For each engine that writes checkpoints, the engines that read them here on 1, 2 and 4 ranks."""
BEFORE, AFTER = range(4), range(4, 12)


def made(world: World, engine: str, method: str, folder: Path, seed: int) -> tuple[Parallel, Checkpoint]:
    own = small_engine(world, engine, small_method(world, method, seed))
    return own, Checkpoint(folder, world, keep_last=9, attempt=1, newest=lambda: True)


def written(world: World, names: list[str], folder: Path) -> dict[tuple[str, str], list[float]]:
    """Train and save every method with these engines; the losses after that, undisturbed."""
    losses = {}
    for name in names:
        for method in METHODS:
            engine, checkpoint = made(world, name, method, folder / f"{method}-{name}-{world.size}", 0)
            trained(filled(engine), BEFORE)
            checkpoint.save(engine, Progress(epochs=9, step=len(BEFORE)))
            checkpoint.wait()
            losses[method, name] = trained(engine, AFTER)
    return losses


def gone_on(world: World, name: str, folder: Path) -> dict[tuple[str, str, int], tuple[list[str], list[float]]]:
    """What is wrong after loading each of the checkpoints, and the losses of the steps after it."""
    found = {}
    for method in METHODS:
        for writer, size in WRITERS:
            if name not in READ_BY[writer]:
                continue
            engine, checkpoint = made(world, name, method, folder / f"{method}-{writer}-{size}", 1)
            assert checkpoint.restore(engine, Progress(epochs=9)).step == len(BEFORE)
            wrong = differing(engine, checkpoint.folder / "step_00000004")
            found[method, writer, size] = wrong, trained(engine, AFTER if world.size < 4 else AFTER[:5])
    return found


def test_every_engine_reads_what_any_wrote_and_goes_on_as_if_never_stopped(ranks: Ranks, tmp_path: Path) -> None:
    undisturbed = {}
    for size in (1, 2):
        names = [name for name, own in WRITERS if own == size]
        for (method, name), losses in ranks.run(written, size, names, tmp_path)[0].items():
            undisturbed[method, name, size] = losses
    for reader, size in itertools.product(("ddp", "fsdp"), (1, 2, 4)):
        for answer in ranks.run(gone_on, size, reader, tmp_path):
            for wrote, (wrong, losses) in answer.items():
                assert not wrong, (wrote, reader, size)
                wanted = undisturbed[wrote][: len(losses)]
                if wrote[1:] == (reader, size):
                    assert losses == wanted
                assert losses == pytest.approx(wanted, rel=0, abs=1e-9), (wrote, reader, size)


def test_what_is_compared_is_what_is_remembered(tmp_path: Path) -> None:
    written(World(), ["ddp"], tmp_path)
    for method, remembered in METHODS.items():
        state = read(tmp_path / f"{method}-ddp-1" / "step_00000004")[1]
        names = set(state)
        assert any(name.endswith("running_mean") for name in names)
        assert any(name.startswith("model/teacher.") for name in names) == (method != "single_branch")
        for moment in ("exp_avg", "exp_avg_sq", "step"):
            assert any(name.endswith(f"/{moment}") for name in names)
        for name in remembered:
            assert state[f"model/{name}"].count_nonzero()  # type: ignore[union-attr]


def losses(world: World, engine: str) -> tuple[bool, list[float]]:
    own = filled(small_engine(world, engine, small_method(world, "single_branch"), dtype=torch.float32))
    wrapped = [kind for kind in (DistributedDataParallel, FSDPModule) if isinstance(own.root, kind)]
    wrapped += [part for part in getattr(own, "shell", own.method).modules() if isinstance(part, FSDPModule)]
    return bool(wrapped) or getattr(own, "engine", None) is not None, trained(own, range(3))


def test_alone_nothing_is_wrapped_and_in_a_group_of_one_the_same_is_computed_wrapped() -> None:
    ranks = Ranks(1)
    try:
        for engine in ("ddp", "fsdp", "deepspeed 2", "deepspeed 3"):
            ranks.grouped = False
            plain, wanted = ranks.run(losses, 1, engine)[0]
            ranks.grouped = True
            wrapped, found = ranks.run(losses, 1, engine)[0]
            assert (plain, wrapped) == (False, True), engine
            assert found == pytest.approx(wanted, rel=1e-6), engine
    finally:
        ranks.close()
