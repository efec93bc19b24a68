"""Tables of `claims.py` and `acceleration.py`: what a YAML file of `tables/` says."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from dist_ssl.errors import ConfigError, nearest

Words = tuple[str, ...]


@dataclass(frozen=True)
class Variant:
    """A method with its options: `words` before those of a setting, `own` after them; `bag`: patches of an evaluation.

    `budgets`: those of the table by default; `named`: it runs only where the command names it; `like`: the variant
    whose best setting this one takes, where it is not tuned by itself.
    """

    name: str
    label: str
    family: str
    words: Words
    own: Words
    settings: tuple[Words, ...]
    bag: int = 0
    budgets: tuple[float, ...] = ()
    named: bool = False
    like: str | None = None


@dataclass(frozen=True)
class DataSet:
    """A data set: the words that choose it, how it is drawn if it is, and the variants that it goes without."""

    name: str
    words: Words
    source: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    without: Words = ()


@dataclass(frozen=True)
class Claim:
    """A paper's claim: `better` is above `than`, or below it where `number` is a time.

    `number`: `accuracy` (kNN and linear), `image` (seconds of an image), or `time` (seconds to the accuracy of `than`
    after its largest budget).
    """

    paper: str
    text: str
    better: str
    than: str
    number: Literal["accuracy", "image", "time"] = "accuracy"


@dataclass(frozen=True)
class Bar:
    """How many times sooner the claims of one heading must be: the `bar`, and beyond it the `star`.

    `of`: the geometric mean of them all, or the `best` one.
    """

    bar: float
    star: float
    of: Literal["mean", "best"] = "mean"


@dataclass(frozen=True)
class Table:
    """Everything that a file of `tables/` says. `bars`: by the heading of claims of time."""

    budgets: tuple[float, ...]
    seeds: int
    tuning: Mapping[str, Any]
    seconds: float
    data: Mapping[str, DataSet]
    variants: Mapping[str, Variant]
    claims: tuple[Claim, ...]
    bars: Mapping[str, Bar] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "Table":
        """Return the table of a file. Raises ConfigError where a claim or a data set names no variant."""
        node = yaml.safe_load(path.read_text())
        common = tuple(node.pop("common", ()))
        data = {name: DataSet(name, **_tuples(value)) for name, value in node.pop("data").items()}
        families = node.pop("families").items()
        variants = {v.name: v for name, family in families for v in _variants(name, _whole(name, family, path), common)}
        bars = {heading: Bar(**bar) for heading, bar in node.pop("bars", {}).items()}
        claims = tuple(Claim(paper, **claim) for paper, own in node.pop("claims", {}).items() for claim in own)
        named = [name for claim in claims for name in (claim.better, claim.than)]
        named += [variant.like for variant in variants.values() if variant.like is not None]
        for name in [*named, *(name for one in data.values() for name in one.without)]:
            if name not in variants:
                raise ConfigError(f"{path.name} names the variant {name}, which it lacks.", nearest(name, variants))
        return cls(tuple(node.pop("budgets")), data=data, variants=variants, claims=claims, bars=bars, **node)


def flat(words: Iterable[Any]) -> Words:
    """Return words in one row: YAML's anchors nest lists."""
    found: list[str] = []
    for word in words:
        found.extend([word] if isinstance(word, str) else flat(word))
    return tuple(found)


def _tuples(node: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in node.items()}


def _whole(name: str, family: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    """Return a family with what it takes `from` the family of its name in another table: words, settings, `bag`."""
    if "from" not in family:
        return family
    other = yaml.safe_load(path.with_name(f"{family['from']}.yaml").read_text())["families"][name]
    taken = {key: other[key] for key in ("words", "settings", "bag") if key in other}
    return {**taken, **{key: value for key, value in family.items() if key != "from"}}


def _variants(family: str, node: Mapping[str, Any], common: Words) -> Iterator[Variant]:
    tuned = tuple(flat(setting) for setting in node.get("settings", [[]]))
    shared: dict[str, Any] = {"family": family, "words": (*common, *flat(node["words"])), "settings": tuned}
    shared |= {key: node[key] for key in ("bag", "named") if key in node}
    shared |= {"budgets": tuple(node.get("budgets", ()))}
    for name, own in node["variants"].items():
        given = {key: tuple(own[key]) if key == "budgets" else own[key] for key in ("budgets", "like") if key in own}
        yield Variant(name, own["label"], own=flat(own.get("words", ())), **{**shared, **given})
