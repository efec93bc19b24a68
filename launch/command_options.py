"""Options of a command as the fields of a dataclass: KEY=VALUE words, with the types and defaults of the fields."""

import os
import socket
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeVar

import torch

from dist_ssl.config.command import filled_pair
from dist_ssl.distributed.devices import set_single_precision
from dist_ssl.distributed.place_variables import LOCAL_RANK, RANK, SIZE
from dist_ssl.errors import ConfigError
from launch import credentials
from shards.command_line import fill

T = TypeVar("T")
OF_DATA = "data_"
"""Beginning of the names of fields whose keys begin with `data.`, as those of a run."""


def parse(kind: type[T], arguments: list[str], usage: str) -> T:
    """Return the options in the words of a command line. `usage`: the shortest command that works.

    Raises ConfigError for an unknown key, for a value of another type, and for a key that is missing.
    """
    names = {key_of(field.name): field for field in fields(kind)}  # type: ignore[arg-type]
    given = {names[key].name: text for key, text in (filled_pair(argument, names) for argument in arguments)}
    for key, field in names.items():
        if field.default is MISSING and field.name not in given:
            raise ConfigError(f"{key} is not given.", f"Usage: {usage}")
    return fill(kind, given, "The command")


def key_of(name: str) -> str:
    """Return the key of a field."""
    return f"data.{name.removeprefix(OF_DATA)}" if name.startswith(OF_DATA) else name


def check_least(options: Any, **least: int) -> None:
    """Raise ConfigError where a field is less than its least value."""
    for key, value in least.items():
        if getattr(options, key) < value:
            raise ConfigError(f"{key}={getattr(options, key)} is too small.", f"Use at least {value}.")


def one_encoder(run: str | None, encoder: str | None) -> str:
    """Return which of the two is given: a run or a file. Raises ConfigError where not exactly one is."""
    if (run is None) == (encoder is None):
        raise ConfigError("The encoder is not clear.", "Write either run=runs/NAME or encoder=FILE.")
    return str(run or encoder)


def with_credentials(path: str) -> str:
    """Return an address with the credentials that the environment has for it, as for a run; another path as it is."""
    found: str = credentials.restored({"data": {"path": path}})["data"]["path"]
    return found


def place_among(environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """Return the number of this process and of all that torchrun started, (0, 1) without it. Raises ConfigError."""
    given = [environment.get(name) for name in (RANK, SIZE)]
    if given == [None, None]:
        return 0, 1
    if all(text and text.isdecimal() for text in given) and int(str(given[0])) < int(str(given[1])):
        return int(str(given[0])), int(str(given[1]))
    raise ConfigError(
        f"{RANK}={given[0]} and {SIZE}={given[1]} in the environment are not the place of one process among several.",
        "Start several processes by torchrun, or unset both variables.",
    )


def device_of(name: str, environment: Mapping[str, str] = os.environ) -> torch.device:
    """Return the device of this process, auto, cpu or cuda, made ready for fp32. Raises ConfigError."""
    gpus = torch.cuda.device_count() if name != "cpu" else 0
    if name == "cuda" and not gpus:
        raise ConfigError(f"device=cuda is not possible: {socket.gethostname()} shows no GPU.", "Write device=cpu.")
    local = int(environment.get(LOCAL_RANK, "0"))
    if gpus and local >= gpus:
        raise ConfigError(
            f"There is no GPU for process {local} of this machine (counted from 0): it shows {gpus}.",
            f"Start {gpus} processes here, or write device=cpu.",
        )
    device = torch.device("cuda", local) if gpus else torch.device("cpu")
    set_single_precision(device, tf32=False)
    return device
