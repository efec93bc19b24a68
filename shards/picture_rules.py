"""The rules by which a run is fitted to pictures of a folder or of shards: facts in, keys with values and reasons out.

Each rule is a pure function of the facts. The table in configs/README.md says the same in words; to add a rule, append
its function to RULES and its row to that table. Where a command sets a key, or the choice of its group, it wins.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from dist_ssl.config.bounds import RGB
from dist_ssl.data.images.image_rules import counted
from dist_ssl.data.images.views import OF_COLOURS
from dist_ssl.errors import plural
from shards.depth import white_for
from shards.folder_facts import PAIRS, Facts

SMALL = 64
"""Shorter side, px, up to which pictures count as small."""
FEW, MANY = 10_000, 100_000
"""Numbers of pictures below which, and from which, photographs are treated differently."""
DEFAULT_METHOD = "mocov3"
LIKE_IMAGENET = 0.05
"""Largest difference of a mean or a standard deviation for which ImageNet's are used."""
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
GREY = 0.95
"""Share of grey pictures from which changes of colour are left out."""
TELLING = 0.5
"""Share of the variance of colour between pictures from which colour alone tells pictures apart."""
NOTICED = 0.58
"""How often a change of the pictures may be noticed, with two standard errors, of one that does not matter."""
TINY_CROPS = 300_000
"""Pictures, counted with repetition, that the tiny encoder trains on; a larger encoder on small folders: FEW_CROPS."""
FEW_CROPS = 2_000_000
BATCH = 96
ANY_COLOUR = {
    "brightness": "0.6",
    "contrast": "0.6",
    "saturation": "0.6",
    "hue": "0.5",
    "jitter_p": "1.0",
    "gray_p": "0.5",
}
"""Colours of views of pictures that have any colours: what is left the same is shape and texture."""
ALLOWED, MOST_DAMAGED = 0.005, 0.2
"""Share of unreadable pictures from which the default limit, 1 %, may not do, and the highest limit that is chosen."""


class KeyChoice(NamedTuple):
    """A key of the config, the value that is chosen for it, as on a command line, and why."""

    key: str
    value: str
    reason: str
    beside: str = ""
    """Key whose choice this one presumes: where the command makes that one, this one is left out too."""


Rule = Callable[[Facts], list[KeyChoice]]


def small(facts: Facts) -> bool:
    """Return whether the pictures are small: at least half of them."""
    return facts.short_sides[1] <= SMALL


def side(facts: Facts) -> int:
    """Return the side of the views, px."""
    shortest = facts.short_sides[0]
    if small(facts):
        return min(32, max(16, shortest // 4 * 4))
    most = 96 if facts.train < FEW else 128 if facts.train < MANY else 224
    return min(most, max(64, shortest // 32 * 32))


def batch(facts: Facts) -> int:
    """Return the batch size: the default, or one that few pictures fill at least twice."""
    return next((size for size in (BATCH, 48, 24, 12, 6, 4) if 2 * size <= facts.train), 2)


def used(facts: Facts) -> int:
    """Return the number of pictures of an epoch, those that whole batches have; which ones differs between epochs.

    Of a single picture, with which no run is possible, it is 1.
    """
    return facts.train - facts.train % batch(facts) or facts.train


def epochs(facts: Facts) -> int:
    """Return the number of epochs."""
    if small(facts):
        return min(400, max(20, round(TINY_CROPS / used(facts))))
    return min(400, max(100, round(FEW_CROPS / used(facts))))


def share_of_crops(facts: Facts) -> float:
    """Return the smallest share of a picture's area in a crop: at least 0.2, and no crop is enlarged more than twice.

    Of pictures that are smaller than the views it is at most 0.6.
    """
    share = (side(facts) / (2 * facts.short_sides[0])) ** 2
    return min(0.6, max(0.2, math.ceil(100 * share) / 100))


def of_the_probe(facts: Facts) -> list[KeyChoice]:
    """Choose the held-out split, and the part of a picture that the probe sees."""
    labelled = facts.val > 0 and facts.classes > 0
    why = (
        f"{plural(facts.val, 'held-out picture')}, {plural(facts.classes, 'class', 'classes')}"
        if labelled
        else "no labelled pictures are held out: no accuracy is probed"
    )
    found = [KeyChoice("data.val", "val" if labelled else "null", why)]
    seen = str(side(facts)) if small(facts) else "null"
    why = "whole small pictures" if small(facts) else "the centre of a picture"
    found += [KeyChoice(f"probe.{key}", seen, f"the probe sees {why}") for key in ("crop", "resize")]
    if epochs(facts) >= 100:
        found.append(KeyChoice("probe.every", "'5 epochs'", "epochs are many and short", beside="epochs"))
    return found


def of_the_size(facts: Facts) -> list[KeyChoice]:
    """Choose the side of the views."""
    low, middle, high = facts.short_sides
    why = f"shorter sides are {low} to {high} px, half of them at most {middle}"
    if not small(facts):
        why += f"; {plural(facts.train, 'picture')}"
    return [KeyChoice("schedule.image_size", str(side(facts)), why)]


def of_the_encoder(facts: Facts) -> list[KeyChoice]:
    """Choose the encoder, and for a larger one than the demo's the learning rate."""
    if small(facts):
        return [KeyChoice("encoder", "tiny", f"the pictures are small, up to {SMALL} px")]
    name, rate = ("resnet50", "3e-4") if facts.train >= MANY else ("resnet18", "1.5e-3")
    size = f"{MANY} pictures or more" if facts.train >= MANY else f"photographs, fewer than {MANY}"
    return [
        KeyChoice("encoder", name, size),
        KeyChoice("optim.base_lr", rate, f"for {name}: the default is the tiny encoder's", beside="encoder"),
    ]


def of_the_length(facts: Facts) -> list[KeyChoice]:
    """Choose the number of epochs, and a batch that few pictures fill at least twice."""
    own, seen = used(facts), epochs(facts) * used(facts)
    why = f"{own} of {plural(facts.train, 'picture')} in each, as many as fill whole batches: {seen:,}"
    found = [KeyChoice("epochs", str(epochs(facts)), why)]
    if batch(facts) != BATCH:
        found.append(KeyChoice("batch_size", str(batch(facts)), f"only {plural(facts.train, 'picture')}"))
    return found


def method_for(facts: Facts) -> str:
    """Return the method that a printed command names: on one node SimCLR learns fewer than MANY pictures sooner.

    A run of `data=folder` has the method that its command names. What was measured stands in configs/CHOOSING.md.
    """
    return "simclr" if facts.train < MANY else DEFAULT_METHOD


def looked_at(facts: Facts) -> int:
    """Return the number of pictures that were measured and could be read."""
    return facts.measured - facts.unreadable


def uncertain(pictures: float) -> float:
    """Return twice the standard error of a share measured on this many pictures, at its largest: that of one half."""
    return 1 / math.sqrt(max(1.0, pictures))


def of_the_crops(facts: Facts) -> list[KeyChoice]:
    """Choose augmentations of which only the crops and the blur depend on the size of the pictures."""
    share = share_of_crops(facts)
    found = [KeyChoice("views", "pictures", "the pair of BYOL")]
    why = f"crops of at least {100 * share:.0f} % of the area: enlarged at most twice"
    found += both("crop_min", f"{share:g}", why)
    return found + (both("blur_p", "0.0", "a blur would erase small pictures") if small(facts) else [])


def of_the_turns(facts: Facts) -> list[KeyChoice]:
    """Choose quarter turns where turned pictures cannot be distinguished from the others."""
    noticed = f"{100 * facts.turned:.0f} % of quarter turns are noticed"
    error = uncertain(looked_at(facts))
    if facts.turned + error < NOTICED:
        return both("turn_p", "0.75", f"things lie at any angle: {noticed}")
    if looked_at(facts) < PAIRS:
        noticed = f"fewer than {PAIRS} pictures"
    upright = facts.turned - error >= NOTICED
    why = "orientation matters" if upright else "whether orientation matters is not known, so the gentle choice"
    return both("turn_p", "0.0", f"{why}: {noticed}")


def of_the_colours(facts: Facts) -> list[KeyChoice]:
    """Choose how strongly colours are changed."""
    if len(facts.mean) != RGB:
        why = f"{counted(len(facts.mean))}: these need red, green and blue"
        return [choice for key in OF_COLOURS for choice in both(key, "0.0", why)]
    if facts.grey >= GREY:
        why = f"{100 * facts.grey:.0f} % of the pictures are grey"
        return [choice for key in OF_COLOURS for choice in both(key, "0.0", why)]
    if facts.recoloured + uncertain((1 - facts.grey) * looked_at(facts)) < NOTICED:
        why = f"any colour is as likely: {100 * facts.recoloured:.0f} % of other hues are noticed"
        return [choice for key, value in ANY_COLOUR.items() for choice in both(key, value, why)]
    if facts.colour < TELLING:
        return []
    why = f"colour tells pictures apart ({100 * facts.colour:.0f} % of its variance): strong changes of it"
    strong = {"brightness": "0.8", "contrast": "0.8", "saturation": "0.8", "hue": "0.2"}
    return [choice for key, value in strong.items() for choice in both(key, value, why)]


def of_the_statistics(facts: Facts) -> list[KeyChoice]:
    """Choose mean and standard deviation for normalisation: ImageNet's where the pictures' are close to them."""
    own, rgb = (facts.mean, facts.std), len(facts.mean) == RGB
    pairs = (pair for mine, theirs in zip(own, IMAGENET, strict=True) for pair in zip(mine, theirs, strict=rgb))
    near = rgb and not small(facts) and max(abs(a - b) for a, b in pairs) <= LIKE_IMAGENET
    mean, std = IMAGENET if near else own
    why = "the pictures' own are close to ImageNet's" if near else f"measured on {plural(facts.measured, 'picture')}"
    return [KeyChoice("data.mean", listed(mean), why), KeyChoice("data.std", listed(std), why)]


def of_the_range(facts: Facts) -> list[KeyChoice]:
    """Choose the value that is white where pictures of 16 bits do not use them all, and always for floating point."""
    white = white_for(facts.deepest, facts.floats)
    why = f"values of pictures of {'floating point' if facts.floats else '16 bits'} end at {facts.deepest}"
    return [KeyChoice("data.range", str(white), why)] if white else []


def of_the_damage(facts: Facts) -> list[KeyChoice]:
    """Choose how many pictures may be unreadable, where some of the sample are: twice their share, at most a fifth."""
    share = facts.unreadable / facts.measured
    if share <= ALLOWED or 2 * share > MOST_DAMAGED:
        return []
    why = f"{facts.unreadable} of {facts.measured} pictures that were tried cannot be read; quarantine.jsonl lists them"
    return [KeyChoice("data.max_bad", f"'{math.ceil(200 * share)} %'", why)]


def both(key: str, value: str, reason: str) -> list[KeyChoice]:
    """Return the choice of a key of both views."""
    return [KeyChoice(f"views.{view}.{key}", value, reason) for view in ("view1", "view2")]


def listed(values: tuple[float, ...]) -> str:
    """Return numbers as a list of the command line: `[0.5,0.5,0.5]`."""
    return f"[{','.join(f'{value:g}' for value in values)}]"


RULES: tuple[Rule, ...] = (
    of_the_size,
    of_the_encoder,
    of_the_length,
    of_the_crops,
    of_the_turns,
    of_the_colours,
    of_the_statistics,
    of_the_range,
    of_the_damage,
    of_the_probe,
)
"""The rules, in the order in which their choices are printed."""


def choices(facts: Facts) -> list[KeyChoice]:
    """Return what all rules choose."""
    return [choice for rule in RULES for choice in rule(facts)]


def lines(chosen: Sequence[KeyChoice]) -> list[str]:
    """Return a line for each reason: its keys with their values, then the reason."""
    by_reason: dict[str, list[str]] = {}
    for choice in chosen:
        key = choice.key.replace("views.view1.", "views.*.")
        if not key.startswith("views.view2."):
            by_reason.setdefault(choice.reason, []).append(f"{key}={choice.value}")
    shown = [f"  {' '.join(keys)}   {reason}" for reason, keys in by_reason.items()]
    both_views = "; views.* is views.view1 and views.view2" if "views.*." in "".join(shown) else ""
    return [f"Chosen for these pictures; what you set yourself wins{both_views}:", *shown] if shown else []
