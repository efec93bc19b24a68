"""An evaluation shows its accuracies with their confidence intervals, and what makes them doubtful."""

import io
from pathlib import Path

from rich.console import Console

from launch.evaluation import Evaluation


def shown(**content: object) -> str:
    console = Console(record=True, width=160, file=io.StringIO())
    console.print(Evaluation(Path("x.json"), dict(content), None).table())
    return console.export_text()


def test_an_accuracy_is_shown_with_its_interval_and_other_numbers_are_not() -> None:
    text = shown(numbers={"knn_accuracy": 1.0, "bank": 60, "queries": 6})
    assert "knn accuracy  100.00 % (95 %: 61.0 to 100.0)" in text
    assert text.count("95 %") == 1
    assert "95 %" not in shown(numbers={"effective_rank": 0.5, "queries": 6})


def test_doubts_stand_beside_the_number() -> None:
    assert "note" not in shown(numbers={"knn_accuracy": 0.5, "queries": 200}, doubts=[])
    assert "note          'val' has 6 images only" in shown(
        numbers={"knn_accuracy": 0.5, "queries": 6}, doubts=["'val' has 6 images only"]
    )
