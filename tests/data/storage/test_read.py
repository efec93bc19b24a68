"""Reads from this machine's own shards: failed ones are tried again, few files stay open, none is opened needlessly."""

import errno
import os
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from dist_ssl.data.storage import manifest, read
from dist_ssl.data.storage.cache import Cache
from dist_ssl.data.storage.read import Reader
from dist_ssl.data.storage.reader_options import Access
from dist_ssl.errors import DataError


class Failing(Reader):
    """A reader whose first tries for every sample end in an I/O error."""

    def __init__(self, split: manifest.Split, failures: int) -> None:
        super().__init__(split)
        self.failures = failures
        self.tries: dict[int, int] = {}

    def _read(self, number: int, level: int) -> bytes:
        self.tries[number] = self.tries.get(number, 0) + 1
        if self.tries[number] <= self.failures:
            raise OSError("the disk is elsewhere")
        return super()._read(number, level)


@pytest.fixture
def split(demo_shards: Path) -> manifest.Split:
    """The training split of the demo."""
    return manifest.read(demo_shards).split("train")


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that would have been made."""
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    return pauses


def test_an_io_error_is_retried_with_growing_pauses(split: manifest.Split, no_pause: list[float]) -> None:
    with Failing(split, read.READ_TRIES - 1) as reader, Reader(split) as other:
        assert reader.read(5) == other.read(5)
    assert reader.tries == {5: read.READ_TRIES}
    assert no_pause == [read.FIRST_PAUSE_SECONDS * 2**n for n in range(read.READ_TRIES - 1)]


def test_an_io_error_that_stays_stops_the_run_and_is_no_fact_about_the_sample(
    split: manifest.Split, no_pause: list[float]
) -> None:
    with (
        Failing(split, 99) as reader,
        pytest.raises(DataError, match=r"Sample 5 could not be read in 4 tries: the disk is elsewhere") as caught,
    ):
        reader.read(5)
    assert isinstance(caught.value.__cause__, OSError)
    assert "not the data's" in caught.value.remedy
    assert reader.tries == {5: read.READ_TRIES}


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOENT])
def test_a_file_system_that_may_answer_again_ends_an_attempt_that_comes_back(
    no_pause: list[float], number: int
) -> None:
    def away() -> bytes:
        raise OSError(number, os.strerror(number))

    with pytest.raises(DataError, match="Sample 5 could not be read in 4 tries") as caught:
        read.in_several_tries(away, "Sample 5")
    assert caught.value.transient is (number != errno.ENOENT)


def test_few_files_stay_open_and_every_read_is_right(split: manifest.Split, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "MOST_OPEN", 3)
    assert len(split.shards) > 3
    with Reader(split) as reader:
        whole = {n: reader.read(n) for n in range(60)}
        assert len(reader._files) == 3
        wrong: list[int] = []

        def some(seed: int) -> None:
            for n in np.random.default_rng(seed).integers(60, size=300):
                if reader.read(int(n)) != whole[int(n)]:
                    wrong.append(int(n))

        threads = [threading.Thread(target=some, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        assert len(reader._files) <= 3


def test_only_the_shards_of_the_samples_that_are_asked_for_are_opened(demo_shards: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(demo_shards, tmp_path / "data")
    split = manifest.read(copy).split("train")
    for shard in split.shards[1:]:
        (copy / shard.name).unlink()
    with Reader(split) as reader:
        assert len(reader.read(0)) == split.samples.sizes[0]


def test_shards_of_a_slow_file_system_may_be_cached_too(split: manifest.Split, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", 10**6)
    with Reader(split) as direct, Reader(split, Access(cache=cache)) as reader:
        assert all(reader.read(n) == direct.read(n) for n in range(60))
    kept = {path.stem for path in (tmp_path / "cache").glob("*.tar")}
    assert kept == {shard.sha256 for shard in split.shards}
    assert reader.costs()["fetched_bytes"] == sum(shard.bytes for shard in split.shards)


def test_a_cached_shard_that_lost_its_end_is_fetched_again(split: manifest.Split, tmp_path: Path) -> None:
    access = Access(cache=Cache(tmp_path / "cache", 10**6))
    with Reader(split, access) as reader:
        known = reader.read(0)
    os.truncate(tmp_path / "cache" / f"{split.shards[0].sha256}.tar", 700)
    with Reader(split, access) as reader:
        assert reader.read(0) == known
