"""Mappings in the files of a run folder: YAML that is complete, and JSON reports, which a kill may have cut short."""

import json
from pathlib import Path
from typing import Any

import yaml

from dist_ssl.errors import ConfigError
from dist_ssl.runtime.files import write_atomically


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file. Raises ConfigError where its content is none; OSError."""
    try:
        values = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise _damaged(path) from error
    if not isinstance(values, dict):
        raise _damaged(path)
    return values


def _damaged(path: Path) -> ConfigError:
    return ConfigError(
        f"{path} is damaged: it does not hold the keys of a config.", "Put back a copy of it, or start a new run."
    )


def write_yaml(path: Path, values: dict[str, Any]) -> None:
    """Write a mapping to a YAML file, atomically; it is on disk then."""
    write_atomically(path, yaml.safe_dump(values, sort_keys=False), sync=True)


def read_report(path: Path) -> dict[str, Any] | None:
    """Return the mapping in a JSON file; None where there is none, or a kill or a full disk has cut it short."""
    try:
        values = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return values if isinstance(values, dict) else None
