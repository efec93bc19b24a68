"""Every command of every document is run, with small settings; what cannot be is listed here with the reason.

A command of the project runs in this process, in a folder that has what documents speak of: `pictures`, `data/mine`,
`runs/NAME`. Its own words are kept; small settings and places of that folder come after them, and win.
"""

import importlib
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from PIL import Image

from dist_ssl.config import command_names, long_work
from dist_ssl.evaluate.linear_recipes import LINEAR
from launch import fit as fit_module
from launch import slurm
from launch.config_groups import config_groups, run_keys
from launch.run_dir import PROJECT
from shards import make
from shards.command_line import fill, pairs
from tests import in_process
from tests.documented_commands import Block, blocks, commands, documents, documents_in, name_of, script_of, words_of
from tests.small_commands import ONLY_SHOWN, export_a_transformer, fill_folder, reason_of, small

NOT_RUN = {
    r"make (run|test|check|golden|chaos|constraints|monitor)": "makes an environment, or runs all tests or a server",
    r"bash \.ci/run|sh tests/gpu/run\.sh": "runs all tests, or measures a GPU",
    r"pip install ": "asks a package index; tests/test_wheel.py installs the project",
    r"apt(-get)? install ": "asks a package index",
    r"docker compose ": "needs Docker",
    r"^scontrol ": "needs a job of Slurm; tests/system/test_slurm.py",
    r"^sbatch (is|refused) |^chmod \d+$": "a message, or a part of a command",
    r"ln -s /scratch": "a folder of the reader's",
    r"python tests/benchmarks/": "measures for minutes to days",
    r"python (monitoring|tests)/\w+\.py$": "writes files of this checkout, which golden tests compare",
    r"python launch/slurm\.py method=uniform": "the reader writes its files; tests/test_contributing.py trains it",
    r"python launch/slurm\.py follow=": "needs a job of Slurm; tests/launch/test_following.py",
    r"python shards/make\.py source=(cifar10|garments)": "downloads; tests/shards has their readers",
    r"python shards/make\.py source=tars path=(s3|https):": "needs a server; tests/shards/test_remote_tars.py has one",
    r"python launch/slurm\.py KEY=VALUE|python shards/verify\.py$|torchrun --standalone$": "names a command, runs none",
}
"""Commands that no test runs, and why; what they name is checked instead."""


ALL = sorted({command for document in documents() for command in commands(document)})
RUN = [command for command in ALL if not reason_of(command, NOT_RUN)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with what commands name. Commands write beside it, or the same thing again."""
    place, before, threads = tmp_path_factory.mktemp("user"), Path.cwd(), torch.get_num_threads()
    os.chdir(place)
    fill_folder()
    yield place
    os.chdir(before)
    torch.set_num_threads(threads)
    command_names.show_as({})


LONG = {"shards/make.py", "shards/verify.py", "launch/embed.py", "launch/evaluate.py", "launch/finetune.py"}
"""Commands that take long, which say how far they are where there is no terminal for a bar."""


@pytest.mark.parametrize("command", RUN)
def test_it_runs(
    command: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(long_work, "LINE_SECONDS", 0.0)
    in_process.here(monkeypatch)
    for name, recipe in LINEAR.items():
        monkeypatch.setitem(LINEAR, name, replace(recipe, epochs=2))
    program = command.split()[0]
    if program in ("mkdir", "chmod"):
        subprocess.run(shlex.split(command), check=True, cwd=folder)
        return
    inner = re.sub(r'^eval "\$\((.*)\)"$', r"\1", command).partition(" > ")[0]
    script, words = script_of(words_of(inner))
    monkeypatch.setattr(sys, "argv", [script])
    main = importlib.import_module(script.removesuffix(".py").replace("/", ".")).main
    assert main(small(script, command, words)) == 0
    said = capsys.readouterr().out
    assert script not in LONG or "watch=" in command or re.search(r"^\w.*: [\d,]+ of [\d,]+", said, re.MULTILINE)


@pytest.mark.parametrize("command", [command for command in ALL if command not in RUN])
def test_what_is_not_run_names_what_exists(command: str) -> None:
    program, *words = words_of(command)
    if program == "make":
        subprocess.run(["make", "--dry-run", *words], cwd=PROJECT, check=True, capture_output=True)
    elif program in ("sh", "bash"):
        subprocess.run([program, "-n", *words], cwd=PROJECT, check=True)
    elif program == "pip":
        check_extras(words)
    elif program == "docker":
        assert (PROJECT / words[words.index("--file") + 1]).is_file()
    elif program == "python":
        check_words(*script_of([program, *words]))


def check_extras(words: list[str]) -> None:
    """What pip is asked for of this project is one of its extras."""
    known = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for word in words:
        if word.startswith((".[", "dist_ssl")):
            assert Requirement(word.replace(".[", "dist_ssl[")).extras <= known.keys()


def check_words(script: str, words: list[str]) -> None:
    """The script exists and has keys of these names; those of the launcher and of the shards parse the words."""
    text = (PROJECT / script).read_text()
    if script == "launch/slurm.py" and words[0].startswith("follow="):
        assert slurm.of_a_run(words)[0]
    elif script == "shards/make.py" and words:
        given = pairs(words)
        given.pop("out")
        fill(make.source_of(source := given.pop("source")).options, given, f"source={source}")
    elif script.startswith("tests/benchmarks/"):
        known = {*run_keys(PROJECT / "configs"), *config_groups(PROJECT / "configs")}
        unknown = [key for word in words if not re.search(rf"\b{(key := word.partition('=')[0])}\b", text)]
        assert not set(unknown) - known, f"{script} has no key {unknown}"


def test_every_exception_is_that_of_a_command() -> None:
    unused = [pattern for pattern in NOT_RUN if not any(re.search(pattern, command) for command in ALL)]
    assert not unused
    shown = [pattern for pattern in ONLY_SHOWN if not any(re.search(pattern, command) for command in RUN)]
    assert not shown


@pytest.fixture(scope="module")
def exports(folder: Path) -> Path:
    """The folder, with exports to other libraries."""
    export_a_transformer()
    return folder


def pieces() -> list[Block]:
    """The blocks of Python that a user can copy: those of the documents whose first word is an import."""
    found = [block for document in documents() for block in blocks(document)]
    return [block for block in found if not block.language and re.match(r"(import|from) \w", block.text)]


PIECES = pieces()


@pytest.mark.parametrize("block", PIECES, ids=[f"{name_of(own.document)} {n}" for n, own in enumerate(PIECES)])
def test_python_runs(block: Block, exports: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Line by line, as the block has it; of two lines for two kinds of encoders, that of transformers."""
    monkeypatch.setattr(fit_module, "trained", trained_here)
    in_process.here(monkeypatch)
    lines = [line for line in block.text.splitlines() if "a ResNet" not in line.partition("#")[2]]
    exec("\n".join(lines), names_for_python(exports))


def trained_here(arguments: list[str]) -> tuple[Path, int]:
    """What `dist_ssl.fit` does, with small settings and in this process."""
    words = small("launch/slurm.py", "", arguments)
    (name,) = (word.removeprefix("name=") for word in words if word.startswith("name="))
    return Path("runs") / name, slurm.main(words)


def names_for_python(folder: Path) -> dict[str, object]:
    """What pieces of Python take as given: the files of an export, and images."""
    picture = Image.open(next((folder / "pictures").rglob("*.jpg")))
    images = torch.zeros(2, 3, 32, 32)
    return {"FOLDER": "FOLDER", "FILE": "FILE.onnx", "picture": picture, "images": images}


@pytest.mark.parametrize("git", [True, False])
def test_the_documents_are_those_of_the_project(git: bool, tmp_path: Path) -> None:
    """Commands of documents that somebody else wrote are not run."""
    own, others = (
        ("README.md", "launch/README.md"),
        ("venv/lib/x/README.md", "conda/share/x.md", "runs/a.md", ".a/b.md"),
    )
    for name in (*own, *others, "venv/pyvenv.cfg", "conda/conda-meta/history"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    if git:
        (tmp_path / "notes.md").touch()
        for words in (["init", "-q"], ["add", *own]):
            subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    assert documents_in(tmp_path) == [tmp_path / name for name in own]
