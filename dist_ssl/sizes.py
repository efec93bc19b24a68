"""Sizes carry units: `256MB`, `50GB`. A bare number is refused."""

from dist_ssl.errors import ConfigError

UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def parse_bytes(text: object, key: str) -> int:
    """`256MB` -> 256000000; `key` is what bears the size, for the message. Raises ConfigError."""
    number, unit = str(text).strip()[:-2].strip(), str(text).strip()[-2:].upper()
    if unit not in UNITS or not number.isascii() or not number.isdigit() or int(number) == 0:
        raise ConfigError(f"{key}={text} is not a size.", f"Write it like 256MB (units: {', '.join(UNITS)}).")
    return int(number) * UNITS[unit]
