"""The average of the encoder's weights: what it is, what its features are, and that every engine saves and loads it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dist_ssl.checkpoint.saver import Checkpoint
from dist_ssl.core.progress import Progress
from dist_ssl.distributed.world import World
from dist_ssl.errors import CheckpointError
from tests.engines.jobs import ENGINES, SmallNet, batch, differing, small_engine, small_method, trained, whole_state
from tests.ranks import Ranks

MOMENTUM = 0.75
EMA = "model/ema."
SAVED = "step_00000002"


def averaging(world: World, name: str, method: str = "simclr", seed: int = 0, ema: float | None = MOMENTUM) -> Any:
    """A small engine that keeps an average, in single precision."""
    return small_engine(world, name, small_method(world, method, seed), dtype=torch.float32, ema=ema)


def of_the_encoder(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The floating tensors of the encoder that is trained, by the names of the average."""
    own = "model/student.encoder."
    return {EMA + name.removeprefix("model/"): value.clone() for name, value in state.items() if name.startswith(own)}


def average(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The average in a state."""
    return {name: value.clone() for name, value in state.items() if name.startswith(EMA)}


def gaps(world: World) -> dict[str, float]:
    """By how much the average of each engine differs from its closed form after three steps, and its features."""
    found = {}
    for name in ENGINES:
        engine = averaging(world, name)
        expected = of_the_encoder(whole_state(engine))
        assert average(whole_state(engine)).keys() == expected.keys()
        assert {name.rpartition(".")[2] for name in expected} == {"weight", "bias", "running_mean", "running_var"}
        for step in range(3):
            trained(engine, range(step, step + 1))
            now = of_the_encoder(whole_state(engine))
            expected = {key: MOMENTUM * expected[key] + (1 - MOMENTUM) * now[key] for key in now}
        before = whole_state(engine)
        held = average(before)
        assert max(float((held[key] - now[key]).abs().max()) for key in now) > 1e-3
        twin, prefix = SmallNet(), f"{EMA}student.encoder."
        twin.load_state_dict({key.removeprefix(prefix): value for key, value in expected.items()}, strict=False)
        view = batch(world, 1, 9, torch.float32).views[0]
        features, plain = engine.embed(view, "ema"), engine.embed(view, "student")
        with torch.no_grad():
            apart = [(features - twin.eval()(view)).abs().max()]
        assert (features - plain).abs().max() > 1e-3
        after = whole_state(engine)
        assert all(torch.equal(after[key], before[key]) for key in before)
        found[name] = max(float(gap) for gap in [*apart, *((held[key] - expected[key]).abs().max() for key in held)])
    return found


def test_every_engine_averages_the_encoder_and_computes_features_with_it(ranks: Ranks) -> None:
    for answer in ranks.run(gaps, 2):
        assert {name: gap for name, gap in answer.items() if not gap < 1e-5} == {}


def saver(world: World, folder: Path) -> Checkpoint:
    return Checkpoint(folder, world, keep_last=9, attempt=1, newest=lambda: True)


def written(world: World, folder: Path) -> dict[str, list[float]]:
    """Save with every engine after two steps; the features' sums two steps later."""
    found = {}
    for name in ("ddp", "fsdp", "deepspeed 3"):
        engine, checkpoint = averaging(world, name), saver(world, folder / name)
        trained(engine, range(2))
        checkpoint.save(engine, Progress(epochs=9, step=2))
        checkpoint.wait()
        found[name] = later(engine)
    return found


def later(engine: Any) -> list[float]:
    """Two more steps: losses, and what comes out of the average."""
    losses = trained(engine, range(2, 4))
    return [*losses, float(engine.embed(batch(engine.world, 1, 9, torch.float32).views[0], "ema").sum())]


def read_back(world: World, folder: Path) -> dict[tuple[str, str], tuple[list[str], list[float]]]:
    """Every engine reads what another wrote: what is wrong after that, and what comes later."""
    found = {}
    for reader, writer in (("ddp", "deepspeed 3"), ("fsdp", "fsdp"), ("deepspeed 3", "fsdp"), ("deepspeed 1", "ddp")):
        engine, checkpoint = averaging(world, reader, seed=5), saver(world, folder / writer)
        checkpoint.restore(engine, Progress(epochs=9))
        found[reader, writer] = differing(engine, checkpoint.folder / SAVED), later(engine)
    return found


def test_an_average_is_saved_and_loaded_by_every_engine_on_any_number_of_ranks(ranks: Ranks, tmp_path: Path) -> None:
    undisturbed = ranks.run(written, 2, tmp_path)
    for size in (1, 2):
        answers = ranks.run(read_back, size, tmp_path)
        for rank, answer in enumerate(answers):
            assert {pair: wrong for pair, (wrong, _) in answer.items() if wrong} == {}
            if size == 2:
                assert answer["fsdp", "fsdp"][1] == undisturbed[rank]["fsdp"]


def test_without_the_option_nothing_is_kept_or_saved() -> None:
    engine = averaging(World(), "ddp", ema=None)
    assert engine.average is None
    assert average(whole_state(engine)) == {}


def test_a_fork_starts_its_average_from_the_weights_and_drops_one_that_it_does_not_keep() -> None:
    without = averaging(World(), "ddp", ema=None)
    trained(without, range(2))
    state = whole_state(without)
    engine = averaging(World(), "ddp", seed=3)
    engine.load(state)
    found = whole_state(engine)
    assert all(torch.equal(value, of_the_encoder(state)[name]) for name, value in average(found).items())
    again = averaging(World(), "ddp", seed=4, ema=None)
    again.load(found)
    assert all(torch.equal(whole_state(again)[name], state[name]) for name in state)


def test_an_average_of_another_encoder_does_not_fit() -> None:
    engine = averaging(World(), "ddp")
    state = whole_state(engine)
    del state[next(name for name in state if name.startswith(EMA))]
    with pytest.raises(CheckpointError, match=r"'ema\.student\.encoder"):
        engine.load(state)


def test_an_average_is_not_changed_while_a_save_copies_it() -> None:
    engine = averaging(World(), "ddp", "byol")
    trained(engine, range(2))
    before, seen = whole_state(engine), []
    engine.hold_updates(lambda: seen.append(whole_state(engine)))
    engine.embed(batch(World(), 1, 9, torch.float32).views[0], "ema")
    assert len(seen) == 1
    assert all(torch.equal(seen[0][name], before[name]) for name in before)
