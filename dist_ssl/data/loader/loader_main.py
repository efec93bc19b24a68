"""The main program of a loader process (loader_process.py), which never outlives its parent.

Only the parent holds the other end of the control socket, so it hangs up when the parent ends, however that happens.
Signals that ask a run to stop reach every process of a group; this process ignores them, because the parent handles
them and still needs batches to finish its step. Both are set up before heavy modules are imported.
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
        poll.register(control.fileno(), 0)  # events 0: only a hang-up is reported
        poll.poll()
        os._exit(0)

    threading.Thread(target=watch, name="parent watch", daemon=True).start()


def main(handle: int) -> None:
    """Serve the parent, which holds the other end of the socket `handle`. Stop signals must be blocked at the start."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    control = Connection(handle)
    end_with_parent(control)
    open_journal()

    from dist_ssl.data.loader.deliveries import serve

    serve(control)
