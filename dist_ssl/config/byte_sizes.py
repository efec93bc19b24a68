"""Sizes in bytes are written with a unit: `256MB`, `50GB`. A bare number is refused."""

from dist_ssl.errors import ConfigError

UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def parse_bytes(text: object, key: str) -> int:
    """Return the number of bytes: `256MB` -> 256000000. `key`: the config key, for the message. Raises ConfigError."""
    number, unit = str(text).strip()[:-2].strip(), str(text).strip()[-2:].upper()
    if unit not in UNITS or not number.isascii() or not number.isdigit() or int(number) == 0:
        raise ConfigError(f"{key}={text} is not a size.", f"Write it like 256MB (units: {', '.join(UNITS)}).")
    return int(number) * UNITS[unit]


def show_bytes(size: int) -> str:
    """Format a size, rounded up, in the largest unit that is not above it: 256000001 -> `257MB`."""
    name, unit = next(((n, u) for n, u in reversed(UNITS.items()) if size >= u), ("KB", UNITS["KB"]))
    return f"{-(-size // unit)}{name}"
