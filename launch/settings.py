"""From the words of a command line to a resolved config, and which of its keys a resumed run may change."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from dist_ssl.errors import ConfigError, nearest

MACHINE = (
    "nodes",
    "ranks_per_node",
    "threads",
    "decode_threads",
    "save_every",
    "keep_last",
    "keep_every",
    "log_every",
    "timeout",
    "runs",
    "name",
    "resume",
    "data.path",
    "data.source",
    "data.cache",
    "data.cache_bytes",
    "data.allow_pipe",
    "data.ahead_bytes",
    "data.loader_process",
    "engine._target_",
    "engine.accumulate",
    "engine.deterministic",
    "engine.compile",
    "engine.activation_checkpointing",
    "engine.bitwise",
    "engine.block_parameters",
    "engine.reshard",
    "engine.cpu_offload",
    "engine.replicate",
    "engine.stage",
    "engine.config",
    "metrics",
    "probe",
    "cluster",
    "wait",
    "dry_run",
)
"""What may change at every resume; every other key is science: the result depends on it."""

PLACES = ("data.path", "data.cache", "runs", "resume")
"""Folders and addresses: what stands after = is meant as it is, whatever Hydra would read into it."""


def legible(word: str, *, commas: bool = False) -> str:
    """The word as Hydra reads it: a folder `date=1` or `it's`, and `a,b` unless `commas` part choices, in its quotes.

    Raises ConfigError where it is not key=value.
    """
    key, _, value = word.partition("=")
    try:
        choices = OverridesParser.create().parse_overrides([word])[0].is_sweep_override()
    except OverrideParseException as error:
        if key in PLACES:
            return _quoted(key, value)
        quotes = f""", and a text that holds signs in quotes: "{key}='...'\"""" if value else ""
        raise ConfigError(f"'{word}' is not of the form key=value.", f"Write method=mocov3, say{quotes}.") from error
    return _quoted(key, value) if choices and key in PLACES and not commas else word


def _quoted(key: str, value: str) -> str:
    """The value in Hydra's quotes, so that it is text; before a quote it takes backslashes for its own."""
    escaped = re.sub(r"(\\*)('|$)", lambda found: 2 * found[1] + ("\\'" if found[2] else ""), value)
    return f"{key}='{escaped}'"


def compose(words: list[str], folder: Path) -> dict[str, Any]:
    """The resolved config that `words` (`key=value`) make of the config tree in `folder`. Raises ConfigError."""
    try:
        with hydra.initialize_config_dir(str(folder.resolve()), version_base="1.3"):
            found = hydra.compose("config", overrides=[legible(word) for word in words])
        values = OmegaConf.to_container(found, resolve=True, throw_on_missing=True)
    except MissingConfigException as error:
        raise _no_option(str(error.missing_cfg_file), folder) from error
    except ConfigCompositionException as error:
        raise _no_key(str(error), words, folder) from error
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key} has no value.", f"Set it: {error.full_key}=...") from error
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise ConfigError(f"{' '.join(words)} makes no config: {error}.", "Correct the command line.") from error
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def _no_option(missing: str, folder: Path) -> ConfigError:
    """For `method=mocov7`: there is no file method/mocov7."""
    group, _, name = missing.rpartition("/")
    options = [path.stem for path in (folder / group).glob("*.yaml")]
    return ConfigError(f"{group}={name} does not exist.", nearest(name, options))


def _no_key(message: str, words: list[str], folder: Path) -> ConfigError:
    """For `ndoes=4`: there is no such key; `recipe=X`: it is added, not replaced; a key of another choice: of which."""
    found = re.search(r"override '([^']+)'", message)
    if not found:
        return ConfigError(f"The config cannot be composed: {message.splitlines()[0]}.", "Correct the command line.")
    if (folder / found[1]).is_dir():
        return ConfigError(f"There is no {found[1]} yet that could be replaced.", f"Add one: +{found[1]}=...")
    if choices := " or ".join(_having(found[1], folder)):
        word = next((word for word in words if word.partition("=")[0] == found[1]), found[1])
        return ConfigError(f"{word} is an option of {choices} only.", f"Choose {choices}, or leave it out.")
    return ConfigError(f"There is no key '{found[1]}'.", nearest(found[1], list(keys(compose([], folder)))))


def _having(key: str, folder: Path) -> list[str]:
    """The options (`engine=ddp`) of the key's group that have it."""
    group, _, own = key.partition(".")
    options = {path.stem: OmegaConf.to_container(OmegaConf.load(path)) for path in (folder / group).glob("*.yaml")}
    return sorted(f"{group}={name}" for name, node in options.items() if isinstance(node, dict) and own in keys(node))


def of_another_choice(words: list[str], newer: list[str], group: str, folder: Path) -> list[str]:
    """Those of `words` that still mean something where `newer` ones choose an option of `group` (`engine=fsdp`) anew.

    Keys of the group that the new option does not have are left out: they were another option's.
    """
    chosen = [word for word in newer if word.startswith(f"{group}=")]
    if not chosen:
        return words
    known = set(keys(compose(chosen[-1:], folder)[group], f"{group}."))

    def meant(word: str) -> bool:
        """Keys that are added (`+engine.config.x=1`) lie below one that the option has."""
        key = word.lstrip("+").partition("=")[0]
        return not key.startswith(f"{group}.") or any(key == own or key.startswith(f"{own}.") for own in known)

    return [word for word in words if meant(word)]


def keys(values: dict[Any, Any], prefix: str = "") -> Iterator[str]:
    """All dotted keys of a config, inner ones too."""
    for key, value in values.items():
        yield prefix + str(key)
        if isinstance(value, dict):
            yield from keys(value, f"{prefix}{key}.")


def leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and plain values."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + str(key), value


def science(config: dict[str, Any]) -> dict[str, Any]:
    """The leaves that the result depends on."""
    machine = tuple(f"{key}." for key in MACHINE)
    return {k: v for k, v in leaves(config) if k not in MACHINE and not k.startswith(machine) and k != "format"}


def check_resume(began: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise ConfigError where a science key is not what the run began with."""
    old, new = science(began), science(now)
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            raise ConfigError(
                f"{key}={new.get(key)} is not what the run began with ({old.get(key)}): its result depends on it.",
                f"Leave it out to go on, or start a new run. A resume may change: {', '.join(MACHINE[:8])}, ...",
            )
