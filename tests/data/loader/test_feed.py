"""Batches made beside training come in order, end with their reason, and let go of an item once it is copied."""

import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dist_ssl.core.batch import Batch
from dist_ssl.core.candidates import CandidateViews
from dist_ssl.core.draws import Draws
from dist_ssl.data.loader import feed
from dist_ssl.data.loader.feed import Feed
from dist_ssl.data.loader.load import Loader
from dist_ssl.data.loader.loader_process import LoaderProcess
from dist_ssl.data.storage import manifest
from dist_ssl.data.storage.read import Reader
from dist_ssl.data.stream import Stream
from dist_ssl.distributed.world import World
from dist_ssl.errors import DataError
from tests.data.test_stream import COLOURS, PLAN, RECIPES, SEED, WINDOW, batches, same
from tests.readers import Damaged


class Point:
    """An event that happens when a test says so."""

    def __init__(self, happened: bool) -> None:
        self.happened = threading.Event()
        if happened:
            self.happened.set()

    def synchronize(self) -> None:
        assert self.happened.wait(20)


class Device:
    """A device without a GPU. `quick`: whether its events have happened at once. It notes what it is asked for."""

    def __init__(self, quick: bool = True) -> None:
        self.quick = quick
        self.own: list[Point] = []
        """Of the thread beside training."""
        self.training: list[Point] = []
        self.handed: list[tuple[Sequence[Tensor], Point]] = []
        self._inside = threading.local()

    @contextmanager
    def within(self) -> Iterator[None]:
        self._inside.value = True
        try:
            yield
        finally:
            self._inside.value = False

    @property
    def inside(self) -> bool:
        """Whether the calling thread works beside training."""
        return bool(getattr(self._inside, "value", False))

    def event(self) -> Point:
        point = Point(self.quick)
        (self.own if self.inside else self.training).append(point)
        return point

    def hand_over(self, tensors: Sequence[Tensor], after: Point) -> None:
        assert not self.inside
        self.handed.append((tensors, after))


class Source:
    """Items 0, 1, ...; notes which were asked for, and by which thread it was closed."""

    def __init__(self, count: int, wait: Callable[[int], object] = lambda number: None) -> None:
        self.asked: list[int] = []
        self.device: Device | None = None
        self.closed_by: str | None = None
        self.items = self._items(count, wait)

    def _items(self, count: int, wait: Callable[[int], object]) -> Generator[int, None, None]:
        try:
            for number in range(count):
                self.asked.append(number)
                wait(number)
                yield number
        finally:
            assert self.device
            self.closed_by = threading.current_thread().name if self.device.inside else "outside"


def made(number: int, views: list[Tensor]) -> Batch:
    costs = {"data_wait_seconds": 99.0, "replaced_samples": 0.0}
    return Batch(views, torch.tensor([number]), torch.ones(1, dtype=torch.bool), None, Draws(0), number, costs=costs)


def copied(number: int) -> list[Tensor]:
    return [torch.full((1,), float(number))]


def feeding(source: Source, device: Device, make: Callable[[int, list[Tensor]], Batch] = made) -> Iterator[Batch]:
    source.device = device
    return iter(Feed(source.items, copied, make, device))


def eventually(holds: Callable[[], Any]) -> bool:
    """Whether something comes true within a while."""
    until = time.monotonic() + 20
    while not holds() and time.monotonic() < until:
        time.sleep(0.002)
    return bool(holds())


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "feed"]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert eventually(lambda: not threads())


def test_batches_come_in_the_order_of_the_source_and_the_thread_ends_with_it() -> None:
    source, device = Source(7), Device()
    found = list(feeding(source, device))
    assert [batch.step for batch in found] == list(range(7))
    assert [float(batch.views[0]) for batch in found] == list(range(7))
    assert source.closed_by == "feed"
    assert not threads()


def test_training_waits_for_the_end_of_each_batch_on_its_stream_and_keeps_the_tensors() -> None:
    source, device = Source(3), Device()
    found = list(feeding(source, device))
    assert [after for _, after in device.handed] == device.own[1::2]  # the other ones end the copies
    for batch, (tensors, _) in zip(found, device.handed, strict=True):
        assert [id(x) for x in tensors] == [id(x) for x in (*batch.views, batch.valid)]


def test_candidates_are_kept_for_training_too() -> None:
    small, pixels = torch.ones(2), torch.ones(3)

    def scored(number: int, views: list[Tensor]) -> Batch:
        return replace(made(number, views), views=[], candidates=CandidateViews(1, [small], 0.5, 1, list, [pixels]))

    source, device = Source(1), Device()
    (batch,) = feeding(source, device, scored)
    ((tensors, _),) = device.handed
    assert [id(x) for x in tensors] == [id(x) for x in (batch.valid, small, pixels)]


def test_an_item_is_held_until_its_copies_are_over() -> None:
    source, device = Source(3), Device(quick=False)
    found = feeding(source, device)
    taken: list[Batch] = []
    taking = threading.Thread(target=lambda: taken.append(next(found)))
    taking.start()
    assert eventually(lambda: device.training)
    device.training[0].happened.set()
    assert eventually(lambda: len(device.own) == 2)  # copies and batch are issued
    time.sleep(0.05)
    assert source.asked == [0]
    device.own[0].happened.set()  # the copies alone
    assert eventually(lambda: source.asked == [0, 1])
    taking.join()
    assert [batch.step for batch in taken] == [0]
    release(device, found)


def release(device: Device, found: Iterator[Batch]) -> None:
    """Let every event happen, and close the iterator."""
    device.quick = True
    for point in (*device.own, *device.training):
        point.happened.set()
    found.close()  # type: ignore[attr-defined]


def test_an_item_is_held_until_its_copies_are_over_where_making_its_batch_fails() -> None:
    source, device = Source(3), Device(quick=False)

    def failing(number: int, views: list[Tensor]) -> Batch:
        raise ValueError("no batch")

    found = feeding(source, device, failing)
    errors: list[BaseException] = []

    def take() -> None:
        try:
            next(found)
        except ValueError as error:
            errors.append(error)

    taking = threading.Thread(target=take)
    taking.start()
    assert eventually(lambda: device.training)
    device.training[0].happened.set()
    assert eventually(lambda: device.own)
    time.sleep(0.05)
    assert source.closed_by is None
    assert not errors
    device.own[0].happened.set()
    taking.join()
    assert [str(error) for error in errors] == ["no batch"]
    assert source.closed_by == "feed"


def test_one_batch_is_made_ahead_and_no_more() -> None:
    source, device = Source(9), Device()
    found = feeding(source, device)
    for step in range(3):
        assert next(found).step == step
        # batch step + 1 is made, and the item after it is there, uncopied
        assert eventually(lambda step=step: len(device.own) == 2 * (step + 2))
        time.sleep(0.02)
        assert len(device.own) == 2 * (step + 2)
        assert source.asked == list(range(step + 3))
    found.close()


def test_a_batch_is_started_when_the_device_has_come_to_the_one_before() -> None:
    source, device = Source(9), Device()
    found = feeding(source, device)
    next(found)
    assert eventually(lambda: len(device.own) == 4)
    device.quick = False
    next(found)  # training has issued the first step; the device has not done it
    time.sleep(0.05)
    assert len(device.own) == 4
    device.quick = True
    device.training[-1].happened.set()
    assert eventually(lambda: len(device.own) == 6)
    found.close()


@pytest.mark.parametrize("at", [0, 1, 4])
def test_an_error_of_the_source_reaches_training_after_the_batches_before_it(at: int) -> None:
    def wait(number: int) -> None:
        if number == at:
            raise DataError("It is gone.", "Bring it back.")

    found = feeding(Source(9, wait), Device())
    assert [next(found).step for _ in range(at)] == list(range(at))
    with pytest.raises(DataError, match="It is gone"):
        next(found)
    assert not threads()


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_closing_early_ends_thread_and_source(taken: int) -> None:
    source = Source(100)
    found = feeding(source, Device())
    for _ in range(taken):
        next(found)
    found.close()
    assert not threads()
    assert source.closed_by == ("feed" if taken else None)
    assert len(source.asked) <= taken + 2


def test_a_load_that_hangs_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "END_SECONDS", 0.05)
    go = threading.Event()
    source = Source(9, lambda number: number < 2 or go.wait(20))
    found = feeding(source, Device())
    next(found)
    assert eventually(lambda: source.asked == [0, 1, 2])
    since = time.monotonic()
    found.close()
    assert time.monotonic() - since < 5
    assert threads()
    go.set()
    assert eventually(lambda: source.closed_by == "feed")
    assert source.asked == [0, 1, 2]


def test_the_wait_that_is_reported_is_that_of_training() -> None:
    go = threading.Event()
    source = Source(2, lambda number: number == 0 or go.wait(20))
    found = feeding(source, Device())
    next(found)
    threading.Timer(0.2, go.set).start()
    costs = next(found).costs
    assert 0.1 < costs["data_wait_seconds"] < 20
    assert costs["replaced_samples"] == 0
    found.close()


@pytest.fixture(scope="module")
def split(demo_shards: Path) -> manifest.Split:
    return manifest.read(demo_shards).split("train")


def beside(loader: Any, device: Device) -> Stream:
    options: dict[str, Any] = {"world": World(), "seed": SEED, "window": WINDOW, "dtype": torch.float32}
    return Stream(loader, RECIPES, COLOURS, side=device, **options)


@pytest.mark.parametrize("start", [0, 4])
def test_a_stream_beside_training_yields_the_same_batches(split: manifest.Split, start: int) -> None:
    with Reader(split) as reader:
        plain = batches(reader, start=start)
        # an image's memory is filled anew as soon as its item is let go, so that a late copy would show
        found = list(beside(Loader(reader, 2, 0), Device()).epoch(PLAN, start))
    assert len(found) == len(plain)
    assert all(same(own, other) for own, other in zip(found, plain, strict=True))


def test_a_stream_beside_training_passes_on_errors(split: manifest.Split) -> None:
    with Damaged(split, range(60)) as reader, pytest.raises(DataError, match="unreadable"):
        list(beside(Loader(reader, 2), Device()).epoch(PLAN))


def test_a_stream_beside_training_that_stops_early_leaves_its_loader_process_usable(split: manifest.Split) -> None:
    process = LoaderProcess()
    try:
        with Reader(split) as reader:
            stream, plain = beside(process.serve(Loader(reader, 2)), Device()), batches(reader)
            early = stream.epoch(PLAN)
            assert same(next(early), plain[0])
            early.close()  # type: ignore[attr-defined]
            found = list(stream.epoch(PLAN, 4))
        assert all(same(own, other) for own, other in zip(found, plain[1:], strict=True))
        assert len(found) == 2
    finally:
        process.close()


def test_two_requests_may_wait_however_large_they_are(split: manifest.Split) -> None:
    asked: list[int] = []

    class Counted(Loader):
        def load(self, requests: Any, *given: Any, **options: Any) -> Any:
            def counted() -> Iterator[Any]:
                for request in requests:
                    asked.append(len(asked))
                    yield request

            return super().load(counted(), *given, **options)

    plan = replace(PLAN, batch_size=4)
    with Reader(split) as reader:
        stream = Stream(
            Counted(reader, 1, 0), RECIPES, COLOURS, world=World(), seed=SEED, window=WINDOW, dtype=torch.float32
        )
        found = stream.epoch(plan)
        seen = []
        for _ in range(4):
            next(found)
            seen.append(len(asked))
    # two at first, so that the first one need not wait for a third; then two besides the one in use
    assert seen == [2, 4, 5, 6]
