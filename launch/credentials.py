"""Credentials in data.path: passed from the command line to the ranks through the environment, never in a file."""

import os
from typing import Any

from dist_ssl.data.storage.address import Address
from launch.variables import ADDRESS

KEY = "data.path="


def set_aside(arguments: list[str]) -> list[str]:
    """Return the arguments without credentials, and keep the complete addresses in the environment.

    The processes that this one starts inherit them.
    """
    return [
        KEY + ",".join(map(_without, _addresses(argument))) if argument.startswith(KEY) else argument
        for argument in arguments
    ]


def restored(config: dict[str, Any]) -> dict[str, Any]:
    """Return the config with the credentials of its data.path, if the environment has them."""
    for text in os.environ.get(ADDRESS, "").splitlines():
        if Address.parse(text).shown == config["data"]["path"]:
            return {**config, "data": {**config["data"], "path": text}}
    return config


def _addresses(argument: str) -> list[str]:
    """Return the addresses in a data.path argument: one, or several in a sweep."""
    text = argument.removeprefix(KEY)
    parts = text.split(",")
    return parts if all("://" in part for part in parts) else [text]


def _without(text: str) -> str:
    """Return the address without credentials; the complete one is added to the environment."""
    bare = text.strip("\"'")
    if "://" not in bare:
        return text
    address = Address.parse(bare)
    if not address.secret:
        return text
    known = os.environ.get(ADDRESS, "").splitlines()
    os.environ[ADDRESS] = "\n".join([bare, *(line for line in known if line != bare)])  # the newest comes first
    return address.shown
