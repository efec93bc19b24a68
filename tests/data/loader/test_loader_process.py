"""A loader process loads what threads load, and ends with its parent, however that one ends."""

import gc
import io
import os
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from dist_ssl.core.batch import Batch
from dist_ssl.core.draws import Draws
from dist_ssl.core.plan import EpochPlan
from dist_ssl.data.epoch_views import Colours
from dist_ssl.data.images.centre_crop import CentreCrop
from dist_ssl.data.images.image_rules import ImageRules
from dist_ssl.data.images.views import Augmentation, Cutter
from dist_ssl.data.loader import loader_process
from dist_ssl.data.loader.buffers import Spare
from dist_ssl.data.loader.load import MOST_STARTED, Loader, SampleLoader
from dist_ssl.data.loader.loader_process import LoaderProcess
from dist_ssl.data.loader.shared_buffers import Slots
from dist_ssl.data.order.lanes import EpochOrder
from dist_ssl.data.order.requests import Chosen, Steps
from dist_ssl.data.storage import manifest
from dist_ssl.data.storage.address import Address
from dist_ssl.data.storage.read import Reader
from dist_ssl.data.storage.samples import columns
from dist_ssl.data.stream import Stream
from dist_ssl.distributed.world import World
from dist_ssl.errors import DataError
from dist_ssl.runtime.signals import STOPPING
from tests import forks
from tests.readers import access
from tests.web import FAULTS, serving

PLAN = EpochPlan(epoch=0, image_size=16, magnitude=1.0, views=2, batch_size=8, lanes=4)
RECIPES = [
    Augmentation(crop_min=0.2, jitter_p=0.8, brightness=0.4),
    Augmentation(crop_min=0.3, gray_p=0.5),
    Augmentation(crop_min=0.1, crop_max=0.3, local=True),
]
TURNED, INKS, PNG, NOISE, CUT, EMPTY = 3, 8, 14, 20, 27, 33
"""Samples that are not plain JPEGs; the last three cannot be read."""
END_SECONDS = 10
"""More than enough for a process to end, on any machine that runs tests."""


def encoded(number: int) -> bytes:
    """An image of 40 x 30 px, in the way that its number says."""
    pixels = np.random.default_rng(number).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    image, file, exif = Image.fromarray(pixels), io.BytesIO(), Image.Exif()
    exif[0x0112] = 6 if number == TURNED else 1
    if number == INKS:
        image = image.convert("CMYK")
    image.save(file, "PNG" if number == PNG else "JPEG", exif=exif)
    data = file.getvalue()
    return {NOISE: b"no image at all", CUT: data[: len(data) // 2], EMPTY: b""}.get(number, data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards of 16 images each, of many kinds."""
    folder = tmp_path_factory.mktemp("mixed")
    shards, rows = [], []
    for first in (0, 16, 32):
        tar = folder / f"train-{first:03d}.tar"
        with tarfile.open(tar, "w") as archive:
            for number in range(first, first + 16):
                member = tarfile.TarInfo(f"{number:08d}.jpg")
                member.size = len(encoded(number))
                archive.addfile(member, io.BytesIO(encoded(number)))
        with tarfile.open(tar) as archive:
            rows += [(member.name[:-4], member.offset_data, member.size, 1) for member in archive]
        shards.append(manifest.Shard(tar.name, 16, tar.stat().st_size, "0" * 64))
    manifest.write(folder, {"train": (shards, columns(rows))})
    return folder


@pytest.fixture
def split(folder: Path) -> manifest.Split:
    """Their split."""
    return manifest.read(folder).split("train")


@pytest.fixture(scope="module")
def process() -> Iterator[LoaderProcess]:
    """A process that several tests use, one after the other."""
    process = LoaderProcess()
    yield process
    process.close()


def stream(loader: SampleLoader) -> Stream:
    """Batches of the plan."""
    colours = Colours((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    return Stream(loader, RECIPES, colours, world=World(), seed=5, window=6, dtype=torch.float32)


def same(own: Batch, other: Batch) -> bool:
    """Return whether two batches are equal to the bit, and in all that is reported about them."""
    return (
        torch.equal(own.ids, other.ids)
        and torch.equal(own.valid, other.valid)
        and all(torch.equal(a, b) for a, b in zip(own.views, other.views, strict=True))
        and (own.step, own.unreadable, own.costs.keys()) == (other.step, other.unreadable, other.costs.keys())
    )


def totals(batches: list[Batch]) -> dict[str, float]:
    """The sums of what the batches cost, but for the time."""
    keys = batches[0].costs.keys() - {"data_wait_seconds"}
    return {key: sum(batch.costs[key] for batch in batches) for key in keys}


def await_end(alive: Callable[[], bool]) -> None:
    """Wait until something is over."""
    end = time.monotonic() + END_SECONDS
    while alive():
        assert time.monotonic() < end, "it does not end"
        time.sleep(0.02)


def at_work(process: LoaderProcess) -> bool:
    """Whether the process has more threads than the two that serve and watch."""
    return psutil.Process(process.process.pid).num_threads() > 2


@pytest.mark.parametrize(("threads", "ahead", "start"), [(1, 0, 0), (3, 10**9, 0), (2, 20_000, 4)])
def test_its_batches_and_their_reports_are_those_of_threads(
    split: manifest.Split, process: LoaderProcess, threads: int, ahead: int, start: int
) -> None:
    loader = Loader(Reader(split), threads, ahead)
    known, found = (list(stream(x).epoch(PLAN, start)) for x in (loader, process.serve(loader)))
    assert len(known) == len(found) == 6 - start // 2
    assert all(same(own, other) for own, other in zip(found, known, strict=True))
    assert totals(found) == totals(known)
    if not start:
        assert {n for batch in found for n in batch.unreadable} == {NOISE, CUT, EMPTY}
        assert {why for batch in found for why in batch.unreadable.values()} == {
            "not an image",
            "damaged image",
            "empty",
        }
        slow = {key.partition("/")[2]: n for key, n in totals(found).items() if key.startswith("slow") and n}
        assert slow == {"format": 1, "cmyk": 1, "orientation": 1}
    assert all(batch.costs["data_wait_seconds"] >= 0 for batch in found)


def test_chosen_samples_come_in_batches_of_unequal_length(split: manifest.Split, process: LoaderProcess) -> None:
    numbers = np.arange(0, 48, 2)
    requests, loader = Chosen(numbers, numbers[3:20], 5), Loader(Reader(split), 2)
    known = [
        (x.ids.tolist(), x.views[0].copy(), x.valid.tolist()) for x in loader.load(requests, CentreCrop(20, 20), 1)
    ]
    found = [
        (x.ids.tolist(), x.views[0].copy(), x.valid.tolist())
        for x in process.serve(loader).load(requests, CentreCrop(20, 20), 1)
    ]
    assert [ids for ids, *_ in found] == [numbers[at : min(at + 5, 20)].tolist() for at in (3, 8, 13, 18)]
    for own, other in zip(found, known, strict=True):
        assert own[0] == other[0]
        assert own[2] == other[2] == [number != NOISE for number in own[0]]
        np.testing.assert_array_equal(own[1], other[1])


@pytest.mark.parametrize(("channels", "bits"), [(1, 8), (4, 8), (3, 16), (1, 16)])
def test_other_channels_and_sixteen_bits_come_through_it_too(
    split: manifest.Split, process: LoaderProcess, channels: int, bits: Literal[8, 16]
) -> None:
    numbers, loader = np.arange(0, 16, 2), Loader(Reader(split), 2)
    crop = CentreCrop(20, 20, ImageRules(channels=channels, bits=bits))
    known, found = (
        [x.views[0].copy() for x in one.load(Chosen(numbers, numbers, 5), crop, 1)]
        for one in (loader, process.serve(loader))
    )
    assert [x.shape for x in found] == [(5, 20, 20, channels), (3, 20, 20, channels)]
    for own, other in zip(found, known, strict=True):
        assert own.dtype == other.dtype == np.dtype(f"u{bits // 8}")
        np.testing.assert_array_equal(own, other)


def test_an_epoch_that_is_left_early_ends_there_and_the_next_one_is_whole(
    split: manifest.Split, process: LoaderProcess
) -> None:
    loader = Loader(Reader(split), 2)
    served = stream(process.serve(loader))
    for taken in (1, 3):
        batches = served.epoch(PLAN)
        for _ in range(taken):
            next(batches)
        batches.close()
    await_end(lambda: at_work(process))
    other = replace(PLAN, epoch=1, image_size=24, local_views=3, local_size=12)
    known = list(stream(loader).epoch(other))
    assert all(same(own, other) for own, other in zip(served.epoch(other), known, strict=True))
    await_end(lambda: at_work(process))


def test_two_loads_may_be_under_way_at_once(split: manifest.Split, process: LoaderProcess) -> None:
    loader = Loader(Reader(split), 1)
    plans = [PLAN, replace(PLAN, epoch=1)]
    known = [list(stream(loader).epoch(plan)) for plan in plans]
    pairs = zip(*(stream(process.serve(loader)).epoch(plan) for plan in plans), strict=True)
    for step, pair in enumerate(pairs):
        assert all(same(own, other[step]) for own, other in zip(pair, known, strict=True))


def test_nothing_is_left_open_here_or_there(split: manifest.Split, process: LoaderProcess) -> None:
    def opened() -> tuple[int, int, int]:
        gc.collect()
        there = Path(f"/proc/{process.process.pid}")
        return (
            len(list(Path("/proc/self/fd").iterdir())),
            len(list((there / "fd").iterdir())),
            (there / "maps").read_text().count("memfd:views")
            + Path("/proc/self/maps").read_text().count("memfd:views"),
        )

    served = stream(process.serve(Loader(Reader(split), 2)))
    list(served.epoch(PLAN))
    await_end(lambda: at_work(process))
    before, named = opened(), set(Path("/dev/shm").iterdir())
    assert before[2] == 0
    for epoch in range(3):
        batches = served.epoch(replace(PLAN, epoch=epoch))
        next(batches)
        assert opened()[2] > 0
        assert at_work(process)
        batches.close()
    await_end(lambda: at_work(process))
    await_end(lambda: opened() != before)
    assert set(Path("/dev/shm").iterdir()) <= named


def test_small_requests_do_not_use_up_descriptors(split: manifest.Split, process: LoaderProcess) -> None:
    good = np.array([number for number in range(48) if number not in (NOISE, CUT, EMPTY)])
    requests = Chosen(good, np.tile(good, 12), 1)
    batches = process.serve(Loader(Reader(split), 2)).load(requests, CentreCrop(4, 4), 1)
    there = Path(f"/proc/{process.process.pid}/fd")
    most = max(len(list(there.iterdir())) for _ in islice(batches, 2 * MOST_STARTED + 20))
    assert MOST_STARTED <= most < 2 * MOST_STARTED + 60
    assert len(list(batches)) == 12 * len(good) - 2 * MOST_STARTED - 20


def test_the_errors_are_those_of_threads(
    split: manifest.Split, process: LoaderProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = replace(split, folder=Address(str(tmp_path)))
    cut = [replace(shard, samples=16) for shard in split.shards]
    for shard in cut:
        (tmp_path / shard.name).write_bytes(b"")

    def text_of(loader: SampleLoader) -> str:
        with pytest.raises(DataError) as error:
            list(stream(loader).epoch(PLAN))
        return str(error.value)

    loader = Loader(Reader(gone), 1)
    assert text_of(process.serve(loader)).splitlines()[1:] == text_of(loader).splitlines()[1:]
    assert "ends within sample" in text_of(process.serve(loader))
    nothing = Chosen(np.array([NOISE, CUT]), np.array([NOISE]), 4)
    loader = Loader(Reader(split), 1)
    for supply in (loader, process.serve(loader)):
        with pytest.raises(DataError, match=f"Sample {NOISE} and every candidate to replace it are unreadable"):
            list(supply.load(nothing, CentreCrop(20, 20), 1))
    await_end(lambda: at_work(process))


def test_what_is_our_own_fault_says_so_and_where_its_stack_trace_is(
    split: manifest.Split, process: LoaderProcess
) -> None:
    order = EpochOrder(split.shard_sizes, Draws(0), 4, 6)
    served = process.serve(Loader(Reader(split), 1))
    with pytest.raises(RuntimeError, match="The loader process failed: IndexError: list"):
        list(served.load(Steps(order, 0, 1, 0, 2), Cutter(RECIPES[:2], 16), views=3))
    assert len(list(stream(served).epoch(PLAN))) == 6


def test_a_server_that_fails_now_and_then_costs_retries_which_are_counted_here(
    folder: Path, split: manifest.Split, process: LoaderProcess
) -> None:
    known = list(stream(Loader(Reader(split), 2)).epoch(PLAN))
    with serving(folder) as server:
        found = access(None)
        remote = manifest.read(Address.parse(server.url), found.fetcher).split("train")
        server.faults.extend(fault for fault in FAULTS if fault != "stall")
        loader = process.serve(Loader(Reader(remote, found), 2))
        batches = list(stream(loader).epoch(PLAN))
    assert all(same(own, other) for own, other in zip(batches, known, strict=True))
    assert totals(batches)["fetch_retries"] == len(FAULTS) - 1
    assert totals(batches)["fetched_bytes"] >= sum(len(encoded(int(n))) for batch in batches for n in batch.ids)


def test_signals_to_stop_are_for_the_parent_to_answer_from_the_first_moment_on(split: manifest.Split) -> None:
    process = LoaderProcess()
    for number in STOPPING:
        process.process.send_signal(number)
    batches = stream(process.serve(Loader(Reader(split), 1))).epoch(PLAN)
    next(batches)
    for number in STOPPING:
        process.process.send_signal(number)
    assert len(list(batches)) == 5
    child = psutil.Process(process.process.pid)
    del process, batches
    gc.collect()
    assert not child.is_running(), "it ends with the object that stands for it"


def test_a_process_that_was_killed_is_an_error_that_says_so(split: manifest.Split) -> None:
    process = LoaderProcess()
    served = stream(process.serve(Loader(Reader(split), 1, 0)))
    batches = served.epoch(PLAN)
    next(batches)
    process.process.kill()
    message = f"The loader process {process.process.pid} was killed .SIGKILL.: by a user, or by the system because"
    with pytest.raises(RuntimeError, match=message):
        list(batches)
    with pytest.raises(RuntimeError, match=message):
        next(served.epoch(PLAN))
    process.close()


def running(process: psutil.Process) -> bool:
    """Whether a process has not ended, though nobody may have waited for its end."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def hold(line: Connection, state: str, folder: Path) -> None:
    """Have a loader process until this one is killed; say its id, and when it is in the state."""
    process = LoaderProcess()
    line.send(process.process.pid)
    if state == "used":
        split, numbers = manifest.read(folder).split("train"), np.arange(40)
        batches = process.serve(Loader(Reader(split), 1)).load(Chosen(numbers, numbers, 4), CentreCrop(20, 20), 1)
        next(batches)
    line.send("now")
    time.sleep(600)


@pytest.mark.parametrize("state", ["starting", "used"])
def test_it_ends_when_its_parent_is_killed_whatever_it_was_doing(state: str, folder: Path) -> None:
    named = set(Path("/dev/shm").iterdir())
    ours, theirs = forks.pipe()
    parent = forks.start(hold, theirs, state, folder)
    theirs.close()  # a parent that fails is heard of
    try:
        child = psutil.Process(ours.recv())
        assert ours.recv() == "now"
    finally:
        parent.kill()
        parent.join()
    await_end(lambda: running(child))
    assert set(Path("/dev/shm").iterdir()) <= named


class Cuda:
    """CUDA's runtime as it answers: a refusal leaves an error pending, which the kernel launched next raises.

    `room`: calls of cudaHostRegister that are granted. `lasting`: whether memory can be unlocked.
    """

    def __init__(self, room: int, lasting: bool = True) -> None:
        self.room, self.lasting = room, lasting
        self.locked: set[int] = set()
        self.pending: list[int] = []

    def answer(self, status: int) -> int:
        self.pending += [status] * (status != 0)
        return status

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:  # noqa: N802
        assert size > 0
        if len(self.locked) >= self.room:
            return self.answer(2)
        self.locked.add(address)
        return self.answer(0)

    def cudaHostUnregister(self, address: int) -> int:  # noqa: N802
        if address not in self.locked:
            return self.answer(713)
        self.locked.remove(address)
        return self.answer(0 if self.lasting else 4)

    def launch(self, *_: object, **__: object) -> None:
        if self.pending:
            raise RuntimeError(f"CUDA error: {self.pending.pop()}")


@pytest.fixture(scope="module")
def pinning() -> Iterator[LoaderProcess]:
    """A process whose buffers are locked, on this side of it."""
    process = LoaderProcess(pin=True)
    yield process
    process.close()


@pytest.mark.parametrize("lasting", [True, False])
@pytest.mark.parametrize("room", [0, 1, 100])
def test_memory_that_cuda_does_not_lock_is_used_as_it_is(
    split: manifest.Split,
    pinning: LoaderProcess,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    room: int,
    lasting: bool,
) -> None:
    """Only what was locked is unlocked when a load ends, and no error is left for the next kernel."""
    cuda = Cuda(room, lasting)
    monkeypatch.setattr(loader_process, "cudart", lambda: cuda)
    monkeypatch.setattr(torch, "ones", cuda.launch)
    numbers = np.arange(40)
    loads = pinning.serve(Loader(Reader(split), 2)).load(Chosen(numbers, numbers, 5), CentreCrop(20, 20), 1)
    assert [len(next(loads).ids) for _ in range(4)] == [5] * 4
    assert (len(cuda.locked) > 1) if room > 1 else (len(cuda.locked) == room)
    loads.close()  # type: ignore[attr-defined]
    assert not cuda.locked
    assert not cuda.pending, "the kernel that comes next would fail"
    assert ("cannot be locked in memory for the GPU (CUDA's error 2)" in caplog.text) == (room < 2)
    assert ("stay locked" in caplog.text) == (room > 0 and not lasting)


@pytest.mark.parametrize("buffers", [Slots(), Spare()])
def test_buffers_of_two_shapes_are_both_used_again(buffers: Slots | Spare) -> None:
    kinds = [[(2, 4, 4, 3)] * 2, [(2, 4, 4, 3)] * 6]
    first = [buffers.take(kind) for kind in kinds]
    for taken in first:
        buffers.give(taken)
    again = [buffers.take(kind) for kind in kinds]
    assert all(a is b for a, b in zip(again, first, strict=True))
    assert [len(views) for views in again] == [2, 6]


def test_slots_are_used_again_while_the_shapes_stay() -> None:
    slots, shapes = Slots(), [(2, 4, 4, 3), (2, 3, 3, 3), (2, 4, 4, 3)]
    first, second = slots.take(shapes), slots.take(shapes)
    assert [slots.number(views) for views in (first, second)] == [0, 1]
    for number, view in enumerate(first):
        view[:] = number
    assert [(view.shape, view.min(), view.max()) for view in first] == [(s, n, n) for n, s in enumerate(shapes)]
    handle = slots.unsent_handle(0)
    assert handle is not None
    os.close(handle)
    assert slots.unsent_handle(0) is None
    slots.give(first)
    assert slots.number(slots.take(shapes)) == 0
    slots.give(second)
    assert slots.number(slots.take(shapes[:1])) == 2
    slots.close()
