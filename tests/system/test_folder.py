"""From a folder of pictures to an encoder in use, by real commands."""

import os
from pathlib import Path

import pytest
import yaml

from tests.shards.pictures import odd_pictures
from tests.system.launching import Launch, saved

SHORT = ("epochs=2", "encoder=tiny", "encoder.width=4", "method.hidden=16", "method.dim=8", "schedule.image_size=16")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a run on 40 pictures of all kinds, and what its command printed."""
    root = tmp_path_factory.mktemp("own")
    odd_pictures(root / "pictures")
    where = (f"data.path={root / 'pictures'}", f"data.into={root / 'data'}", f"runs={root / 'runs'}", "name=mine")
    launch = Launch("data=folder", "method=mocov3", *where, "nodes=1", "cluster=local", "threads=1", *SHORT)
    code, text = launch.finish()
    assert code == 0, text
    return root / "runs" / "mine", text


def test_a_folder_of_pictures_of_all_kinds_is_trained_on(finished: tuple[Path, str]) -> None:
    run, text = finished
    assert "40 pictures, 8 of them held out, 2 classes" in text
    assert "cannot be read; quarantine.jsonl lists them" in text
    assert "Finished. kNN accuracy" in text
    assert max(saved(run)) == 4
    recorded = yaml.safe_load((run / "config.yaml").read_text())
    assert recorded["data"]["path"].startswith(os.fspath(run.parent.parent / "data" / "pictures-"))
    assert (recorded["batch_size"], recorded["data"]["val"]) == (12, "val")
    assert "data=folder" not in yaml.safe_load((run / "overrides.yaml").read_text())
