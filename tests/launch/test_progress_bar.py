"""What a person sees of a run is what its folder says: each epoch once, the newest numbers, the notes."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dist_ssl.config.durations import clock
from dist_ssl.core.progress import Progress
from dist_ssl.metrics.sinks import JsonLines
from launch.progress_bar import RunView, epoch_line

STATUS = {"epoch": 1, "epochs": 20, "step": 45, "total_steps": 620, "loss": 1.2345, "images_per_second": 812.4}


def console(terminal: bool = False) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=120, soft_wrap=True)


def written(to: Console) -> str:
    assert isinstance(to.file, io.StringIO)
    return to.file.getvalue()


def report(folder: Path, *lines: dict[str, Any] | str) -> None:
    """Append to metrics.jsonl: reports, or text as it is."""
    with (folder / "metrics.jsonl").open("a") as file:
        for line in lines:
            file.write(line if isinstance(line, str) else json.dumps(line) + "\n")


def show(folder: Path, **values: float) -> None:
    (folder / "status.json").write_text(json.dumps({**STATUS, **values}))


def epoch(number: int, accuracy: float) -> dict[str, float]:
    return {"epoch": number, "step": 31 * number, "knn_accuracy": accuracy}


@pytest.mark.parametrize("terminal", [False, True])
def test_every_epoch_is_printed_once(tmp_path: Path, terminal: bool) -> None:
    screen = console(terminal)
    with RunView(tmp_path, screen) as view:
        view.refresh()
        report(tmp_path, {"epoch": 0, "step": 5, "loss": 3.0}, epoch(1, 0.231))
        view.refresh()
        view.refresh()
        report(tmp_path, epoch(2, 0.4))
    text = written(screen)
    assert text.count("epoch   1   step     31   kNN  23.1 %") == 1
    assert text.count("epoch   2   step     62   kNN  40.0 %") == 1
    assert text.index("23.1 %") < text.index("40.0 %")


def test_epochs_of_earlier_attempts_are_not_printed_again(tmp_path: Path) -> None:
    report(tmp_path, epoch(1, 0.2), epoch(2, 0.3))
    screen = console()
    with RunView(tmp_path, screen) as view:
        (tmp_path / "metrics.jsonl").write_text("")
        report(tmp_path, epoch(1, 0.2))
        view.refresh()
        report(tmp_path, epoch(2, 0.3), epoch(3, 0.5))
    assert written(screen).count("kNN") == 1
    assert "epoch   3" in written(screen)


def test_a_file_that_an_attempt_cut_and_filled_again_is_read_from_its_start(tmp_path: Path) -> None:
    report(tmp_path, epoch(1, 0.2), {"epoch": 1, "step": 40, "loss": 3.0})
    screen = console()
    with RunView(tmp_path, screen) as view:
        sink = JsonLines(tmp_path / "metrics.jsonl")
        sink.open(Progress(epochs=2, step=31, epoch=1))
        report(tmp_path, {"epoch": 1, "step": 32, "loss": 3.123456, "note": "x" * 200}, epoch(2, 0.4))
        view.refresh()
    assert "40.0 %" in written(screen)
    assert "20.0 %" not in written(screen)


def test_a_line_cut_short_is_left_for_later(tmp_path: Path) -> None:
    screen = console()
    whole = json.dumps(epoch(1, 0.5)) + "\n"
    with RunView(tmp_path, screen) as view:
        report(tmp_path, whole[:20])
        view.refresh()
        assert "kNN" not in written(screen)
        report(tmp_path, whole[20:])
    assert written(screen).count("kNN") == 1


def test_the_bar_shows_position_and_numbers(tmp_path: Path) -> None:
    view = RunView(tmp_path, console())
    assert view.bar.tasks[0].description == "starting"
    show(tmp_path, seconds_left=3725.0)
    view.refresh()
    task = view.bar.tasks[0]
    assert (task.description, task.completed, task.total) == ("epoch 2/20", 45, 620)
    assert task.fields["numbers"] == "step 45/620  loss 1.234  812 images/s  1:02:05 left"


def test_numbers_that_are_not_there_yet_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text(json.dumps({"epoch": 0, "epochs": 3, "step": 0, "total_steps": 93}))
    view = RunView(tmp_path, console())
    view.refresh()
    assert view.bar.tasks[0].fields["numbers"] == "step 0/93"


def test_the_last_epoch_is_not_passed(tmp_path: Path) -> None:
    show(tmp_path, epoch=20, step=620)
    view = RunView(tmp_path, console())
    view.refresh()
    assert view.bar.tasks[0].description == "epoch 20/20"


def test_on_a_terminal_the_bar_is_drawn(tmp_path: Path) -> None:
    screen = console(terminal=True)
    show(tmp_path)
    with RunView(tmp_path, screen) as view:
        view.refresh()
        view.bar.refresh()
    assert "epoch 2/20" in written(screen)
    assert "step 45/620" in written(screen)


def test_elsewhere_there_is_no_bar(tmp_path: Path) -> None:
    screen = console()
    show(tmp_path)
    with RunView(tmp_path, screen) as view:
        view.refresh()
    assert "step 45/620" not in written(screen)
    assert "\x1b" not in written(screen)


@pytest.mark.parametrize("terminal", [False, True])
def test_a_note_is_said_at_once(tmp_path: Path, terminal: bool) -> None:
    screen = console(terminal)
    with RunView(tmp_path, screen) as view:
        view.say("Stopping: all ranks save at the same step.")
        assert "Stopping: all ranks save at the same step." in written(screen)


def test_the_newest_accuracy_is_the_status(tmp_path: Path) -> None:
    view = RunView(tmp_path, console())
    assert view.accuracy() == ""
    show(tmp_path, knn_accuracy=0.613)
    assert view.accuracy() == "kNN accuracy 61.3 %"
    show(tmp_path, knn_accuracy=0.613, queries=40)
    assert view.accuracy() == "kNN accuracy 61.3 % of 40 images (95 %: 45.9 to 74.8)"


def test_a_run_folder_without_anything_is_shown_too(tmp_path: Path) -> None:
    screen = console()
    with RunView(tmp_path, screen) as view:
        view.refresh()
    assert written(screen).strip() == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (245, "4:05"), (3600, "1:00:00"), (90061, "25:01:01")]
)
def test_seconds_as_a_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_an_epoch_in_words() -> None:
    line = epoch_line({"epoch": 12, "step": 372, "knn_accuracy": 1.0})
    assert line == "epoch  12   step    372   kNN 100.0 %"


@pytest.mark.parametrize(
    "status",
    ['{"total_steps": 8}', '{"total_steps": "8", "step": [], "epoch": {}, "epochs": null}', "[" * 200_000, "[1]", "{",
     json.dumps({**STATUS, "loss": "x", "seconds_left": None, "images_per_second": [], "knn_accuracy": "y"}),
     json.dumps({**STATUS, "knn_accuracy": -5.0, "queries": -1}), json.dumps({**STATUS, "total_steps": -1e299})],
)  # fmt: skip
def test_a_status_of_another_kind_breaks_no_display(tmp_path: Path, status: str) -> None:
    screen = console(terminal=True)
    (tmp_path / "status.json").write_text(status)
    report(tmp_path, '{"knn_accuracy": "x", "step": 3}\n', "[" * 200_000 + "\n", '{"knn_accuracy": 0.5}\n', "{}\n")
    with RunView(tmp_path, screen) as view:
        report(tmp_path, "half a line\n", epoch(1, 0.231))
        view.refresh()
        view.accuracy()
    assert "kNN  23.1 %" in written(screen)


def test_what_slurm_says_of_a_job_is_shown_literally(tmp_path: Path) -> None:
    screen = console(terminal=True)
    with RunView(tmp_path, screen) as view:
        view.queue("job 7", "PENDING ([link=file:///etc]x[/link])")
        view.bar.refresh()
    assert "pending ([link=file:///etc]x[/link])" in written(screen)
