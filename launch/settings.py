"""Composition of a config from command-line overrides, and the check of what a resume may change."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from dist_ssl.errors import ConfigError, nearest
from launch import credentials

OmegaConf.clear_resolver("oc.env")  # a value of the environment may be a secret, and configs are kept in files

HYDRA = re.compile(r"""[\s+~'"]*hydra['"]*[.=:@/]""")
"""The beginning of an override that sets Hydra itself."""
PLACES = ("data.path", "data.manifest", "data.into", "data.cache", "runs", "resume", "init")
"""Keys of folders and addresses: their value is taken literally, even where it has meaning in Hydra's grammar."""
OF_A_RECIPE = ("schedule", "engine")
"""Groups of which another option may be chosen than a recipe has, without the recipe's keys for its own one."""
TEXTS = (*PLACES, "name")
"""Keys of text: what Hydra would take for a number or a truth value is text there (`name=007`, `data.path=2012`)."""


def legible(override: str, *, commas: bool = False) -> str:
    """Return an override in Hydra's grammar: text (TEXTS) that it cannot read (`it's`) or takes for a number is quoted.

    So is a PLACES value with commas, `a,b`, unless `commas` separate the choices of a sweep. Raises ConfigError if the
    override is not of the form key=value.
    """
    key, _, value = override.partition("=")
    try:
        parsed = OverridesParser.create().parse_overrides([override])[0]
    except OverrideParseException as error:
        if key in TEXTS:
            return _quoted(key, value)
        quotes = f"""; put text with special characters in quotes: "{key}='...'\"""" if value else ""
        raise ConfigError(
            f"'{override}' is not of the form key=value.", f"Write method=mocov3, for example{quotes}."
        ) from error
    if parsed.is_sweep_override():
        return _quoted(key, value) if key in PLACES and not commas else override
    return _quoted(key, value) if key in TEXTS and isinstance(parsed.value(), int | float) else override


def _quoted(key: str, value: str) -> str:
    """Return key='value' with the value quoted as text; Hydra unescapes only backslashes in front of a quote."""
    escaped = re.sub(r"(\\*)('|$)", lambda found: 2 * found[1] + ("\\'" if found[2] else ""), value)
    return f"{key}='{escaped}'"


def compose(overrides: list[str], folder: Path) -> dict[str, Any]:
    """Return the resolved config of the tree in `folder` under overrides (`key=value`). Raises ConfigError."""
    try:
        _refuse_hydras_own(overrides, folder)
        with hydra.initialize_config_dir(str(folder.resolve()), version_base="1.3"):
            found = hydra.compose("config", overrides=[legible(override) for override in overrides])
        values = OmegaConf.to_container(found, resolve=True, throw_on_missing=True)
    except MissingConfigException as error:
        raise _no_option(str(error.missing_cfg_file), folder) from error
    except ConfigCompositionException as error:
        raise _wrong_option(overrides, folder) or _no_key(str(error), overrides, folder) from error
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key} has no value.", f"Set it: {error.full_key}=...") from error
    except yaml.YAMLError as error:
        raise ConfigError(
            f"A file of {folder} is no YAML that configs may have: {' '.join(str(error).split())}.", "Correct the file."
        ) from error
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise _wrong_option(overrides, folder) or ConfigError(
            f"{' '.join(overrides)} cannot be composed to a config: {error}.", "Correct the command line."
        ) from error
    assert isinstance(values, dict)
    _drop_strays(values, overrides, folder)
    if isinstance(values.get("extend"), str):
        values["extend"] = [values["extend"]]  # one length may be written without brackets
    credentials.check_config(values)
    return {str(key): value for key, value in values.items()}


def _refuse_hydras_own(overrides: list[str], folder: Path) -> None:
    """Raise ConfigError for settings of Hydra: it would look for configs elsewhere, and import a package for that."""
    given = [override for override in overrides if HYDRA.match(override)]
    file = folder / "config.yaml"
    with contextlib.suppress(OSError):  # Hydra says what is wrong with a missing file
        found = OmegaConf.load(file)  # as Hydra does: a file that another reader refuses may tell it something
        given += [f"hydra in {file}"] if isinstance(found, DictConfig) and "hydra" in set(found.keys()) else []
    if given:
        raise ConfigError(
            f"{given[0]} is not possible: configs are read from configs/ alone.",
            "Leave it out, and put your files there.",
        )


def _drop_strays(values: dict[Any, Any], overrides: list[str], folder: Path) -> None:
    """Remove what a recipe sets for a schedule or an engine, if another one is chosen that has no such key.

    `+recipe=mocov3_r50_in1k_100ep schedule=accelerated` would else have the recipe's `schedule.warmup`.
    """
    given = [override.lstrip("+").partition("=")[0] for override in overrides]
    for override in overrides if "recipe" in given else ():
        group = override.partition("=")[0]
        if group in OF_A_RECIPE and isinstance(values.get(group), dict):
            known = {f"{group}.{key}" for key in compose([override], folder)[group]}
            strays = [key for key in values[group] if f"{group}.{key}" not in known.union(given)]
            for key in strays:
                del values[group][key]


def _wrong_option(overrides: list[str], folder: Path) -> ConfigError | None:
    """Return the error for `method=null` or `views={a: 5}`, which name no option of their group; None without any."""
    for override in overrides:
        group, _, value = override.lstrip("+").partition("=")
        several = value.startswith("[") and value.endswith("]")  # tracker=[wandb,mlflow]
        for name in filter(None, map(str.strip, value[1:-1].split(","))) if several else (value,):
            if group and (folder / group).is_dir() and not (folder / group / f"{name}.yaml").is_file():
                return _no_option(f"{group}/{name}", folder)
    return None


def _no_option(missing: str, folder: Path) -> ConfigError:
    """Return the error for `method=mocov7`, where the file method/mocov7 does not exist."""
    group, _, name = missing.rpartition("/")
    options = [path.stem for path in (folder / group).glob("*.yaml")]
    return ConfigError(f"{group}={name} does not exist.", nearest(name, options))


def _no_key(message: str, overrides: list[str], folder: Path) -> ConfigError:
    """Return the error for an override of a missing key.

    It is misspelt (`ndoes=4`), must be added with + (`recipe=X`), or belongs to another option of its group.
    """
    found = re.search(r"override '([^']+)'", message)
    if not found:
        return ConfigError(f"The config cannot be composed: {message.splitlines()[0]}.", "Correct the command line.")
    if (folder / found[1]).is_dir():
        return ConfigError(f"The config has no {found[1]} to replace.", f"Add one: +{found[1]}=...")
    if choices := " or ".join(_having(found[1], folder)):
        override = next((override for override in overrides if override.partition("=")[0] == found[1]), found[1])
        return ConfigError(f"{override} is an option of {choices} only.", f"Choose {choices}, or leave it out.")
    return ConfigError(f"There is no key '{found[1]}'.", nearest(found[1], list(keys(compose([], folder)))))


def _having(key: str, folder: Path) -> list[str]:
    """Return the options (`engine=ddp`) of the key's group that have the key."""
    group, _, own = key.partition(".")
    options = {path.stem: OmegaConf.to_container(OmegaConf.load(path)) for path in (folder / group).glob("*.yaml")}
    return sorted(f"{group}={name}" for name, node in options.items() if isinstance(node, dict) and own in keys(node))


def of_another_choice(overrides: list[str], newer: list[str], group: str, folder: Path) -> list[str]:
    """Return those of `overrides` that remain valid if `newer` ones choose another option of `group` (`engine=fsdp`).

    Keys of the group that the new option does not have are left out.
    """
    chosen = [override for override in newer if override.startswith(f"{group}=")]
    if not chosen:
        return overrides
    known = set(keys(compose(chosen[-1:], folder)[group], f"{group}."))

    def valid(override: str) -> bool:
        """Return whether the new option has the key, or a mapping to which it is added (`+engine.config.x=1`)."""
        key = override.lstrip("+").partition("=")[0]
        return not key.startswith(f"{group}.") or any(key == own or key.startswith(f"{own}.") for own in known)

    return [override for override in overrides if valid(override)]


def keys(values: dict[Any, Any], prefix: str = "") -> Iterator[str]:
    """Yield all dotted keys of a config, those of inner mappings included."""
    for key, value in values.items():
        yield prefix + str(key)
        if isinstance(value, dict):
            yield from keys(value, f"{prefix}{key}.")
