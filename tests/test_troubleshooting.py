"""The messages of the page for troubleshooting are those that the code says."""

import re

import pytest

from dist_ssl.config.command import known_pair
from dist_ssl.errors import ConfigError
from tests.said_by_the_code import ROOT, templates

PAGE = ROOT / "launch" / "TROUBLESHOOTING.md"
ROWS = re.findall(r"^\| `([^`]+)` \| (.+?) \| (.+?) \|$", PAGE.read_text(), re.MULTILINE)


def is_said(message: str, known: tuple[str, ...]) -> bool:
    """Whether a text of the code has the fixed parts of a message, in order, from its beginning on."""
    pattern = re.compile(r".*".join(map(re.escape, re.split(r"\.\.\.|%s", message))), re.DOTALL)
    return any(pattern.match(re.sub(r"%s", "\0", text)) for text in known)


@pytest.mark.parametrize("message", [row[0] for row in ROWS])
def test_the_code_says_it(message: str) -> None:
    assert is_said(message, templates())


def test_every_row_has_a_message_a_cause_and_a_remedy() -> None:
    shown = [line for line in PAGE.read_text().splitlines() if line.startswith("| ") and "| message |" not in line]
    assert len(shown) == len(ROWS) > 40


def test_a_message_that_the_code_does_not_say_is_noticed() -> None:
    with pytest.raises(ConfigError, match="There is no key 'x'") as caught:
        known_pair("x=1", {"y"})
    assert is_said(caught.value.problem.replace("x", "..."), templates())
    assert not is_said("There is no button '...'.", templates())
