"""Credentials in addresses of data: passed from the command line to the ranks by the environment, never in a file."""

import os
import re
from typing import Any

from dist_ssl.data.storage.address import PIPE, STORES, WEB, Address
from dist_ssl.errors import ConfigError
from launch.variables import ADDRESS

WEB_ADDRESS = re.compile(
    rf"(?:{'|'.join(WEB)})://(?:[^\s,'\"\]}}]|[\]}}](?![\s,\]}}]|$)|,(?!\s|[a-z][a-z0-9+.-]*://|$))+", re.IGNORECASE
)
"""An address on a web server, wherever it stands in an argument, up to the quote, bracket or comma that ends it."""
SOME_ADDRESS = re.compile(rf"(?:{'|'.join((*WEB, *STORES))}):/.*", re.IGNORECASE | re.DOTALL)


def set_aside(arguments: list[str]) -> list[str]:
    """Return the arguments without credentials, and keep the complete addresses in the environment.

    The processes that this one starts inherit them. Every web address is found, however its key is spelt
    (`++data.path=`, `data={path: ...}`, lists of a sweep). Raises ConfigError for a malformed one, and for one in a
    command, which would not get them back.
    """
    for argument in arguments:
        key, _, value = argument.partition("=")
        command = PIPE in value or key.lstrip("+").startswith("cluster")
        if command and any(Address.parse(found).secret for found in WEB_ADDRESS.findall(argument)):
            raise ConfigError(
                f"The command in {key} has an address with credentials or a query, which no file of a run may contain.",
                "Let the command read it where it runs: from a file of yours, or from a variable of the environment.",
            )
    return [WEB_ADDRESS.sub(lambda found: _without(found[0]), argument) for argument in arguments]


def check_config(node: Any, key: str = "") -> None:
    """Raise ConfigError where a composed config holds an address with credentials, which would reach files of the run.

    `set_aside` finds addresses as they are usually written; a file of `configs/`, or a value that is put together from
    others, gets here.
    """
    if isinstance(node, dict):
        for name, value in node.items():
            check_config(value, f"{key}.{name}" if key else str(name))
    elif isinstance(node, list):
        for value in node:
            check_config(value, key)
    elif isinstance(node, str) and any(has_secret(found[0]) for found in SOME_ADDRESS.finditer(node)):
        raise ConfigError(
            f"{key} is an address with credentials or a query, which no file of a run may contain.",
            f"Write it as one plain word of the command, {key}=https://..., or into the environment as {ADDRESS}.",
        )


def has_secret(text: str) -> bool:
    """Return whether an address has credentials or a query; true of one that cannot be read."""
    try:
        found = Address.parse(text)
        return bool(found.secret) or (found.local and "@" in text)
    except ConfigError:
        return "@" in text or "?" in text


def restored(config: dict[str, Any]) -> dict[str, Any]:
    """Return the config with the credentials of its data.path, or of each in a list, if the environment has them."""
    known = {Address.parse(text).shown: text for text in reversed(os.environ.get(ADDRESS, "").splitlines())}
    if not known:
        return config

    def whole(path: Any) -> Any:
        return known.get(path, path) if isinstance(path, str) else path

    path = config["data"]["path"]
    found = list(map(whole, path)) if isinstance(path, list) else whole(path)
    return {**config, "data": {**config["data"], "path": found}} if found != path else config


def _without(text: str) -> str:
    """Return the address without credentials; the complete one is added to the environment."""
    if "," in text and not {"@", "?"} & set(text):
        return text  # several places of a list, none of which has anything to hide
    address = Address.parse(text)
    if not address.secret:
        return text
    known = os.environ.get(ADDRESS, "").splitlines()
    os.environ[ADDRESS] = "\n".join([text, *(line for line in known if line != text)])  # the newest comes first
    return address.shown
