"""By what a row of `claims.py` is known: a hash of all that its numbers depend on."""

import hashlib
import json
from functools import cache

from launch import science_keys, settings
from launch.run_dir import PROJECT

CONFIGS = PROJECT / "configs"
ADDED = {"ema": None, "schedule.candidates": 1, "data.range": None, "data.alpha": "white", "data.weights": None}
ADDED |= {"init": None, "init_sha256": None, "data.bits": 8}
"""Keys that the product got after rows had been measured, with the value that changes no result: they stay valid."""


def key_of(word: str) -> str:
    """Return the key of a word such as `+recipe=demo_byol`."""
    return word.lstrip("+").partition("=")[0]


@cache
def _config(groups: tuple[str, ...]) -> str:
    """Return what the result depends on of the config that choices of groups make, and how it is probed."""
    config = settings.compose(list(groups), CONFIGS)
    probed = {f"probe.{key}": value for key, value in config["probe"].items()}
    found = {**science_keys.science(config), **probed}
    unused = {key for key, off in ADDED.items() if found.get(key) == off} | {"epochs", "seed"}
    if "schedule.candidates" in unused:
        unused |= {key for key in found if key.startswith(("difficulty.", "schedule.candidates_from"))}
    return json.dumps({key: value for key, value in found.items() if key not in unused}, sort_keys=True)


def digest(words: tuple[str, ...]) -> str:
    """Return the hash of a config: where a recipe has changed, an old row is another one. Paths do not count."""
    groups = tuple(word for word in words if (CONFIGS / key_of(word)).is_dir() or key_of(word) == "data.path")
    others = [word for word in words if word not in groups and key_of(word) not in science_keys.MACHINE]
    return hashlib.sha256(json.dumps([_config(groups), others]).encode()).hexdigest()[:16]
