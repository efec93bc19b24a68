"""The cache serves whole, verified shards only, even if processes die; each is fetched once; it keeps its bound."""

import hashlib
import os
import random
import shutil
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dist_ssl.data.storage import manifest
from dist_ssl.data.storage.cache import Cache
from dist_ssl.data.storage.read import Reader
from dist_ssl.errors import ConfigError, DataError
from tests.readers import access, held, remote
from tests.web import FAULTS, Server, serving


@pytest.fixture
def server(demo_shards: Path) -> Iterator[Server]:
    """A server of the demo shards."""
    with serving(demo_shards) as server:
        yield server


@pytest.fixture
def local(demo_shards: Path) -> Iterator[Reader]:
    """The training split, read where it lies."""
    with Reader(manifest.read(demo_shards).split("train")) as reader:
        yield reader


def start(server: Server, local: Reader, cache: Path, size: int, seed: int, count: int) -> "subprocess.Popen[str]":
    """A process that reads at random."""
    words = [server.url, str(local.split.folder), str(cache), str(size), str(seed), str(count)]
    return subprocess.Popen(
        [sys.executable, "-m", "tests.readers", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def names(folder: Path, kind: str) -> set[str]:
    """The hashes of what the cache holds."""
    return {path.stem for path in folder.glob(f"*{kind}")}


def all_whole(folder: Path) -> bool:
    """Every shard has the content that its name says."""
    return all(hashlib.sha256(p.read_bytes()).hexdigest() == p.stem for p in folder.glob("*.tar"))


def test_every_shard_is_fetched_once_by_all_threads_and_readers_together(
    server: Server, local: Reader, tmp_path: Path
) -> None:
    found = [access(tmp_path) for _ in range(2)]
    readers = [Reader(remote(server.url, a), a) for a in found]
    wrong: list[int] = []

    def work(reader: Reader, seed: int) -> None:
        for n in random.Random(seed).sample(range(60), k=60):
            if reader.read(n) != local.read(n):
                wrong.append(n)

    threads = [threading.Thread(target=work, args=(reader, seed)) for seed, reader in enumerate(readers * 3)]
    for reader in readers:
        reader.expect(range(len(reader.split.shards)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert [server.asked(shard.name) for shard in local.split.shards] == [1] * len(local.split.shards)
    assert names(tmp_path, ".tar") == {shard.sha256 for shard in local.split.shards}
    assert not names(tmp_path, ".part")


def test_several_processes_share_a_small_cache_on_a_bad_network(server: Server, local: Reader, tmp_path: Path) -> None:
    size = 3 * max(shard.bytes for shard in local.split.shards)
    assert size < sum(shard.bytes for shard in local.split.shards)
    choice = random.Random(5)
    faults = [f for f in FAULTS if f != "stall"]
    server.fault = lambda path: choice.choice(faults) if path.endswith(".tar") and choice.random() < 0.3 else ""
    readers = [start(server, local, tmp_path, size, seed, 60) for seed in range(3)]
    for reader in readers:
        text, _ = reader.communicate(timeout=120)
        assert reader.returncode == 0, text
    assert held(tmp_path) <= size
    assert all_whole(tmp_path)


def test_nothing_of_a_killed_fetch_is_ever_served(server: Server, local: Reader, tmp_path: Path) -> None:
    first = local.split.shards[0]
    server.fault = lambda path: "stall" if path.endswith(".tar") else ""
    victim = start(server, local, tmp_path, 10**6, 1, 1)
    end = time.monotonic() + 60
    while not any(path.stat().st_blocks for path in tmp_path.glob("*.part")):
        assert victim.poll() is None
        assert time.monotonic() < end
        time.sleep(0.01)
    half = names(tmp_path, ".part")
    victim.kill()
    victim.communicate()
    assert names(tmp_path, ".part") == half
    server.fault = lambda path: ""
    server.released.set()
    found = access(tmp_path)
    with Reader(remote(server.url, found), found) as reader:
        assert reader.read(0) == local.read(0)
        assert names(tmp_path, ".part") <= half - {first.sha256}
        assert all(reader.read(n) == local.read(n) for n in range(60))
    assert not names(tmp_path, ".part")
    assert all_whole(tmp_path)


def test_parts_of_the_dead_take_no_room(server: Server, local: Reader, tmp_path: Path) -> None:
    size = max(shard.bytes for shard in local.split.shards)
    for n in range(3):
        (tmp_path / f"{n:064d}.part").write_bytes(b"0" * size)
    found = access(tmp_path, size)
    with Reader(remote(server.url, found), found) as reader:
        assert reader.read(7) == local.read(7)
    assert not names(tmp_path, ".part")


def test_what_was_used_least_recently_goes_first_and_stays_readable_where_it_is_open(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 30)
    content = [bytes([n]) * 10 for n in range(4)]
    hashes = [hashlib.sha256(data).hexdigest() for data in content]
    files = []
    for n in range(3):
        files.append(cache.obtain("x", hashes[n], 10, lambda n=n: iter([content[n]])))
        os.utime(tmp_path / f"{hashes[n]}.tar", (100 + n, 100 + n))
    found = cache.find(hashes[0], 10)
    assert found
    found.close()
    files.append(cache.obtain("x", hashes[3], 10, lambda: iter([content[3]])))
    assert names(tmp_path, ".tar") == {hashes[0], hashes[2], hashes[3]}
    assert [file.read() for file in files] == content
    for file in files:
        file.close()


def test_wrong_content_is_fetched_again_once_and_then_refused(
    server: Server, local: Reader, demo_shards: Path, tmp_path: Path
) -> None:
    server.folder = Path(shutil.copytree(demo_shards, tmp_path / "bucket"))
    shard = local.split.shards[0]
    path = server.folder / shard.name
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)
    found = access(tmp_path / "cache")
    with (
        Reader(remote(server.url, found), found) as reader,
        pytest.raises(DataError, match=f"Shard {server.url}/{shard.name} has the sha256") as caught,
    ):
        reader.read(0)
    assert hashlib.sha256(data).hexdigest() in caught.value.problem
    assert shard.sha256 in caught.value.problem
    assert server.asked(shard.name) == 2
    assert not names(tmp_path / "cache", ".*")
    with Reader(remote(server.url, found), found) as reader:
        assert reader.read(59) == local.read(59)


def test_content_that_was_spoilt_on_the_way_is_fetched_again(tmp_path: Path) -> None:
    tries = [b"spoilt", b"right!"]
    sha256 = hashlib.sha256(tries[1]).hexdigest()
    with Cache(tmp_path, 100).obtain("x", sha256, 6, lambda: iter([tries.pop(0)])) as file:
        assert file.read() == b"right!"


def test_a_shard_larger_than_the_cache_and_a_cache_of_another_user_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    none = "0" * 64
    with pytest.raises(DataError, match="x has 10 bytes, and the cache may hold 9") as caught:
        Cache(tmp_path, 9).obtain("x", none, 10, lambda: iter([]))
    assert "data.cache_bytes" in caught.value.remedy
    (tmp_path / f"{none}.tar").write_bytes(b"0123456789")
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(DataError, match="belongs to another user"):
        Cache(tmp_path, 10).find(none, 10)
    with pytest.raises(DataError, match="belongs to another user"):
        Cache(tmp_path, 10).obtain("x", none, 10, lambda: iter([]))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a link of another user")
def test_a_link_that_another_user_made_to_a_folder_of_ones_own_is_no_cache(tmp_path: Path) -> None:
    (tmp_path / "papers").mkdir()
    link = tmp_path / "cache"
    link.symlink_to(tmp_path / "papers")
    Cache(link, 10).obtain("x", hashlib.sha256(b"abc").hexdigest(), 3, lambda: iter([b"abc"])).close()
    os.chown(link, 12345, 12345, follow_symlinks=False)
    with pytest.raises(DataError, match="belongs to another user"):
        Cache(link, 10).obtain("y", hashlib.sha256(b"def").hexdigest(), 3, lambda: iter([b"def"]))


def test_files_that_are_not_the_caches_own_are_never_removed(tmp_path: Path) -> None:
    others = [tmp_path / "thesis.tar", tmp_path / "thesis.part"]
    for path in others:
        path.write_bytes(b"0123456789")
    for content in (b"abcdefgh", b"ijklmnop"):
        Cache(tmp_path, 10).obtain("x", hashlib.sha256(content).hexdigest(), 8, lambda c=content: iter([c])).close()
    assert [path.read_bytes() for path in others] == [b"0123456789"] * 2
    assert names(tmp_path, ".tar") == {"thesis", hashlib.sha256(b"ijklmnop").hexdigest()}


def test_without_a_cache_only_the_samples_own_bytes_are_asked_for(server: Server, local: Reader) -> None:
    found = access(None)
    with Reader(remote(server.url, found), found) as reader:
        server.requests.clear()
        server.faults.extend(["reset", "503"])
        assert [reader.read(n) for n in (54, 3)] == [local.read(n) for n in (54, 3)]
        offset, size = int(reader.split.samples.offsets[3]), int(reader.split.samples.sizes[3])
        assert server.requests[-1] == (f"/{reader.split.shards[0].name}", f"bytes={offset}-{offset + size - 1}")
        server.ranges = False
        with pytest.raises(DataError, match="can only be fetched whole") as caught:
            reader.read(5)
    assert "data.cache=auto" in caught.value.remedy


def test_a_reader_of_scattered_samples_fetches_no_shard_but_reads_those_that_are_there(
    server: Server, local: Reader, tmp_path: Path
) -> None:
    found = access(tmp_path)
    split = remote(server.url, found)
    with Reader(split, found) as whole, Reader(split, found, scattered=True) as reader:
        whole.read(0)
        server.requests.clear()
        assert [reader.read(n) for n in (0, 59)] == [local.read(n) for n in (0, 59)]
        assert [path for path, _ in server.requests] == [f"/{split.shards[-1].name}"]
        server.ranges = False
        assert reader.read(58) == local.read(58)
    assert len(names(tmp_path, ".tar")) == 2


def test_a_cache_too_small_for_the_lanes_is_refused_before_anything_runs(server: Server, tmp_path: Path) -> None:
    split = remote(server.url, access(None))
    largest = max(shard.bytes for shard in split.shards)
    assert 3 * largest < sum(shard.bytes for shard in split.shards)
    found = access(tmp_path, 3 * largest)
    with pytest.raises(ConfigError, match="12 lanes of a node read as many shards at once") as caught:
        found.check(split, lanes=12, window=8)
    assert "data.cache=null" in caught.value.remedy
    found.check(split, lanes=1, window=1)


def test_a_check_of_shards_elsewhere_asks_for_two_of_them(server: Server, demo_shards: Path, tmp_path: Path) -> None:
    found = access(None)
    split = remote(server.url, found)
    server.requests.clear()
    found.check(split, 12, 8)
    assert len(server.requests) == 2
    server.folder = Path(shutil.copytree(demo_shards, tmp_path / "bucket"))
    last = server.folder / split.shards[-1].name
    last.write_bytes(last.read_bytes()[:-512])
    with pytest.raises(DataError, match=f"{last.name} has {split.shards[-1].bytes - 512} bytes; the manifest says"):
        found.check(split, 12, 8)
    last.unlink()
    with pytest.raises(DataError, match=f"{last.name} does not exist"):
        found.check(split, 12, 8)


SHARD = hashlib.sha256(b"abc").hexdigest()


@pytest.mark.parametrize("name", [f"{SHARD}.part", f"{SHARD}.tar", "lock"])
def test_a_link_in_a_cache_is_not_followed(tmp_path: Path, name: str) -> None:
    canary, folder = tmp_path / "thesis", tmp_path / "cache"
    canary.write_bytes(b"xyz")
    folder.mkdir(mode=0o700)
    (folder / name).symlink_to(canary)
    with pytest.raises(DataError, match="is a link, which the cache does not follow"):
        Cache(folder, 10).obtain("x", SHARD, 3, lambda: iter([b"abc"]))
    assert canary.read_bytes() == b"xyz"


@pytest.mark.parametrize("mode", [0o777, 0o757, 0o1777])
def test_a_cache_that_others_can_write_to_is_refused_with_two_ways_out(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "my cache"
    Cache(folder, 10).obtain("x", SHARD, 3, lambda: iter([b"abc"])).close()
    folder.chmod(mode)
    for use in (lambda cache: cache.find(SHARD, 3), lambda cache: cache.obtain("x", SHARD, 3, lambda: iter([]))):
        with pytest.raises(DataError, match="can be changed by others") as caught:
            use(Cache(folder, 10))
        assert f"chmod go-w '{folder}'" in caught.value.remedy
    Cache(folder / "own", 10).obtain("x", SHARD, 3, lambda: iter([b"abc"])).close()
    folder.chmod(0o755)
    found = Cache(folder, 10).find(SHARD, 3)
    assert found is not None
    found.close()


@pytest.mark.parametrize("umask", [0, 0o002])
def test_a_new_cache_and_what_is_in_it_are_for_their_owner_alone(tmp_path: Path, umask: int) -> None:
    folder, before = tmp_path / "cache", os.umask(umask)
    try:
        Cache(folder, 10).obtain("x", SHARD, 3, lambda: iter([b"abc"])).close()
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a link of another user")
@pytest.mark.parametrize("size", [3, 8], ids=["to find", "to make room"])
def test_a_cache_that_another_user_has_linked_evicts_nothing(tmp_path: Path, size: int) -> None:
    papers, link = tmp_path / "papers", tmp_path / "cache"
    papers.mkdir(mode=0o700)
    names_of_hashes = {papers / f"{SHARD}.tar": b"xyz", papers / f"{'f' * 64}.tar": b"years", papers / "a.part": b"x"}
    for path, content in names_of_hashes.items():
        path.write_bytes(content)
    link.symlink_to(papers)
    os.chown(link, 12345, 12345, follow_symlinks=False)
    own = hashlib.sha256(b"abcdefgh"[:size]).hexdigest()
    with pytest.raises(DataError, match="belongs to another user"):
        Cache(link, 8).obtain("x", own, size, lambda: iter([b"abcdefgh"[:size]]))
    assert {path: path.read_bytes() for path in papers.iterdir()} == names_of_hashes


def test_what_is_no_folder_is_no_cache(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("years of work")
    with pytest.raises(FileExistsError):
        Cache(tmp_path / "cache", 10).obtain("x", SHARD, 3, lambda: iter([b"abc"]))
    assert (tmp_path / "cache").read_text() == "years of work"
