"""Both branches of every method can be evaluated; parametrised over configs/method, so a new file is tested too."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dist_ssl.config.durations import Duration
from dist_ssl.data.epoch_views import Colours
from dist_ssl.data.loader.load import Loader
from dist_ssl.data.storage import manifest
from dist_ssl.data.storage.read import Reader
from dist_ssl.distributed.world import World
from dist_ssl.errors import ConfigError
from dist_ssl.evaluate.features import Extractor
from dist_ssl.evaluate.inputs import CentreView
from dist_ssl.evaluate.probe_keys import Probing
from dist_ssl.protocols.engine import Branch
from dist_ssl.protocols.method import Method
from tests.engines.jobs import small_engine, small_method
from tests.methods.test_contract import NAMES

VIEW = CentreView(Colours((0.5, 0.5, 0.5), (0.2, 0.2, 0.2)), torch.float32, resize=12, crop=12)
TEACHERS = ("byol", "dino", "fast_moco", "mocov2", "mocov3")


def probing(branch: Branch) -> Probing:
    return Probing(Duration.parse("1 epoch"), bank=1, queries=1, k=1, temperature=0.1, branch=branch)


def encoder_of(method: Method, branch: Branch) -> torch.nn.Module:
    if branch == "student":
        return method.encoder
    assert method.teacher is not None
    return method.teacher.get_submodule("encoder")


@pytest.mark.parametrize("name", NAMES)
def test_features_are_those_of_the_branch_that_is_named(name: str, demo_shards: Path) -> None:
    method = small_method(World(), name)
    engine = small_engine(World(), "ddp", method, dtype=torch.float32)
    branches: list[Branch] = ["student"] if method.teacher is None else ["student", "teacher"]
    found = {}
    with Reader(manifest.read(demo_shards).split("val")) as reader:
        own, numbers = Extractor(Loader(reader, 1), VIEW, world=World()), np.arange(5)
        pixels = own.images(numbers)
        for branch in branches:
            probing(branch).check(method)
            found[branch], _ = own.features(engine, numbers, branch)
            with torch.no_grad():
                expected = encoder_of(engine.method, branch).eval()(VIEW.finish([pixels], numbers)[0])
            torch.testing.assert_close(found[branch], expected)
    if len(found) == 2:
        assert (found["student"] - found["teacher"]).abs().max() > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_a_teacher_that_there_is_not_is_refused(name: str) -> None:
    method = small_method(World(), name)
    assert method.teacher is not None or name not in TEACHERS
    if method.teacher is None:
        with pytest.raises(ConfigError, match="the method has no teacher"):
            probing("teacher").check(method)


def test_an_average_that_the_run_does_not_keep_is_refused() -> None:
    method = small_method(World(), "simclr")
    probing("ema").check(method, averaged=True)
    with pytest.raises(ConfigError, match="the run keeps no average of its weights"):
        probing("ema").check(method)
