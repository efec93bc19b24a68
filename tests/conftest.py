"""What all tests share: one torch thread, repeatable hypothesis, and a small demo data set on disk."""

from pathlib import Path

import pytest
import torch
from hypothesis import settings
from rich.console import Console

from shards import make

torch.set_num_threads(1)
settings.register_profile("quiet", deadline=None, max_examples=50, derandomize=True, database=None)
settings.load_profile("quiet")


@pytest.fixture(scope="session")
def demo_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of demo shards: 60 training and 20 held-out images of 48 px; treat it as read-only."""
    folder = tmp_path_factory.mktemp("shards") / "demo"
    make.make("demo", folder, Console(quiet=True), make.Options(train=60, val=20, shard_bytes=20000))
    return folder
