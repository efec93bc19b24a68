"""The model card names the command of a run, and no place of the machine where it ran."""

import json
import shlex
from pathlib import Path

import pytest
import yaml

from launch.model_card import command_of, measured, revision
from launch.run_dir import RunDir


@pytest.mark.parametrize(
    "place",
    ["data.path=/secret", "++data.path=/secret", "+data.path=/secret", "data={path: /secret}", "+data={path:/secret}",
     "runs=/secret", "++runs=/secret", "~data.path=/secret", "data.cache=/secret", "data='{path: /secret}'"],
)  # fmt: skip
def test_a_place_is_left_out_however_it_was_written(tmp_path: Path, place: str) -> None:
    kept = ["method=mocov3", "data=folder", "+optim.base_lr=0.1", "views={size: 96}", "data.max_bad=2 %"]
    (tmp_path / "overrides.yaml").write_text(yaml.safe_dump([*kept, place]))
    assert shlex.split(command_of(RunDir(tmp_path))) == kept


def test_accuracies_are_named_with_the_number_of_images_that_they_are_from(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    (tmp_path / "attempts" / "0001").mkdir(parents=True)
    (tmp_path / "attempts" / "0001" / "config.yaml").write_text("probe: {branch: student}\n")
    run.metrics.write_text('{"step": 8, "knn_accuracy": 0.5, "loss": 2.5}\n')
    run.status.write_text('{"queries": 50}')
    row = {"step": 8, "branch": "student", "time": 1.5}
    rows = [
        {**row, "protocol": "linear", "linear_accuracy": 0.25, "learning_rate": 0.1, "queries": 1},
        {**row, "protocol": "retrieval", "mean_average_precision": 0.75, "queries": 40},
        {**row, "protocol": "knn", "knn_accuracy": 0.5},
        {**row, "protocol": "bag_of_patches", "knn_accuracy": 0.5, "queries": 10**3000},
    ]
    run.evaluations.parent.mkdir(parents=True, exist_ok=True)
    run.evaluations.write_text("".join(f"{json.dumps(one)}\n" for one in rows))
    assert list(measured(run, 8, "student")) == [
        ("run: knn_accuracy", "0.5 of 50 images (95 %: 36.6 to 63.4)"),
        ("run: loss", "2.5"),
        ("linear: linear_accuracy", "0.25 of 1 image (95 %: 1.5 to 88.2)"),
        ("linear: learning_rate", "0.1"),
        ("retrieval: mean_average_precision", "0.75 of 40 images"),
        ("knn: knn_accuracy", "0.5"),
        ("bag_of_patches: knn_accuracy", "0.5"),
    ]


@pytest.mark.parametrize("source", ["{}", "[]", "{", '{"commit": "abc"}'])
def test_a_source_that_is_not_whole_is_unknown(tmp_path: Path, source: str) -> None:
    (tmp_path / "source.json").write_text(source)
    assert revision(RunDir(tmp_path)).startswith("dist_ssl ")
