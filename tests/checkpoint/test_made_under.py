"""A checkpoint tells what it was made under: a config that was edited does not go on with it in silence."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from dist_ssl.checkpoint.index import name_science
from dist_ssl.checkpoint.saver import Checkpoint
from dist_ssl.distributed.world import World
from dist_ssl.errors import CheckpointError
from dist_ssl.runtime.signals import Signals
from launch import preparation, worker
from launch.run_dir import RunDir
from tests.checkpoint.test_saver import FRESH, Store, names, saved
from tests.jobs import SMALL
from tests.launch.test_forking import console

MADE = {"optim.base_lr": 1, "seed": 0, "method.norm": None, "views.sizes": [0.2, 1.0], "extend": []}


def keeper(folder: Path, science: dict[str, Any] | None) -> Checkpoint:
    return Checkpoint(folder, World(), keep_last=2, attempt=2, newest=lambda: True, science=science)


def restored(folder: Path, science: dict[str, Any] | None) -> int:
    return keeper(folder, science).restore(Store(), FRESH).step  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"method.norm": "batch"}, {"views.sizes": [0.2]}, {"optim.base_lr": None}, {"new": 3}]
)
def test_a_checkpoint_made_under_other_values_is_refused_by_their_key_and_stays(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    saved(keeper(tmp_path, MADE), Store(), 5)
    (key,) = change
    with pytest.raises(CheckpointError, match=f"^{key}=.* is not what step_00000005 was made under"):
        restored(tmp_path, MADE | change)
    assert names(tmp_path) == ["LATEST", "step_00000005"], "it is whole"
    assert restored(tmp_path, MADE) == 5


@pytest.mark.parametrize(
    "now", [{**MADE, "optim.base_lr": 1.0}, {**MADE, "extend": ["3 epochs"]}, {**MADE, "other": None}, None]
)
def test_the_same_values_however_they_are_written_go_on(tmp_path: Path, now: dict[str, Any] | None) -> None:
    saved(keeper(tmp_path, MADE), Store(), 5)
    assert restored(tmp_path, now) == 5


def test_a_checkpoint_that_does_not_tell_goes_on_and_a_fork_names_its_own(tmp_path: Path) -> None:
    saved(keeper(tmp_path, None), Store(), 5)
    assert restored(tmp_path, MADE) == 5
    name_science(tmp_path / "step_00000005", MADE | {"seed": 7})
    assert restored(tmp_path, MADE | {"seed": 7}) == 5
    with pytest.raises(CheckpointError, match=r"seed=0 is not what .* was made under \(7\)"):
        restored(tmp_path, MADE)


def test_a_key_that_was_edited_in_the_config_and_is_given_at_the_resume_is_refused(
    demo_shards: Path, tmp_path: Path
) -> None:
    words = [*SMALL, "epochs=2", "nodes=1", "cluster=local", "name=edited", "probe.every=9 epochs"]
    words += [f"data.path={demo_shards}", "data.source=null", f"runs={tmp_path}"]
    run = preparation.begin(words, preparation.new_config(words, console()))
    assert worker.train_on(World(), run.new_attempt(preparation.resume([], run.folder, console())[1]), Signals()) == 0
    config = yaml.safe_load(run.config_file.read_text())
    config["optim"]["base_lr"] *= 3
    rate = config["optim"]["base_lr"]
    run.config_file.write_text(yaml.safe_dump(config, sort_keys=False))
    again, edited = preparation.resume([f"optim.base_lr={rate}"], run.folder, console())
    with pytest.raises(CheckpointError, match=rf"optim\.base_lr={rate} is not what step_\d+ was made under"):
        worker.train_on(World(), RunDir(again.folder).new_attempt(edited), Signals())
