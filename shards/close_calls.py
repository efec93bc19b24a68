"""Says where a fact about pictures lies so near a rule's limit that the rule might as well have chosen otherwise.

Each limit has one function: facts in, the same facts moved to the other side of the limit out, if they are near it. The
rules are asked again about those; where their answer differs, it is named as what the command may say instead.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from dist_ssl.config.bounds import RGB
from shards.depth import white_for
from shards.folder_facts import PAIRS, Facts
from shards.picture_rules import (
    FEW,
    GREY,
    MANY,
    NOTICED,
    SMALL,
    TELLING,
    KeyChoice,
    choices,
    looked_at,
    uncertain,
)

NEAR = 0.05
"""How far from its limit a share is near it."""
NEARLY = 0.1
"""How far from its limit a number or a length is near it, as a part of the limit."""
A_LITTLE = 1e-6
PLAIN_COLOURS = {
    "brightness": "0.4",
    "contrast": "0.4",
    "saturation": "0.2",
    "hue": "0.1",
    "jitter_p": "0.8",
    "gray_p": "0.2",
}
"""Colours of `views=pictures`, which hold where no rule chooses others."""
PLAIN = {f"views.{view}.{key}": value for view in ("view1", "view2") for key, value in PLAIN_COLOURS.items()}
SIZES = ("schedule.image_size", "encoder", "optim.base_lr", "epochs")
TURNS = ("views.view1.turn_p", "views.view2.turn_p")
COLOURS = tuple(PLAIN)


class CloseCall(NamedTuple):
    """Choices that would have been made on the other side of a limit, and how near the limit is."""

    instead: list[KeyChoice]
    reason: str


class Moved(NamedTuple):
    """Facts on the other side of a limit, in words how near the true ones are to it, and the keys that it decides."""

    facts: Facts
    how_near: str
    keys: tuple[str, ...]


def by_side(facts: Facts) -> Moved | None:
    """Move the middle of the lengths of the shorter sides."""
    low, middle, high = facts.short_sides
    if abs(middle - SMALL) > NEARLY * SMALL:
        return None
    moved = (min(low, SMALL), SMALL, high) if middle > SMALL else (low, SMALL + 1, max(high, SMALL + 1))
    text = f"half of the shorter sides have at most {middle} px, and up to {SMALL} px pictures count as small"
    return Moved(replace(facts, short_sides=moved), text, SIZES)


def by_number(facts: Facts) -> Moved | None:
    """Move the number of pictures."""
    limit = next((limit for limit in (FEW, MANY) if abs(facts.train - limit) <= NEARLY * limit), None)
    if limit is None:
        return None
    moved = limit - 1 if facts.train >= limit else limit
    text = f"there are {facts.train} pictures, and from {limit} on there are many"
    return Moved(replace(facts, train=moved), text, SIZES[:-1])


def by_grey(facts: Facts) -> Moved | None:
    """Move the share of grey pictures."""
    if len(facts.mean) != RGB or abs(facts.grey - GREY) > NEAR or facts.grey == 1:
        return None
    moved = GREY - A_LITTLE if facts.grey >= GREY else GREY
    text = f"{percent(facts.grey)} of the pictures are grey, and from {percent(GREY)} on colours are left alone"
    return Moved(replace(facts, grey=moved), text, COLOURS)


def by_hues(facts: Facts) -> Moved | None:
    """Move how often other hues are noticed."""
    coloured = (1 - facts.grey) * looked_at(facts)
    limit = NOTICED - uncertain(coloured)
    if len(facts.mean) != RGB or facts.grey >= GREY or coloured < PAIRS or abs(facts.recoloured - limit) > NEAR:
        return None
    moved = limit + A_LITTLE if facts.recoloured < limit else limit - A_LITTLE
    text = f"{percent(facts.recoloured)} of other hues are noticed, and below {percent(limit)} any colour is as likely"
    return Moved(replace(facts, recoloured=moved), text, COLOURS)


def by_colour(facts: Facts) -> Moved | None:
    """Move the share of the variance of colour that is between pictures."""
    if abs(facts.colour - TELLING) > NEAR:
        return None
    moved = TELLING - A_LITTLE if facts.colour >= TELLING else TELLING
    text = f"{percent(facts.colour)} of the variance of colour is between pictures, and from {percent(TELLING)} on"
    return Moved(replace(facts, colour=moved), f"{text} colour tells them apart", COLOURS)


def by_turns(facts: Facts) -> Moved | None:
    """Move how often quarter turns are noticed."""
    limit = NOTICED - uncertain(looked_at(facts))
    if looked_at(facts) < PAIRS or abs(facts.turned - limit) > NEAR:
        return None
    moved = limit + A_LITTLE if facts.turned < limit else limit - A_LITTLE
    text = f"{percent(facts.turned)} of quarter turns are noticed, and below {percent(limit)} they do not matter"
    return Moved(replace(facts, turned=moved), text, TURNS)


def by_white(facts: Facts) -> Moved | None:
    """Move the largest value of deep pictures, where it is a little above the white of fewer bits."""
    white = (1 << max(0, facts.deepest.bit_length() - 1)) - 1
    if facts.floats or facts.deepest <= 0 or facts.deepest - white > NEARLY * white or white_for(white, False) is None:
        return None
    text = f"values end at {facts.deepest}, a little above {white}, the white of fewer bits"
    return Moved(replace(facts, deepest=white), text, ("data.range",))


LIMITS: tuple[Callable[[Facts], Moved | None], ...] = (
    by_side,
    by_number,
    by_grey,
    by_hues,
    by_colour,
    by_turns,
    by_white,
)


def percent(share: float) -> str:
    """Return a share, 0 to 1, in per cent."""
    return f"{100 * share:.1f} %"


def close_calls(facts: Facts) -> list[CloseCall]:
    """Return what would have been chosen where a fact is near a limit, without what would have been the same."""
    own = {choice.key: choice for choice in choices(facts)}
    found = []
    for moved in (limit(facts) for limit in LIMITS):
        if moved is None:
            continue
        other = {choice.key: choice for choice in choices(moved.facts)}
        values = {key: other[key].value if key in other else PLAIN.get(key) for key in moved.keys}
        before = {key: own[key].value if key in own else PLAIN.get(key) for key in moved.keys}
        instead = [
            KeyChoice(key, value, moved.how_near, other[key].beside if key in other else "")
            for key, value in values.items()
            if value is not None and value != before[key]
        ]
        found += [CloseCall(instead, moved.how_near)] if instead else []
    return found


def close_lines(calls: Sequence[CloseCall]) -> list[str]:
    """Return a line for each close call: what the command may say instead, as it is typed, then how near it is."""
    shown = [f"  {' '.join(f'{one.key}={one.value}' for one in call.instead)}   {call.reason}" for call in calls]
    return (
        ["Close to a limit, where the other choice may be as good; to make it, add its words:", *shown] if shown else []
    )
