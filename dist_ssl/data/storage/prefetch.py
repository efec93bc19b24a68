"""Shards before they are needed: a few threads fetch them in the order in which the lanes come to them.

What has been fetched and not yet been begun stays below a bound, so that it is not evicted before its time.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable

from dist_ssl.errors import UserError

log = logging.getLogger(__name__)
THREADS = 4


class Prefetcher:
    """Calls `fetch` for the shards to come, at most `most` bytes ahead (one shard always). `sizes`: bytes per shard."""

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
        """Forget what was expected before; these come now. `sizes`: the new ones, where they have changed."""
        with self._state:
            self.sizes = sizes or self.sizes
            self._to_come, self._waiting, self._started = deque(shards), set(), set()
            self._closed = False
            for _ in range(min(self._threads, len(self._to_come)) - self._running):
                self._running += 1
                threading.Thread(target=self._work, name="fetch ahead", daemon=True).start()
            self._state.notify_all()

    def begin(self, shard: int) -> None:
        """Note that a shard is read now."""
        if shard not in self._started:
            with self._state:
                self._started.add(shard)
                self._waiting.discard(shard)
                self._state.notify_all()

    def close(self) -> None:
        """Begin no further fetch."""
        with self._state:
            self._closed = True
            self._state.notify_all()

    def _next(self) -> int | None:
        """The next shard to fetch, None at the end."""
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
                log.warning("Not fetched ahead: %s", error)  # whoever reads it finds out, and stops the run
