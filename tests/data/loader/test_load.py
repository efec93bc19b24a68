"""The result of a request depends on the request alone; replacements keep the order."""

import io
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dist_ssl.core.draws import Draws
from dist_ssl.data.images.views import Augmentation, Cutter
from dist_ssl.data.loader.load import Loaded, Loader
from dist_ssl.data.order.requests import Request
from dist_ssl.data.storage import manifest
from dist_ssl.data.storage.read import Reader
from dist_ssl.errors import DataError
from tests.readers import Damaged

RECIPES = [Augmentation(crop_min=0.2), Augmentation(crop_min=0.5)]
CUTTER = Cutter(RECIPES, 16)


@pytest.fixture
def split(demo_shards: Path) -> manifest.Split:
    """The training split of the demo."""
    return manifest.read(demo_shards).split("train")


def request(ids: list[int], replacements: dict[int, list[int]] | None = None) -> Request:
    """A request for these samples; `replacements`: by place in the batch."""
    given = replacements or {}
    return Request(np.array(ids, dtype=np.int64), Draws(3, 1), lambda row: given.get(row, []))


def epoch() -> Iterator[Request]:
    """Batches of unequal length."""
    return iter([request([5, 2, 9, 30]), request([59, 0]), request([7]), request([1, 3, 4, 6, 8]), request([10, 11])])


def loaded(reader: Reader, requests: Iterator[Request], threads: int = 2, ahead_bytes: int = 10**6) -> list[Loaded]:
    """Everything that is loaded, copied before the next is asked for."""
    found = Loader(reader, threads, ahead_bytes).load(requests, CUTTER, 2)
    return [replace(x, ids=x.ids.copy(), views=[v.copy() for v in x.views], valid=x.valid.copy()) for x in found]


def alone(split: manifest.Split, number: int, draws_of: int | None = None) -> list[np.ndarray]:
    """The views of one sample, cut without a loader; with another sample's draws where one is named."""
    out = [np.zeros((16, 16, 3), dtype=np.uint8) for _ in RECIPES]
    draws = CUTTER.draw(Draws(3, 1), np.array([number if draws_of is None else draws_of]))
    with Reader(split) as reader:
        CUTTER.cut(reader.read(number), [d[0] for d in draws], out)
    return out


@pytest.mark.parametrize(("threads", "ahead"), [(1, 0), (1, 3000), (3, 0), (3, 10**4), (3, 10**9), (8, 2000)])
def test_batches_do_not_depend_on_threads_or_on_ahead_bytes(split: manifest.Split, threads: int, ahead: int) -> None:
    with Reader(split) as reader:
        found = loaded(reader, epoch(), threads, ahead)
    assert [batch.ids.tolist() for batch in found] == [r.ids.tolist() for r in epoch()]
    for batch in found:
        assert batch.valid.all()
        assert batch.wait_seconds >= 0
        for row, number in enumerate(batch.ids.tolist()):
            for view, expected in zip(batch.views, alone(split, number), strict=True):
                np.testing.assert_array_equal(view[row], expected)


def test_buffers_are_used_again_once_the_next_batch_is_asked_for(split: manifest.Split) -> None:
    with Reader(split) as reader:
        batches = Loader(reader, 1, 0).load(iter([request([n, n + 1]) for n in range(6)]), CUTTER, 2)
        addresses = {batch.views[0].ctypes.data for batch in batches}
    assert len(addresses) < 6


def test_nothing_is_loaded_of_no_requests(split: manifest.Split) -> None:
    with Reader(split) as reader:
        assert loaded(reader, iter([])) == []


@pytest.mark.parametrize("threads", [1, 3])
def test_a_damaged_sample_gets_the_first_readable_replacement_with_its_own_draws(
    split: manifest.Split, threads: int
) -> None:
    with Damaged(split, {9, 40}) as reader:
        (batch,) = loaded(reader, iter([request([5, 9, 30, 2], {1: [40, 41, 42]})]), threads)
    assert batch.ids.tolist() == [5, 9, 30, 2]
    assert batch.valid.tolist() == [True, False, True, True]
    assert batch.unreadable == {9: "not an image"}
    for row, (number, draws_of) in enumerate([(5, 5), (41, 9), (30, 30), (2, 2)]):
        for view, expected in zip(batch.views, alone(split, number, draws_of), strict=True):
            np.testing.assert_array_equal(view[row], expected)


@pytest.mark.parametrize("candidates", [[], [40], [40, 41]])
def test_no_readable_replacement_is_an_error_that_names_the_sample(
    split: manifest.Split, candidates: list[int]
) -> None:
    with (
        Damaged(split, {9, 40, 41}) as reader,
        pytest.raises(DataError, match="Sample 9 and every candidate to replace it are unreadable"),
    ):
        loaded(reader, iter([request([5, 9], {1: candidates})]))


def decode_threads() -> int:
    """Threads of loaders that are alive."""
    return sum(thread.name.startswith("decode") for thread in threading.enumerate())


def test_closing_the_iterator_early_ends_the_threads(split: manifest.Split) -> None:
    before = decode_threads()
    with Reader(split) as reader:
        batches = Loader(reader, 3).load(epoch(), CUTTER, 2)
        next(batches)
        assert decode_threads() > before
        batches.close()
        assert decode_threads() == before


def test_an_error_ends_the_threads(split: manifest.Split) -> None:
    before = decode_threads()
    with Damaged(split, {9}) as reader, pytest.raises(DataError):
        loaded(reader, epoch(), threads=3)
    assert decode_threads() == before


def test_a_finished_iterator_ends_the_threads(split: manifest.Split) -> None:
    before = decode_threads()
    with Reader(split) as reader:
        loaded(reader, epoch(), threads=3)
    assert decode_threads() == before


BYTES = 2 * 2 * 16 * 16 * 3
"""Size of the views of a request for two samples, bytes."""


@pytest.mark.parametrize(
    ("ahead_bytes", "started"),
    [
        (0, [2, 3, 4, 5, 6]),
        (BYTES, [2, 3, 4, 5, 6]),
        (2 * BYTES, [2, 4, 5, 6, 7]),
        (3 * BYTES + 1, [2, 4, 6, 7, 8]),
        (10**9, [2, 4, 6, 8, 10]),
    ],
)
def test_as_many_requests_are_started_as_fit_but_always_the_next(
    split: manifest.Split, ahead_bytes: int, started: list[int]
) -> None:
    asked = []

    def counted() -> Iterator[Request]:
        for number in range(10):
            asked.append(number)
            yield request([number, number + 1])

    with Reader(split) as reader:
        batches = Loader(reader, 2, ahead_bytes).load(counted(), CUTTER, 2)
        assert not asked
        for expected in started:
            next(batches)
            assert len(asked) == expected
        assert len(list(batches)) == 5


def test_slow_images_are_counted_by_reason(split: manifest.Split) -> None:
    class Png(Reader):
        def read(self, number: int) -> bytes:
            file = io.BytesIO()
            Image.open(io.BytesIO(super().read(number))).save(file, "PNG" if number % 2 else "JPEG")
            return file.getvalue()

    with Png(split) as reader:
        found = loaded(reader, iter([request([1, 2, 3]), request([4]), request([5])]))
    counts = [batch.slow.get("format", 0) for batch in found]
    assert sum(counts) == 3
    assert not any(set(batch.slow) - {"format"} for batch in found)
