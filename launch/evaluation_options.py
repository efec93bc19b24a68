"""The keys of the command that evaluates a run, and the rules that they keep."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_type_hints

import yaml

from dist_ssl.config.command import filled_pair
from dist_ssl.config.instantiate import fit
from dist_ssl.errors import ConfigError
from dist_ssl.evaluate.linear_recipes import LINEAR, LinearRecipe
from launch.launch_keys import listed

MOST = {"patches": 4096, "threads": 4096}
"""Largest value of a key; draws are keyed by at most so many views of an image."""
SHOWN = {"queries": 10, "k": 8}
"""Rows and neighbours of a sheet that are shown by default."""
MOST_SHOWN = {"queries": 200, "k": 50}
"""The most that a sheet shows."""
DATA = ("data.path", "data.val")
DataValues = dict[str, str | list[str] | None]
"""Values of these keys, by their names without `data.`."""
OPTIONAL = ("data.val",)
VOTING = ("knn", "bag_of_patches")
USED_BY = {
    "bank": (*VOTING, "linear", "neighbours"),
    "k": (*VOTING, "neighbours"),
    "temperature": VOTING,
    "patches": ("bag_of_patches", "linear"),
    "recipe": ("linear",),
    "sweep": ("linear",),
}
"""Protocols that use a key; every protocol uses the others."""


@dataclass(frozen=True)
class Options:
    """The keys of the command; None stands for what the run's probe has, or for all images."""

    run: str
    protocol: Literal["knn", "linear", "retrieval", "bag_of_patches", "unlabelled", "neighbours"] = "knn"
    checkpoint: str = "latest"
    watch: Literal["all", "kept"] | None = None
    branch: Literal["student", "teacher", "ema"] | None = None
    recipe: Literal["fast", "moco", "mocov3", "mocov3_vit", "swav", "effssl", "emp_ssl"] | None = None
    sweep: bool | None = None
    bank: int | None = None
    queries: int | None = None
    k: int | None = None
    temperature: float | None = None
    resize: int | None = None
    crop: int | None = None
    patches: int = 128
    threads: int | None = None

    @classmethod
    def parse(cls, arguments: list[str]) -> tuple["Options", DataValues]:
        """Return the options, and the keys of the data. Raises ConfigError."""
        names, types = [field.name for field in fields(cls)], get_type_hints(cls)
        values: dict[str, Any] = {}
        data: DataValues = {}
        for argument in arguments:
            key, text = filled_pair(argument, (*names, *DATA))
            if key in DATA:
                data[key.removeprefix("data.")] = None if text == "null" and key in OPTIONAL else listed(text)
            else:
                values[key] = text if types[key] is str else fit(_plain(key, text), types[key], key)
        if "run" not in values:
            raise ConfigError("No run is given.", "Usage: python launch/evaluate.py run=runs/NAME")
        found = cls(**values)
        found.check(values)
        return found, data

    def check(self, given: Mapping[str, Any]) -> None:
        """Raise ConfigError for a given key that is out of range, or that the protocol does not use."""
        most = {**MOST, **(MOST_SHOWN if self.protocol == "neighbours" else {})}
        for key in ("bank", "queries", "k", "patches", "threads"):
            value = given.get(key)
            if value is not None and not 1 <= value <= most.get(key, value):
                rule = f"from 1 to {most[key]}" if key in most else "at least 1"
                raise ConfigError(f"{key}={value} is not possible: it must be {rule}.", f"Set {key}=20, for example.")
        for key, protocols in USED_BY.items():
            if key in given and self.protocol not in protocols:
                raise ConfigError(
                    f"{key}={given[key]} is not used by protocol={self.protocol}.",
                    f"Leave it out, or choose protocol={' or '.join(protocols)}.",
                )
        if self.protocol == "linear" and "patches" in given and self.linear.views != "patches":
            raise ConfigError("Only recipe=emp_ssl uses patches.", "Leave patches out, or choose recipe=emp_ssl.")
        if self.sweep and self.recipe in (None, "fast"):
            raise ConfigError("recipe=fast always chooses its learning rate.", "Leave sweep out, or choose a recipe.")
        if self.watch and "checkpoint" in given:
            raise ConfigError(f"watch={self.watch} chooses the checkpoints.", "Leave checkpoint out.")

    @property
    def linear(self) -> LinearRecipe:
        """The protocol of the linear classifier."""
        recipe = LINEAR[self.recipe or "fast"]
        return recipe.swept if self.sweep else recipe

    def shown(self, key: str) -> int | None:
        """Return `queries` or `k` as given, or by default as many as a sheet shows; None where neither is."""
        value: int | None = getattr(self, key)
        return SHOWN[key] if value is None and self.protocol == "neighbours" else value

    @property
    def suffix(self) -> str:
        """The given settings that change the numbers, for the name of the file that holds them."""
        words = [str(self.recipe)] * (self.recipe not in (None, "fast")) + ["sweep"] * bool(self.sweep)
        given = {key: getattr(self, key) for key in ("bank", "queries", "k", "temperature", "resize", "crop")}
        given |= {"patches": self.patches if self.patches != Options.patches else None}
        words += [f"{key}{value}" for key, value in given.items() if value is not None]
        return "".join(f"_{word}" for word in words)


def _plain(key: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{key}={text} cannot be read.", "Write a number or a word.") from error
