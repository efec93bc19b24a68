"""What every engine must keep; parametrised over configs/engine, so a new file is tested too."""

import copy
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from dist_ssl.config.instantiate import instantiate
from dist_ssl.core.batch import Batch
from dist_ssl.core.draws import Draws, SampleDraws
from dist_ssl.core.plan import Hyperparameters
from dist_ssl.distributed.world import World
from dist_ssl.errors import ConfigError, TrainingError
from dist_ssl.methods.mocov3 import MoCoV3
from dist_ssl.models.encoders import TinyResNet
from dist_ssl.models.norm import update_running_statistics
from dist_ssl.optim.recipes import SGD, AdamW
from dist_ssl.protocols.method import Embeddings, LossOutput, Method
from dist_ssl.runtime.step_clock import HostMarker, StepClock

CONFIGS = Path(__file__).parents[2] / "configs"
OPTIMIZERS = {"adamw": AdamW(1e-3, 0.05), "sgd": SGD(1e-2, 5e-4, decay_1d=True)}
SAMPLES = 8

optimizers = pytest.mark.parametrize("optimizer", OPTIMIZERS)
SINGLE = ("deepspeed",)
"""Engines that know no double precision."""
NAMES = sorted(path.stem for path in (CONFIGS / "engine").glob("*.yaml"))
engines = pytest.mark.parametrize("name", NAMES)
in_precisions = pytest.mark.parametrize(
    ("name", "dtype"),
    [(n, torch.float32) for n in NAMES] + [(n, torch.float64) for n in NAMES if n not in SINGLE],
    ids=lambda value: {torch.float32: "fp32", torch.float64: "fp64"}.get(value, value),
)


def most(name: str) -> torch.dtype:
    """The most precise numbers that an engine computes in."""
    return torch.float32 if name in SINGLE else torch.float64


def close(name: str, found: Tensor, wanted: Tensor, gap: float, what: str = "") -> None:
    """Assert that they differ by at most `gap`, or by what that is in single precision."""
    bounds = {"rtol": 1e-3, "atol": 1e-3} if name in SINGLE else {"rtol": 0.0, "atol": gap}
    torch.testing.assert_close(found, wanted, msg=lambda text: f"{what}: {text}", **bounds)


@pytest.fixture(autouse=True)
def torch_as_before() -> Iterator[None]:
    """An engine may ask torch for determinism; tests after these are not to notice."""
    before = torch.are_deterministic_algorithms_enabled()
    yield
    torch.use_deterministic_algorithms(before)


class MeanResNet(TinyResNet):
    """Pooled by means: among maxima some gradients are nearly 0, and Adam makes steps of their rounding errors."""

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.stages(self.stem(x)).mean((2, 3))
        return features


def tiny_method(seed: int = 0, **own: Any) -> MoCoV3:
    """MoCo v3 around a net of a few thousand weights, its teacher drifted from its student."""
    torch.manual_seed(seed)
    method = MoCoV3(MeanResNet(4), world=World(), hidden=16, dim=8, temperature=0.2, **own)
    with torch.no_grad():
        for parameter in method.teacher.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return method


def build(name: str, method: Method, optimizer: str = "adamw", dtype: torch.dtype | None = None, **own: Any) -> Any:
    """The engine that a config describes; `own` replaces keys of it."""
    node = yaml.safe_load((CONFIGS / "engine" / f"{name}.yaml").read_text())
    given = {"method": method, "recipe": OPTIMIZERS[optimizer], "world": World(), "dtype": dtype or most(name)}
    return instantiate({**node, **own}, "engine", **given)


def batch(step: int = 0, dtype: torch.dtype = torch.float64) -> Batch:
    """The same batch for the same step."""
    generator = torch.Generator().manual_seed(step)
    views = [torch.randn(SAMPLES, 3, 16, 16, dtype=torch.float64, generator=generator).to(dtype) for _ in range(2)]
    return Batch(views, torch.arange(SAMPLES), torch.ones(SAMPLES, dtype=torch.bool), None, Draws(0), step=step)


def hyper(lr: float = 0.01, weight_decay: float = 0.05, momentum: float = 0.9) -> Hyperparameters:
    values = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum}
    return Hyperparameters({name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()})


def kept(state: Any) -> dict[str, Tensor]:
    """A state that later steps cannot change."""
    return {name: value.clone() for name, value in state.items()}


def assert_same_bits(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert found[name].dtype == wanted[name].dtype, name
        assert torch.equal(found[name], wanted[name]), name


def torch_optimizer(method: Method, kind: str) -> torch.optim.Optimizer:
    """What the recipe means, in plain torch."""
    trainable = [p for p in method.parameters() if p.requires_grad]
    if kind == "sgd":
        return torch.optim.SGD(trainable, lr=0.01, momentum=0.9, weight_decay=0.05)
    weights, rest = [p for p in trainable if p.ndim > 1], [p for p in trainable if p.ndim <= 1]
    groups = [{"params": weights, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.999), eps=1e-8)


@engines
@optimizers
def test_steps_equal_plain_autograd_and_torchs_optimizer(name: str, optimizer: str) -> None:
    plain = tiny_method().to(most(name)).train()
    engine = build(name, copy.deepcopy(plain), optimizer)
    moves = torch_optimizer(plain, optimizer)
    for step in range(3):
        out = engine.step(batch(step, most(name)), hyper())
        loss = plain.loss(plain(*batch(step, most(name)).parts(1)[0]), batch(step, most(name)), hyper()).loss
        moves.zero_grad()
        loss.backward()
        gradients = [p.grad for p in plain.parameters() if p.grad is not None]
        moves.step()
        with torch.no_grad():
            for to, towards in zip(plain.teacher.parameters(), plain.student.parameters(), strict=True):
                to.copy_(0.9 * to + 0.1 * towards)
        update_running_statistics(plain)
        close(name, out.metrics["loss"], loss.detach(), 1e-10)
        norm = torch.cat([g.flatten() for g in gradients]).norm()
        close(name, out.metrics["gradient_norm"], norm, 1e-10)
        teacher, student = (
            torch.cat([p.detach().flatten() for p in x.parameters()]) for x in (plain.teacher, plain.student)
        )
        close(name, out.metrics["teacher_distance"], (teacher - student).norm() / student.norm(), 1e-10)
    state = engine.state()
    for key, value in plain.state_dict().items():
        close(name, state[f"model/{key}"], value, 1e-10, key)


@engines
@pytest.mark.parametrize(
    "own", [{}, {"accumulate": 2}, {"bitwise": True, "virtual_ranks": 2}], ids=lambda own: str([*own])
)
def test_the_parts_of_the_time_are_all_there_and_add_up_to_the_steps(name: str, own: dict[str, Any]) -> None:
    if "bitwise" in own and name != "ddp":
        pytest.skip("no bitwise mode")
    method = tiny_method(norm_group=2) if own else tiny_method()
    engine, looks = build(name, method, **own), itertools.count()
    engine.clock = StepClock(HostMarker(lambda: float(next(looks))))
    engine.clock.start()
    for step in range(2):
        engine.step(batch(step, most(name)), hyper())
    found = {key: value for key, value in engine.clock.metrics().items() if "/" in key}
    assert sum(found.values()) == next(looks) - 1, "every look was the end of a part"
    missing = {key for key, value in found.items() if not value}
    assert missing == {"step_parts/data", "step_parts/copy"}, "those of the stream"


@engines
def test_steps_in_parts_equal_steps_at_once(name: str) -> None:
    found = []
    steps = range(1 if name in SINGLE else 3)  # pairs of samples make large steps of rounding errors
    for parts in (1, 2, 4):
        engine = build(name, tiny_method(norm_group=2), "sgd", accumulate=parts)
        found.append([engine.step(batch(step, most(name)), hyper()).metrics["loss"] for step in steps])
        found[-1] += [value for key, value in sorted(engine.state().items())]
    for others in found[1:]:
        for one, other in zip(found[0], others, strict=True):
            close(name, other, one, 1e-9)


@engines
def test_parts_that_would_split_the_statistics_of_a_batch_norm_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"accumulate=2 cannot be combined with batch norm over the whole job"):
        build(name, tiny_method(), accumulate=2)
    with pytest.raises(ConfigError, match=r"accumulate=0 is not possible"):
        build(name, tiny_method(), accumulate=0)


@engines
def test_the_state_names_every_parameter_buffer_and_moment(name: str) -> None:
    method = tiny_method()
    model = {f"model/{key}" for key in method.state_dict()}
    trained = {key for key, p in method.named_parameters() if p.requires_grad}
    engine = build(name, method)
    assert engine.state().keys() == model
    engine.step(batch(0, most(name)), hyper())
    moments = {f"optim/{key}/{moment}" for key in trained for moment in ("step", "exp_avg", "exp_avg_sq")}
    assert engine.state().keys() == model | moments


@in_precisions
@optimizers
def test_going_on_from_a_state_is_bit_for_bit_as_if_never_stopped(
    name: str, optimizer: str, dtype: torch.dtype
) -> None:
    whole = build(name, tiny_method(), optimizer, dtype)
    for step in range(2):
        whole.step(batch(step, dtype), hyper())
    state = {key: value.contiguous().clone() for key, value in whole.state().items()}
    resumed = build(name, tiny_method(seed=1), optimizer, dtype)
    resumed.load(state)
    assert_same_bits(kept(resumed.state()), state)
    for step in range(2, 5):
        losses = [engine.step(batch(step, dtype), hyper()).metrics["loss"] for engine in (whole, resumed)]
        assert torch.equal(losses[0], losses[1])
    assert_same_bits(kept(resumed.state()), kept(whole.state()))


@engines
def test_a_loaded_state_is_copied_not_shared(name: str) -> None:
    engine = build(name, tiny_method())
    engine.step(batch(0, most(name)), hyper())
    state = kept(engine.state())
    before = kept(state)
    engine.load(state)
    engine.step(batch(1, most(name)), hyper())
    assert_same_bits(state, before)


@engines
def test_loading_the_state_of_a_fresh_engine_forgets_the_moments(name: str) -> None:
    fresh = kept(build(name, tiny_method()).state())
    engine = build(name, tiny_method())
    engine.step(batch(0, most(name)), hyper())
    engine.load(fresh)
    assert_same_bits(kept(engine.state()), fresh)


@engines
def test_the_teacher_follows_with_the_hyperparameters_momentum(name: str) -> None:
    engine = build(name, tiny_method())
    before = kept(engine.state())
    engine.step(batch(0, most(name)), hyper(momentum=0.75))
    after = engine.state()
    followed = [key for key, _ in tiny_method().named_parameters() if key.startswith("teacher.")]
    assert followed
    for key in followed:
        student = after["model/" + key.replace("teacher.", "student.", 1)]
        torch.testing.assert_close(after[f"model/{key}"], 0.75 * before[f"model/{key}"] + 0.25 * student)
        assert not torch.equal(after[f"model/{key}"], before[f"model/{key}"])


class Linear(Method):
    """The smallest method with a teacher."""

    num_views = 1

    def __init__(self) -> None:
        super().__init__()
        self.student = nn.Linear(3, 2)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)

    @property
    def encoder(self) -> nn.Module:
        return self.student

    def embed(self, views: list[Tensor], draws: SampleDraws) -> Embeddings:
        return {"z": self.student(views[0])}

    def loss(self, embeddings: Embeddings, batch: Batch, hyper: Hyperparameters) -> LossOutput:
        return LossOutput(embeddings["z"].square().mean())


@engines
def test_a_thousand_slow_moves_of_the_teacher_match_the_closed_form(name: str) -> None:
    method = Linear()
    nn.init.constant_(method.student.weight, 2.0)
    nn.init.constant_(method.teacher.weight, 1.0)
    engine = build(name, method, dtype=torch.float32)
    still = hyper(lr=0.0, weight_decay=0.0, momentum=0.9999)
    rows = Batch([torch.randn(2, 3)], torch.arange(2), torch.ones(2, dtype=torch.bool), None, Draws(0), step=0)
    for _ in range(1000):
        engine.step(rows, still)
    expected = 2.0 - 0.9999**1000
    found = engine.state()["model/teacher.weight"]
    torch.testing.assert_close(found, torch.full_like(found, expected), rtol=0, atol=1e-4)


@engines
def test_a_large_gradient_is_clipped_to_the_norm_and_reported_as_it_was(name: str) -> None:
    plain = kept(build(name, tiny_method(), "sgd").state())
    free, bound = build(name, tiny_method(), "sgd", clip=None), build(name, tiny_method(), "sgd", clip=0.1)
    moving = hyper(lr=1.0, weight_decay=0.0)
    reported = [engine.step(batch(0, most(name)), moving).metrics["gradient_norm"] for engine in (free, bound)]
    assert torch.equal(reported[0], reported[1])
    assert reported[0] > 0.1

    def moves(engine: Any) -> Tensor:
        state = engine.state()
        trained = [key for key, p in tiny_method().named_parameters() if p.requires_grad]
        return torch.cat([(state[f"model/{key}"] - plain[f"model/{key}"]).flatten() for key in trained])

    torch.testing.assert_close(moves(bound).norm(), torch.tensor(0.1, dtype=most(name)), rtol=1e-3, atol=0)
    torch.testing.assert_close(moves(bound) / 0.1, moves(free) / reported[0], rtol=1e-3, atol=1e-5)


@engines
def test_a_small_gradient_is_not_clipped(name: str) -> None:
    free, bound = build(name, tiny_method(), clip=None), build(name, tiny_method(), clip=1e6)
    for engine in (free, bound):
        engine.step(batch(0, most(name)), hyper())
    assert_same_bits(kept(bound.state()), kept(free.state()))


@engines
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_stops_the_run_before_any_weight_moves(name: str, value: float) -> None:
    engine = build(name, tiny_method())
    engine.step(batch(0, most(name)), hyper())
    parameters = {f"model/{key}" for key, _ in tiny_method().named_parameters()}
    watched = [key for key in engine.state() if key in parameters or key.startswith("optim/")]
    before = kept(engine.state())
    broken = batch(1, most(name))
    broken.views[0][0, 0, 0, 0] = value
    with pytest.raises(TrainingError, match="must be finite"):
        engine.step(broken, hyper())
    after = engine.state()
    assert_same_bits({key: after[key] for key in watched}, {key: before[key] for key in watched})


@in_precisions
@pytest.mark.parametrize("branch", ["student", "teacher"])
def test_features_are_those_of_the_encoder_in_eval_mode(name: str, branch: str, dtype: torch.dtype) -> None:
    engine = build(name, tiny_method(), dtype=dtype)
    engine.step(batch(0, dtype), hyper())
    before = kept(engine.state())
    view = batch(1, dtype).views[0]
    features = engine.embed(view, branch)
    twin = MeanResNet(4).to(dtype)
    prefix = f"model/{branch}.encoder."
    own = {key.removeprefix(prefix): value for key, value in before.items() if key.startswith(prefix)}
    twin.load_state_dict({**twin.state_dict(), **own})
    with torch.no_grad():
        expected = twin.eval()(view)
    assert features.dtype == torch.float32
    assert not features.requires_grad
    torch.testing.assert_close(features, expected.float(), rtol=1e-5, atol=1e-5)
    assert_same_bits(kept(engine.state()), before)


@engines
def test_looking_at_features_does_not_disturb_the_training(name: str) -> None:
    watched, plain = build(name, tiny_method()), build(name, tiny_method())
    for step in range(2):
        watched.embed(batch(7, most(name)).views[0], "student")
        watched.embed(batch(7, most(name)).views[0], "teacher")
        for engine in (watched, plain):
            engine.step(batch(step, most(name)), hyper())
    assert_same_bits(kept(watched.state()), kept(plain.state()))


@engines
def test_features_of_one_image_do_not_depend_on_the_others(name: str) -> None:
    engine = build(name, tiny_method())
    engine.step(batch(0, most(name)), hyper())
    view = batch(3, most(name)).views[0]
    torch.testing.assert_close(engine.embed(view[:1], "student"), engine.embed(view, "student")[:1])


HELD = [*((name, {}) for name in NAMES), ("ddp", {"bitwise": True, "virtual_ranks": 2})]


@pytest.mark.parametrize(("name", "own"), HELD, ids=str)
def test_an_update_is_held_until_the_state_is_copied_and_only_that_one(name: str, own: dict[str, Any]) -> None:
    dtype = torch.float32 if own else most(name)
    engine = build(name, tiny_method(), dtype=dtype, **own)
    engine.step(batch(0, dtype), hyper())
    before = kept(engine.state())
    seen: list[dict[str, Tensor]] = []
    engine.hold_updates(lambda: seen.append(kept(engine.state())))
    for step in range(1, 3):
        engine.step(batch(step, dtype), hyper())
    assert len(seen) == 1
    assert_same_bits(seen[0], before)
