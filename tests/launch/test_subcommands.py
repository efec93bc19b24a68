"""The installed command: every script by a word, with the same words after it and the same exit codes."""

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from dist_ssl.config import command_names
from launch import subcommands
from launch.run_dir import PROJECT
from launch.subcommands import SUBCOMMANDS, Subcommand, main


@pytest.fixture(autouse=True)
def _names_as_before() -> Iterator[None]:
    """Other tests of this process see the names of scripts."""
    yield
    command_names.show_as({})


def test_every_command_of_the_project_is_a_subcommand() -> None:
    files = [*(PROJECT / "launch").glob("*.py"), *(PROJECT / "shards").glob("*.py")]
    scripts = {str(file.relative_to(PROJECT)) for file in files if "run_command(" in file.read_text()}
    assert scripts == {own.script for own in SUBCOMMANDS.values()}
    assert len(SUBCOMMANDS) == sum(map(len, subcommands.GROUPS.values())), "two have one name"


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]])
def test_the_overview_has_a_sentence_and_an_example_of_each(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    for own in SUBCOMMANDS.values():
        place = next(n for n, line in enumerate(lines) if line.split() == [own.name, *own.does.split()])
        assert lines[place + 1].split() == ["dist-ssl", own.name, *own.example.split()]
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize("own", SUBCOMMANDS.values(), ids=lambda own: own.name)
def test_the_words_and_the_exit_code_are_the_scripts(own: Subcommand, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[list[str]] = []
    monkeypatch.setattr(importlib.import_module(own.module), "main", lambda words: given.append(words) or 75)
    assert main([own.name, "run=runs/a b", "--x"]) == 75
    assert given == [["run=runs/a b", "--x", *own.always]]


@pytest.mark.parametrize("own", SUBCOMMANDS.values(), ids=lambda own: own.name)
def test_help_of_each_names_the_installed_command(own: Subcommand, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([own.name, "--help"]) == 0
    text = capsys.readouterr().out
    assert "python launch/" not in text
    assert "python shards/" not in text
    name = "status" if own.always else own.name
    assert f"\n    dist-ssl {name} " in text or f"(dist-ssl {name} " in text


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("exprot", "There is no subcommand 'exprot'.\n  Did you mean 'export'?\n"),
        ("zzz", "There is no subcommand 'zzz'.\n  Valid names: audit, "),
        (
            "method=dino",
            "method=dino is a key: a subcommand comes first.\n  To start a run: dist-ssl run method=dino\n",
        ),
    ],
)
def test_another_word_is_refused(word: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([word, "run=runs/a"]) == 2
    assert capsys.readouterr().out.startswith(message)


MISSPELT = {
    "run": (["methd=simclr"], "method"),
    "plan": (["metod=simclr"], "method"),
    "status": (["rns=runs"], "runs"),
    "follow": (["rn=runs/a"], "run"),
    "audit": (["rn=runs/a"], "run"),
    "report": (["ou=a.html"], "out"),
    "shards": (["sorce=demo", "out=data/demo"], "source"),
    "show": (["data/x", "levl=160"], "level"),
    "verify": (["data/x", "decod=false"], "decode"),
    "evaluate": (["protocl=knn"], "protocol"),
    "export": (["brnch=teacher"], "branch"),
    "embed": (["data.pth=pictures"], "data.path"),
    "finetune": (["epocs=2"], "epochs"),
}
"""Words of each subcommand with a misspelt key, and the key that was meant."""


@pytest.mark.parametrize("own", [own for own in SUBCOMMANDS.values() if own.name != "completion"], ids=lambda o: o.name)
def test_a_misspelt_key_is_answered_with_the_nearest_one(own: Subcommand, capsys: pytest.CaptureFixture[str]) -> None:
    words, meant = MISSPELT[own.name]
    assert main([own.name, *words]) == 2
    assert f"\n  Did you mean '{meant}'?\n" in capsys.readouterr().out


def test_errors_of_a_script_name_the_installed_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["audit"]) == 2
    assert "\n  dist-ssl audit run=runs/NAME\n" in capsys.readouterr().out
    assert main(["audit", "run=runs/a"]) == 2
    assert "Start one: dist-ssl run method=mocov3." in capsys.readouterr().out
    assert main(["follow"]) == 2
    assert "Write run=runs/NAME follow=true" in capsys.readouterr().out


def test_ctrl_c_while_a_script_is_loaded_is_no_stack_trace(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(subcommands, "importlib", SimpleNamespace(import_module=load))
    assert main(["audit"]) == 130
    assert capsys.readouterr().out == "Interrupted.\n"


def test_the_overview_loads_no_script_and_nothing_slow() -> None:
    code = "import sys; from launch.subcommands import main; main(['--help']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "launch.subcommands" in loaded
    assert not loaded & {"torch", "numpy", "hydra", "yaml", *(own.module for own in SUBCOMMANDS.values())}


def test_the_version_is_that_of_the_package(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(subcommands, "version", lambda name: f"{name}'s")
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == "dist_ssl's\n"
