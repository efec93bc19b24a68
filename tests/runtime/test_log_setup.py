"""Nothing that a log line or an error quotes acts on the terminal that shows it."""

import logging

import pytest
from rich.console import Console

from dist_ssl.config.command import run_command
from dist_ssl.errors import DataError, printable
from dist_ssl.runtime.log_setup import FORMAT, PrintableFormatter

NASTY = "\x1b]0;owned\x07 \x9b2J \r over \u202e evil \udce9"


def harmless(text: str) -> bool:
    return all(character.isprintable() or character in "\n\t" for character in text)


def test_a_log_line_that_quotes_a_server_is_harmless() -> None:
    record = logging.LogRecord("x", logging.WARNING, "", 0, "it answered %s", (NASTY,), None)
    line = PrintableFormatter(FORMAT).format(record)
    assert harmless(line)
    assert "\\x1b]0;owned\\x07" in line


def test_an_error_that_quotes_a_file_name_is_harmless() -> None:
    text = str(DataError(f"{NASTY} is damaged.", "Fetch it again."))
    assert harmless(text)
    assert text.endswith("\n  Fetch it again.")


@pytest.mark.parametrize("text", ["größe.jpg", "日本 🐈\u200d⬛", "two\nlines\tand a tab", "\\x1b written out", ""])
def test_ordinary_text_is_unchanged(text: str) -> None:
    assert printable(text) == text


def test_what_a_command_logs_of_a_server_is_harmless(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Commands set up no journal: Python itself shows their warnings."""
    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setattr(logging, "lastResort", logging._StderrHandler(logging.WARNING))

    def run(arguments: list[str], console: Console) -> int:
        logging.getLogger("of a reader").warning("it answered %s", NASTY)
        return len(arguments)

    assert run_command(run, ["data"], Console(quiet=True)) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("it answered \\x1b]0;owned\\x07")
    assert harmless(shown)
