"""Decode threads that fill preallocated uint8 buffers, a few batches ahead of who asks for them.

What a request yields depends on the request alone, never on the number of threads or on timing. A sample that is not
an image is replaced by the first readable one that the request names for it; one that cannot be read now stops the run,
because that is no fact about the sample.
"""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import numpy as np
import numpy.typing as npt

from dist_ssl.data.decode import UnreadableError
from dist_ssl.data.pyramid import MAX_UPSAMPLE, Pyramid
from dist_ssl.data.read import Reader
from dist_ssl.data.views import Crops
from dist_ssl.draws import Draws, Floats
from dist_ssl.errors import DataError

Ints = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.uint8]
Reasons = dict[int, str]
"""Why a sample could not be read, by its row in the request."""
AHEAD_BYTES = 64_000_000


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
    """Samples wanted together. `stand_ins`: for a place in the batch, whom to try in its stead, in order."""

    ids: Ints
    draws: Draws
    stand_ins: Callable[[int], Iterable[int]]


@dataclass(frozen=True)
class Loaded:
    """A request's pixels; they are valid until the next one is asked for."""

    ids: Ints
    views: list[Pixels]
    """[B, side, side, 3] each."""
    valid: npt.NDArray[np.bool_]
    """[B] False where a stand-in took the place."""
    wait_seconds: float
    unreadable: Mapping[int, str]
    """Why, by the number of the sample, a stand-in took its place."""
    slow: Mapping[str, int]
    """How many images took longer to decode, by the reason; counted since the last request was done."""


class Tally:
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
    """Loads requests in order with `threads` threads.

    The next request is always begun before it is asked for, and more while what waits fits into `ahead_bytes`. Where
    the split has levels, an image is read at the smallest that enlarges no crop by more than `max_upsample`.
    """

    def __init__(
        self, reader: Reader, threads: int, ahead_bytes: int = AHEAD_BYTES, max_upsample: float = MAX_UPSAMPLE
    ) -> None:
        self.reader, self.threads, self.ahead_bytes = reader, threads, ahead_bytes
        self.pyramid = Pyramid.of(reader.split, max_upsample)
        self.slow = Tally()

    def load(self, requests: Iterable[Request], cutter: Cut, views: int) -> Iterator[Loaded]:
        """The requests' pixels, one by one; closing the iterator ends the threads."""
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="decode")
        spare: deque[list[Pixels]] = deque()
        started: deque[tuple[Request, list[Pixels], list[Future[Reasons]]]] = deque()
        try:
            queue = iter(requests)
            while True:
                for request in islice(queue, self._room(started)):
                    started.append(self._start(pool, request, cutter, self._buffers(spare, request, cutter, views)))
                if not started:
                    return
                yield self._finish(*started[0])
                spare.append(started.popleft()[1])
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _room(self, started: Collection[tuple[Request, list[Pixels], list[Future[Reasons]]]]) -> int:
        """How many requests to begin now: two while there is room, so that the first one need not wait for many."""
        sizes = [sum(view.nbytes for view in views) for _, views, _ in started]
        fitting = (self.ahead_bytes - sum(sizes[1:])) // sizes[-1] if sizes else 2
        return max(2 - len(sizes), min(2, fitting))

    def _buffers(self, spare: deque[list[Pixels]], request: Request, cutter: Cut, views: int) -> list[Pixels]:
        shapes = [(len(request.ids), cutter.side(slot), cutter.side(slot), 3) for slot in range(views)]
        while spare:
            found = spare.popleft()
            if [view.shape for view in found] == shapes:
                return found
        return [np.empty(shape, dtype=np.uint8) for shape in shapes]

    def _start(
        self, pool: ThreadPoolExecutor, request: Request, cutter: Cut, views: list[Pixels]
    ) -> tuple[Request, list[Pixels], list[Future[Reasons]]]:
        """One task per thread, each a contiguous part of the batch."""
        numbers = cutter.draw(request.draws, request.ids)
        parts = np.array_split(np.arange(len(request.ids)), self.threads)
        tasks = [pool.submit(self._fill, request, part, numbers, cutter, views) for part in parts if len(part)]
        return request, views, tasks

    def _finish(self, request: Request, views: list[Pixels], tasks: list[Future[Reasons]]) -> Loaded:
        begun = time.monotonic()
        reasons = {row: reason for task in tasks for row, reason in task.result().items()}
        wait = time.monotonic() - begun
        valid = np.ones(len(request.ids), dtype=np.bool_)
        valid[list(reasons)] = False
        unreadable = {int(request.ids[row]): why for row, why in reasons.items()}
        return Loaded(request.ids, views, valid, wait, unreadable, self.slow.take())

    def _fill(self, request: Request, part: Ints, numbers: list[Floats], cutter: Cut, views: list[Pixels]) -> Reasons:
        """Cut these rows of a request; why some of them could not be read."""
        reasons: Reasons = {}
        for row in part.tolist():
            mine, out = [n[row] for n in numbers], [view[row] for view in views]
            try:
                self._cut(int(request.ids[row]), cutter, mine, out)
            except UnreadableError as error:
                reasons[row] = error.reason
                self._stand_in(request, row, cutter, mine, out)
        return reasons

    def _cut(self, number: int, cutter: Cut, numbers: list[Floats], out: list[Pixels]) -> None:
        """Read a sample, of a pyramid at the level that its crops need, and cut it. Raises UnreadableError."""
        crops = self.pyramid.crops(number, cutter, numbers) if self.pyramid else None
        if self.pyramid and crops:
            self.slow.add(crops.cut(self.reader.read(number, self.pyramid.level(crops)), out))
        else:
            self.slow.add(cutter.cut(self.reader.read(number), numbers, out))

    def _stand_in(self, request: Request, row: int, cutter: Cut, numbers: list[Floats], out: list[Pixels]) -> None:
        """Cut the first readable candidate with the replaced sample's own draws."""
        for candidate in request.stand_ins(row):
            try:
                self._cut(candidate, cutter, numbers, out)
                return
            except UnreadableError:
                continue
        shard = self.reader.split.folder
        raise DataError(
            f"Sample {int(request.ids[row])} and every candidate to stand in for it are unreadable in {shard}.",
            "Check the shards: these are not images that can be decoded.",
        )
