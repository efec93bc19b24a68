"""A run that reads smaller copies is the same on any number of ranks, and lists what is damaged of them."""

import shutil
from pathlib import Path

import pytest
import torch
from rich.console import Console

from dist_ssl.data.storage import manifest, pyramid
from dist_ssl.data.storage.address import Address
from dist_ssl.data.storage.fetch import Fetcher
from dist_ssl.distributed.world import World
from dist_ssl.runtime import jsonl
from shards import levels
from shards.command_line import Sides
from tests.jobs import run_job, small_config, together
from tests.ranks import Ranks


@pytest.fixture
def shards(demo_shards: Path, tmp_path: Path) -> Path:
    """The demo shards with two levels, in whose smaller one every third image of a shard is damaged."""
    folder = Path(shutil.copytree(demo_shards, tmp_path / "shards"))
    levels.write(folder, levels.LevelOptions(Sides((20, 32))), Console(quiet=True))
    found = pyramid.attach(manifest.read(folder), Address(str(folder)), (20, 32), Fetcher())
    level = found.split("train").levels[0]
    with level.path(0).open("r+b") as file:
        for number in range(0, level.shards[0].samples, 3):
            file.seek(int(level.samples.offsets[number]))
            file.write(bytes(int(level.samples.sizes[number])))
    return folder


def test_ranks_agree_and_damaged_copies_are_listed(shards: Path, ranks: Ranks, tmp_path: Path) -> None:
    words = (
        "epochs=1",
        "schedule.warmup=null",
        "probe.every=1 epochs",
        "precision=fp64",
        "data.pyramid=[20,32]",
        "data.max_bad=100 %",
        "data.verify=false",  # the damage came after the level's manifest
    )
    config = small_config(shards, *words, "data.max_upsample=1.5")
    alone, state = run_job(World(), config, tmp_path / "one")
    two = ranks.run(run_job, 2, config, tmp_path / "two")
    assert together([ids for ids, _ in two]) == alone
    for name, value in state.items():
        torch.testing.assert_close(two[0][1][name], value, rtol=0, atol=1e-9)
    listed = jsonl.read(tmp_path / "one" / "quarantine.jsonl")
    assert listed == jsonl.read(tmp_path / "two" / "quarantine.jsonl")
    first = manifest.read(shards).split("train").shards[0]
    assert {row["shard"] for row in listed} == {f"level-20/{first.name}"}
    assert 0 < len(listed) <= first.samples
    plain, _ = run_job(World(), small_config(shards, *words, "data.pyramid=null"), tmp_path / "plain")
    assert plain == alone  # the same samples, of which the originals are whole
    assert not jsonl.read(tmp_path / "plain" / "quarantine.jsonl")
