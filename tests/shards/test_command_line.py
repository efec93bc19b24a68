"""Paths in the words of a command: home folders of people that a machine knows, and a line about others."""

from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from dist_ssl.errors import ConfigError
from launch import image_places, own_pictures, warm_start
from shards import make
from shards.command_line import folder_and_pairs, parse_path

QUIET = Console(quiet=True)
STRANGER = "~no-such-user/x"


def test_a_home_folder_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse_path("~/a", "out") == tmp_path / "a"
    assert parse_path("a/~b", "out") == Path("a/~b")


@pytest.mark.parametrize(
    ("given", "use"),
    [
        (f"init={STRANGER}", lambda: warm_start.source_of(STRANGER, False)),
        (f"data.path={STRANGER}", lambda: image_places.shards_at(STRANGER)),
        (f"data.path={STRANGER}", lambda: image_places.scanned(STRANGER, 1, QUIET)),
        (f"data.path={STRANGER}", lambda: own_pictures.options_of({"path": STRANGER, "hold_out": None})),
        (f"out={STRANGER}", lambda: make.run(["source=demo", f"out={STRANGER}"], QUIET)),
        (f"path={STRANGER}", lambda: make.run(["source=imagefolder", f"path={STRANGER}", "out=x"], QUIET)),
        (STRANGER, lambda: folder_and_pairs([STRANGER], "verify FOLDER")),
    ],
)
def test_a_home_folder_of_nobody_is_refused(given: str, use: Callable[[], object]) -> None:
    with pytest.raises(ConfigError, match=f"^{given} is not possible: nobody here has this home folder"):
        use()
