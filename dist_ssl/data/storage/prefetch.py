"""Prefetching of shards: a few threads fetch them in the order in which the lanes will read them.

The total size of shards that are fetched but not yet read is bounded, so that none is evicted before it is used.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable

from dist_ssl.errors import UserError

log = logging.getLogger(__name__)
THREADS = 4


class Prefetcher:
    """A few threads that call `fetch` for the shards that will be read next.

    `sizes`: bytes per shard; `most`: bound in bytes of the shards that are prefetched and not yet read, at least one.
    """

    def __init__(self, fetch: Callable[[int], None], sizes: list[int], most: int, threads: int = THREADS) -> None:
        self.fetch, self.sizes, self.most = fetch, sizes, most
        self._threads = threads
        self._to_come: deque[int] = deque()
        self._waiting: set[int] = set()
        self._started: set[int] = set()
        self._state = threading.Condition()
        self._running = 0
        self._closed = False

    def expect(self, shards: Iterable[int], sizes: list[int] | None = None) -> None:
        """Replace the queue of shards to fetch. `sizes`: new bytes per shard, if they have changed."""
        with self._state:
            self.sizes = sizes or self.sizes
            self._to_come, self._waiting, self._started = deque(shards), set(), set()
            self._closed = False
            for _ in range(min(self._threads, len(self._to_come)) - self._running):
                self._running += 1
                threading.Thread(target=self._work, name="prefetch", daemon=True).start()
            self._state.notify_all()

    def begin(self, shard: int) -> None:
        """Note that a shard is being read: it no longer counts towards the bound and need not be fetched."""
        if shard not in self._started:
            with self._state:
                self._started.add(shard)
                self._waiting.discard(shard)
                self._state.notify_all()

    def close(self) -> None:
        """Start no further fetch."""
        with self._state:
            self._closed = True
            self._state.notify_all()

    def _next(self) -> int | None:
        """Return the next shard to fetch, once the bound allows it; None at the end."""
        with self._state:
            while self._to_come and not self._closed:
                shard = self._to_come[0]
                if shard in self._started:
                    self._to_come.popleft()
                elif self._waiting and sum(self.sizes[s] for s in self._waiting) + self.sizes[shard] > self.most:
                    self._state.wait()
                else:
                    self._waiting.add(self._to_come.popleft())
                    return shard
            self._running -= 1
            return None

    def _work(self) -> None:
        while (shard := self._next()) is not None:
            try:
                self.fetch(shard)
            except (OSError, UserError) as error:
                log.warning("Prefetch failed: %s", error)  # the read of this shard repeats the error and stops the run
