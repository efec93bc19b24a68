"""The shares of sources: what is said of them before a run, and which batches they allow."""

from dataclasses import replace
from pathlib import Path

import pytest

from dist_ssl.data.order import source_shares as shares
from dist_ssl.data.storage.address import Address
from dist_ssl.data.storage.manifest import Shard, Split
from dist_ssl.data.storage.mixture import MixedSplit, Source
from dist_ssl.data.storage.samples import columns
from dist_ssl.errors import ConfigError

SIZES, WEIGHTS = (60, 30, 10), (5, 3, 2)


@pytest.fixture
def mixed() -> MixedSplit:
    """Three sources of one shard each."""
    places = [Address(name) for name in "abc"]
    shards = tuple(Shard("train.tar", size, 0, "") for size in SIZES)
    rows = columns([(f"{n}", 0, 1, -1) for n in range(sum(SIZES))])
    sources = tuple(Source(*own) for own in zip(places, (1, 1, 1), SIZES, WEIGHTS, strict=True))
    return MixedSplit(places[0], "train", shards, rows, sources=sources)


def test_an_epoch_is_described_source_by_source(mixed: MixedSplit) -> None:
    first, *others = shares.described(mixed)
    assert first == "An epoch has 100 samples, as many as the 3 sources have together:"
    assert others == [
        "  source 1, a: 50 % of them, 0.833 passes over its 60 samples",
        "  source 2, b: 30 % of them, 1 passes over its 30 samples",
        "  source 3, c: 20 % of them, 2 passes over its 10 samples",
    ]


def test_counts_are_named_by_the_number_of_the_source(mixed: MixedSplit) -> None:
    assert shares.metrics(mixed, 40) == {"source_samples/1": 20, "source_samples/2": 12, "source_samples/3": 8}


def test_batches_that_are_too_small_or_too_large_are_refused(mixed: MixedSplit) -> None:
    for size in (3, 24, 50):
        shares.check_batch(mixed, size)
    with pytest.raises(ConfigError, match="batch_size=2 is less than the 3 places"):
        shares.check_batch(mixed, 2)
    with pytest.raises(ConfigError, match=r"c has 10 samples, and its share of a batch of 60 is 12: some would be"):
        shares.check_batch(mixed, 60)


def test_one_data_set_has_no_shares(mixed: MixedSplit, tmp_path: Path) -> None:
    plain = Split(Address(str(tmp_path)), "train", mixed.shards, mixed.samples)
    assert not list(shares.described(plain))
    assert shares.metrics(plain, 40) == {}
    shares.check_batch(plain, 1)
    with pytest.raises(ConfigError):
        shares.check_batch(replace(mixed), 1)
