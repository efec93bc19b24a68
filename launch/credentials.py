"""Credentials in addresses of data: passed from the command line to the ranks by the environment, never in a file."""

import contextlib
import os
import re
from collections.abc import Iterator
from io import BufferedReader, TextIOWrapper
from pathlib import Path
from typing import Any

from dist_ssl.data.storage.address import PIPE, STORES, WEB, Address
from dist_ssl.errors import ConfigError
from dist_ssl.runtime.strange_files import open_regular
from launch.address_file import addresses_in
from launch.source_commit import copied_files
from launch.variables import ADDRESS, ADDRESS_FILE

WEB_ADDRESS = re.compile(
    rf"(?:{'|'.join(WEB)})://(?:[^\s,'\"\]}}]|[\]}}](?![\s,\]}}]|$)|,(?!\s|[a-z][a-z0-9+.-]*://|$))+", re.IGNORECASE
)
"""An address on a web server, wherever it stands in an argument, up to the quote, bracket or comma that ends it."""
SOME_ADDRESS = re.compile(rf"(?:{'|'.join((*WEB, *STORES))}):/.*", re.IGNORECASE | re.DOTALL)

QUOTED = r"[\s\"'\\]*+"
LITERAL = r"(?![$`@])[^\s\"'$`]+"
"""A value that is written out: no variable, no output of another command, no file."""
NO_PATH = r"(?!~/|\.{0,2}/)"
NO_SCHEME = r"(?!(?<=\s)[\w-]+\s+[\"'\\]*[$`])"
"""Not the name of a kind of authorization before a variable: `ApiKey $KEY`."""
NO_NUMBERS = r"(?![-,]|\d+:\d+(?![^\s\"']))"
"""Not the numbers of a user and a group, as containers take them, nor the next option where -u has no value."""
NO_SWITCH = r"(?!(?:\d{1,4}|true|false|yes|no|on|off|null|none)?(?:[\s\"',\]};)]|$))"
"""Not nothing, nor the value of a switch or a small number: `HF_HUB_DISABLE_IMPLICIT_TOKEN=1`, `MAX_TOKEN=512`."""
NO_DEFAULT = r"(?!(?<=:)(?:[?+]|[-=](?:[}$`]|$)))"
"""Not what a shell does where a variable is not set, unless a value is written out there: `${KEY:-}`, `${KEY:?}`."""
LOGIN_OF = r"\bcurl\b[^|;&\n]{0,2000}?"
"""The program whose -u takes a login: that of others is a group, a host or nothing (`rsync -u host:/data .`)."""
IN_COMMANDS = (
    rf"authorization{QUOTED}[:=]{QUOTED}{NO_SCHEME}(?:(?:bearer|basic|token|digest)\s+{QUOTED})?+{LITERAL}",
    rf"(?<![\w/-])[\w-]*(?:token|secret|password|passwd|sshpass|api-?_?key|access_?key)(?:_id)?{QUOTED}[:=]{QUOTED}"
    rf"{NO_PATH}{NO_SWITCH}{NO_DEFAULT}{LITERAL}",
    rf"(?<![\w-])(?!--?no-)--?[\w-]*(?:token|secret|password|passwd|api-?key)\s+{QUOTED}{NO_PATH}{LITERAL}",
    rf"{LOGIN_OF}(?<![\w-])(?:-u|--user[ =]|--proxy-user[ =])\s*{QUOTED}{NO_NUMBERS}[^\s\"'$:]+:{LITERAL}",
    rf"(?<![\w-])sshpass\s+-p\s*{QUOTED}{LITERAL}",
)
IN_COMMAND = re.compile("|".join(IN_COMMANDS), re.IGNORECASE)
"""How secrets are usually given to programs that fetch files; there are other ways, so it is a help and no promise."""
TRACKER, CLUSTER = "tracker", "cluster"
"""The beginnings of the keys of experiment trackers, and of those whose values are lines of shell and Slurm's options.
"""
COMMENT = re.compile(r"(.*?)((?:^|(?<=\s))#.*|$)", re.DOTALL)
"""A line of YAML: what comes before a comment, and the comment."""
IN_FILE = re.compile(rf"(?:{'|'.join((*WEB, *STORES))}):/[^\s\"']*", re.IGNORECASE)
"""An address in a file of text, up to the space or the quote that ends it."""
LOOSE_LOGIN = re.compile(
    rf"(?:{'|'.join((*WEB, *STORES))}):/+[^/\s\"'@]*:(?!\d{{1,5}}(?:[,\s\"'\]]|$))[^/@]*@", re.IGNORECASE
)
"""A login whose password has spaces or quotes; a port ends with either."""
OTHER_ADDRESS = re.compile(
    rf"(?<![\w+.-])(?!(?:{'|'.join((*WEB, *STORES))}):)[a-z][a-z0-9+.-]*:/+([^\s\"']*)", re.IGNORECASE
)
"""An address of a database, a file server or the like, up to the space or the quote that ends it."""
OTHER_LOGIN = re.compile(r"[^/@:]*:(?![$`@]|\d{1,5}(?:[/,?\]]|$)).*@(?!sha256:)")
"""The text behind the slashes of such an address where it has a password that is written out, and no image's hash."""
SECRET_KEY = re.compile("pass|pwd|token|secret", re.IGNORECASE)
"""A key of its query that has a secret for its value."""
HARMLESS = re.compile(
    r"(?:(?![\w.-]*(?:sig|tok|key|sec|pass|pw|auth|cred|code))[a-z][\w.-]*=[\w.%+-]{0,15}(?:&|[])}>.,;:]*$))+",
    re.IGNORECASE,
)
"""A query that only says what is to be shown, as in the addresses of documents (`id=7`)."""


def set_aside(arguments: list[str]) -> list[str]:
    """Return the arguments without credentials, and keep the complete addresses in the environment.

    The processes that this one starts inherit them, and those of the user's file of addresses. Every web address is
    found, however its key is spelt (`++data.path=`, `data={path: ...}`, lists of a sweep). Raises ConfigError for a
    malformed one, for one in a command, which would not get them back, and for a file that others can read.
    """
    take_file()
    for argument in arguments:
        key, _, value = argument.partition("=")
        _check_command(key, value)
        _check_lines(key, argument)
        if has_password(argument):
            raise _with_password(key)
        tracker, cluster = (key.lstrip("+").startswith(own) for own in (TRACKER, CLUSTER))
        kept = tracker or cluster or PIPE in value
        if kept and any(Address.parse(found).secret for found in WEB_ADDRESS.findall(argument)):
            if tracker:
                raise _with_login(key)  # its library asks the environment, and would never get these back
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
    elif isinstance(node, str):
        _check_command(key, node)
        _check_lines(key, f"{key}={node}")
        if any(has_secret(found[0]) for found in SOME_ADDRESS.finditer(node)):
            raise _with_login(key)
        if has_password(node):
            raise _with_password(key)
    elif isinstance(node, bytes | Path):  # text that this check would not see
        raise ConfigError(f"{key} has a tag of YAML that makes its value no text.", "Write it without the tag.")


def _with_login(key: str) -> ConfigError:
    if key.lstrip("+").startswith(TRACKER):
        return ConfigError(
            f"{key} has an address with credentials or a query, which no file of a run may contain.",
            "Leave them out, and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the environment.",
        )
    return ConfigError(
        f"{key} is an address with credentials or a query, which no file of a run may contain.",
        f"Write it as one plain word of the command, {key}=https://..., or into the environment as {ADDRESS}, or "
        f"into a file of mode 0600 that {ADDRESS_FILE} names.",
    )


def _with_password(key: str) -> ConfigError:
    return ConfigError(
        f"{key.lstrip('+')} has an address with credentials, which no file of a run may contain.",
        "Leave the password to what reads it: to a variable of the environment, or to a file of yours (PGPASSWORD or "
        "~/.pgpass for PostgreSQL, ~/.netrc for curl).",
    )


def _check_command(key: str, text: str) -> None:
    """Raise ConfigError where a text has a `pipe:` command with a secret in it: the run keeps and shows the command."""
    if PIPE in text and IN_COMMAND.search(text.partition(PIPE)[2]):
        raise ConfigError(
            f"The command in {key} has what looks like a secret, and files of the run would show it to others.",
            "Let the command read it where it runs: from a file of yours, or from a variable, such as "
            '-H "Authorization: Bearer $TOKEN".',
        )


def _check_lines(key: str, text: str) -> None:
    """Raise ConfigError where what a job executes has a secret in it: the run's config and batch file show it."""
    if key.lstrip("+").startswith(CLUSTER) and IN_COMMAND.search(text):
        raise _with_secret(
            f"{key.lstrip('+')} has what looks like a secret, and files of the run would show it to others."
        )


def _with_secret(problem: str) -> ConfigError:
    return ConfigError(
        problem,
        "Put that line into a file of mode 0600, and let the job read it: cluster.setup='[source ~/.secrets]', or set "
        "the variable in the environment of this command, which a job of Slurm inherits.",
    )


def check_files(folder: Path) -> None:
    """Raise ConfigError where a file of the configs has an address with credentials: every run copies all of them.

    Comments are copied too, so a login in one counts; a query does not there, as addresses of documents have some. In
    the files of a cluster, what looks like a secret in a line of shell is refused too.
    """
    for path in copied_files(folder):
        of_a_cluster = path.is_relative_to(folder / CLUSTER)
        for number, line in enumerate(_lines(path), 1):
            if of_a_cluster and IN_COMMAND.search(line):
                raise _with_secret(f"{path} has what looks like a secret in line {number}, and every run keeps a copy.")
            value, comment = COMMENT.match(line).groups()  # type: ignore[union-attr]  # it matches any line
            in_comment = any(has_login(own[0]) for own in WEB_ADDRESS.finditer(comment))
            if in_comment or _tells(value) or has_password(line):
                raise ConfigError(
                    f"{path} has an address with credentials in line {number}, and every run keeps a copy of {folder}.",
                    f"Take it out: put it into a file of mode 0600 that {ADDRESS_FILE} names.",
                )


def _lines(path: Path) -> Iterator[str]:
    """Yield the lines of a file, however large; none of what cannot be read, as no run can copy it either."""
    with contextlib.suppress(OSError), TextIOWrapper(BufferedReader(open_regular(path)), errors="replace") as file:
        for line in file:
            yield from line.splitlines()


def _tells(text: str) -> bool:
    """Return whether a line of a file has an address with credentials, or with a query that may hold a secret."""
    found = (own[0] for own in IN_FILE.finditer(text))
    secret = any(has_secret(own) and ("@" in own or not HARMLESS.fullmatch(own.partition("?")[2])) for own in found)
    return secret or bool(LOOSE_LOGIN.search(text))


def has_login(text: str) -> bool:
    """Return whether an address has a user or a password; true of one that cannot be read and has an @."""
    try:
        return bool(Address.parse(text).login)
    except ConfigError:
        return "@" in text


def has_secret(text: str) -> bool:
    """Return whether an address has credentials or a query; true of one that cannot be read."""
    try:
        found = Address.parse(text)
        return bool(found.secret) or (found.local and "@" in text)
    except ConfigError:
        return "@" in text or "?" in text


def has_password(text: str) -> bool:
    """Return whether a text has an address, neither on the web nor in an object store, with a password written out."""
    return any(OTHER_LOGIN.match(own) or _has_secret_value(own) for own in OTHER_ADDRESS.findall(text))


def _has_secret_value(address: str) -> bool:
    """Return whether the query of an address has a secret that is written out."""
    parts = (part.partition("=") for part in re.split("[&;]", address.partition("?")[2]))
    return any(value and value[0] not in "$`" and SECRET_KEY.search(key) for key, _, value in parts)


def take_file() -> None:
    """Add the addresses of the file that the environment names to those in the environment, which come first.

    The file is read once: the processes that this one starts inherit its addresses, not its name. Raises ConfigError.
    """
    if name := os.environ.pop(ADDRESS_FILE, ""):
        os.environ[ADDRESS] = "\n".join([*os.environ.get(ADDRESS, "").splitlines(), *addresses_in(Path(name))])


def restored(config: dict[str, Any]) -> dict[str, Any]:
    """Return the config with the credentials of its data.path, or of each in a list, if the environment has them.

    Raises ConfigError for a file of addresses that others can read.
    """
    take_file()
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
