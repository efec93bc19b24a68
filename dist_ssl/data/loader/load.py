"""Decode threads that fill preallocated uint8 buffers, a few batches ahead of who asks for them.

`Loader` has them in this process; `loader_process.py` has them, and all that is here, in a process of its own.

What a request yields depends on the request alone, never on the number of threads or on timing. A sample that is not
an image is replaced by the first readable one that the request names for it; one that cannot be read now stops the run,
because that is no fact about the sample.
"""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import numpy as np
import numpy.typing as npt

from dist_ssl.core.draws import Draws, Floats
from dist_ssl.data.images.decode import UnreadableError
from dist_ssl.data.images.views import Crops
from dist_ssl.data.loader.buffers import Buffers, Pixels, Spare
from dist_ssl.data.storage.manifest import Split
from dist_ssl.data.storage.pyramid import MAX_UPSAMPLE, Pyramid
from dist_ssl.data.storage.read import Reader
from dist_ssl.errors import DataError

Ints = npt.NDArray[np.int64]
Reasons = dict[int, str]
"""Why a sample could not be read, by its row in the request."""
Upcoming = tuple[Iterable[int], Iterable[int] | None]
"""The shards that requests need, in order, and at which levels of a pyramid, as `Reader.expect` has them."""
AHEAD_BYTES = 64_000_000
MOST_STARTED = 128
"""Requests, however small they are: each may hold two descriptors where processes share its memory."""


class Cut(Protocol):
    """Draws and cuts the views of an image."""

    max_pixels: int

    def side(self, slot: int) -> int:
        """Side of the view in this slot, px."""
        ...

    def draw(self, draws: Draws, ids: Ints) -> list[Floats]:
        """Random numbers per view, [B, n] each."""
        ...

    def cut(self, data: bytes, draws: Sequence[Floats], out: Sequence[Pixels]) -> str:
        """Fill one [side, side, 3] buffer per view; why that was slow, if it was. Raises UnreadableError."""
        ...

    def crops(self, sides: tuple[int, int], draws: Sequence[Floats]) -> Crops:
        """Where the views lie in an image of this width and height, to be read at any level of a pyramid."""
        ...


@dataclass(frozen=True)
class Request:
    """Samples wanted together. `replacements`: for a place in the batch, whom to try in its stead, in order."""

    ids: Ints
    draws: Draws
    replacements: Callable[[int], Iterable[int]]


@dataclass(frozen=True)
class Loaded:
    """A request's pixels; they are valid until the next one is asked for."""

    ids: Ints
    views: list[Pixels]
    """[B, side, side, 3] each."""
    valid: npt.NDArray[np.bool_]
    """[B] False where a replacement took the place."""
    wait_seconds: float
    unreadable: Mapping[int, str]
    """Why, by the number of the sample, a replacement took its place."""
    slow: Mapping[str, int]
    """How many images took longer to decode, by the reason; counted since the last request was done."""


class SampleLoader(Protocol):
    """Loads requests of one split, in this process or in another one."""

    @property
    def split(self) -> Split:
        """What samples there are."""
        ...

    @property
    def pyramid(self) -> Pyramid | None:
        """What chooses the level at which each is read, where there are levels."""
        ...

    def load(
        self, requests: Iterable[Request], cutter: Cut, views: int, upcoming: Upcoming | None = None, waiting: int = 1
    ) -> Iterator[Loaded]:
        """The requests' pixels, in order; `waiting`: how many may wait, however large. Closing the iterator ends it."""
        ...

    def costs(self) -> Mapping[str, float]:
        """What was fetched and read since the last time, by the keys of the metric table."""
        ...

    def close(self) -> None:
        """Let go of what is open; nothing is loaded after it."""
        ...


class ReasonCounter:
    """Counts words that threads call out."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def add(self, word: str) -> None:
        """Count a word; an empty one is none."""
        if word:
            with self._lock:
                self._counts[word] += 1

    def take(self) -> Mapping[str, int]:
        """What was counted since the last time."""
        with self._lock:
            taken, self._counts = self._counts, Counter()
        return taken


class Loader:
    """Loads requests in order with `threads` threads of this process.

    The next request is always begun before it is asked for (or as many as are given by `waiting`), and more while what
    waits fits into `ahead_bytes`. Where the split has levels, an image is read at the smallest that enlarges no crop by
    more than `max_upsample`.
    """

    def __init__(
        self, reader: Reader, threads: int, ahead_bytes: int = AHEAD_BYTES, max_upsample: float = MAX_UPSAMPLE
    ) -> None:
        self.reader, self.threads, self.ahead_bytes = reader, threads, ahead_bytes
        self.max_upsample, self.pyramid = max_upsample, Pyramid.of(reader.split, max_upsample)
        self.slow = ReasonCounter()

    def __reduce__(self) -> tuple[type["Loader"], tuple[Reader, int, int, float]]:
        """In another process it is one that has loaded nothing yet."""
        return Loader, (self.reader, self.threads, self.ahead_bytes, self.max_upsample)

    @property
    def split(self) -> Split:
        """See `Supply`."""
        return self.reader.split

    def load(
        self, requests: Iterable[Request], cutter: Cut, views: int, upcoming: Upcoming | None = None, waiting: int = 1
    ) -> Iterator[Loaded]:
        """See `Supply`; closing the iterator ends the threads."""
        if upcoming is not None:
            self.reader.expect(*upcoming)
        pipeline = Pipeline(self, requests, cutter, views, Spare(), waiting)
        try:
            while True:
                pipeline.begin()
                loaded = pipeline.take()
                if loaded is None:
                    return
                yield loaded
                pipeline.release()
        finally:
            pipeline.close()

    def costs(self) -> Mapping[str, float]:
        """See `Supply`."""
        return self.reader.costs()

    def close(self) -> None:
        """See `Supply`."""
        self.reader.close()


@dataclass(frozen=True)
class Started:
    """A request, its buffers, and the tasks that fill them."""

    request: Request
    views: list[Pixels]
    tasks: list[Future[Reasons]]


class Pipeline:
    """Requests under way: begun, handed out and released in order.

    One thread may take while another one releases and begins.
    """

    def __init__(
        self, loader: Loader, requests: Iterable[Request], cutter: Cut, views: int, buffers: Buffers, waiting: int = 1
    ) -> None:
        self.loader, self.cutter, self.views, self.buffers, self.waiting = loader, cutter, views, buffers, waiting
        self._queue = iter(requests)
        self._pool = ThreadPoolExecutor(loader.threads, thread_name_prefix="decode")
        self._started: deque[Started] = deque()
        self._taken = 0
        """How many of those that were started, from the first on, are handed out."""
        self._lock = threading.Lock()

    def begin(self) -> None:
        """Begin what there is room for: at most two requests, so that the first one need not wait for many."""
        with self._lock:
            for request in islice(self._queue, self._room()):
                self._started.append(self._start(request))

    def take(self) -> Loaded | None:
        """The pixels of the next request, waited for; None after the last one."""
        with self._lock:
            if self._taken == len(self._started):
                return None
            started = self._started[self._taken]
            self._taken += 1
        return self._finish(started)

    def release(self) -> None:
        """The first of those that were handed out is no longer looked at: its buffers may be filled again."""
        with self._lock:
            self._taken -= 1
            self.buffers.give(self._started.popleft().views)

    def close(self) -> None:
        """End the threads; what has not been begun by now never is."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def cancel(self) -> None:
        """Begin nothing more, without a wait: who takes now gets a `CancelledError`."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _room(self) -> int:
        """How many requests to begin now; the first one started is in use, and the others wait."""
        sizes = [sum(view.nbytes for view in started.views) for started in self._started]
        fitting = (self.loader.ahead_bytes - sum(sizes[1:])) // sizes[-1] if sizes else 2
        return min(2, max(1 + self.waiting - len(sizes), min(fitting, MOST_STARTED - len(sizes))))

    def _start(self, request: Request) -> Started:
        """One task per thread, each a contiguous part of the batch."""
        sides = map(self.cutter.side, range(self.views))
        views = self.buffers.take([(len(request.ids), side, side, 3) for side in sides])
        numbers = self.cutter.draw(request.draws, request.ids)
        parts = np.array_split(np.arange(len(request.ids)), self.loader.threads)
        tasks = [self._pool.submit(self._fill, request, part, numbers, views) for part in parts if len(part)]
        return Started(request, views, tasks)

    def _finish(self, started: Started) -> Loaded:
        request, since = started.request, time.monotonic()
        reasons = {row: reason for task in started.tasks for row, reason in task.result().items()}
        wait = time.monotonic() - since
        valid = np.ones(len(request.ids), dtype=np.bool_)
        valid[list(reasons)] = False
        unreadable = {int(request.ids[row]): why for row, why in reasons.items()}
        return Loaded(request.ids, started.views, valid, wait, unreadable, self.loader.slow.take())

    def _fill(self, request: Request, part: Ints, numbers: list[Floats], views: list[Pixels]) -> Reasons:
        """Cut these rows of a request; why some of them could not be read."""
        reasons: Reasons = {}
        for row in part.tolist():
            mine, out = [n[row] for n in numbers], [view[row] for view in views]
            try:
                self._cut(int(request.ids[row]), mine, out)
            except UnreadableError as error:
                reasons[row] = error.reason
                self._replacement(request, row, mine, out)
        return reasons

    def _cut(self, number: int, draws: list[Floats], out: list[Pixels]) -> None:
        """Read a sample, of a pyramid at the level that its crops need, and cut it. Raises UnreadableError."""
        reader, pyramid = self.loader.reader, self.loader.pyramid
        crops = pyramid.crops(number, self.cutter, draws) if pyramid else None
        if pyramid and crops:
            slow = crops.cut(reader.read(number, pyramid.level(crops)), out)
        else:
            slow = self.cutter.cut(reader.read(number), draws, out)
        self.loader.slow.add(slow)

    def _replacement(self, request: Request, row: int, numbers: list[Floats], out: list[Pixels]) -> None:
        """Cut the first readable candidate with the replaced sample's own draws."""
        for candidate in request.replacements(row):
            try:
                return self._cut(candidate, numbers, out)
            except UnreadableError:
                continue
        raise DataError(
            f"Sample {int(request.ids[row])} and every candidate to stand in for it are unreadable in "
            f"{self.loader.split.folder}.",
            "Check the shards: these are not images that can be decoded.",
        )
