"""What a command line of keys and values is refused for."""

import io

import pytest
from rich.table import Table
from rich.text import Text

from dist_ssl.config.command import Screen, known_pairs, say
from dist_ssl.errors import ConfigError


def test_pairs_stand_in_the_order_of_the_command_line() -> None:
    assert known_pairs(["run=a=b", "run=c", "out="], ("run", "out")) == [("run", "a=b"), ("run", "c"), ("out", "")]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("runs/first", "'runs/first' is not KEY=VALUE.\n  Valid keys: out, run."),
        ("out", "out has no value.\n  Write out=..."),
        ("rum=a", "There is no key 'rum'.\n  Did you mean 'run'?"),
    ],
)
def test_what_is_no_pair_of_these_keys_is_refused(argument: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        known_pairs(["run=a", argument], ("run", "out"))
    assert str(caught.value) == message


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
