"""Work that a thread does while its caller goes on."""

import threading
from collections.abc import Callable


class Background:
    """Work under way; whoever asks for its end gets its error. A process that ends does not wait for it."""

    def __init__(self, work: Callable[[], None], name: str) -> None:
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(work,), name=name, daemon=True)
        self._thread.start()

    @property
    def ended(self) -> bool:
        """Whether it has come to its end."""
        return not self._thread.is_alive()

    def wait(self) -> None:
        """Wait for its end, whatever that is."""
        self._thread.join()

    def result(self) -> None:
        """Wait for its end. Raises what the work raised."""
        self.wait()
        if self._error is not None:
            raise self._error

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self._error = error
