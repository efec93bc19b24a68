"""No checkpoint comes from shards that are not the manifest's: changed ones are named, whatever their size."""

import contextlib
import dataclasses
import json
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dist_ssl.data.storage import contents, manifest, read
from dist_ssl.data.storage.address import Address
from dist_ssl.data.storage.cache import Cache
from dist_ssl.data.storage.contents import BY_RANGE, CACHED, IN_PLACE, UNVERIFIED, ShardContents, Vouched, vouched
from dist_ssl.data.storage.reader_options import Access
from dist_ssl.distributed.world import World
from dist_ssl.errors import DataError
from dist_ssl.runtime import jsonl
from launch import audit
from launch.run_dir import RunDir
from tests.jobs import run_job, small_config
from tests.readers import rehashed

SHORT = ("epochs=2", "schedule.warmup=null", "probe.every=9 epochs", "save_every=2 steps")


@pytest.fixture
def shards(demo_shards: Path, tmp_path: Path) -> Path:
    """A copy of the demo shards that a test may change."""
    return Path(shutil.copytree(demo_shards, tmp_path / "shards"))


def exchanged(shards: Path, number: int = 7) -> Path:
    """The tar in which 40 bytes within an image were changed; its size stays."""
    split = manifest.read(shards).split("train")
    path = split.path(split.shard_of(number))
    with path.open("r+b") as file:
        file.seek(int(split.samples.offsets[number] + split.samples.sizes[number] // 2))
        file.write(bytes(range(40)))
    return path


def checked(shards: Path, folder: Path, *places: int, world: World | None = None, **options: Any) -> ShardContents:
    """A check that was given a batch which was the first to be read from these places."""
    found = ShardContents(
        manifest.read(shards).split("train"),
        Access(),
        folder,
        options.pop("attempt", 1),
        world=world or World(),
        **options,
    )
    found.record(SimpleNamespace(opened=places))  # type: ignore[arg-type]
    return found


def test_whole_shards_are_verified_once_and_recorded(shards: Path, tmp_path: Path) -> None:
    found = checked(shards, tmp_path / "ledger", 0, 1)
    found.record(SimpleNamespace(opened=(1, 0)))  # type: ignore[arg-type]
    found.check()
    found.close()
    (path,) = (tmp_path / "ledger").iterdir()
    assert path.name == "attempt_0001_node_00000.jsonl"
    assert jsonl.read(path) == [{"how": IN_PLACE}, {"level": 0, "shard": 0}, {"level": 0, "shard": 1}]
    assert vouched(tmp_path / "ledger") == {1: Vouched(frozenset({IN_PLACE}), frozenset({0, 1}))}


def test_a_changed_image_is_named_and_its_shard_is_not_vouched_for(shards: Path, tmp_path: Path) -> None:
    path = exchanged(shards, 0)
    found = ShardContents(manifest.read(shards).split("train"), Access(), tmp_path / "ledger", 1, world=World())
    with contextlib.suppress(DataError):  # where the thread was faster
        found.record(SimpleNamespace(opened=(0, 1)))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="has changed since the manifest was made") as caught:
        found.check()
    assert str(path) in caught.value.problem
    with pytest.raises(DataError):
        found.record(SimpleNamespace(opened=()))  # type: ignore[arg-type]
    assert not vouched(tmp_path / "ledger")[1].shards


def test_swapped_tars_of_one_size_are_named(shards: Path, tmp_path: Path) -> None:
    split = manifest.read(shards).split("train")
    one, other = (split.path(number) for number in (0, 1))
    size = max(one.stat().st_size, other.stat().st_size)
    for path in (one, other):
        with path.open("ab") as file:
            file.truncate(size)  # tars may end with any number of empty blocks
    content = json.loads((shards / manifest.NAME).read_text())
    for shard in content["splits"]["train"]["shards"][:2]:
        shard["bytes"] = size
    manifest.write_json(shards / manifest.NAME, content)
    rehashed(shards)
    data = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(data)
    manifest.read(shards).split("train").check()  # sizes fit
    with pytest.raises(DataError, match="has changed"):
        checked(shards, tmp_path / "ledger", 0).check()


def test_ranks_of_a_node_share_the_work_and_nodes_do_not(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[Path] = []
    own = contents.sha256_of
    monkeypatch.setattr(contents, "sha256_of", lambda path: hashed.append(path) or own(path))
    for rank in range(4):
        world = World(rank=rank, size=4, local_rank=rank % 2, local_size=2)
        found = checked(shards, tmp_path / "ledger", 0, 1, world=world)
        found.check()
        found.close()
    assert len(hashed) == 4
    assert sorted(path.name for path in (tmp_path / "ledger").iterdir()) == [
        "attempt_0001_node_00000.jsonl",
        "attempt_0001_node_00001.jsonl",
    ]


def test_what_is_not_read_in_place_is_not_hashed_again(shards: Path, tmp_path: Path) -> None:
    exchanged(shards, 0)
    split = manifest.read(shards).split("train")
    remote = dataclasses.replace(split, folder=Address.parse("http://host/data"))
    cases = [
        (split, Access(cache=Cache(tmp_path / "cache", 10**9)), True, CACHED, ()),
        (remote, Access(), True, BY_RANGE, ()),
        (split, Access(), False, UNVERIFIED, (0,)),
    ]
    for attempt, (own, access, verify, how, opened) in enumerate(cases, start=1):
        found = ShardContents(own, access, tmp_path / "ledger", attempt, world=World(), verify=verify)
        found.record(SimpleNamespace(opened=opened))  # type: ignore[arg-type]
        found.check()
        found.close()
        assert vouched(tmp_path / "ledger")[attempt] == Vouched(frozenset({how}), frozenset())


def test_a_read_that_fails_now_and_then_is_tried_again(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read, "FIRST_PAUSE_SECONDS", 0.0)
    own, failures = contents.sha256_of, [OSError(5, "Input/output error")] * 3

    def sha256_of(path: Path) -> str:
        if failures:
            raise failures.pop()
        return own(path)

    monkeypatch.setattr(contents, "sha256_of", sha256_of)
    checked(shards, tmp_path / "ledger", 0).check()
    failures.extend([OSError(5, "Input/output error")] * 4)
    with pytest.raises(DataError, match="could not be read in 4 tries"):
        checked(shards, tmp_path / "other", 0).check()


@pytest.mark.parametrize("process", ["false", "true"])
def test_a_run_on_a_changed_shard_saves_nothing_and_lists_no_image(shards: Path, tmp_path: Path, process: str) -> None:
    config = small_config(shards, *SHORT, f"data.loader_process={process}")
    run_job(World(), config, tmp_path / "whole")
    assert len(vouched(tmp_path / "whole" / "ledger")[1].shards) == len(manifest.read(shards).split("train").shards)
    split = manifest.read(shards).split("train")
    with split.path(0).open("r+b") as file:  # its first image is none any more, the size of the tar is the same
        file.seek(int(split.samples.offsets[0]))
        file.write(bytes(int(split.samples.sizes[0])))
    with pytest.raises(DataError, match="has changed since the manifest was made"):
        run_job(World(), config, tmp_path / "changed")
    assert not list((tmp_path / "changed" / "checkpoints").glob("step_*"))
    assert not (tmp_path / "changed" / "quarantine.jsonl").exists()


def test_the_audit_says_which_attempts_verified_what_they_read(shards: Path, tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    split = manifest.read(shards).split("train")
    checked(shards, tmp_path / "ledger", 0).check()
    assert audit.contents(run, split, {1: {0}}) == "All shards that were read had the sha256 that the manifest says."
    assert "not verified in attempt 1 (not all of them)" in audit.contents(run, split, {1: {0, 1}}), "of another shard"
    checked(shards, tmp_path / "ledger", attempt=2, verify=False).check()
    said = audit.contents(run, split, {1: {0}, 2: {0}})
    assert "not verified in attempt 2 (unverified): python shards/verify.py" in said
    said = audit.contents(run, split, {1: {0}, 3: {0}, 4: {0}})
    assert "not verified in attempts 3, 4 (no record of it)" in said


def test_after_it_is_closed_nothing_is_hashed_or_said(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    reached, hashed, gate = threading.Event(), [], threading.Event()

    def digest(path: Path) -> str:
        hashed.append(path)
        reached.set()
        gate.wait(60)
        return sha256_of(path)

    sha256_of = contents.sha256_of
    monkeypatch.setattr(contents, "sha256_of", digest)
    found = checked(shards, tmp_path / "ledger", 0, 1)
    assert reached.wait(60)
    found.close()
    gate.set()
    found.check()
    assert len(hashed) == 1
    assert not caplog.records
