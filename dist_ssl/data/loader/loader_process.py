"""Decode threads in a separate process, one per rank, so that they do not compete with training for the rank's GIL.

    process = LoaderProcess()
    loader = process.serve(Loader(reader, threads))        # yields the same bytes in the same order as that loader

The views are cut into memory that both processes share (shared_buffers.py); messages about them come through a
connection (deliveries.py). If the loader process has ended, however that happened, the caller gets an error and never
waits forever.
"""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from pathlib import Path

import torch
from torch.cuda import cudart

from dist_ssl.data.images.image_rules import Pixels
from dist_ssl.data.loader.buffers import Shapes, typed
from dist_ssl.data.loader.deliveries import LoadJob, ResultMessage
from dist_ssl.data.loader.load import Loaded, Loader, SampleLoader, Workload
from dist_ssl.data.loader.shared_buffers import mapped
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
"""Longest wait for a process to end after its end of a connection has closed, s."""


class LoaderProcess:
    """A process that runs loaders, started at construction. `pin`: lock its buffers in memory for copies to the GPU.

    It ends with `close`, with the garbage collection of this object, or with this process, whichever comes first.
    """

    def __init__(self, pin: bool = False) -> None:
        self.pin = pin
        self.counts = Counts()
        self.served = 0
        self.control, theirs = Pipe()
        command = [sys.executable, "-P", "-c", CODE, MAIN, str(ROOT), str(theirs.fileno())]
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)  # the child inherits that, until it ignores them
        try:
            with theirs:
                self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        self._end = weakref.finalize(self, _end, self.process, self.control)

    def serve(self, loader: Loader) -> "Served":
        """Return a loader that runs this one in the loader process."""
        self.served += 1
        return Served(self, self.served, loader)

    def begin(self, job: LoadJob) -> Connection:
        """Start a load and return the connection for its results. Raises RuntimeError if the process has ended."""
        connection, theirs = Pipe()
        with theirs:
            try:
                self.control.send(job)
                send_handle(self.control, theirs.fileno(), self.process.pid)
            except OSError:
                connection.close()
                raise self.lost() from None
        return connection

    def lost(self) -> RuntimeError:
        """Return the error that says how the process ended."""
        try:
            code = self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            return RuntimeError(f"The loader process {self.process.pid} no longer answers.")
        if code == -signal.SIGKILL:
            how = "was killed (SIGKILL): by a user, or by the system because memory ran out"
        else:
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return RuntimeError(f"The loader process {self.process.pid} {how}.")

    def close(self) -> None:
        """Kill the process. Batches in progress are lost, which does no harm."""
        self._end()


def _end(process: "subprocess.Popen[bytes]", control: Connection) -> None:
    process.kill()
    process.wait()
    control.close()


class Served(SampleLoader):
    """A `SampleLoader` whose loader runs in another process."""

    def __init__(self, process: LoaderProcess, number: int, loader: Loader) -> None:
        self.process, self.number, self.loader = process, number, loader
        self._sent = False

    @property
    def split(self) -> Split:
        """See `SampleLoader`."""
        return self.loader.split

    @property
    def pyramid(self) -> Pyramid | None:
        """See `SampleLoader`."""
        return self.loader.pyramid

    def _load(self, work: Workload) -> Iterator[Loaded]:
        """See `SampleLoader`; requests and cutter are pickled. Raises RuntimeError if the process has ended."""
        connection = self.process.begin(self._job(work))
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
                row = message.valid, wait, message.unreadable, message.slow, message.opened, message.draw_ids
                yield Loaded(message.ids, typed(slots[message.slot], work.cutter.rules.dtype), *row)
                with contextlib.suppress(OSError):  # `_next` raises the reason
                    connection.send_bytes(b"")
        finally:
            connection.close()
            for arrays in pinned:
                unpin(arrays)

    def costs(self) -> Mapping[str, float]:
        """See `SampleLoader`; the sum over all loaders of the process."""
        return self.process.counts.take()

    def close(self) -> None:
        """Kill the process, and with it all its loaders."""
        self.process.close()

    def _job(self, work: Workload) -> LoadJob:
        """Return the job; the first one contains the loader, which is sent only when it is needed."""
        loader = None if self._sent else _lean(self.loader)
        self._sent = True
        return LoadJob(self.number, loader, work)

    def _next(self, connection: Connection) -> ResultMessage | None:
        """Wait for the next message and return it; None at the end. Raises the error that ended the load."""
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
        """Receive the descriptor of a new slot and map it; return its arrays."""
        try:
            handle = recv_handle(connection)
        except (EOFError, OSError):
            raise self.process.lost() from None
        try:
            return mapped(handle, shapes)
        finally:
            os.close(handle)


def _lean(loader: Loader) -> Loader:
    """Return a loader whose split has only the columns that reading needs: a split may have 100 million samples."""

    def lean(split: Split) -> Split:
        return replace(split, samples=split.samples.to_read(), levels=tuple(map(lean, split.levels)))

    reader = Reader(lean(loader.split), loader.reader.access, loader.reader.scattered)
    return Loader(reader, loader.threads, loader.ahead_bytes, loader.max_upsample)


def pin(arrays: list[Pixels]) -> bool:
    """Lock (pin) a slot's memory, so that the GPU copies from it directly; return False if copies are slower."""
    size = sum(array.nbytes for array in arrays)
    status = int(cudart().cudaHostRegister(arrays[0].ctypes.data, size, 0))  # type: ignore[no-untyped-call]
    if status:
        log.warning("Views cannot be locked in memory for the GPU (CUDA's error %s): copies take longer.", status)
        clear_error()
    return not status


def unpin(arrays: list[Pixels]) -> None:
    """Undo a `pin` that returned True; required before the memory is unmapped."""
    status = int(cudart().cudaHostUnregister(arrays[0].ctypes.data))  # type: ignore[no-untyped-call]
    if status:
        log.warning("Views stay locked in memory for the GPU (CUDA's error %s).", status)
        clear_error()


def clear_error() -> None:
    """Consume CUDA's pending error: the next kernel launch would raise it."""
    with contextlib.suppress(RuntimeError):
        torch.ones(1, device="cuda")
