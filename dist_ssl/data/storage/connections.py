"""Connections to web servers; those to hosts that a public one has led to reach no address inside the network.

A name may lead elsewhere when the connection is made than when it was looked up for `redirects`, so what counts is the
address at the other end, before anything is sent to it.
"""

import socket
import time
from contextlib import ExitStack
from typing import Any

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError
from urllib3.util import parse_url
from urllib3.util.connection import allowed_gai_family

from dist_ssl.data.storage.bounded_responses import BoundedResponse
from dist_ssl.data.storage.deadlines import Until
from dist_ssl.data.storage.redirects import is_public
from dist_ssl.errors import DataError

CONNECTIONS = 32
"""Number of connections kept open per host."""
HANDSHAKES = 3
"""How many times the timeout of a connection agreeing on TLS may take: with a proxy, through it, and with the host."""
ALL_ADDRESSES_SECONDS = 30.0
"""Bound of the time for which the addresses of a name are tried, one after the other: it may have thousands."""


class InnerAddressError(Exception):
    """A host that a public one has led to has an address inside the network by now."""

    def __init__(self, host: str) -> None:
        super().__init__(host)
        self.host = host


class _Known(HTTPConnection):
    """A connection that remembers whether a public address is at its other end, also once it is closed."""

    response_class = BoundedResponse
    public = True

    def connect(self) -> None:
        """See urllib3; the time of all handshakes together is bounded."""
        with ExitStack() as self._while_connecting:
            super().connect()

    def _new_conn(self) -> socket.socket:
        sock = self._to_first_address()
        self.public = is_public(sock.getpeername()[0])
        if self.timeout is not None and isinstance(self, HTTPSConnection):
            again = self._while_connecting.enter_context(sock.dup())  # TLS takes this one's place before it begins
            self._while_connecting.enter_context(Until(again, time.monotonic() + HANDSHAKES * self.timeout))
        return sock

    def _to_first_address(self) -> socket.socket:
        """Return a socket to the first address of the host that answers. Raises what urllib3 raises where none does."""
        host, timeout = self._dns_host, self.timeout
        try:
            rows = socket.getaddrinfo(host, self.port, allowed_gai_family(), socket.SOCK_STREAM)
        except socket.gaierror as error:
            raise NameResolutionError(self.host, self, error) from error
        except UnicodeError:
            return super()._new_conn()  # which raises urllib3's error
        ends = time.monotonic() + ALL_ADDRESSES_SECONDS
        problem: Exception | None = None
        try:
            for address in dict.fromkeys(str(own[0]) for *_, own in rows):
                left = ends - time.monotonic()
                if problem and left <= 0:
                    break
                self._dns_host, self.timeout = address, left if timeout is None else min(timeout, left)
                try:
                    return super()._new_conn()
                except (ConnectTimeoutError, NewConnectionError) as error:
                    problem = error
        finally:
            self._dns_host, self.timeout = host, timeout
        raise problem or NewConnectionError(self, f"{host} has no address")


class _Connection(_Known):
    pass


class _SecureConnection(_Known, HTTPSConnection):
    pass


class _Led(_Known):
    """A connection that only a proxy or a public address may be at the other end of."""

    def _new_conn(self) -> socket.socket:
        sock = super()._new_conn()
        if self.proxy is None and not self.public:
            sock.close()
            raise InnerAddressError(self.host)
        return sock


class _LedConnection(_Led, _Connection):
    pass


class _LedSecureConnection(_Led, _SecureConnection):
    pass


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection


class _SecurePool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _SecureConnection


class _LedPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _LedConnection


class _LedSecurePool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _LedSecureConnection


POOLS = {False: {"http": _Pool, "https": _SecurePool}, True: {"http": _LedPool, "https": _LedSecurePool}}
"""Kinds of connection pools by whether a public host has led to theirs, and by scheme."""


def pools(proxy: str, variable: str, led: bool) -> urllib3.PoolManager:
    """Return pools of connections through a proxy, or without one where `proxy` is empty.

    `variable`: of the environment, which holds the proxy; `led`: a public host has led away from the address. Raises
    DataError for a proxy that cannot be used, and quotes nothing of it: a part of a password may stand for its host.
    """
    options: dict[str, Any] = {"num_pools": 8, "maxsize": CONNECTIONS}
    try:
        read = parse_url(proxy)
        if any("@" in (part or "") for part in (read.path, read.query, read.fragment)):
            raise ValueError
        made = urllib3.ProxyManager(proxy, **options) if proxy else urllib3.PoolManager(**options)
    except ValueError:
        raise DataError(
            f"The proxy in {variable} cannot be used: it is no address of the form http://host:port.",
            "Correct the variable, with %2F for / and %40 for @ in a password, or unset it.",
        ) from None
    made.pool_classes_by_scheme = POOLS[led]
    return made


def from_public(response: urllib3.BaseHTTPResponse) -> bool | None:
    """Return whether an answer comes from a public address; None where a proxy stands between."""
    connection = response.connection
    if not isinstance(connection, _Known):
        return True  # it is not known any more, so no trust is put in it
    return None if connection.proxy is not None else connection.public
