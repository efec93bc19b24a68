"""Connections to web servers; those to hosts that a public one has led to reach no address inside the network.

A name may lead elsewhere when the connection is made than when it was looked up for `redirects`, so what counts is the
address at the other end, before anything is sent to it.
"""

import socket

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

from dist_ssl.data.storage.patient_answers import PatientAnswer
from dist_ssl.data.storage.redirects import is_public


class InnerAddressError(Exception):
    """A host that a public one has led to has an address inside the network by now."""

    def __init__(self, host: str) -> None:
        super().__init__(host)
        self.host = host


class _Connection(HTTPConnection):
    response_class = PatientAnswer


class _SecureConnection(HTTPSConnection):
    response_class = PatientAnswer


class _Led(HTTPConnection):
    """A connection that only a proxy or a public address may be at the other end of."""

    def _new_conn(self) -> socket.socket:
        sock = super()._new_conn()
        if self.proxy is None and not is_public(sock.getpeername()[0]):
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


def peer_of(response: urllib3.BaseHTTPResponse) -> str | None:
    """Return the number of the address that an answer comes from; None where it is a proxy's, or already unknown."""
    connection = response.connection
    if not isinstance(connection, HTTPConnection) or connection.proxy is not None or connection.sock is None:
        return None
    return str(connection.sock.getpeername()[0])
