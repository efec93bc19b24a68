"""Logging to stderr, which goes into the log file of a rank, or from a command to the terminal."""

import logging

from dist_ssl.errors import printable

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class PrintableFormatter(logging.Formatter):
    """A formatter whose lines do not act on a terminal: messages quote file names and what servers answer."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as text."""
        return printable(super().format(record))


def open_journal() -> None:
    """Write log records of level INFO and above to stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(PrintableFormatter(FORMAT))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def make_warnings_printable() -> None:
    """Let warnings of a process without a journal, which Python itself writes to stderr, not act on a terminal."""
    if logging.lastResort:
        logging.lastResort.setFormatter(PrintableFormatter())
