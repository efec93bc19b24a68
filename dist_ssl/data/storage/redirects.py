"""Redirects that are not followed: away from https, or from a public host to an address inside the reader's network."""

import ipaddress
from urllib.parse import urljoin, urlsplit

from dist_ssl.data.storage.address import WEB, Address
from dist_ssl.errors import DataError


def check_redirect(address: Address, before: str, url: str) -> None:
    """Raise DataError where a redirect leads away from https, or from a public host into this network."""
    old, new = urlsplit(before), urlsplit(url)
    place = f"{new.scheme}://{new.hostname}"
    if new.scheme not in WEB or (old.scheme == "https" and new.scheme != "https"):
        raise DataError(
            f"{address} leads to {place}, which is not https.", "Set data.path to the address where the data lies now."
        )
    if _inside(new.hostname) and not _inside(old.hostname):
        raise DataError(
            f"{address} leads to {place}, a host of your own network.",
            "Do not use this data, or, if you trust it, set data.path to that address.",
        )


def redirected(address: Address, before: str, place: str) -> str:
    """Return the address that a server names in a redirect from `before`. Raises DataError if it is not followed."""
    try:
        url = urljoin(before, place)
        check_redirect(address, before, url)
    except ValueError as error:  # of the standard library, for brackets that are no address
        raise DataError(f"{address} leads to an address that makes no sense ({error}).", "Check data.path.") from error
    return url


def _inside(host: str | None) -> bool:
    """Return whether a host is written as an address of this machine or of its network."""
    if not host or host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        found = ipaddress.ip_address(host)
    except ValueError:
        return False
    return not found.is_global
