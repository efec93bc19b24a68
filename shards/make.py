"""The command that makes a data set: WebDataset tars, and a manifest with the position of every sample.

Examples:

    python shards/make.py source=imagefolder path=pictures out=data/mine
    python shards/make.py source=cifar10 path=downloads out=data/cifar10 download=true
    python shards/make.py source=tars path=data/tars
    python shards/make.py source=demo out=data/demo
    python shards/make.py source=garments out=data/garments
    python shards/make.py out=data/mine pyramid=[160,256]      # or with a source: smaller copies beside the originals

Shards are written into `OUT.part`, which is renamed when it is complete, so a folder with a manifest is always a whole
data set; after a kill the same command resumes. What the options of a source mean is said at the top of its file in
shards/sources/.

Exit codes: 0; 2 something in the command or the data must be corrected; 130 interrupted.
"""

import shlex
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

from rich.console import Console

from dist_ssl.config.byte_sizes import show_bytes
from dist_ssl.config.command import run_command, say
from dist_ssl.data.storage import manifest, pyramid
from dist_ssl.data.storage.address import Address
from dist_ssl.data.storage.fetch import Fetcher
from dist_ssl.errors import ConfigError, DataError, nearest, plural, shortened
from dist_ssl.runtime.files import write_for_owner_alone
from shards import depth, levels
from shards.close_calls import close_calls, close_lines
from shards.command_line import ONE_PER_CORE, Bytes, fill, pairs, parse_path
from shards.depth import FoundRange, white_for
from shards.exact_copies import say_copies
from shards.folder_facts import Facts, measure_shards
from shards.image_source import ImageSource
from shards.picture_rules import DEFAULT_METHOD, KeyChoice, choices, lines, method_for
from shards.sources import demo, garments, imagefolder, tars, vision

SOURCES: dict[str, ImageSource] = {
    **demo.SOURCES,
    **garments.SOURCES,
    **imagefolder.SOURCES,
    **tars.SOURCES,
    **vision.SOURCES,
}

QUOTE = "'"
AT_ONCE, FEW = 8, 100
"""Requests at a time, and pictures that are looked at, where tars are elsewhere."""


def source_of(name: str) -> ImageSource:
    """Return a source by its name. Raises ConfigError."""
    if name not in SOURCES:
        raise ConfigError(f"source={name} does not exist.", nearest(name, SOURCES))
    return SOURCES[name]


def make(source: str, out: Path | None, console: Console, options: Any = None) -> None:
    """Make the data set of a source; `options`: by default the source's defaults. Raises ConfigError, DataError."""
    found = source_of(source)
    if out is None and not found.in_place:
        raise ConfigError(f"source={source} needs out=..., the folder to write.", "Write out=data/mine, for example.")
    found.write(out, options or found.options(), console)


def report(folder: Path, console: Console, fit: bool = True, away: Address | None = None) -> None:
    """Print what was made, and the command that trains on it.

    `fit`: choose encoder, sizes, views and length by what the pictures are; the defaults are those of the demo data.
    `away`: where the tars are, if that is elsewhere.
    """
    found = manifest.read(folder)
    for name, split in found.splits.items():
        labels = "labelled" if split.labelled else "no labels"
        images, shards = plural(len(split.samples), "image"), plural(len(split.shards), "shard")
        say(console, f"{name}: {images} in {shards}, {labels}")
    if found.classes:
        say(console, f"{plural(len(found.classes), 'class', 'classes')}: {shortened(found.classes)}")
    if not away:
        say_copies(found, ONE_PER_CORE, console)
    sides = sorted(pyramid.read(Address(str(folder)), found, Fetcher()))
    if sides:
        say(console, f"levels: {', '.join(f'{side} px' for side in sides)}")
    ranges = depth.ranges_of(folder, found)
    facts = facts_of(elsewhere(found, away) if away else found, ranges, console) if fit else None
    white = white_for(facts.deepest, facts.floats) if facts else depth.together(ranges.values()).white
    depth.say_ranges(ranges, white, console)
    if away:
        files = ", ".join([manifest.NAME, *(f"{name}.samples.safetensors" for name in found.splits)])
        say(console, f"The command below reads the manifest from {folder}. Where you can write to {away}, copy")
        say(console, f"{files} there, beside the tars: then every command finds them, without data.manifest.")
    chosen = fitting(facts, None if away else folder, console) if facts else plain_choices(found)
    method = method_for(facts) if facts else DEFAULT_METHOD
    options = [f"method={method}", "nodes=1", "data=shards", f"data.path={away or folder}", *words(chosen)]
    options += [f"data.manifest={folder}"] if away else []
    options += [f"data.pyramid=[{','.join(map(str, sides))}]"] if sides else []
    options += [f"data.range={white}"] if white else []
    say(console, "To see its length, costs and time first: python launch/plan.py, with the words of this command:")
    say(console, f"python launch/slurm.py {shlex.join(options)}")


def elsewhere(data: manifest.Manifest, where: Address) -> manifest.Manifest:
    """Return the same data set with its shards behind an address."""
    return replace(data, splits={name: replace(split, folder=where) for name, split in data.splits.items()})


def plain_choices(data: manifest.Manifest) -> list[KeyChoice]:
    """Return the choice of the split to probe, where both splits have labels: all else stays as it is by default."""
    probed = "val" in data.splits and all(data.splits[name].labelled for name in ("train", "val"))
    return [KeyChoice("data.val", "val", "both splits have labels")] if probed else []


def facts_of(data: manifest.Manifest, ranges: Mapping[str, FoundRange], console: Console) -> Facts | None:
    """Return the facts of the pictures; None where none can be read, which is said. `ranges`: of deep ones."""
    here = all(split.folder.local for split in data.splits.values())
    try:
        if not here:
            return measure_shards(data, AT_ONCE, sample=FEW)
        return measure_shards(data, ONE_PER_CORE, ranges=ranges.values())
    except DataError as error:
        say(console, f"{error.problem} So the command below has the settings of the demo data.")
        return None


def fitting(facts: Facts, folder: Path | None, console: Console) -> list[KeyChoice]:
    """Return the keys that fit a run to the pictures, and print why. `folder`: of the tars; None: elsewhere."""
    if facts.unreadable:
        count = f"{facts.unreadable} of {facts.measured} pictures that were tried cannot be read"
        if folder:
            say(console, f"{count}: python shards/verify.py {shlex.quote(str(folder))} lists all, with reasons.")
        else:
            say(console, f"{count}: a run lists those that it meets in quarantine.jsonl, with reasons.")
    found = choices(facts)
    for line in (*lines(found), *close_lines(close_calls(facts))):
        say(console, line)
    return sorted(found, key=lambda choice: choice.key != "data.val")


def words(chosen: Sequence[KeyChoice]) -> list[str]:
    """Return the words of a command that make these choices, without `data.range`; `data.val=null` is the default.

    Quotes of the config's grammar are left out: a shell's own do the same.
    """
    named = [
        choice for choice in chosen if (choice.key, choice.value) != ("data.val", "null") and choice.key != "data.range"
    ]
    return [f"{choice.key}={choice.value.replace(QUOTE, '')}" for choice in named]


def run(arguments: list[str], console: Console) -> int:
    """Make the data set and the levels that the arguments describe; return 0. Raises UserError."""
    given = pairs(arguments)
    source, out = given.pop("source", None), given.pop("out", None)
    smaller = levels_of(given, source)
    folder = parse_path(out, "out") if out else None
    if source is None and not (smaller and folder):
        refuse_unknown(given)
        raise ConfigError("source=... is missing.", f"Set it to one of: {', '.join(SOURCES)}.")
    away: Address | None = None
    if source is not None:
        options = fill(source_of(source).options, given, f"source={source}")
        place = options.path if source_of(source).in_place else None
        away = place if isinstance(place, Address) else None
        made = folder or (None if away else place)
        if smaller and made and (made / manifest.NAME).exists():
            say(console, f"{made} has its shards already: they are not changed.")
        else:
            make(source, folder, console, options)
        folder = made
    assert folder
    if smaller and away:
        raise ConfigError(f"pyramid=... reads every image of {away}.", "Download the tars, and make the levels there.")
    if smaller:
        levels.write(folder, smaller, console)
    report(folder, console, fit=source is None or not source_of(source).drawn, away=away)
    return 0


def refuse_unknown(given: Iterable[str]) -> None:
    """Raise ConfigError for a key that no source has: it may be a misspelt one that says which source."""
    options: list[type[Any]] = [levels.LevelOptions, *(found.options for found in SOURCES.values())]
    known = {"source", "out", *(field.name for kind in options for field in fields(kind))}
    for key in given:
        if key not in known:
            raise ConfigError(f"There is no key '{key}'.", nearest(key, known))


def levels_of(given: dict[str, str], source: str | None) -> levels.LevelOptions | None:
    """Return the options of the requested levels, removed from `given`; None without pyramid=. Raises ConfigError."""
    if "pyramid" not in given:
        return None
    shared = {key: value for key, value in given.items() if key == "threads" or source is None}
    own = {key: given.pop(key) for key in list(given) if key in ("pyramid", "quality", "range", "alpha")}
    return fill(levels.LevelOptions, {**shared, **own}, "pyramid=...")


def options_help() -> str:
    """Return the options of every source and of a pyramid, with their defaults, as `--help` shows them."""
    names: dict[type[Any], list[str]] = {}
    for name, found in SOURCES.items():
        names.setdefault(found.options, []).append(name)
    entries = [f"source={', '.join(alike)}: {options_of(kind)}" for kind, alike in names.items()]
    entries.append(f"pyramid=[160,256]: {options_of(levels.LevelOptions)}")
    wrapped = [textwrap.fill(entry, 116, initial_indent=" " * 4, subsequent_indent=" " * 8) for entry in entries]
    return "\n".join(["Options, with their defaults:", "", *wrapped])


def options_of(kind: type[Any]) -> str:
    """Return the options of a dataclass as `path=... val=2000`; `val=` where the command chooses the default."""
    hints = get_type_hints(kind)
    named = [(field.name, field.default) for field in fields(kind) if field.name != "pyramid"]
    return " ".join(f"{name}={shown(default, hints[name])}" for name, default in named)


def shown(default: Any, hint: Any) -> str:
    """Return a default as a command line has it, `...` where there is none. `hint`: annotation of the option."""
    if default is MISSING:
        return "..."
    if default is None:
        return ""
    return show_bytes(default) if hint is Bytes else str(default).lower() if hint is bool else str(default)


def main(arguments: list[str]) -> int:
    """Run the command line; return the exit code."""
    write_for_owner_alone()
    return run_command(run, arguments, more_help=options_help)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
