"""Completion in a real bash, asked as readline asks it."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from launch import completion
from launch.config_groups import config_groups
from launch.run_dir import PROJECT
from launch.subcommands import SUBCOMMANDS

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
METHODS = config_groups(PROJECT / "configs")["method"]


def completed(line: str, tmp_path: Path) -> list[str]:
    """The words that bash offers at the end of a line."""
    words = [word for word in re.split(r"\s+|(=)", line) if word]  # readline makes = a word of its own
    words += [""] if line[-1] in " " else []
    script = tmp_path / "completion"
    script.write_text(completion.bash())
    ask = f"""
        source {script}
        COMP_WORDBREAKS=$' \\t\\n"=' COMP_LINE='{line}' COMP_POINT={len(line)} COMP_CWORD={len(words) - 1}
        COMP_WORDS=({" ".join(f"'{word}'" for word in words)})
        _dist_ssl
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", ask], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert not done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("dist-ssl ", list(SUBCOMMANDS)),
        ("dist-ssl s", ["status", "shards", "show"]),
        ("dist-ssl run meth", [f"method={name}" for name in METHODS]),
        ("dist-ssl run method=", METHODS),
        ("dist-ssl run nodes=4 method=moco", ["mocov2", "mocov3"]),
        ("dist-ssl plan +recipe=demo_v", ["demo_vicreg"]),
        ("dist-ssl run epo", ["epochs="]),
        ("dist-ssl run data.path=pic", []),
        ("dist-ssl audit run=", []),
    ],
)
def test_bash_offers(line: str, words: list[str], tmp_path: Path) -> None:
    assert completed(line, tmp_path) == words


def test_bash_uses_it_for_the_command_and_completes_files_elsewhere(tmp_path: Path) -> None:
    ask = f"{completion.bash()}\ncomplete -p dist-ssl"
    done = subprocess.run(["bash", "-c", ask], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "complete -o default -F _dist_ssl dist-ssl\n"


def test_a_name_of_a_file_executes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(PROJECT / "configs", tmp_path / "configs")
    names = ("$(touch canary)", "`touch canary`", "'; touch canary; '", '"; touch canary; "', "a b", "a\nb", "x*", "é")
    for name in names:
        (tmp_path / "configs" / "method" / f"{name}.yaml").touch()
    monkeypatch.setattr(completion, "PROJECT", tmp_path)
    assert completed("dist-ssl run method=", tmp_path) == METHODS
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("words", [[], ["fish"], ["bash", "zsh"]])
def test_another_shell_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert completion.main(words) == 2
    assert "is no shell that can be completed here.\n  Write bash." in capsys.readouterr().out
