"""Credentials in data.path reach the ranks through the environment, and nothing else ever sees them."""

import pytest

from launch import credentials
from launch.variables import ADDRESS

WHOLE = "https://g4711:opensesame@host/set?sig=abc"
BARE = "https://host/set"


@pytest.fixture(autouse=True)
def empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """No credentials in the environment, and none left behind."""
    monkeypatch.setenv(ADDRESS, "")


def restored(path: str) -> str:
    """The data.path that a rank sees for the one in its config."""
    config = {"seed": 0, "data": {"path": path, "train": "train"}}
    found = credentials.restored(config)
    assert {**found, "data": {**found["data"], "path": path}} == config
    return str(found["data"]["path"])


@pytest.mark.parametrize("quoted", [WHOLE, f"'{WHOLE}'", f'"{WHOLE}"'])
def test_they_leave_the_words_and_come_back_in_the_rank(quoted: str) -> None:
    words = credentials.set_aside(["nodes=2", f"data.path={quoted}"])
    assert words == ["nodes=2", f"data.path={BARE}"]
    assert restored(BARE) == WHOLE


def test_they_are_never_sent_elsewhere() -> None:
    credentials.set_aside([f"data.path={WHOLE}"])
    for path in ("https://other/set", "http://host/set", "https://host/set2", "data/demo"):
        assert restored(path) == path


def test_newer_ones_win_and_a_sweep_keeps_all() -> None:
    credentials.set_aside([f"data.path={WHOLE}"])
    newer = WHOLE.replace("abc", "xyz")
    words = credentials.set_aside(["-m", f"data.path={newer},https://b:c@other/d"])
    assert words == ["-m", f"data.path={BARE},https://other/d"]
    assert restored(BARE) == newer
    assert restored("https://other/d") == "https://b:c@other/d"


@pytest.mark.parametrize("word", ["data.path=data/demo", "data.path=a,b", "data.path=s3://bucket/x", "name=u:p@x?y"])
def test_words_without_credentials_stay_as_they_are(word: str) -> None:
    assert credentials.set_aside([word]) == [word]
    assert restored("data/demo") == "data/demo"
