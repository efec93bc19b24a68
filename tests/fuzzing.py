"""Mutations of bytes and of JSON values, for tests that feed a reader what a stranger may have written."""

import random
from typing import Any

NASTY: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 2**31, 2**40, 2**63, 2**64, -(2**63), 0.5, 1e308, float("nan"), float("inf")),
    *("", ".", "..", "../../thesis", "/etc/passwd", "a\x00b", "\x1b[2J", "\u00b2", "x" * 100_000, "pipe:touch x"),
    *("http://elsewhere/x", "0" * 64, "f" * 32, "rank_00000.safetensors", [], {}, [[]], [0] * 1000, {"": {}}),
)
"""Values of other types, out of every range, and names that lead elsewhere."""
NUMBERS = (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\x01", b"\x80\0\0\0")


def mutated(data: bytes, chance: random.Random) -> bytes:
    """Return the bytes after one to four changes: flips, other numbers, pieces cut out, doubled, moved or put in."""
    for _ in range(chance.randint(1, 4)):
        if not data:
            return chance.randbytes(16)
        first = chance.randrange(len(data))
        end = min(len(data), first + chance.choice([1, 2, 4, 16, 256, 4096]))
        piece, kind = data[first:end], chance.randrange(7)
        new = {
            0: bytes([piece[0] ^ (1 << chance.randrange(8))]) + piece[1:],
            1: chance.choice(NUMBERS),
            2: b"",
            3: piece + piece,
            4: chance.randbytes(len(piece)),
            5: piece + chance.randbytes(chance.randint(1, 64)),
        }
        data = data[:first] if kind == 6 else data[:first] + new[kind] + data[end:]
    return data


def edited(value: Any, chance: random.Random) -> Any:
    """Return a JSON value in which something, at any depth, is of another kind, missing, doubled or new."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        key = chance.choice(sorted(value))
        rest = {name: own for name, own in value.items() if name != key}
        new = {0: rest, 1: {**value, str(chance.choice(NASTY))[:50]: chance.choice(NASTY)}}
        return new.get(chance.randrange(8), {**value, key: edited(value[key], chance)})
    if isinstance(value, list) and value and chance.random() < 0.9:
        place = chance.randrange(len(value))
        new = {0: value[:place], 1: [*value, value[place]], 2: value[::-1]}
        inner = [*value[:place], edited(value[place], chance), *value[place + 1 :]]
        return new.get(chance.randrange(8), inner)
    return chance.choice(NASTY)
