"""Mappings in the files of a run folder: YAML that is complete, and JSON reports, which a kill may have cut short.

A folder may be somebody else's, so each file is read as a stranger's: a regular one, of bounded size.
"""

import copy
import functools
import os
from pathlib import Path
from typing import Any

import yaml

from dist_ssl.errors import ConfigError
from dist_ssl.runtime.files import write_atomically
from dist_ssl.runtime.strange_files import NotRegularError, numbers, parsed_object, read_regular
from dist_ssl.runtime.tries import may_go_away, tried_again

MOST_YAML, MOST_REPORT, MOST_NUMBERS = 1 << 16, 1 << 19, 1 << 16
"""Bytes of a file, at most: a config has three thousand, and more where it lists many places of data; a report may
quote a long line of a log; and the numbers that a run or a node reports again and again are few."""
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The one in C reads ten times as fast; not every PyYAML has it."""
KEPT = 32
"""Number of contents whose values are kept: a command asks for those of the same few files again and again."""
MOST_WRITTEN_OUT = 1 << 20
"""Values and characters of a YAML file, at most, where what it refers to is written out: few references make many."""

PAUSES = (0.1, 1.0, 4.0)
"""Seconds before each further try to read a config, where the file system may answer again."""
DAMAGE = (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, ArithmeticError, RecursionError)
"""Errors of PyYAML for a text that it cannot read: also those that a tag with another text than it expects ends in."""


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file. Raises ConfigError where its content is none; OSError."""
    values = _loaded(path)
    if not isinstance(values, dict):
        raise _damaged(path)
    return values


def read_words(path: Path) -> list[str]:
    """Return the list of texts in a YAML file. Raises ConfigError where its content is none; OSError."""
    values = _loaded(path)
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise _damaged(path)
    return values


def _loaded(path: Path) -> Any:
    """Return what a YAML file holds, a copy of its own. Raises ConfigError, OSError."""
    try:
        return copy.deepcopy(_parsed(_content(path)))
    except DAMAGE as error:
        raise _damaged(path) from error


def _content(path: Path) -> bytes:
    """Return the bytes of a YAML file. Raises ConfigError where it has too many; NotRegularError, OSError."""
    try:
        return tried_again(lambda: read_regular(path, MOST_YAML), _pauses(path), may_go_away)
    except NotRegularError:
        raise
    except ValueError as error:
        raise ConfigError(
            f"{path} has more than {MOST_YAML >> 10} kB, the most that is read of a config.",
            "Put back a copy of it, or start a new run.",
        ) from error


def _pauses(path: Path) -> tuple[float, ...]:
    """Return the seconds before each further try: none where somebody else has put the file there.

    A link of theirs may lead to what no read can get, as /proc/self/mem is, in any number of runs.
    """
    try:
        return PAUSES if path.lstat().st_uid == os.geteuid() else ()
    except OSError:
        return PAUSES


def _parsed(content: bytes) -> Any:
    """Return what a YAML text holds, parsed once: what is damaged is remembered too. Raises the errors of DAMAGE."""
    value, error = _value_or_error(content)
    if error is not None:
        raise ValueError(error)
    return value


@functools.lru_cache(KEPT)
def _value_or_error(content: bytes) -> tuple[Any, str | None]:
    try:
        loader = LOADER(content.decode())
        node = loader.get_single_node()
        if _size(node) > MOST_WRITTEN_OUT:
            return None, "what it refers to has no end"
        return (None if node is None else loader.construct_document(node)), None
    except DAMAGE as error:
        return None, str(error)


def _size(node: yaml.Node | None) -> int:
    """Return the number of values and characters of a node where references are written out.

    It is more than MOST_WRITTEN_OUT where that has no end.
    """
    size, open_nodes = 0, [node]
    while open_nodes and size <= MOST_WRITTEN_OUT:
        own = open_nodes.pop()
        if isinstance(own, yaml.ScalarNode):
            size += len(own.value)
        elif isinstance(own, yaml.CollectionNode):
            inner = [part for pair in own.value for part in pair] if isinstance(own, yaml.MappingNode) else own.value
            size += len(inner)
            open_nodes.extend(inner)
    return size


def _damaged(path: Path) -> ConfigError:
    return ConfigError(
        f"{path} is damaged: it does not hold the keys of a config.", "Put back a copy of it, or start a new run."
    )


def read_numbers(path: Path) -> dict[str, float]:
    """Return the numbers in a JSON file that a run or a node writes anew; none where it is no whole one of their size.

    Raises PermissionError.
    """
    return numbers(read_report(path, MOST_NUMBERS) or {})


def write_yaml(path: Path, values: dict[str, Any]) -> None:
    """Write a mapping to a YAML file, atomically; it is on disk then. Raises ConfigError where none would read it."""
    text = yaml.safe_dump(values, sort_keys=False)
    if len(text.encode()) > MOST_YAML:
        raise ConfigError(
            f"The config of the run has {len(text.encode())} bytes: at most {MOST_YAML} are read of one.",
            "Shorten the longest list in it: data.path may name fewer places, and cluster.setup source a file.",
        )
    write_atomically(path, text, sync=True)


def read_report(path: Path, most: int = MOST_REPORT) -> dict[str, Any] | None:
    """Return the mapping in a JSON file; None where there is none, or a kill or a full disk has cut it short.

    `most`: bytes of it, at most; None where it has more. Raises PermissionError.
    """
    try:
        return parsed_object(read_regular(path, most))
    except PermissionError:
        raise
    except (OSError, ValueError):
        return None
