"""Decode threads in a process of their own, one per rank, so that the one that feeds a GPU has its interpreter alone.

    process = LoaderProcess()
    loader = process.serve(Loader(reader, threads))        # loads as that one does: the same bytes in the same order

The views are cut into memory that both processes share (slots.py); what comes through the connection is what is known
of them (serve.py). A process that is gone, however it ended, is an error here, never a wait.
"""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from pathlib import Path

import numpy as np
import torch
from torch.cuda import cudart

from dist_ssl.data.loader.buffers import Pixels, Shapes
from dist_ssl.data.loader.load import Cut, Loaded, Loader, Request, Upcoming
from dist_ssl.data.loader.shared_buffers import mapped
from dist_ssl.data.loader.worker import LoadJob, ResultMessage
from dist_ssl.data.storage.fetch import Counts
from dist_ssl.data.storage.manifest import Split
from dist_ssl.data.storage.pyramid import Pyramid
from dist_ssl.data.storage.read import Reader
from dist_ssl.runtime.signals import STOPPING

log = logging.getLogger(__name__)
MAIN = "dist_ssl.data.loader.loader_main"
CODE = f"import sys; sys.path.insert(0, sys.argv[2]); from {MAIN} import main; main(int(sys.argv[3]))"
ROOT = Path(__file__).parents[3]
END_SECONDS = 5.0
"""How long a process takes at most to end once its end of a connection is closed."""


class LoaderProcess:
    """A process that loads, started at once. `pin`: lock its buffers for copies to the GPU of this process.

    It ends with `close`, with this object, or with this process, whichever is first.
    """

    def __init__(self, pin: bool = False) -> None:
        self.pin = pin
        self.counts = Counts()
        self.served = 0
        self.control, theirs = Pipe()
        command = [sys.executable, "-P", "-c", CODE, MAIN, str(ROOT), str(theirs.fileno())]
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)  # it inherits that, until it ignores them
        try:
            with theirs:
                self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        self._end = weakref.finalize(self, _end, self.process, self.control)

    def serve(self, loader: Loader) -> "Served":
        """A loader like this one, in that process."""
        self.served += 1
        return Served(self, self.served, loader)

    def begin(self, wanted: LoadJob) -> Connection:
        """Begin a load; what it yields comes through the connection. Raises RuntimeError."""
        connection, theirs = Pipe()
        with theirs:
            try:
                self.control.send(wanted)
                send_handle(self.control, theirs.fileno(), self.process.pid)
            except OSError:
                connection.close()
                raise self.lost() from None
        return connection

    def lost(self) -> RuntimeError:
        """Why nothing more comes from there."""
        try:
            code = self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            return RuntimeError(f"The loader process {self.process.pid} no longer answers.")
        if code == -signal.SIGKILL:
            how = "was killed (SIGKILL): by a person, or by the system for want of memory"
        else:
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return RuntimeError(f"The loader process {self.process.pid} {how}.")

    def close(self) -> None:
        """End the process. What it was doing is lost, which harms nothing."""
        self._end()


def _end(process: "subprocess.Popen[bytes]", control: Connection) -> None:
    process.kill()
    process.wait()
    control.close()


class Served:
    """A loader in another process; a `Supply`."""

    def __init__(self, process: LoaderProcess, number: int, loader: Loader) -> None:
        self.process, self.number, self.loader = process, number, loader
        self._sent = False

    @property
    def split(self) -> Split:
        """See `Supply`."""
        return self.loader.split

    @property
    def pyramid(self) -> Pyramid | None:
        """See `Supply`."""
        return self.loader.pyramid

    def load(
        self, requests: Iterable[Request], cutter: Cut, views: int, upcoming: Upcoming | None = None, waiting: int = 1
    ) -> Iterator[Loaded]:
        """See `Supply`; requests and cutter are sent. Raises RuntimeError where the process is gone."""
        connection = self.process.begin(self._wanted(requests, cutter, views, upcoming, waiting))
        slots: dict[int, list[Pixels]] = {}
        pinned: list[list[Pixels]] = []
        try:
            while True:
                started = time.monotonic()
                message = self._next(connection)
                if message is None:
                    return
                if message.new:
                    slots[message.slot] = self._slot(connection, message.shapes)
                    if self.process.pin and pin(slots[message.slot]):
                        pinned.append(slots[message.slot])
                wait = time.monotonic() - started
                yield Loaded(message.ids, slots[message.slot], message.valid, wait, message.unreadable, message.slow)
                with contextlib.suppress(OSError):  # whoever waits for the next one finds out why
                    connection.send_bytes(b"")
        finally:
            connection.close()
            for arrays in pinned:
                unpin(arrays)

    def costs(self) -> Mapping[str, float]:
        """See `Supply`; of all loaders of the process."""
        return self.process.counts.take()

    def close(self) -> None:
        """End the process, and so all its loaders."""
        self.process.close()

    def _wanted(
        self, requests: Iterable[Request], cutter: Cut, views: int, upcoming: Upcoming | None, waiting: int
    ) -> LoadJob:
        """The load, and the first time the loader with it: it is sent when the process has had time to start."""
        loader = None if self._sent else _lean(self.loader)
        self._sent = True
        return LoadJob(self.number, loader, requests, cutter, views, upcoming, waiting)

    def _next(self, connection: Connection) -> ResultMessage | None:
        """What comes next, waited for. Raises what ended the load."""
        try:
            message: ResultMessage | Exception | None = connection.recv()
        except (EOFError, OSError):
            raise self.process.lost() from None
        if isinstance(message, Exception):
            raise message
        if message is not None:
            for key, amount in message.costs.items():
                self.process.counts.add(key, amount)
        return message

    def _slot(self, connection: Connection, shapes: Shapes) -> list[Pixels]:
        """The arrays of a slot that was told of for the first time."""
        try:
            handle = recv_handle(connection)
        except (EOFError, OSError):
            raise self.process.lost() from None
        try:
            return mapped(handle, shapes)
        finally:
            os.close(handle)


def _lean(loader: Loader) -> Loader:
    """One with only what reading needs to know of its samples: there may be a hundred million."""

    def lean(split: Split) -> Split:
        none, nothing = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.uint8)
        samples = replace(split.samples, labels=none, keys=nothing, key_ends=none)
        return replace(split, samples=samples, levels=tuple(map(lean, split.levels)))

    reader = Reader(lean(loader.split), loader.reader.access, loader.reader.scattered)
    return Loader(reader, loader.threads, loader.ahead_bytes, loader.max_upsample)


def pin(arrays: list[Pixels]) -> bool:
    """Lock the memory of a slot, so that the GPU copies from it directly; whether it is. If not, copies take longer."""
    size = sum(array.nbytes for array in arrays)
    status = int(cudart().cudaHostRegister(arrays[0].ctypes.data, size, 0))  # type: ignore[no-untyped-call]
    if status:
        log.warning("Views cannot be locked in memory for the GPU (CUDA's error %s): copies take longer.", status)
        clear_error()
    return not status


def unpin(arrays: list[Pixels]) -> None:
    """Undo a `pin` that has locked them, before the memory goes."""
    status = int(cudart().cudaHostUnregister(arrays[0].ctypes.data))  # type: ignore[no-untyped-call]
    if status:
        log.warning("Views stay locked in memory for the GPU (CUDA's error %s).", status)
        clear_error()


def clear_error() -> None:
    """Take CUDA's pending error away: the kernel that is launched next would raise it, whatever that is about."""
    with contextlib.suppress(RuntimeError):
        torch.ones(1, device="cuda")
