"""What is listed as a checkpoint: folders that a run has published, and nothing that a person has put beside them."""

from pathlib import Path

from dist_ssl.checkpoint.folder_names import published


def test_published_folders_are_listed_by_their_steps(tmp_path: Path) -> None:
    assert published(tmp_path / "none") == {}
    folders = {step: tmp_path / name for step, name in ((100000007, "step_100000007"), (30, "step_00000030"))}
    foreign = ("step_00000010_good", "damaged_step_00000010", ".step_00000010.0001.part", "step_7")
    for path in (*folders.values(), *(tmp_path / name for name in foreign)):
        path.mkdir()
    (tmp_path / "step_00099999").write_text("a person's")
    (tmp_path / "LATEST").touch()
    assert list(published(tmp_path).items()) == [(30, folders[30]), (100000007, folders[100000007])]
