"""The model card names the command of a run, and no place of the machine where it ran."""

import shlex
from pathlib import Path

import pytest
import yaml

from launch.model_card import command_of, revision
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


@pytest.mark.parametrize("source", ["{}", "[]", "{", '{"commit": "abc"}'])
def test_a_source_that_is_not_whole_is_unknown(tmp_path: Path, source: str) -> None:
    (tmp_path / "source.json").write_text(source)
    assert revision(RunDir(tmp_path)).startswith("dist_ssl ")
