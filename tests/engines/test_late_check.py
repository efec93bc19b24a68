"""Where the answer to whether a gradient was finite is read a step late, still no bad step reaches a checkpoint."""

import pytest
import torch

from dist_ssl.errors import TrainingError
from dist_ssl.runtime.finite_check import FiniteCheck
from tests.engines.test_contract import batch, build, hyper, kept, most, tiny_method, torch_as_before

__all__ = ["torch_as_before"]
NAMES = ("ddp", "deepspeed", "fsdp")


def late(name: str, **own: object):
    """An engine that puts the answer off, as on a GPU."""
    engine = build(name, tiny_method(), **own)
    engine.finite = FiniteCheck(torch.device("cpu"), later=True)
    return engine


def broken(name: str):
    """A batch with a pixel that is none."""
    own = batch(1, most(name))
    own.views[0][0, 0, 0, 0] = float("nan")
    return own


@pytest.mark.parametrize("name", NAMES)
def test_good_steps_are_the_same(name: str) -> None:
    engine, plain = late(name), build(name, tiny_method())
    for step in range(3):
        for one in (engine, plain):
            one.step(batch(step, most(name)), hyper())
    found, wanted = kept(engine.state()), kept(plain.state())
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize("name", NAMES)
def test_a_bad_step_ends_the_run_at_the_next_one(name: str) -> None:
    engine = late(name)
    engine.step(batch(0, most(name)), hyper())
    engine.step(broken(name), hyper())
    with pytest.raises(TrainingError, match="Nothing of that step was saved"):
        engine.step(batch(2, most(name)), hyper())


@pytest.mark.parametrize("name", NAMES)
def test_no_state_is_given_out_after_a_bad_step(name: str) -> None:
    engine = late(name)
    engine.step(batch(0, most(name)), hyper())
    good = kept(engine.state())
    engine.step(broken(name), hyper())
    for _ in range(2):
        with pytest.raises(TrainingError, match="must be finite"):
            engine.state()
    engine.load(good)
    found = engine.state()
    assert all(torch.equal(found[key], good[key]) for key in good)
    engine.step(batch(1, most(name)), hyper())
    engine.state()
