"""Credentials in data.path: from the command line to the ranks through the environment, and into no file of the run."""

import os
from typing import Any

from dist_ssl.data.storage.address import Address
from launch.variables import ADDRESS

KEY = "data.path="


def set_aside(words: list[str]) -> list[str]:
    """The words without credentials, which the environment of this process keeps for those that it starts."""
    return [KEY + ",".join(map(_without, _addresses(word))) if word.startswith(KEY) else word for word in words]


def restored(config: dict[str, Any]) -> dict[str, Any]:
    """The config with the credentials of its data.path, where the environment has some."""
    for text in os.environ.get(ADDRESS, "").splitlines():
        if Address.parse(text).shown == config["data"]["path"]:
            return {**config, "data": {**config["data"], "path": text}}
    return config


def _addresses(word: str) -> list[str]:
    """One, or several of a sweep."""
    text = word.removeprefix(KEY)
    parts = text.split(",")
    return parts if all("://" in part for part in parts) else [text]


def _without(text: str) -> str:
    """The address without credentials."""
    bare = text.strip("\"'")
    if "://" not in bare:
        return text
    address = Address.parse(bare)
    if not address.secret:
        return text
    known = os.environ.get(ADDRESS, "").splitlines()
    os.environ[ADDRESS] = "\n".join([bare, *(line for line in known if line != bare)])  # the newest comes first
    return address.shown
