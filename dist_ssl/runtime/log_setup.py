"""How every process of a run logs: to the error stream of its rank, which is the rank's log."""

import logging

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def open_journal() -> None:
    """Write records from INFO on to the error stream."""
    logging.basicConfig(level=logging.INFO, format=FORMAT)
