"""Work in a background thread whose error reaches the thread that waits for it."""

import threading
from collections.abc import Callable


class Background:
    """Work in progress in a daemon thread: `result` raises its error, and a process that ends does not wait for it."""

    def __init__(self, work: Callable[[], None], name: str) -> None:
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(work,), name=name, daemon=True)
        self._thread.start()

    @property
    def ended(self) -> bool:
        """Return whether the work has ended."""
        return not self._thread.is_alive()

    def wait(self, seconds: float | None = None) -> None:
        """Wait until the work has ended, with or without an error; for at most `seconds`, if given."""
        self._thread.join(seconds)

    def result(self) -> None:
        """Wait until the work has ended. Raises what the work raised."""
        self.wait()
        if self._error is not None:
            raise self._error

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self._error = error
