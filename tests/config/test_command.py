"""What a command line of keys and values is refused for."""

import io
import re

import pytest
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from dist_ssl.config import command_names
from dist_ssl.config.command import Screen, filled_pair, known_pairs, say
from dist_ssl.errors import ConfigError, cannot_be_written


def test_pairs_stand_in_the_order_of_the_command_line() -> None:
    assert known_pairs(["run=a=b", "run=c", "out="], ("run", "out")) == [("run", "a=b"), ("run", "c"), ("out", "")]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("first", "'first' is not KEY=VALUE.\n  Valid keys: out, run."),
        ("runs/first", "'runs/first' is not KEY=VALUE.\n  Did you mean run=runs/first? Valid keys: out, run."),
        ("out", "out has no value.\n  Write out=..."),
        ("rum=a", "There is no key 'rum'.\n  Did you mean 'run'?"),
    ],
)
def test_what_is_no_pair_of_these_keys_is_refused(argument: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        known_pairs(["run=a", argument], ("run", "out"))
    assert str(caught.value) == message


def test_a_pair_that_must_be_filled_is_refused_without_a_value() -> None:
    assert filled_pair("run=a=b", ("run", "out")) == ("run", "a=b")
    for argument in ("out", "out="):
        with pytest.raises(ConfigError, match=r"^out has no value\.\n  Write out=\.\.\.$"):
            filled_pair(argument, ("run", "out"))


@pytest.mark.parametrize(
    ("error", "reason"),
    [(OSError(28, "No space left on device", ".x.7-1.part"), "No space left on device"), (OSError("odd"), "odd")],
)
def test_what_cannot_be_written_is_named_as_the_user_did(error: OSError, reason: str) -> None:
    assert str(cannot_be_written("x", error, "Name another.")) == f"x cannot be written: {reason}.\n  Name another."


def test_nothing_that_is_shown_acts_on_the_terminal() -> None:
    file, hostile = io.StringIO(), "\x1b]52;c;aGk=\x07[bold]x[/bold]\u202e\udce9"
    screen, table = Screen(file=file, width=200, force_terminal=True, color_system=None), Table(hostile)
    table.add_row(hostile)
    screen.print(hostile)
    screen.print(table)
    screen.print(Text(hostile))
    assert file.getvalue().count("\\x1b]52;c;aGk=") == 4
    assert file.getvalue().count("[bold]x[/bold]\\u202e\\udce9") == 4
    assert all(character.isprintable() or character == "\n" for character in file.getvalue())


def test_ordinary_text_is_shown_as_it_is() -> None:
    file = io.StringIO()
    Screen(file=file).print("größe 3\t名前\nnext line")
    assert file.getvalue().split() == ["größe", "3", "名前", "next", "line"]


def test_words_between_colons_are_no_pictures() -> None:
    file = io.StringIO()
    Screen(file=file).print("a:100:b :key:")
    say(Screen(file=file), ":fire:")
    assert file.getvalue() == "a:100:b :key:\n:fire:\n"


def coloured() -> str:
    """What a table, a coloured text and a progress bar send to a terminal of 256 colours."""
    file = io.StringIO()
    screen = Screen(file=file, force_terminal=True, color_system="256", width=80)
    screen.print(Text("a", style="red"), Table("b", header_style="blue"))
    with Progress(console=screen) as bar:
        bar.update(bar.add_task("c", total=2), completed=1)
    return file.getvalue()


def test_no_color_leaves_no_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    colour = re.compile(r"\x1b\[[\d;]*\b(3|4|9|10)\d[\d;]*m")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert len(colour.findall(coloured())) >= 3
    monkeypatch.setenv("NO_COLOR", "1")
    assert not colour.findall(coloured())


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Resume: python launch/slurm.py resume=a b=1", "Resume: dist-ssl run resume=a b=1"),
        ("(python launch/audit.py run=a), python shards/make.py", "(dist-ssl audit run=a), dist-ssl shards"),
        ("torchrun --nproc-per-node 4 launch/audit.py a", "torchrun --nproc-per-node 4 --no-python dist-ssl audit a"),
        (
            "torchrun --nproc-per-node=8 --x launch/audit.py",
            "torchrun --nproc-per-node=8 --x --no-python dist-ssl audit",
        ),
        ("python launch/agent.py python tests/draw.py", "python launch/agent.py python tests/draw.py"),
        ("code differs in launch/slurm.py, launch/audit.py", "code differs in launch/slurm.py, launch/audit.py"),
        (
            "my-python launch/slurm.py /bin/python launch/slurm.py",
            "my-python launch/slurm.py /bin/python launch/slurm.py",
        ),
        ("python launch/slurm.pyc", "python launch/slurm.pyc"),
    ],
)
def test_commands_are_named_as_the_user_types_them(text: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file, names = io.StringIO(), {"launch/slurm.py": "run", "launch/audit.py": "audit", "shards/make.py": "shards"}
    Screen(file=file).print(text)
    monkeypatch.setattr(command_names, "_subcommands", names)
    Screen(file=file).print(text)
    say(Screen(file=file), text)
    assert file.getvalue().splitlines() == [text, shown, shown]
