"""Redirects that are not followed: away from https, or from a public host to an address inside the reader's network."""

import ipaddress
import re
import socket
import time
from functools import lru_cache
from urllib.parse import urljoin

from urllib3.util import parse_url

from dist_ssl.data.storage.address import WEB, Address
from dist_ssl.errors import DataError

TRANSLATED = [ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("::/96")]
"""Networks whose addresses end with an IPv4 address that a router translates them to."""
AMBIGUOUS = re.compile(r"[\x00-\x1f\x7f\\]")
"""Characters by which readers of an address differ on its host: one ends it there, another leaves them out."""
LOOKED_UP_SECONDS = 60
"""Time for which the addresses of a host are remembered: a server may redirect every read of a sample."""


def check_redirect(address: Address, before: str, url: str, from_public: bool | None = None) -> bool:
    """Return whether a redirect comes from a public host: it must lead to a public address then.

    `from_public`: whether the address is public that the redirect came from, None where a proxy stands between; what
    the name of its host leads to may have changed since. Raises DataError where the redirect leads away from https, or
    from a public host into this network; ValueError for an address without a host, or with a user or a zone.
    """
    old, new = parse_url(before), parse_url(url)  # as the client reads it that connects
    if not new.host or new.auth or "%" in new.host:
        raise ValueError("it names no plain host")
    place = f"{new.scheme}://{new.host}"
    if new.scheme not in WEB or (old.scheme == "https" and new.scheme != "https"):
        raise DataError(
            f"{address} leads to {place}, which is not https.", "Set data.path to the address where the data lies now."
        )
    public = from_public is True
    if new.host == old.host:
        return public
    there, here = _insides(new.host), _insides(old.host or "")
    public = public or not (here and all(here))
    if any(there) and public:
        raise inner_host(address, place)
    return public


def inner_host(address: Address, place: str) -> DataError:
    """Return the error of data at an address that leads into the reader's network."""
    return DataError(
        f"{address} leads to {place}, a host of your own network.",
        "Do not use this data, or, if you trust it, set data.path to that address.",
    )


def redirected(address: Address, before: str, place: str, from_public: bool | None) -> tuple[str, bool]:
    """Return the address that a server names in a redirect from `before`, and what `check_redirect` returns of it.

    The address is spelt out, so that a proxy reads the same host in it. Raises DataError if the redirect is not
    followed.
    """
    try:
        if AMBIGUOUS.search(place):
            raise ValueError("it has a backslash or a control character")
        url = parse_url(urljoin(before, place)).url
        public = check_redirect(address, before, url, from_public)
    except ValueError as error:  # of either library too, for brackets that are no address
        said = address.scrub(str(error))
        raise DataError(f"{address} leads to an address that makes no sense ({said}).", "Check data.path.") from error
    return url, public


def _insides(host: str) -> tuple[bool, ...]:
    """Return of each address of a host whether it is this machine's or its network's; nothing where it has none."""
    return _looked_up(host.strip("[]").rstrip("."), int(time.monotonic() / LOOKED_UP_SECONDS))


@lru_cache(maxsize=256)
def _looked_up(host: str, _period: int) -> tuple[bool, ...]:
    """Return `_insides` of a host; `_period`: number of the time span for which it is remembered."""
    if not host:
        return (True,)
    try:
        rows = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):  # a proxy may know the name; without one, `connections` looks at what it leads to
        return ()
    return tuple(not is_public(str(address[0])) for *_, address in rows)


def is_public(text: str) -> bool:
    """Return whether the number of an address is a public one. Raises ValueError for anything else."""
    found = ipaddress.ip_address(text)
    inner = _within(found) if isinstance(found, ipaddress.IPv6Address) else None
    return (inner or found).is_global and not (inner or found).is_multicast


def _within(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """Return the IPv4 address that an IPv6 address stands for, None if it stands for none."""
    if found := address.ipv4_mapped or address.sixtofour:
        return found
    return ipaddress.IPv4Address(address.packed[12:]) if any(address in net for net in TRANSLATED) else None
