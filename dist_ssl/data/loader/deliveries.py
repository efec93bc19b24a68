"""The work of a loader process: run loads as in any process (load.py), into memory shared with the parent.

Each load has its own connection. A finished request is announced by a `ResultMessage`, followed by the descriptor of
its slot if the parent does not have it yet; the parent answers with an empty message when it no longer reads the oldest
result. The last message is None, or the error that ended the load. To end a load early the parent closes its end.
"""

import contextlib
import logging
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle

from dist_ssl.core.draws import Flags, Ints
from dist_ssl.data.loader.buffers import Shapes
from dist_ssl.data.loader.load import Loaded, Loader, Pipeline, Workload
from dist_ssl.data.loader.shared_buffers import Slots
from dist_ssl.errors import UserError

log = logging.getLogger(__name__)
TAKEN = 2
"""Largest number of results sent and not released: the one that the parent reads, and the next one."""


@dataclass(frozen=True)
class LoadJob:
    """One load, as sent to the loader process. `number`: number of its loader; `loader`: None if it was sent before."""

    number: int
    loader: Loader | None
    work: Workload


@dataclass(frozen=True)
class ResultMessage:
    """The result of a request without its pixels, which are in a slot. `new`: the slot's descriptor is sent next."""

    slot: int
    new: bool
    shapes: Shapes
    """Shapes of the views in the slot."""
    ids: Ints
    valid: Flags
    unreadable: Mapping[int, str]
    slow: Mapping[str, int]
    opened: tuple[int, ...]
    draw_ids: Ints
    costs: Mapping[str, float]


class Delivery:
    """One load in progress: results are sent before they are needed; answers of the parent release their buffers."""

    def __init__(self, connection: Connection, loader: Loader, job: LoadJob) -> None:
        self.connection, self.loader = connection, loader
        self.slots = Slots()
        self.pipeline = Pipeline(loader, job.work, self.slots)
        self.room = threading.Semaphore(TAKEN)
        self.over = False
        """True once the parent has closed the connection."""
        self.failed: Exception | None = None
        """Error raised in the answers thread while starting requests."""

    def run(self) -> None:
        """Send results until the last one, the first error, or until the parent closes the connection."""
        answers = threading.Thread(target=self._release_answered, name="answers", daemon=True)
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
        except OSError:  # the parent has closed its end in the meantime
            self.over = True
        finally:
            self.pipeline.close()
            self.slots.close()
            if answers.is_alive():
                answers.join()  # it reads until the parent closes
            self.connection.close()

    def _send_next(self) -> bool:
        """Send the next result; return False after the last one."""
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
        shapes = [(*view.shape[:-1], view.shape[-1] * view.itemsize) for view in loaded.views]
        row = (loaded.ids, loaded.valid, loaded.unreadable, loaded.slow, loaded.opened, loaded.draw_ids)
        message = ResultMessage(slot, handle is not None, shapes, *row, self.loader.costs())
        try:
            self.connection.send(message)
            if handle is not None:
                send_handle(self.connection, handle, os.getppid())
        finally:
            if handle is not None:
                os.close(handle)

    def _release_answered(self) -> None:
        """Release the results that the parent has finished reading, and start the next requests at once."""
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
    """Return an error to send: a `UserError` unchanged; of any other the text, while its stack trace is logged here."""
    if isinstance(error, UserError):
        return error
    log.error("The loader process cannot continue", exc_info=error)
    return RuntimeError(f"The loader process failed: {type(error).__name__}: {error}")


def serve(control: Connection) -> None:
    """Run loads until the other end of `control` is closed; several loads run concurrently, each in its own thread."""
    loaders: dict[int, Loader] = {}
    with contextlib.suppress(EOFError):
        while True:
            _begin(control.recv(), Connection(recv_handle(control)), loaders)


def _begin(job: LoadJob, connection: Connection, loaders: dict[int, Loader]) -> None:
    loader = loaders[job.number] = job.loader or loaders[job.number]
    threading.Thread(target=Delivery(connection, loader, job).run, name="delivery", daemon=True).start()
