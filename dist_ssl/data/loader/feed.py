"""Batches that are made beside the training step: by a thread of their own, in a stream of their own on the GPU.

The thread makes one batch more than training has taken, and begins it once the GPU has come to the batch before. Events
order what it issues: training waits for a batch on its stream, not on the host; the memory of a batch is used again
only after the step that reads it; and an item of the source, whose memory the loader fills again, is held until the
copies from it are over, which torch cannot know of memory that it did not pin itself.

There is no state: batches come in the order of the source, and those that were made and not taken are made again.
"""

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from dist_ssl.core.batch import Batch

log = logging.getLogger(__name__)
END_SECONDS = 10.0
"""How long the end of a feed waits for a load that is under way."""
Item = TypeVar("Item")


class Event(Protocol):
    """A point in a device's work."""

    def synchronize(self) -> None:
        """Wait until the device has reached it."""
        ...


class Side(Protocol):
    """A device that works beside training."""

    def within(self) -> AbstractContextManager[None]:
        """Make what the calling thread issues run beside training."""
        ...

    def event(self) -> Event:
        """Return the end of what the calling thread has issued by now."""
        ...

    def hand_over(self, tensors: Sequence[Tensor], after: Any) -> None:
        """Make what the calling thread issues from now on wait for an event, and keep the tensors' memory for it."""
        ...


class GpuSide:
    """A stream of its own on a GPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream: Any = None

    @contextlib.contextmanager
    def within(self) -> Iterator[None]:
        """See `Side`; a new thread has neither the device nor the stream of the one that started it."""
        self._stream = self._stream or torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        with torch.cuda.device(self.device), torch.cuda.stream(self._stream):
            yield

    def event(self) -> Event:
        """See `Side`; the host sleeps in a wait for it."""
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self.device))
        return event

    def hand_over(self, tensors: Sequence[Tensor], after: Any) -> None:
        """See `Side`."""
        stream = torch.cuda.current_stream(self.device)
        stream.wait_event(after)
        for tensor in tensors:
            tensor.record_stream(stream)


class Feed(Generic[Item]):
    """Makes the items of `source` into batches, in order. `copy`: an item's views on the device; `make`: the batch."""

    def __init__(
        self,
        source: Generator[Item, None, None],
        copy: Callable[[Item], list[Tensor]],
        make: Callable[[Item, list[Tensor]], Batch],
        side: Side,
    ) -> None:
        self.source, self.copy, self.make, self.side = source, copy, make, side
        self._permits: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        """For each batch that may be made, what the device must have come to before; None: make no more."""
        self._made: queue.SimpleQueue[tuple[Batch, Event] | BaseException | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="feed", daemon=True)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches, and raise what ended the thread; closing the iterator ends it."""
        self._permits.put(self.side.event())
        self._thread.start()
        try:
            while True:
                since = time.monotonic()
                made = self._made.get()
                if made is None:
                    return
                if isinstance(made, BaseException):
                    raise made
                self._permits.put(self.side.event())
                batch, finished = made
                batch.costs = {**batch.costs, "data_wait_seconds": time.monotonic() - since}
                self.side.hand_over(batch.on_device, finished)
                yield batch
        finally:
            self._end()

    def _end(self) -> None:
        self._permits.put(None)
        self._thread.join(END_SECONDS)
        if self._thread.is_alive():
            log.warning(
                "Data is still being loaded %g s after the last batch: its thread ends when it is.", END_SECONDS
            )

    def _work(self) -> None:
        try:
            # what the loader lets go of at its end belongs to this device too
            with self.side.within(), contextlib.closing(self.source):
                for item in self.source:
                    before = self._permits.get()
                    if before is None:
                        return
                    before.synchronize()
                    self._made.put(self._batch(item))
                    del item, before
            self._made.put(None)
        except BaseException as error:  # whatever it is, training must hear of it
            self._made.put(error)

    def _batch(self, item: Item) -> tuple[Batch, Event]:
        """Make a batch; the item's memory is free when this returns, whether or not the batch is finished."""
        try:
            views = self.copy(item)
        finally:
            copied = self.side.event()
        try:
            batch = self.make(item, views)
            return batch, self.side.event()
        finally:
            copied.synchronize()
