"""Writes beside training that wait in memory while their disk cannot take them.

A disk that is full for an hour, or a file server that hiccups, costs neither the run nor what was written: it follows
as soon as that is possible. Only a process that ends before loses it, and the log says how much.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dist_ssl.runtime.tries import NO_ROOM, TRANSIENT

log = logging.getLogger(__name__)


class PatientWrites:
    """The attempts to write what waits for the file `path`. `what`: what it is called in the log, such as "lines"."""

    def __init__(self, path: Path, what: str) -> None:
        self.path, self.what = path, what
        self._refused = False

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Let the block write. An OSError that may go away ends it, and is logged once. Raises every other one."""
        try:
            yield
        except OSError as error:
            if error.errno not in (*NO_ROOM, *TRANSIENT):
                raise
            if not self._refused:
                log.warning("%s cannot be written (%s): its %s wait.", self.path, error.strerror, self.what)
            self._refused = True
            return
        if self._refused:
            log.warning("%s has all its %s again.", self.path, self.what)
        self._refused = False

    def give_up(self, left: int) -> None:
        """Log what is lost because the file is closed. `left`: number of lines or blocks that wait; 0 logs nothing."""
        if left:
            log.warning("%s lacks its last %d %s, for which there was no room.", self.path, left, self.what)
