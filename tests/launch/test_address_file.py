"""A file of addresses is used where nobody else can read it, and nothing of it reaches a message or a file of a run."""

import os
from pathlib import Path

import pytest

from dist_ssl.errors import ConfigError
from launch import address_file, credentials, slurm
from launch.variables import ADDRESS, ADDRESS_FILE

WHOLE = "https://g4711:opensesame@host/set?sig=abc"
BARE = "https://host/set"
OTHER = "https://g4712:opensesame@other/set"


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of two addresses, for the user alone, that the environment names."""
    path = tmp_path / "addresses"
    path.write_text(f"# of the institute\n\n{WHOLE}\n  {OTHER}  \n")
    path.chmod(0o600)
    monkeypatch.setenv(ADDRESS_FILE, str(path))
    monkeypatch.setenv(ADDRESS, "")
    return path


def refusal() -> ConfigError:
    """How the file is refused, which must not quote it."""
    with pytest.raises(ConfigError) as caught:
        credentials.set_aside([f"data.path={BARE}"])
    assert "4711" not in str(caught.value)
    assert "sesame" not in str(caught.value)
    return caught.value


def path_of_a_rank(path: str) -> str:
    """The data.path that a rank sees for the one in its config."""
    return str(credentials.restored({"data": {"path": path}})["data"]["path"])


@pytest.mark.parametrize("told", [True, False])
def test_its_addresses_reach_the_ranks_in_place_of_its_name(file: Path, told: bool) -> None:
    """`told`: by a command with words; others (an evaluation, a rank below torchrun) look for the file themselves."""
    if told:
        assert credentials.set_aside([f"data.path={BARE}"]) == [f"data.path={BARE}"]
        assert ADDRESS_FILE not in os.environ
        file.unlink()
    assert path_of_a_rank(BARE) == WHOLE
    assert path_of_a_rank("https://other/set") == OTHER
    assert path_of_a_rank("https://third/set") == "https://third/set"
    assert ADDRESS_FILE not in os.environ
    assert os.environ[ADDRESS].split() == [WHOLE, OTHER]


def test_what_is_typed_and_what_the_environment_holds_come_first(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = OTHER.replace("g4712", "mine")
    monkeypatch.setenv(ADDRESS, mine)
    typed = WHOLE.replace("abc", "xyz")
    assert credentials.set_aside([f"data.path={typed}"]) == [f"data.path={BARE}"]
    assert path_of_a_rank(BARE) == typed
    assert path_of_a_rank("https://other/set") == mine


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o620, 0o602, 0o610])
def test_a_file_that_others_have_a_right_to_is_refused(file: Path, mode: int) -> None:
    file.chmod(mode)
    error = refusal()
    assert f"{file}, which {ADDRESS_FILE} names, can be read or changed by others (mode {mode:04o})" in error.problem
    assert error.remedy == f"Close it: chmod 600 {file}"


def test_a_file_that_a_link_leads_to_is_judged_and_not_the_link(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = file.with_name("link")
    link.symlink_to(file)
    monkeypatch.setenv(ADDRESS_FILE, str(link))
    file.chmod(0o644)
    assert "can be read or changed by others" in refusal().problem


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to somebody else")
def test_a_file_of_another_user_is_refused(file: Path) -> None:
    os.chown(file, 12345, -1)
    assert "belongs to another user (uid 12345)" in refusal().problem


NO_ADDRESSES = ("g4711", "opensesame", "s3://g4711:opensesame@bucket", "https://host/opensesame", "https:///opensesame")
NO_ADDRESSES += ("opensesame://x", "https://g4711:open/sesame@host/x", "pipe:curl https://g4711:opensesame@host/%s")


@pytest.mark.parametrize("line", NO_ADDRESSES)
def test_a_line_that_is_no_address_with_credentials_is_named_and_not_quoted(file: Path, line: str) -> None:
    file.write_text(f"{WHOLE}\n{line}\n")
    assert "has no address with credentials in line 2" in refusal().problem


def test_what_is_no_file_of_a_few_lines_is_refused(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("#" * (address_file.MOST_BYTES + 1))
    assert f"has more than {address_file.MOST_BYTES} bytes" in refusal().problem
    os.mkfifo(tmp_path / "pipe", 0o600)
    for path, why in ((tmp_path / "pipe", "it is no regular file"), (tmp_path / "none", "No such file")):
        monkeypatch.setenv(ADDRESS_FILE, str(path))
        assert f"cannot be read: {why}" in refusal().problem


def test_the_launcher_refuses_it_with_exit_code_2(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.chmod(0o644)
    assert slurm.main([f"data.path={BARE}", "method=simclr"]) == 2
    text = capsys.readouterr().out
    assert "can be read or changed by others" in text
    assert "Traceback" not in text
    assert "sesame" not in text
