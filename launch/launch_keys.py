"""The keys that the launcher reads before the config is checked as a whole: their types are checked first of all."""

from typing import Any, Literal

from dist_ssl.config.instantiate import fit
from dist_ssl.config.validation import require
from dist_ssl.errors import ConfigError

FOLDER = "data=folder"
"""Argument that packs a folder of pictures at the start of a run; the run itself has the shards."""

OF_A_RUN = ("resume=", "fork=", "follow=")
"""Beginnings of arguments that name an existing run."""

TYPES: dict[str, Any] = {
    "runs": str,
    "name": str | None,
    "wait": bool,
    "dry_run": bool,
    "data.path": Any,
    "data.source": str | None,
    "cluster.kind": Literal["auto", "slurm", "local", "allocation", "torchrun"],
    "cluster.extra": dict,
    "cluster.array": bool,
    "metrics.bind": str | None,
    "metrics.port": int,
}
"""The type of each key."""


def check_types(config: dict[str, Any]) -> None:
    """Raise ConfigError where one of these keys is missing or has a wrong value, or `resume` or a folder is left."""
    from dist_ssl.data.storage.mixture import places  # needs what reads data, which following a run does without

    for key, annotation in TYPES.items():
        group, _, own = key.rpartition(".")
        node = config.get(group) if group else config
        if not isinstance(node, dict) or own not in node:
            raise ConfigError(f"The config has no {key}.", "Leave out what removes it from the command line.")
        fit(node[own], annotation, key)
    places(config["data"]["path"], config["data"].get("weights"))
    require("metrics", "from 0 to 65535", lambda port: 0 <= port < 1 << 16, port=config["metrics"]["port"])
    if config["data"]["source"] == FOLDER.partition("=")[2]:
        raise ConfigError(
            f"data.source={config['data']['source']} is no source of shards.", f"Start a run with {FOLDER}, so written."
        )
    if config.get("resume") is not None:
        raise ConfigError(
            f"resume={config['resume']} is not possible here: a new run is described.",
            "A run is resumed by: python launch/slurm.py resume=runs/NAME",
        )


def listed(text: str) -> str | list[str]:
    """Return the addresses of a data.path that is a list on the command line, `[a,b]`; another one as it is."""
    if not (text.startswith("[") and text.endswith("]")):
        return text
    return [one.strip().strip("'\"") for one in text[1:-1].split(",")]
