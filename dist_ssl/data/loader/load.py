"""Decode threads that fill preallocated buffers a few batches before they are consumed.

`Loader` runs them in this process; `loader_process.py` runs a `Loader` in a process of its own.

The result of a request depends on the request alone, never on the number of threads or on timing. A sample that is not
an image is replaced by the first readable candidate that the request names for it. A failure to read its bytes (a
missing file, a network error) stops the run instead: it does not depend on the sample alone.
"""

import threading
import time
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np

from dist_ssl.core.draws import Flags, Floats, Ints
from dist_ssl.data.images.image_rules import Pixels
from dist_ssl.data.images.unreadable import UnreadableError
from dist_ssl.data.images.views import ViewCutter
from dist_ssl.data.loader.buffers import Buffers, Spare, shapes_of, typed
from dist_ssl.data.order.requests import Request
from dist_ssl.data.storage.manifest import Split
from dist_ssl.data.storage.pyramid import MAX_UPSAMPLE, Pyramid
from dist_ssl.data.storage.read import Reader
from dist_ssl.errors import DataError

Reasons = dict[int, str]
"""Reason why a sample is unreadable, by its row in the request."""
Upcoming = tuple[Iterable[int], Iterable[int] | None]
"""Shards that the requests read, in order, and the pyramid levels that they use: the arguments of `Reader.expect`."""
AHEAD_BYTES = 64_000_000
"""Default bound on the size of decoded batches that wait, bytes."""
MOST_STARTED = 128
"""Largest number of requests in progress, however small: in shared memory each may hold two file descriptors."""


@dataclass(frozen=True)
class Loaded:
    """The pixels of a request, valid until the next result is requested."""

    ids: Ints
    views: list[Pixels]
    """Views, [B, side, side, C] each, of 8 or 16 bits."""
    valid: Flags
    """Validity mask, [B]; False where a replacement sample was used."""
    wait_seconds: float
    """Time that the consumer waited for this request, s."""
    unreadable: Mapping[int, str]
    """Reason why a replacement sample was used, by the number of the unreadable sample."""
    slow: Mapping[str, int]
    """Number of images that were slow to decode, by reason, since the previous result."""
    opened: tuple[int, ...]
    """Places (`Reader`) of local shards that were opened for the first time since the previous result."""
    draw_ids: Ints
    """Numbers that key the random numbers of the rows, [B]; see `Request`."""


@dataclass(frozen=True)
class Workload:
    """The arguments of `SampleLoader.load`."""

    requests: Iterable[Request]
    cutter: ViewCutter
    views: int
    upcoming: Upcoming | None
    waiting: int


class SampleLoader(ABC):
    """A loader of requests of one split, in this process or in another one."""

    @property
    @abstractmethod
    def split(self) -> Split:
        """Return the split whose samples are loaded."""

    @property
    @abstractmethod
    def pyramid(self) -> Pyramid | None:
        """Return the pyramid that chooses the level at which each sample is read; None if the split has no levels."""

    def load(
        self,
        requests: Iterable[Request],
        cutter: ViewCutter,
        views: int,
        upcoming: Upcoming | None = None,
        waiting: int = 1,
    ) -> Iterator[Loaded]:
        """Yield the result of every request, in order. Closing the iterator ends the load.

        `views`: number of views of an image; `upcoming`: shards and levels to prefetch for these requests;
        `waiting`: number of requests that may wait whatever their size.
        """
        return self._load(Workload(requests, cutter, views, upcoming, waiting))

    @abstractmethod
    def _load(self, work: Workload) -> Iterator[Loaded]:
        """See `load`."""

    @abstractmethod
    def costs(self) -> Mapping[str, float]:
        """Return what was fetched and read since the last call, by the keys of the metric table."""

    @abstractmethod
    def close(self) -> None:
        """Close files and connections; nothing can be loaded after this call."""


class ReasonCounter:
    """Thread-safe counter of the reasons why decoding was slow."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def add(self, reason: str) -> None:
        """Count a reason; an empty string is not counted."""
        if reason:
            with self._lock:
                self._counts[reason] += 1

    def take(self) -> Mapping[str, int]:
        """Return the counts since the last call, and reset them."""
        with self._lock:
            taken, self._counts = self._counts, Counter()
        return taken


class Loader(SampleLoader):
    """A `SampleLoader` with `threads` decode threads in this process; results come in the order of the requests.

    The next `waiting` requests are always started before they are needed, and more as long as the decoded batches that
    wait fit into `ahead_bytes`. If the split has pyramid levels, an image is read at the smallest level at which no
    crop is enlarged by more than `max_upsample`.
    """

    def __init__(
        self, reader: Reader, threads: int, ahead_bytes: int = AHEAD_BYTES, max_upsample: float = MAX_UPSAMPLE
    ) -> None:
        self.reader, self.threads, self.ahead_bytes = reader, threads, ahead_bytes
        self.max_upsample, self._pyramid = max_upsample, Pyramid.of(reader.split, max_upsample)
        self.slow = ReasonCounter()

    def __reduce__(self) -> tuple[type["Loader"], tuple[Reader, int, int, float]]:
        """Pickle the arguments only: in another process it is a new loader without threads or counts."""
        return Loader, (self.reader, self.threads, self.ahead_bytes, self.max_upsample)

    @property
    def split(self) -> Split:
        """See `SampleLoader`."""
        return self.reader.split

    @property
    def pyramid(self) -> Pyramid | None:
        """See `SampleLoader`."""
        return self._pyramid

    def _load(self, work: Workload) -> Iterator[Loaded]:
        """See `SampleLoader`; closing the iterator ends the threads."""
        pipeline = Pipeline(self, work, Spare())
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
        """See `SampleLoader`."""
        return self.reader.costs()

    def close(self) -> None:
        """See `SampleLoader`."""
        self.reader.close()


@dataclass(frozen=True)
class Started:
    """A request in progress: its buffers, and the tasks that fill them."""

    request: Request
    views: list[Pixels]
    tasks: list[Future[Reasons]]


class Pipeline:
    """Requests in progress: started, returned to the consumer and released in order.

    One thread may call `take` while another one calls `release` and `begin`.
    """

    def __init__(self, loader: Loader, work: Workload, buffers: Buffers) -> None:
        self.loader, self.cutter, self.views = loader, work.cutter, work.views
        self.buffers, self.waiting = buffers, work.waiting
        self._queue = iter(work.requests)
        if work.upcoming is not None:
            loader.reader.expect(*work.upcoming)
        self._pool = ThreadPoolExecutor(loader.threads, thread_name_prefix="decode")
        self._started: deque[Started] = deque()
        self._taken = 0
        """Number of requests at the front of `_started` that were returned by `take` and are not released."""
        self._lock = threading.Lock()

    def begin(self) -> None:
        """Start as many requests as there is room for, at most two per call so that the first result is not late."""
        with self._lock:
            for request in islice(self._queue, self._room()):
                self._started.append(self._start(request))

    def take(self) -> Loaded | None:
        """Wait for the next request and return its pixels; None after the last one."""
        with self._lock:
            if self._taken == len(self._started):
                return None
            started = self._started[self._taken]
            self._taken += 1
        return self._finish(started)

    def release(self) -> None:
        """Release the oldest request returned by `take`: its buffers may be filled again."""
        with self._lock:
            self._taken -= 1
            self.buffers.give(self._started.popleft().views)

    def close(self) -> None:
        """End the threads; tasks that have not started are cancelled."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def cancel(self) -> None:
        """Cancel the tasks that have not started, without waiting; `take` then raises `CancelledError`."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _room(self) -> int:
        """Return the number of requests to start now; the first one in progress is in use, and the others wait."""
        sizes = [sum(view.nbytes for view in started.views) for started in self._started]
        fitting = (self.loader.ahead_bytes - sum(sizes[1:])) // sizes[-1] if sizes else 2
        return min(2, max(1 + self.waiting - len(sizes), min(fitting, MOST_STARTED - len(sizes))))

    def _start(self, request: Request) -> Started:
        """Start a request: one task per thread, each for a contiguous part of the batch."""
        count = self.views if request.views is None else request.views
        views = self.buffers.take(shapes_of(len(request.ids), map(self.cutter.side, range(count)), self.cutter.rules))
        numbers = self.cutter.draw(request.draws, request.draw_ids)[:count]
        parts = np.array_split(np.arange(len(request.ids)), self.loader.threads)
        given = request, numbers, typed(views, self.cutter.rules.dtype)
        tasks = [self._pool.submit(self._fill, part, *given) for part in parts if len(part)]
        return Started(request, views, tasks)

    def _finish(self, started: Started) -> Loaded:
        views, request, since = typed(started.views, self.cutter.rules.dtype), started.request, time.monotonic()
        reasons = {row: reason for task in started.tasks for row, reason in task.result().items()}
        wait = time.monotonic() - since
        valid = np.ones(len(request.ids), dtype=np.bool_)
        valid[list(reasons)] = False
        unreadable = {int(request.ids[row]): why for row, why in reasons.items()}
        news = self.loader.slow.take(), self.loader.reader.opened()
        return Loaded(request.ids, views, valid, wait, unreadable, *news, request.draw_ids)

    def _fill(self, part: Ints, request: Request, numbers: list[Floats], views: list[Pixels]) -> Reasons:
        """Cut these rows of a request, unreadable ones from replacement samples; return the reasons of those."""
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
        """Read a sample, at the pyramid level that its crops need, and cut it. Raises UnreadableError."""
        reader, pyramid = self.loader.reader, self.loader.pyramid
        crops = pyramid.crops(number, self.cutter, draws) if pyramid else None
        if pyramid and crops:
            slow = crops.cut(reader.read(number, pyramid.level(crops)), out)
        else:
            slow = self.cutter.cut(reader.read(number), draws, out)
        self.loader.slow.add(slow)

    def _replacement(self, request: Request, row: int, numbers: list[Floats], out: list[Pixels]) -> None:
        """Cut the first readable candidate with the replaced sample's random numbers. Raises DataError if none is."""
        for candidate in request.replacements(row):
            try:
                return self._cut(candidate, numbers, out)
            except UnreadableError:
                continue
        number, split = int(request.ids[row]), self.loader.split
        problem = f"Sample {number} and every candidate to replace it are unreadable in "
        raise DataError(problem + f"{split.address(split.shard_of(number))}.", "Check the shards: they hold no images.")
