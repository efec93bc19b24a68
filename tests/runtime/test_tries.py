"""A read is tried again as often as there are pauses, and only after errors that may go away."""

import time
from collections.abc import Callable

import pytest

from dist_ssl.runtime.tries import tried_again


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were made, none of them waited for."""
    made: list[float] = []
    monkeypatch.setattr(time, "sleep", made.append)
    return made


def failing(*errors: Exception) -> Callable[[], int]:
    left = list(errors)

    def read() -> int:
        if left:
            raise left.pop(0)
        return 7

    return read


def test_there_is_one_try_more_than_pauses(pauses: list[float]) -> None:
    assert tried_again(failing(OSError(5, "a"), OSError(6, "b")), (0.1, 2.0)) == 7
    assert pauses == [0.1, 2.0]
    with pytest.raises(OSError, match="c"):
        tried_again(failing(OSError(5, "a"), OSError(6, "b"), OSError(7, "c")), (0.1, 2.0))


def test_what_does_not_go_away_is_raised_at_once(pauses: list[float]) -> None:
    asked: list[tuple[int | None, float]] = []

    def again(error: OSError, pause: float) -> bool:
        asked.append((error.errno, pause))
        return error.errno == 5

    with pytest.raises(OSError, match="b"):
        tried_again(failing(OSError(5, "a"), OSError(6, "b")), (0.1, 2.0, 3.0), again)
    with pytest.raises(ValueError, match="no file system"):
        tried_again(failing(ValueError("no file system")), (0.1,), again)
    assert (asked, pauses) == ([(5, 0.1), (6, 2.0)], [0.1])
