"""Reports to Prometheus how an attempt ended, where its processes could not do so themselves.

An attempt that ends in order takes its targets away. One that a person ended by force leaves them, so they are removed
here; one that failed leaves them too, and how it failed is added, so that an alert says which end it was.
"""

from dist_ssl.errors import UserError, printable
from dist_ssl.metrics.ends import note_end, withdraw
from dist_ssl.metrics.target_files import target_of, textfile_of
from dist_ssl.runtime.end_names import ENDS, FAILED, REFUSED, WORKER_DIED
from launch.ending import Ending
from launch.node_monitor import forget_nodes
from launch.run_dir import AttemptDir


def end_of(ending: Ending) -> str:
    """Return which of ENDS an ending is; empty for one without an error."""
    usual = {REFUSED: REFUSED, FAILED: WORKER_DIED}.get(ending.outcome, "")
    return ending.cause if usual and ending.cause in ENDS else usual


def announce(attempt: AttemptDir, ending: Ending) -> None:
    """Say how an attempt ended in the files by which Prometheus knows the run, unless a newer attempt has them.

    What prevents it is printed: an alert without the reason is better than no end of the attempt.
    """
    run = attempt.run
    if attempt.number != run.newest_attempt():
        return
    target, end = target_of(run.folder), end_of(ending)
    try:
        textfile = textfile_of(run.folder, attempt.config["metrics"]["textfile"])
        if end:
            note_end(target, end, textfile)
        else:
            withdraw(target, textfile)
            forget_nodes(run.folder, 0)
    except (OSError, ValueError, LookupError, UserError) as error:
        print(printable(f"How the attempt ended cannot be added to {target}: {error}"), flush=True)
