"""Servers that speak TLS badly, or have certificates that nobody should trust, and one that is in order."""

import datetime
import ipaddress
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.fuzzing import mutated

Kind = Callable[[socket.socket, Random], None]
RECORD = b"\x16\x03\x03"
"""How a part of a handshake begins."""
CERTIFICATES = {
    "trusted": ("127.0.0.1", 365),
    "another host's": ("127.0.0.2", 365),
    "expired": ("127.0.0.1", -1),
    "self-signed": ("127.0.0.1", 365),
}
"""Host and days of validity of each certificate. Readers trust all of them but the last, by TRUSTED."""
TRUSTED = "trusted.pem"


def write_certificates(folder: Path) -> dict[str, ssl.SSLContext]:
    """Write a certificate of each kind and the list of those that are trusted; return the servers' contexts."""
    contexts = {}
    for name, (host, days) in CERTIFICATES.items():
        certificate, key = _certificate(host, days)
        path = folder / f"{name}.pem.key"
        path.write_bytes(key + certificate)
        contexts[name] = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        contexts[name].load_cert_chain(path)
        if name != "self-signed":
            with (folder / TRUSTED).open("ab") as trusted:
                trusted.write(certificate)
    return contexts


def _certificate(host: str, days: int) -> tuple[bytes, bytes]:
    """Return a certificate for an address, and its key."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host)])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(9))
    builder = builder.not_valid_after(now + datetime.timedelta(days))
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host))])
    certificate = builder.add_extension(names, critical=False).sign(key, hashes.SHA256())
    encoding = serialization.Encoding.PEM
    plain = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return certificate.public_bytes(encoding), key.private_bytes(encoding, *plain)


def kinds(contexts: dict[str, ssl.SSLContext], answering: Kind) -> dict[str, Kind]:
    """Return what a server may do on a connection, by name; `answering`: what it does once TLS has been agreed on."""

    def speaking(context: ssl.SSLContext) -> Kind:
        def kind(connection: socket.socket, chance: Random) -> None:
            with context.wrap_socket(connection, server_side=True) as secure:
                answering(secure, chance)

        return kind

    def damaged(connection: socket.socket, chance: Random) -> None:
        connection.sendall(mutated(_first_part(contexts["trusted"], connection.recv(1 << 16)), chance))
        connection.recv(1)

    def cut(connection: socket.socket, chance: Random) -> None:
        first = _first_part(contexts["trusted"], connection.recv(1 << 16))
        connection.sendall(first[: chance.randrange(len(first))])

    spoken = {f"TLS, {name} certificate": speaking(context) for name, context in contexts.items()}
    return spoken | {
        "TLS, damaged": damaged,
        "TLS, cut off": cut,
        "TLS, something else": _something_else,
        "TLS, dripped": _dripped,
        "TLS, endless": _endless,
        "TLS, silent": lambda connection, chance: connection.recv(1 << 16) and connection.recv(1) and None,
    }


def _first_part(context: ssl.SSLContext, hello: bytes) -> bytes:
    """Return what a server in order sends first."""
    came, goes = ssl.MemoryBIO(), ssl.MemoryBIO()
    came.write(hello)
    with suppress(ssl.SSLError):
        context.wrap_bio(came, goes, server_side=True).do_handshake()
    return goes.read()


def _something_else(connection: socket.socket, chance: Random) -> None:
    connection.recv(1 << 16)
    connection.sendall(
        chance.choice([b"HTTP/1.1 200 OK\r\n\r\n", b"\x15\x03\x01\x00\x02\x02\x28", chance.randbytes(99)])
    )


def _dripped(connection: socket.socket, chance: Random) -> None:
    connection.recv(1 << 16)
    connection.sendall(RECORD + b"\x40\x00\x02\x00\x3f\xfc")
    while True:
        connection.sendall(b"x")
        time.sleep(0.02)


def _endless(connection: socket.socket, chance: Random) -> None:
    """Send requests for a handshake, which OpenSSL reads and passes over for as long as it finds some."""
    connection.recv(1 << 16)
    body = b"\x00\x00\x00\x00" * 4000
    many = (RECORD + len(body).to_bytes(2, "big") + body) * 256
    while True:
        connection.sendall(many)
