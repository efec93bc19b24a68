"""Several runs from one command: `-m method=mocov3,simclr seed=0,1` stands for every combination."""

from itertools import product

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import OverrideParseException

from dist_ssl.errors import ConfigError

FLAGS = ("-m", "--multirun")


def expand(words: list[str]) -> list[list[str]]:
    """The words of every run, the first key varying slowest. Raises ConfigError where a word has no value."""
    try:
        overrides = OverridesParser.create().parse_overrides(words)
    except OverrideParseException as error:
        raise ConfigError(f"'{error.override}' is not of the form key=value.", "Write method=mocov3, say.") from error
    choices = []
    for word, override in zip(words, overrides, strict=True):
        key = word.partition("=")[0]
        sweep = override.is_sweep_override()
        choices.append([f"{key}={value}" for value in override.sweep_string_iterator()] if sweep else [word])
    return [_named(list(combination), number) for number, combination in enumerate(product(*choices), start=1)]


def _named(words: list[str], number: int) -> list[str]:
    """A run that was given a name shares it with the others, so it gets a number too."""
    return [f"{word}-{number}" if word.startswith("name=") and word != "name=null" else word for word in words]
