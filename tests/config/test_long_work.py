"""Long work shows a bar on a terminal, and anywhere else a line now and then with the time that is left."""

import io

import pytest

from dist_ssl.config.command import Screen
from dist_ssl.config.long_work import LINE_SECONDS, LongWork, unseen_work


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def lines_of(file: io.StringIO) -> list[str]:
    return file.getvalue().splitlines()


def test_a_log_has_a_line_now_and_then() -> None:
    file, clock = io.StringIO(), Clock()
    with LongWork(Screen(file=file), clock) as work:
        task = work.add_task("images", total=10_000)
        for _ in range(4):
            clock.seconds += LINE_SECONDS / 2
            work.advance(task, 1_000)
    assert lines_of(file) == ["images: 2,000 of 10,000, 2:00 left", "images: 4,000 of 10,000, 1:30 left"]


def test_short_work_prints_nothing_in_a_log() -> None:
    file, clock = io.StringIO(), Clock()
    with LongWork(Screen(file=file), clock) as work:
        for name in ("first", "second"):
            task = work.add_task(name, total=2)
            clock.seconds += LINE_SECONDS * 0.9
            work.advance(task, 2)
    assert file.getvalue() == ""


def test_work_of_unknown_length_has_no_time_left() -> None:
    file, clock = io.StringIO(), Clock()
    with LongWork(Screen(file=file), clock) as work:
        task = work.add_task("[b]files[/b]", total=None)
        clock.seconds += LINE_SECONDS
        work.advance(task, 3)
    assert lines_of(file) == ["[b]files[/b]: 3"]


def test_a_terminal_has_a_bar_with_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    file, clock = io.StringIO(), Clock()
    with LongWork(Screen(file=file, force_terminal=True, width=100), clock) as work:
        task = work.add_task("images", total=10)
        for _ in range(2):
            clock.seconds += LINE_SECONDS
            work.advance(task, 2)
        work.refresh()
        shown = file.getvalue()
    assert "4/10" in shown
    assert "0:01:30" in shown
    assert "\x1b[3" not in shown, "a colour"
    assert "images: " not in shown


def test_quiet_work_shows_nothing() -> None:
    with unseen_work() as work:
        work.advance(work.add_task("images", total=1))
