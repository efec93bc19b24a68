"""Which keys of a config the result of a run depends on: a resume may change all others.

This module does not import Hydra: every rank notes in its checkpoints what they were made under.
"""

from collections.abc import Iterator
from typing import Any

from dist_ssl.errors import ConfigError

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
    "start_timeout",
    "runs",
    "name",
    "resume",
    "data.path",
    "data.manifest",
    "data.source",
    "data.cache",
    "data.cache_bytes",
    "data.allow_pipe",
    "data.verify",
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
    "tracker",
    "probe",
    "cluster",
    "wait",
    "dry_run",
)
"""Machine keys, which a resume may change. All other keys are science: the result of the run depends on them."""


def leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted key and value of every leaf."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + str(key), value


def science(config: dict[str, Any]) -> dict[str, Any]:
    """Return the leaves that the result of a run depends on."""
    machine = tuple(f"{key}." for key in MACHINE)
    return {k: v for k, v in leaves(config) if k not in MACHINE and not k.startswith(machine) and k != "format"}


def check_resume(began: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise ConfigError if a science key differs from the config that the run started with."""
    old, new = science(began), science(now)
    if now["engine"].get("bitwise") and began["engine"].get("virtual_ranks") is None:
        raise ConfigError(
            "engine.bitwise=true is not possible for this run: it began without virtual ranks.",
            "Leave it out to resume, or start a new run with it and engine.virtual_ranks.",
        )
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            longer = "To train longer, append a cycle: extend='24 epochs'. " if key == "epochs" else ""
            remedy = f"Leave it out to resume, or start a new run. A resume may change: {', '.join(MACHINE[:8])}, ..."
            raise ConfigError(
                f"{key}={new.get(key)} is not what the run began with ({old.get(key)}): its result depends on it.",
                longer + remedy,
            )
