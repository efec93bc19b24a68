"""The learning rates that were published, step by step, from the configs and the schedule that stand for them."""

import math
from pathlib import Path

import pytest
import torch
import yaml

from dist_ssl.config.durations import Duration
from dist_ssl.config.instantiate import instantiate
from dist_ssl.core.plan import Curve
from dist_ssl.core.progress import Progress
from dist_ssl.core.timeline import Timeline
from dist_ssl.errors import ConfigError
from dist_ssl.optim.recipes import AdamW
from dist_ssl.schedules.same_every_epoch import SameEveryEpoch
from dist_ssl.schedules.warmup_cosine import WarmupCosine, value

CONFIGS = Path(__file__).parents[2] / "configs" / "optim"


def rates(name: str, batch: int, steps: int, epochs: int, warmup: str | None, curve: str = "lr"):
    """Step -> the hyperparameter of a config under a schedule of so many steps an epoch."""
    recipe = instantiate(yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()), "optim")
    planner = SameEveryEpoch(32, views=2, batch_size=batch, lanes=1)
    timeline = Timeline.of(map(planner.plan, range(epochs)), steps * batch)
    time = None if warmup is None else Duration.parse(warmup)
    schedule = WarmupCosine(time, curves=recipe.curves(batch), timeline=timeline)
    return lambda step: schedule.hyperparameters(Progress(epochs=epochs, step=step, samples=step * batch)).number(curve)


@pytest.mark.parametrize(("step", "lr"), [(0, 0.3), (250, 0.256), (500, 0.15), (750, 0.044), (1000, 0.0)])
def test_emp_ssl_of_two_epochs(step: int, lr: float) -> None:
    assert rates("lars_emp_ssl", 100, 500, 2, None)(step) == pytest.approx(lr, abs=5e-4)


@pytest.mark.parametrize(
    ("iteration", "lr"),
    [(1, 0.025), (1252, 0.0625), (2503, 0.1), (12515, 0.099598), (125150, 0.050793), (250300, 0.0)],
)
def test_fast_moco_of_100_epochs(iteration: int, lr: float) -> None:
    """Iterations are counted from 1, and the last of the first epoch has the peak: 2502 steps of warming up."""
    assert rates("sgd_fast_moco", 512, 2503, 100, "2502 steps")(iteration - 1) == pytest.approx(lr, abs=2e-6)


def test_the_predictor_of_fast_moco_keeps_the_peak() -> None:
    found = rates("sgd_fast_moco", 512, 2503, 100, "2502 steps", "lr/predictor")
    assert [found(step) for step in (0, 1, 2502, 125150, 250299)] == pytest.approx([0.1] * 5)


@pytest.mark.parametrize(
    ("epoch", "lr"), [(0, 0.0), (1, 0.96), (5, 4.8), (10, 9.6), (55, 4.8), (99, 0.0029242), (100, 0.0)]
)
def test_moco_v3_of_100_epochs(epoch: int, lr: float) -> None:
    assert rates("lars", 4096, 312, 100, "10 epochs")(312 * epoch) == pytest.approx(lr, abs=1e-6)


@pytest.mark.parametrize(("epoch", "lr"), [(0, 0.3), (5, 0.75), (10, 1.2), (30, 0.6006), (50, 0.0012)])
def test_swav_of_50_epochs(epoch: int, lr: float) -> None:
    assert rates("lars_swav", 1024, 1251, 50, "10 epochs")(1251 * epoch) == pytest.approx(lr, abs=1e-9)


def test_one_hyperparameter_after_another_makes_the_published_one_cycle() -> None:
    """Up along half a cosine from a 25th of the peak, then down along another: torch's form, with its own numbers."""
    eta, steps = 1.0, 1000
    low = eta / 25
    up, down = Curve(low, eta), Curve(eta, low / 1e4)
    turn = int(0.3 * steps) - 1

    def at(step: int) -> float:
        return value(up, step, 0, turn) if step <= turn else value(down, step - turn, 0, steps - 1 - turn)

    published = {0: 0.04, 150: 0.522522, 299: 1.0, 650: 0.497758, 999: 4e-6}
    for step, lr in published.items():
        assert at(step) == pytest.approx(lr, abs=5e-7)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=eta, total_steps=steps)
    for step in range(steps):
        assert math.isclose(at(step), optimizer.param_groups[0]["lr"], rel_tol=1e-9)
        optimizer.step()
        if step < steps - 1:
            theirs.step()


def test_a_warm_up_from_above_0_is_linear_and_ends_at_the_peak() -> None:
    curve = Curve(2.0, 0.5, warms_up=True, rises_from=1.0)
    assert [value(curve, p, 10, 100) for p in (0, 5, 10)] == [1.0, 1.5, 2.0]
    assert value(curve, 100, 10, 100) == pytest.approx(0.5)


@pytest.mark.parametrize(("epoch", "decay"), [(0, 0.04), (25, 0.0927208), (50, 0.22), (100, 0.4)])
def test_the_weight_decay_of_dino_grows_along_half_a_cosine(epoch: int, decay: float) -> None:
    curve = AdamW(5e-4, 0.04, decay_to=0.4).curves(512)["weight_decay"]
    assert value(curve, epoch, 10, 100) == pytest.approx(decay, abs=1e-7)


def test_a_decay_of_less_than_nothing_at_the_end_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"optim\.decay_to=-1"):
        AdamW(1e-3, 0.04, decay_to=-1.0)
