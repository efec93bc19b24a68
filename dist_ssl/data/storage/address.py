"""Addresses of data: a folder or a file, local or remote; credentials in an address are never shown.

    data/demo   file:///data/demo                 this machine
    https://host/folder   s3://bucket/folder      a server, an object store (gs:// too)
    pipe:COMMAND                                  the output of a shell command; %s in it is replaced by the file's name

`str(address)` omits user, password and query, so that messages, logs and configs cannot reveal them; `login` and
`query` hold them.
"""

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from dist_ssl.errors import ConfigError, DataError

WEB = ("http", "https")
STORES = ("s3", "gs")
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
PIPE = "pipe:"
PLACE = "%s"
PORTLESS = re.compile(r"[^\[]*:(?!\d*$)")
"""A host that is followed by something else than a port: the beginning of a password."""
AS_WRITTEN = "!$&'()*+,;=:@/?%-._~"
"""Characters that libraries do not encode in a login or a query."""
SHORTEST_SECRET = 6
"""Characters of a value of a query, at least, that is hidden where it stands alone: a day is shorter."""
SHELL_SAFE = re.compile(r"[A-Za-z0-9_./][A-Za-z0-9_./-]*")


@dataclass(frozen=True)
class Address:
    """A folder or a file. `shown`: its local path, or its address without credentials."""

    shown: str
    scheme: str = ""
    """One of http, https, s3, gs, pipe; empty for a local path."""
    login: str = field(default="", repr=False)
    """Credentials as user:password, percent-encoded as they were written, or empty."""
    query: str = field(default="", repr=False)
    """Part after the `?`, which may hold a signature, or empty."""

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Parse an address or a local path. Raises ConfigError where it is malformed or of an unsupported kind."""
        if text.startswith(PIPE):
            return _pipe(text)
        found = SCHEME.match(text)
        if not found:
            return cls(str(Path(text)))
        scheme, rest = found[1].lower(), text[found.end() :]
        if scheme == "file":
            return _file(text)
        if scheme not in (*WEB, *STORES):
            raise ConfigError(
                f"{scheme}:// addresses are not supported.",
                "Use a local path, http(s)://, s3:// or gs://.",
            )
        place, _, query = rest.partition("?")
        host, slash, way = place.partition("/")
        login, _, host = host.rpartition("@")
        # after a port an @ may end a password of digits: https://user:1/2@host; it would stand in every file of the run
        if PORTLESS.match(host) or (not login and ":" in host and not host.endswith("]") and "@" in way + query):
            raise ConfigError(
                f"The user or the password in a {scheme}:// address has a character that ends them there, / or ?, or "
                "its path has an @ after a port.",
                "Write it percent-encoded: %2F for /, %3F for ?, %40 for @, %23 for #.",
            )
        shown = f"{scheme}://{host}{slash}{way}".rstrip("/")
        if not host:
            kind = "bucket" if scheme in STORES else "host"
            raise ConfigError(f"A {scheme}:// address names no {kind}.", "Write it between // and the next /.")
        if scheme in STORES and (login or query):
            raise ConfigError(
                f"{shown} was given with credentials: {scheme}:// takes none.",
                "Leave them to the environment or to the files of the store's own tools (~/.aws, say).",
            )
        return cls(shown, scheme, login, query)

    @property
    def local(self) -> bool:
        """Return whether it is on a file system of this machine."""
        return not self.scheme

    @property
    def path(self) -> Path:
        """Return the local path. Only for a local address."""
        assert self.local
        return Path(self.shown)

    @property
    def url(self) -> str:
        """Return the URL to request: with the query, without user and password, which are sent as a header."""
        return f"{self.shown}?{self.query}" if self.query else self.shown

    @property
    def secret(self) -> bool:
        """Return whether it holds credentials or a query, which must not be shown."""
        return bool(self.login or self.query)

    def __truediv__(self, name: str) -> "Address":
        """Return the address of a file in this folder.

        Raises DataError where the name is itself an address, or would be more than a name to the shell of a pipe.
        """
        if name.startswith(PIPE) or SCHEME.match(name):
            raise DataError(
                f"The manifest in {self} lists '{name}': that is an address, not a file name.",
                "Do not use this data: its author may want to run a command on your machine.",
            )
        if self.scheme == "pipe":
            if not SHELL_SAFE.fullmatch(name):  # quotes around %s would undo any quoting here
                raise DataError(
                    f"'{name}' cannot be read through {self}: it has characters that a shell may act on.",
                    "Names behind a pipe have a to z, A to Z, 0 to 9, and . _ / - (not first): rename the file, or use "
                    "another kind of address.",
                )
            return replace(self, shown=self.shown.replace(PLACE, name))
        if self.local:
            return replace(self, shown=str(self.path / name))
        return replace(self, shown=f"{self.shown}/{quote(name, errors='surrogateescape')}")

    def scrub(self, text: str) -> str:
        """Return a library's message, which may quote the address, with credentials and query replaced by ***."""
        logins = _spellings(self.login)
        parts = {part for own in logins for part in own.split(":", 1)}
        values = {value for own in self.query.split("&") if len(value := own.partition("=")[2]) >= SHORTEST_SECRET}
        found = logins | parts | _spellings(self.query).union(*map(_spellings, values))
        for secret in sorted(filter(None, found), key=len, reverse=True):  # the whole before its parts
            text = text.replace(secret, "***")
        return text

    def __str__(self) -> str:
        return self.shown


def _spellings(secret: str) -> set[str]:
    """Return a part of an address as it is written, as libraries send it, and decoded."""
    encoded = re.sub("%[0-9A-Fa-f]{2}", lambda found: found[0].upper(), quote(secret, safe=AS_WRITTEN))
    return {secret, encoded, unquote(secret), unquote(encoded)}


def _file(text: str) -> Address:
    """Parse an address like `file:///data/demo`."""
    parts = urlsplit(text)
    if parts.netloc not in ("", "localhost"):
        raise ConfigError(f"{text} names the host {parts.netloc}: file:// means this machine.", "Write file:///path.")
    return Address(str(Path(unquote(parts.path))))


def _pipe(text: str) -> Address:
    if PLACE not in text:
        raise ConfigError(f"{text} does not say where the file's name goes.", "Write %s there: 'pipe:cat folder/%s'.")
    return Address(text, "pipe")
