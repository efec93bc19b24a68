"""Logging of every process of a run: to stderr, which goes into the log file of the rank."""

import logging

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def open_journal() -> None:
    """Write log records of level INFO and above to stderr."""
    logging.basicConfig(level=logging.INFO, format=FORMAT)
