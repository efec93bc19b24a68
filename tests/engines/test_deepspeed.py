"""ZeRO at every stage: the same training as with whole parameters, checkpoints for any engine, refusals that help."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dist_ssl.checkpoint.index import read
from dist_ssl.checkpoint.saver import Checkpoint
from dist_ssl.core.progress import Progress
from dist_ssl.core.tokens import ALL_TOKENS, Tokens
from dist_ssl.distributed.world import World
from dist_ssl.engines.deepspeed_config import OPEN, OURS, ZERO
from dist_ssl.errors import CheckpointError, ConfigError, TrainingError
from dist_ssl.optim.recipes import LARS, SGD
from dist_ssl.protocols.engine import Piece
from tests.engines.jobs import (
    ENGINES,
    batch,
    differing,
    filled,
    hyper,
    small_engine,
    small_method,
    trained,
    whole_state,
)
from tests.ranks import Ranks

STAGES = [f"deepspeed {stage}" for stage in range(4)]
METHODS = ("mocov2", "single_branch")
"""One with a teacher and a queue, one with a bank that is spread over the ranks."""
BEFORE = range(3)
STEP = f"step_{len(BEFORE):08d}"


def single(world: World, name: str, method: str = "mocov3", seed: int = 0, **own: Any) -> Any:
    """An engine that computes in single precision."""
    of_method = {key: own.pop(key) for key in ("norm_group", "vit") if key in own}
    return small_engine(world, name, small_method(world, method, seed, **of_method), dtype=torch.float32, **own)


def checkpoints(world: World, folder: Path, method: str, writer: str) -> Checkpoint:
    return Checkpoint(folder / f"{method}-{writer}", world, keep_last=9, attempt=1, newest=lambda: True)


def written(world: World, folder: Path, after: range) -> dict[tuple[str, str], list[float]]:
    """Train and save every method with DDP; load and save that with every engine; the losses of each after that."""
    losses = {}
    for method in METHODS:
        for name in ENGINES:
            engine = single(world, name, method, seed=list(ENGINES).index(name))
            if name == "ddp":
                trained(filled(engine), BEFORE)
            else:
                checkpoints(world, folder, method, "ddp").restore(engine, Progress(epochs=9))
            checkpoint = checkpoints(world, folder, method, name)
            checkpoint.save(engine, Progress(epochs=9, step=len(BEFORE)))
            losses[method, name] = trained(engine, after)  # while it is written
            checkpoint.wait()
    return losses


def gone_on(
    world: World, folder: Path, shift: int, after: range
) -> dict[tuple[str, str, str], tuple[list[str], list[float]]]:
    """Every engine reads what another wrote: what is wrong after that, and the losses of the steps after it."""
    found = {}
    names = list(ENGINES)
    for method in METHODS:
        for at, name in enumerate(names):
            writer = names[(at + shift) % len(names)]
            engine = single(world, name, method, seed=9)
            checkpoint = checkpoints(world, folder, method, writer)
            assert checkpoint.restore(engine, Progress(epochs=9)).step == len(BEFORE)
            wrong = differing(engine, checkpoint.folder / STEP)
            found[method, name, writer] = wrong, trained(engine, after if shift == 0 else after[:1])
    return found


@pytest.mark.parametrize("steps", [3, pytest.param(20, marks=pytest.mark.chaos)])
def test_every_stage_writes_the_same_checkpoint_and_every_engine_reads_it(
    steps: int, ranks: Ranks, tmp_path: Path
) -> None:
    after = range(len(BEFORE), len(BEFORE) + steps)
    undisturbed = ranks.run(written, 2, tmp_path, after)[0]
    for method in METHODS:
        fixture = read(tmp_path / f"{method}-ddp" / STEP)[1]
        for name in ENGINES:
            state = read(tmp_path / f"{method}-{name}" / STEP)[1]
            assert state.keys() == fixture.keys()
            assert [n for n in state if not torch.equal(state[n], fixture[n])] == [], (method, name)  # type: ignore[arg-type]
    for size, shift in ((1, 2), (2, 0), (4, 3)):
        for answer in ranks.run(gone_on, size, tmp_path, shift, after):
            for (method, name, writer), (wrong, losses) in answer.items():
                assert not wrong, (method, name, writer, size)
                wanted = undisturbed[method, name][: len(losses)]
                assert losses[0] == pytest.approx(undisturbed[method, "ddp"][0], rel=1e-5, abs=1e-5)
                if size == 2:
                    assert losses == wanted, (method, name)


def both(world: World, name: str, **own: Any) -> tuple[float, float]:
    """By how much losses and the state of two steps differ from those of whole parameters, relative to their size."""
    found, tokens = [], own.pop("tokens", ALL_TOKENS)
    for engine in ("ddp", name):
        made = filled(single(world, engine, optimizer=SGD(1e-3, 5e-4), **own))
        losses = trained(made, range(2), tokens)
        state = whole_state(made)
        found.append((losses, torch.cat([state[key].flatten().double() for key in sorted(state)])))
    (losses, state), (own_losses, own_state) = found
    gap = max(abs(a - b) for a, b in zip(losses, own_losses, strict=True))
    return gap / abs(losses[0]), float((state - own_state).norm() / state.norm())


VARIANTS: dict[str, dict[str, Any]] = {
    "computed twice": {"activation_checkpointing": True},
    "clipped": {"clip": 0.01, "norm_group": 4},
    "in parts": {"accumulate": 2, "norm_group": 4},
    "in bf16": {"compute": torch.bfloat16},
    "tokens": {"vit": True, "tokens": Tokens(0.5, 6)},
}


def furthest(world: World) -> dict[str, tuple[float, float]]:
    """The gaps of all stages and variants."""
    cases = {f"{name}, {case}": (name, own) for name in STAGES for case, own in VARIANTS.items()}
    return {case: both(world, name, **own) for case, (name, own) in cases.items()}


def test_every_stage_trains_as_with_whole_parameters(ranks: Ranks) -> None:
    for answer in ranks.run(furthest, 2):
        assert len(answer) == len(STAGES) * len(VARIANTS)
        assert {case: gaps for case, gaps in answer.items() if not max(gaps) < 1e-4} == {}


def held(world: World) -> dict[str, Any]:
    """What a rank of four holds at every stage, and what DeepSpeed's own interface says of it."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    found = {}
    for name in STAGES:
        engine = single(world, name)
        trained(engine, range(1))
        state, whole = engine.state(), whole_state(engine)
        wrong = []
        for key, parameter in engine.method.named_parameters():
            if parameter.requires_grad and name != "deepspeed 0":
                wrong += [key] * (not torch.equal(safe_get_full_fp32_param(parameter), whole[f"model/{key}"]))
            if parameter.requires_grad and name == "deepspeed 3":  # before that it knows those of one group only
                moment = safe_get_full_optimizer_state(parameter, "exp_avg")
                wrong += [key] * (not torch.equal(moment, whole[f"optim/{key}/exp_avg"]))
        pieces = {key: value for key, value in state.items() if isinstance(value, Piece)}
        spans = {key: engine.wants(key, piece.shape) == piece.span for key, piece in pieces.items()}
        spread = {kind: sum(p.tensor.numel() for k, p in pieces.items() if k.startswith(kind)) for kind in WHOLE}
        empty = sum(piece.tensor.numel() == 0 for piece in pieces.values())
        others = [engine.wants(k, ()) for k in ("optim/predictor.3.weight/step", "model/x", "optim/x/exp_avg")]
        wants_nothing = engine.wants("optim/predictor.3.weight/exp_avg", (6, 11))
        found[name] = (wrong, [k for k in spans if not spans[k]], spread, empty, others, wants_nothing)
    return found


WHOLE = {"model": 0, "optim": 2}
"""Kinds of tensors, and how many of them there are for every trained parameter; the model's are all there once."""


def test_a_rank_holds_its_run_of_what_the_stage_spreads(ranks: Ranks) -> None:
    parameters = list(small_method(World(), "mocov3").parameters())
    everything = sum(p.numel() for p in parameters)
    moments = 2 * sum(p.numel() for p in parameters if p.requires_grad)
    answers = ranks.run(held, 4)
    for name in STAGES:
        stage = int(name[-1])
        for wrong, other_spans, _, _, wants_all, wants_nothing in (answer[name] for answer in answers):
            assert not wrong
            assert not other_spans
            assert wants_all == [None, None, None]
            assert wants_nothing == (None if stage == 0 else range(0))
        assert (sum(answer[name][3] for answer in answers) > 0) == (stage > 0)
        spread = [answer[name][2] for answer in answers]
        assert sum(own["optim"] for own in spread) == (moments if stage > 0 else 0)
        assert sum(own["model"] for own in spread) == (everything if stage == 3 else 0)
        if stage > 0:
            assert max(own["optim"] for own in spread) < moments / 2


def looked_at(world: World) -> dict[str, tuple[float, float, bool, int]]:
    """Features, the teacher's move, and what a gradient that is not finite changes, at stages 2 and 3."""
    found = {}
    view = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    for name in STAGES[2:]:
        engine = single(world, name)
        plain = small_method(world, "mocov3").eval()
        gaps = []
        for step in range(2):
            teacher = {k: v for k, v in whole_state(engine).items() if k.startswith("model/teacher.")}
            trained(engine, range(step, step + 1))
            state = whole_state(engine)
            plain.load_state_dict({n.removeprefix("model/"): v for n, v in state.items() if n.startswith("model/")})
            with torch.no_grad():
                gaps += [(engine.embed(view, "student") - plain.encoder(view)).abs().max()]
                gaps += [(engine.embed(view, "teacher") - plain.teacher.encoder(view)).abs().max()]  # type: ignore[operator, union-attr]
        momentum = engine.method.curves["momentum"].start
        followed = {
            k: momentum * teacher[k] + (1 - momentum) * state[k.replace("teacher", "student", 1)] for k in teacher
        }
        moves = max(
            float((followed[k] - state[k]).abs().max()) for k, _ in named(plain) if k.startswith("model/teacher.")
        )
        before = whole_state(engine)
        broken = batch(world, 2, 1, torch.float32)
        if world.rank == 1:
            broken.views[0][0, 0, 0, 0] = torch.nan
        with pytest.raises(TrainingError, match="must be finite"):
            engine.step(broken, hyper(engine.method))
        after = whole_state(engine)
        same = all(torch.equal(after[k], before[k]) for k in before if "running" not in k)
        gathered = sum(p.numel() for p in engine.method.parameters())
        found[name] = float(max(gaps)), moves, same, gathered
    return found


def named(method: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(f"model/{name}", parameter) for name, parameter in method.named_parameters()]


def test_features_teacher_and_guard_are_those_of_whole_parameters(ranks: Ranks) -> None:
    for answer in ranks.run(looked_at, 2):
        for gap, moves, same, _ in answer.values():
            assert gap < 1e-5
            assert moves < 1e-6
            assert same


CONFIGS: dict[str, tuple[int, dict[str, Any]]] = {
    "small buckets": (2, {"reduce_bucket_size": 50, "allgather_bucket_size": 50}),
    "overlap": (2, {"overlap_comm": True, "reduce_scatter": False, "contiguous_gradients": False}),
    "nothing stays": (3, {"stage3_param_persistence_threshold": 0, "sub_group_size": 300}),
}


def configured(world: World) -> dict[str, tuple[bool, float]]:
    """Whether DeepSpeed has taken a user's keys, and how far the training is from that without them."""
    found = {}
    for case, (stage, own) in CONFIGS.items():
        with_own = single(world, f"deepspeed {stage}", optimizer=SGD(1e-3, 0.0), config={ZERO: own})
        taken = with_own.engine._config.zero_config.model_dump(by_alias=True)
        losses = [trained(with_own, range(2))]
        losses.append(trained(single(world, f"deepspeed {stage}", optimizer=SGD(1e-3, 0.0)), range(2)))
        gap = max(abs(a - b) for a, b in zip(*losses, strict=True))
        found[case] = all(taken[key] == value for key, value in own.items()), gap
    return found


def test_keys_of_deepspeeds_own_reach_it_and_change_no_result(ranks: Ranks) -> None:
    for answer in ranks.run(configured, 2):
        for taken, gap in answer.values():
            assert taken
            assert gap < 1e-4


def unevenly_moved(world: World, folder: Path) -> list[str]:
    """What every stage says of a checkpoint in which one parameter has moved more often than others."""
    engine = single(world, "ddp")
    trained(engine, range(1))
    engine.optimizer.state[engine.own["predictor.3.weight"]]["step"] += 1
    checkpoint = Checkpoint(folder, world, keep_last=1, attempt=1, newest=lambda: True)
    checkpoint.save(engine, Progress(epochs=9, step=1))
    checkpoint.wait()
    said = []
    for name in STAGES:
        try:
            checkpoint.restore(single(world, name), Progress(epochs=9))
            said.append("")
        except CheckpointError as error:
            said.append(str(error))
    return said


def test_parameters_of_a_group_that_have_not_moved_equally_often_are_refused(ranks: Ranks, tmp_path: Path) -> None:
    for said in ranks.run(unevenly_moved, 2, tmp_path):
        assert said[0] == ""
        assert all("'predictor.3.weight' was updated 2 times" in text for text in said[1:])


def refused(**own: Any) -> ConfigError:
    with pytest.raises(ConfigError) as raised:
        small_engine(World(), "deepspeed 1", small_method(World(), "simclr"), **{"dtype": torch.float32, **own})
    return raised.value


def test_what_deepspeed_cannot_do_is_refused_with_the_alternatives() -> None:
    assert "precision=fp64 cannot be combined with engine=deepspeed" in str(refused(dtype=torch.float64))
    error = refused(optimizer=LARS(0.1, 1e-4))
    assert "optim=lars cannot be combined with engine.stage=1" in str(error)
    assert "engine=fsdp" in error.remedy
    assert "engine.stage=0" in error.remedy
    swav, frozen = small_method(World(), "swav"), small_method(World(), "swav", freeze_prototypes="3 steps")
    for stage, method, named, least in (
        ("1", frozen, "Freezing 'prototypes' at first", 0),
        ("3", swav, "rows are normalised", 2),
    ):
        with pytest.raises(ConfigError, match=f"{named}.* cannot be combined with engine.stage={stage}") as raised:
            small_engine(World(), f"deepspeed {stage}", method, dtype=torch.float32)
        assert f"engine.stage={least}" in raised.value.remedy
    small_engine(World(), "deepspeed 0", frozen, dtype=torch.float32)
    small_engine(World(), "deepspeed 0", small_method(World(), "simclr"), LARS(0.1, 1e-4), dtype=torch.float32)
    assert "engine.stage=4" in str(refused(stage=4))
    assert "engine.config='yes'" in str(refused(config="yes"))


@pytest.mark.parametrize("key", OURS)
def test_a_key_that_is_written_from_ours_is_refused_by_name(key: str) -> None:
    first, _, second = key.partition(".")
    error = refused(config={first: {second: 3}} if second else {first: 3})
    assert f"engine.config.{key} is not possible: it is derived from {OURS[key]}" in str(error)


def test_other_keys_are_answered_with_the_nearest() -> None:
    error = refused(config={ZERO: {"overlap_com": True}})
    assert "engine.config.zero_optimization.overlap_com is not possible" in str(error)
    assert error.remedy == "Did you mean 'zero_optimization.overlap_comm'?"
    for foreign in ({"offload_optimizer": {"device": "cpu"}}, {"round_robin_gradients": True}):
        assert f"engine.config.{ZERO}.{next(iter(foreign))}" in str(refused(config={ZERO: foreign}))
    assert "engine.config.elasticity is not possible" in str(refused(config={"elasticity": {}}))
    assert "reduce_bucket_size=many is not possible" in str(refused(config={ZERO: {"reduce_bucket_size": "many"}}))
    assert "engine.config.zero_optimization is not possible" in str(refused(config={ZERO: True}))


def test_every_open_key_is_one_of_deepspeeds() -> None:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    known = {field.alias or name for name, field in DeepSpeedZeroConfig.model_fields.items()}
    assert set(OPEN) <= known
