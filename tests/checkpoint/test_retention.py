"""What a forgotten process saves never counts as newer than what the newest attempt has saved, nor removes it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dist_ssl.checkpoint import saver
from dist_ssl.checkpoint.folder_names import name_of
from dist_ssl.checkpoint.retention import attempt_of, newest_first, newest_step, remove_unfinished
from dist_ssl.errors import CheckpointError, ConfigError
from launch.evaluation import checkpoint_of
from launch.run_dir import RunDir
from tests.checkpoint.test_saver import Store, at, keeper, names, restore


def save(folder: Path, attempt: int, *steps: int, keep_last: int = 9) -> None:
    """Checkpoints of these steps by an attempt that believes that it is the newest."""
    own = keeper(folder, attempt=attempt, keep_last=keep_last)
    for step in steps:
        own.save(Store(step), replace(at(step), attempt=attempt))  # type: ignore[arg-type]
        own.wait()


def test_a_later_step_of_an_earlier_attempt_is_not_the_newest(tmp_path: Path) -> None:
    save(tmp_path, 1, 20)
    save(tmp_path, 2, 22)
    save(tmp_path, 1, 30)  # a zombie
    assert [path.name for path in newest_first(tmp_path)] == [name_of(22), name_of(30), name_of(20)]
    assert newest_step(tmp_path) == 22
    assert restore(tmp_path)[0] == 22


def test_the_latest_by_name_is_the_one_that_a_resume_begins_with(tmp_path: Path) -> None:
    """So forks, evaluations, exports and the encoder of a finished run do not take a forgotten process's."""
    run = RunDir(tmp_path)
    with pytest.raises(ConfigError, match="no checkpoint yet"):
        checkpoint_of(run, "latest")
    save(run.checkpoints, 1, 20)
    save(run.checkpoints, 2, 22)
    save(run.checkpoints, 1, 30)
    assert checkpoint_of(run, "latest").name == name_of(22)
    assert checkpoint_of(run, "30").name == name_of(30)


@pytest.mark.parametrize("keep_last", [1, 2])
def test_neither_attempt_removes_what_the_newer_one_needs(tmp_path: Path, keep_last: int) -> None:
    save(tmp_path, 1, 20)
    save(tmp_path, 2, 22, keep_last=keep_last)
    save(tmp_path, 1, 30, 40, keep_last=keep_last)
    assert restore(tmp_path)[0] == 22, "the zombie has kept it"
    save(tmp_path, 2, 24, 26, keep_last=keep_last)
    assert names(tmp_path) == ["LATEST", *map(name_of, [24, 26][-keep_last:])], "the zombie's are the old ones"


def test_a_checkpoint_that_does_not_say_its_attempt_has_the_place_of_its_step(tmp_path: Path) -> None:
    save(tmp_path, 1, 1, 2, 3)
    for step, text in ((2, ""), (3, '{"format": 1, "tensors": {}}')):
        (tmp_path / name_of(step) / "state.json").write_text(text)
    assert [attempt_of(tmp_path / name_of(step)) for step in (1, 2, 3)] == [1, None, None]
    assert [path.name for path in newest_first(tmp_path)] == [name_of(3), name_of(2), name_of(1)]
    assert newest_step(tmp_path / "none") == 0


def test_a_save_under_way_at_the_restore_of_a_newer_attempt_cannot_be_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newer attempt starts in the worst moment: after the older one has seen that it is the newest."""

    def newest() -> bool:
        assert restore(tmp_path)[0] == 20
        return True

    save(tmp_path, 1, 20)
    forgotten = keeper(tmp_path, attempt=1, newest=newest)
    forgotten.save(Store(30), replace(at(30), attempt=1))  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="could not be written"):
        forgotten.wait()
    assert names(tmp_path) == ["LATEST", name_of(20)]
    assert (tmp_path / "LATEST").read_text() == f"{name_of(20)}\n"


def test_what_is_half_written_is_renamed_before_anything_of_it_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = tmp_path / ".step_00000030.0001.part"
    part.mkdir()
    (part / "state.json").touch()
    renamed: list[bool] = []
    remove: Callable[[Path], None] = saver.remove
    monkeypatch.setattr(
        "dist_ssl.checkpoint.retention.remove", lambda path: (renamed.append(not part.exists()), remove(path))
    )
    remove_unfinished(tmp_path)
    assert renamed == [True]
    assert names(tmp_path) == []


def test_what_an_interrupted_removal_has_left_is_removed(tmp_path: Path) -> None:
    for name in (".gone.step_00000030.0001.part", ".step_00000040.0001.part"):
        (tmp_path / name).mkdir()
    (tmp_path / ".LATEST.7-ab.part").touch()
    remove_unfinished(tmp_path)
    assert names(tmp_path) == []
