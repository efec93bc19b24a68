"""What a loader process does: loads run as in any process (load.py), into memory that the parent sees.

Each load has a connection of its own. A finished request is told by a `Told` and, the first time that its slot is told
of, the slot's descriptor; the parent answers with an empty message once it no longer looks at the oldest. The last
message is None, or the error that ended the load. A parent that has had enough closes the connection.
"""

import contextlib
import logging
import os
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle

import numpy as np
import numpy.typing as npt

from dist_ssl.data.loader.buffers import Shapes
from dist_ssl.data.loader.load import Cut, Ints, Loaded, Loader, Pipeline, Request, Upcoming
from dist_ssl.data.loader.shared_buffers import Slots
from dist_ssl.errors import UserError

log = logging.getLogger(__name__)
TAKEN = 2
"""Requests that are told of and not released: the one that the parent looks at, and the next."""


@dataclass(frozen=True)
class LoadJob:
    """A load. `number`: of its loader; `loader`: None where the process has it."""

    number: int
    loader: Loader | None
    requests: Iterable[Request]
    cutter: Cut
    views: int
    upcoming: Upcoming | None
    waiting: int = 1
    """See `Supply.load`."""


@dataclass(frozen=True)
class ResultMessage:
    """A request that was loaded, without its pixels: they lie in a slot. `new`: the slot's descriptor comes next."""

    slot: int
    new: bool
    shapes: Shapes
    """Of the views in the slot."""
    ids: Ints
    valid: npt.NDArray[np.bool_]
    unreadable: Mapping[int, str]
    slow: Mapping[str, int]
    costs: Mapping[str, float]


class Delivery:
    """One load: its results go out through `connection` ahead of need, its buffers come back by the parent's leave."""

    def __init__(self, connection: Connection, loader: Loader, wanted: LoadJob) -> None:
        self.connection, self.loader = connection, loader
        self.slots = Slots()
        self.pipeline = Pipeline(loader, wanted.requests, wanted.cutter, wanted.views, self.slots, wanted.waiting)
        self.room = threading.Semaphore(TAKEN)
        self.over = False
        """The parent has had enough."""
        self.failed: Exception | None = None
        """What went wrong where requests are begun."""

    def run(self) -> None:
        """Deliver to the end, to the first error, or until the parent has had enough."""
        answers = threading.Thread(target=self._heed, name="answers", daemon=True)
        try:
            try:
                self.pipeline.begin()
                answers.start()
                while self._send_next():
                    pass
                self.connection.send(None)
            except Exception as error:
                if not self.over:
                    self.connection.send(_portable(error))
        except OSError:  # the parent has closed its end meanwhile
            self.over = True
        finally:
            self.pipeline.close()
            self.slots.close()
            if answers.is_alive():
                answers.join()  # it reads until the parent closes
            self.connection.close()

    def _send_next(self) -> bool:
        """Tell of the next request; False after the last one."""
        self.room.acquire()
        if self.failed:
            raise self.failed
        loaded = None if self.over else self.pipeline.take()
        if loaded is None:
            return False
        self._send(loaded)
        self.pipeline.begin()
        return True

    def _send(self, loaded: Loaded) -> None:
        slot = self.slots.number(loaded.views)
        handle = self.slots.unsent_handle(slot)
        shapes = [view.shape for view in loaded.views]
        costs = self.loader.costs()
        message = ResultMessage(
            slot, handle is not None, shapes, loaded.ids, loaded.valid, loaded.unreadable, loaded.slow, costs
        )
        try:
            self.connection.send(message)
            if handle is not None:
                send_handle(self.connection, handle, os.getppid())
        finally:
            if handle is not None:
                os.close(handle)

    def _heed(self) -> None:
        """Release what the parent is done with, and begin others at once."""
        try:
            while True:
                self.connection.recv_bytes()
                self.pipeline.release()
                self._begin()
                self.room.release()
        except (EOFError, OSError):
            self.over = True
            self.pipeline.cancel()
            self.room.release()

    def _begin(self) -> None:
        try:
            self.pipeline.begin()
        except Exception as error:
            self.failed = error


def _portable(error: Exception) -> Exception:
    """What a person can mend, as it is; of what is ours the words, its stack trace in the log."""
    if isinstance(error, UserError):
        return error
    log.error("The loader process cannot go on", exc_info=error)
    return RuntimeError(f"The loader process failed: {type(error).__name__}: {error}")


def serve(control: Connection) -> None:
    """Run loads until the other end is closed; each as it comes, beside those under way."""
    loaders: dict[int, Loader] = {}
    with contextlib.suppress(EOFError):
        while True:
            _begin(control.recv(), Connection(recv_handle(control)), loaders)


def _begin(wanted: LoadJob, connection: Connection, loaders: dict[int, Loader]) -> None:
    loader = loaders[wanted.number] = wanted.loader or loaders[wanted.number]
    if wanted.upcoming is not None:
        loader.reader.expect(*wanted.upcoming)
    threading.Thread(target=Delivery(connection, loader, wanted).run, name="delivery", daemon=True).start()
