"""Where data lies: a folder or a file, on this machine or behind an address; what is secret in it is never shown.

    data/demo   file:///data/demo                 this machine
    https://host/folder   s3://bucket/folder      a server, an object store (gs:// too)
    pipe:COMMAND                                  what a shell command prints; %s in it becomes the file's name

As text an address is without user, password and query, so messages, logs and configs cannot give them away; `url` is
the whole of it.
"""

import re
import shlex
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from dist_ssl.errors import ConfigError, DataError

WEB = ("http", "https")
STORES = ("s3", "gs")
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
PIPE = "pipe:"
PLACE = "%s"


@dataclass(frozen=True)
class Address:
    """A folder or a file. `shown`: its address without what is secret, or its path."""

    shown: str
    scheme: str = ""
    """http, https, s3, gs, pipe; empty on this machine."""
    login: str = field(default="", repr=False)
    """user:password."""
    query: str = field(default="", repr=False)

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Read an address. Raises ConfigError."""
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
                f"{scheme}:// is no kind of address that shards can be read from.",
                "Use a local path, http(s)://, s3:// or gs://.",
            )
        place, _, query = rest.partition("?")
        host, slash, way = place.partition("/")
        login, _, host = host.rpartition("@")
        shown = f"{scheme}://{host}{slash}{way}".rstrip("/")
        if not host:
            raise ConfigError(f"{shown}// names no {'bucket' if scheme in STORES else 'host'}.", "Correct the address.")
        if scheme in STORES and (login or query):
            raise ConfigError(
                f"{shown} was given with credentials: {scheme}:// takes none.",
                "Leave them to the environment or to the files of the store's own tools (~/.aws, say).",
            )
        return cls(shown, scheme, login, query)

    @property
    def local(self) -> bool:
        """It lies on this machine, or on a file system of it."""
        return not self.scheme

    @property
    def path(self) -> Path:
        """Where it lies on this machine."""
        assert self.local
        return Path(self.shown)

    @property
    def url(self) -> str:
        """What to ask for: with the query, without user and password, which are sent beside it."""
        return f"{self.shown}?{self.query}" if self.query else self.shown

    @property
    def secret(self) -> bool:
        """There is something that must not be shown."""
        return bool(self.login or self.query)

    def __truediv__(self, name: str) -> "Address":
        """A file in this folder. Raises DataError where the name is an address of its own."""
        if name.startswith(PIPE) or SCHEME.match(name):
            raise DataError(
                f"The manifest in {self} lists '{name}': an address is no file name.",
                "Do not use this data: who wrote it may want a command to be run on your machine.",
            )
        if self.scheme == "pipe":
            return replace(self, shown=self.shown.replace(PLACE, shlex.quote(name)))
        return replace(self, shown=str(self.path / name) if self.local else f"{self.shown}/{quote(name)}")

    def scrub(self, text: str) -> str:
        """A text of a library, which may quote the address, without what is secret."""
        for word in filter(None, (self.query, self.login, *self.login.split(":", 1))):
            text = text.replace(word, "***")
        return text

    def __str__(self) -> str:
        return self.shown


def _file(text: str) -> Address:
    """Of `file:///data/demo`."""
    parts = urlsplit(text)
    if parts.netloc not in ("", "localhost"):
        raise ConfigError(f"{text} names the host {parts.netloc}: file:// means this machine.", "Write file:///path.")
    return Address(str(Path(unquote(parts.path))))


def _pipe(text: str) -> Address:
    if PLACE not in text:
        raise ConfigError(f"{text} does not say where the file's name goes.", "Write %s there: 'pipe:cat folder/%s'.")
    return Address(text, "pipe")
