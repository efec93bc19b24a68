"""What a command line of keys and values is refused for."""

import pytest

from dist_ssl.config.command import known_pairs
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
