"""The main program of a loader process (loader_process.py), from its first moment on: it does not outlive its parent.

The parent's end of the control socket is held by nobody else, so it hangs up when the parent ends, however it ends.
Signals that ask a run to stop reach every process of a group; they are the parent's to answer, which still needs
batches for its step. Nothing heavy is loaded before both are seen to.
"""

import os
import select
import signal
import threading
from multiprocessing.connection import Connection

from dist_ssl.runtime.log_setup import open_journal
from dist_ssl.runtime.signals import STOPPING


def end_with_parent(control: Connection) -> None:
    """End this process as soon as the other end of the socket is closed."""

    def watch() -> None:
        poll = select.poll()
        poll.register(control.fileno(), 0)  # for nothing but that it hangs up
        poll.poll()
        os._exit(0)

    threading.Thread(target=watch, name="parent watch", daemon=True).start()


def main(handle: int) -> None:
    """Serve who holds the other end of this socket. Stop signals are blocked until here."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    control = Connection(handle)
    end_with_parent(control)
    open_journal()

    from dist_ssl.data.loader.worker import serve

    serve(control)
