"""A run on a folder of pictures, `data=folder`: its pictures become shards, and the run is fitted to them.

The command line is rewritten before a config is composed of it: `data=folder data.path=/pictures` becomes `data=shards
data.path=data/pictures-HASH` and the keys that the rules choose. So the run records ordinary keys, and a resume needs
neither the folder nor the rules. The hash is that of the names, sizes and modification times of the pictures: the same
folder is packed once, and a changed one is another data set.
"""

import contextlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash
from rich.console import Console

from dist_ssl.config.bounds import RGB
from dist_ssl.config.command import say
from dist_ssl.config.instantiate import fit
from dist_ssl.data.data_keys import check_range
from dist_ssl.data.images.image_rules import White, counted
from dist_ssl.data.storage import manifest
from dist_ssl.errors import ConfigError, DataError, plural, shortened
from launch import launch_keys, settings
from launch.run_dir import PROJECT
from shards.close_calls import CloseCall, close_calls, close_lines
from shards.command_line import parse_held_out, parse_path
from shards.exact_copies import say_copies
from shards.folder_facts import Facts, measure
from shards.picture_rules import KeyChoice, choices, lines
from shards.sources.imagefolder import FolderOptions, Pictures, find, pack_pictures

OWN = ("data.path", "data.into", "data.labels", "data.hold_out", "data.channels")
"""Keys that say what is packed and where to; they are no keys of the run."""
IN_OUR_KEYS = {
    "path": "data.path",
    "out": "data.into",
    "labels": "data.labels",
    "val": "data.hold_out",
    "channels": "data.channels",
}
"""The options of shards/make.py, by which its messages call them, and the keys that stand for them here."""
DRY = "dry_run"
SHOWN_CLASSES = 5
"""Names of classes that are listed."""


@dataclass(frozen=True)
class Packed:
    """The shards of a folder, and the facts about its pictures."""

    shards: Path
    facts: Facts
    facts_in_words: str


def fitted(combinations: Sequence[list[str]], console: Console, last: list[str]) -> list[list[str]]:
    """Return the overrides of runs with `data=folder` replaced by shards and by what the rules choose for them.

    Each folder is packed once, and nothing is packed for `dry_run=true`. Prints what was packed and chosen; what was
    chosen for `dry_run=true` is appended to `last`, to be printed below the config. Raises ConfigError, DataError.
    """
    known: dict[tuple[FolderOptions, White], Packed] = {}
    printed: set[str] = set()
    found = []
    for overrides in combinations:
        if launch_keys.FOLDER not in overrides:
            found.append(overrides)
            continue
        config = settings.compose(overrides, PROJECT / "configs")
        node = config["data"]
        options, white = options_of(node), white_of_run(node)
        own = options, white
        if own not in known:
            known[own] = packed(options, into_of(node, options), white, not config[DRY], console)
        chosen = open_choices(choices(known[own].facts), overrides)
        text = "\n".join(reasons(known[own], chosen, overrides, dry=config[DRY]))
        if text not in printed:
            printed.add(text)
            if config[DRY]:
                last.append(text)
            else:
                say(console, text)
        found.append([*rewritten(known[own].shards, chosen), *of_the_run(overrides)])
    return found


def reasons(made: "Packed", chosen: Sequence[KeyChoice], overrides: Sequence[str], *, dry: bool) -> Iterator[str]:
    """Yield the lines that say what was chosen and why, what was close, and what a dry run has left undone."""
    yield from lines(chosen)
    calls = [CloseCall(open_choices(call.instead, overrides), call.reason) for call in close_calls(made.facts)]
    yield from close_lines([call for call in calls if call.instead])
    if dry:
        there = (made.shards / manifest.NAME).is_file()
        packing = "starts the run" if there else f"packs the pictures into {made.shards} and starts the run"
        yield f"{made.facts_in_words} Nothing was changed: the same command without {DRY}=true {packing}."


def of_the_run(overrides: Sequence[str]) -> list[str]:
    """Return the overrides that say nothing about the folder."""
    return [word for word in overrides if word != launch_keys.FOLDER and word.partition("=")[0] not in OWN]


def rewritten(shards: Path, chosen: Sequence[KeyChoice]) -> list[str]:
    """Return the overrides that take the place of those about the folder."""
    return ["data=shards", f"data.path={shards}", *(f"{choice.key}={choice.value}" for choice in chosen)]


def options_of(node: dict[str, Any]) -> FolderOptions:
    """Return what the keys of the data say about the folder. Raises ConfigError."""
    path, held = parse_path(fit(node["path"], str, "data.path"), "data.path"), node["hold_out"]
    if (path / manifest.NAME).is_file():
        raise ConfigError(f"data.path={path} holds shards, not pictures.", f"Write data=shards data.path={path}")
    labels = fit(node["labels"], bool | None, "data.labels")
    val = None if held is None else parse_held_out(str(held), "data.hold_out")
    return FolderOptions(path, val=val, labels=labels, channels=fit(node["channels"], int | None, "data.channels"))


def white_of_run(node: dict[str, Any]) -> White:
    """Return the value that the command says is white, or that of each channel. Raises ConfigError."""
    white: White = fit(node.get("range"), White, "data.range")
    check_range(white, len(white) if isinstance(white, tuple) else RGB)
    return white


def into_of(node: dict[str, Any], options: FolderOptions) -> Path:
    """Return the folder below which the shards go. Raises ConfigError where it lies among the pictures."""
    into = parse_path(fit(node["into"], str, "data.into"), "data.into")
    if into.resolve().is_relative_to(options.path.resolve()):
        raise ConfigError(
            f"data.into={into} lies in the folder of the pictures, {options.path}: nothing is written there.",
            "Name another folder for the shards: data.into=...",
        )
    return into


@contextlib.contextmanager
def in_our_keys() -> Iterator[None]:
    """Say what is wrong with a folder in terms of the keys of a run."""

    def said(text: str) -> str:
        return re.sub(rf"\b({'|'.join(IN_OUR_KEYS)})=", lambda found: f"{IN_OUR_KEYS[found[1]]}=", text)

    try:
        yield
    except (ConfigError, DataError) as error:
        raise type(error)(said(error.problem), said(error.remedy)) from error


def packed(options: FolderOptions, into: Path, white: White, write: bool, console: Console) -> Packed:
    """Return the shards of a folder, which are written if there are none yet and `write` is true.

    `white`: the value that is white, or that of each channel; None: the one that is found.

    Prints what is in the folder, what is left out, and what is packed. Raises ConfigError, DataError.
    """
    with in_our_keys():
        pictures = find(options, console)
    check_range(white, pictures.channels)
    facts = measure(pictures, options.threads, white=white)
    shards = into / name_of(options.path, pictures)
    there = (shards / manifest.NAME).is_file()
    words = f"{options.path}: {described(facts, pictures.classes)}."
    say(console, words)
    if write and not there:
        say(console, f"Packing them into {shards} (once).")
        pack_once(shards, pictures, options, console)
        say_copies(manifest.read(shards), options.threads, console)
    elif there:
        say(console, f"They are packed already, in {shards}.")
    return Packed(shards, facts, words)


def pack_once(shards: Path, pictures: Pictures, options: FolderOptions, console: Console) -> None:
    """Pack the pictures, unless another command has packed them meanwhile. Raises DataError."""
    try:
        with in_our_keys():
            pack_pictures(shards, pictures, options, console)
    except DataError:
        if not (shards / manifest.NAME).is_file():
            raise


def name_of(path: Path, pictures: Pictures) -> str:
    """Return the name of a folder's shards: that of the folder and a hash of what is in it."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", path.resolve().name).strip("-") or "pictures"
    stamps = [f"{name} {split.count} {split.stamp}" for name, split in pictures.splits().items()]
    stamps += [counted(pictures.channels)] if pictures.channels != RGB else []
    return f"{plain[:60]}-{xxhash.xxh3_64_hexdigest(' '.join(stamps).encode())[:10]}"


def described(facts: Facts, classes: Sequence[str]) -> str:
    """Return the facts in words. `classes`: names."""
    low, middle, high = facts.short_sides
    held = f", {facts.val} of them held out" if facts.val else ""
    named = f"{plural(len(classes), 'class', 'classes')} ({shortened(classes, SHOWN_CLASSES)})"
    labels = named if classes else "no labels"
    bad = f", {facts.unreadable} of {facts.measured} that were tried cannot be read" if facts.unreadable else ""
    channels = len(facts.mean)
    grey = f"{100 * facts.grey:.0f} % grey" if channels == RGB else counted(channels)
    sides = f"shorter sides {low} to {high} px (median {middle})"
    return f"{plural(facts.train + facts.val, 'picture')}{held}, {labels}, {sides}, {grey}{bad}"


def open_choices(found: Iterable[KeyChoice], overrides: Sequence[str]) -> list[KeyChoice]:
    """Return the choices that the command leaves open.

    It has made a choice where it sets the key itself, the option of its group (`views=simclr`), or a recipe, which
    leaves only the keys of the data open.
    """
    given = {override.partition("=")[0].lstrip("+") for override in overrides}
    groups = {key for key in given if "." not in key}

    def made(key: str) -> bool:
        group = key.partition(".")[0]
        return key in given or (group != "data" and (group in groups or "recipe" in given))

    return [choice for choice in found if not made(choice.key) and not (choice.beside and made(choice.beside))]
