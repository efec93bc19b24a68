"""The keys at the top level of the config, with their types and ranges."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dist_ssl.config.bounds import MOST_EPOCHS, MOST_SEED
from dist_ssl.config.durations import Duration
from dist_ssl.config.instantiate import keywords
from dist_ssl.errors import ConfigError, nearest

Config = Mapping[str, Any]
PRECISION_NAMES = ("fp32", "tf32", "bf16", "fp64")


@dataclass(frozen=True)
class Run:
    """Values of the top-level keys that describe the run."""

    nodes: int
    epochs: int
    batch_size: int
    lanes: int
    window: int
    seed: int
    precision: str
    save_every: Duration
    keep_last: int
    keep_every: Duration | None
    log_every: Duration
    threads: int
    decode_threads: int
    timeout: Duration
    start_timeout: Duration
    ranks_per_node: int | None = None
    extend: list[Duration] = field(default_factory=list)
    """Lengths of the cycles after the first one, which has `epochs`."""
    ema: float | None = None
    """Momentum of the average of the encoder's weights, more than 0 and less than 1; None: none is kept."""
    init: str | None = None
    """Where the encoder's initial weights come from; None: they are random."""
    init_sha256: str | None = None
    """Hash of the run's own file of them, which the launcher records."""

    @property
    def cycles(self) -> tuple[int, ...]:
        """Number of epochs of every cycle of the run."""
        return (self.epochs, *(int(length.amount) for length in self.extend))

    @property
    def all_epochs(self) -> int:
        """Number of epochs in the whole run."""
        return sum(self.cycles)


GROUPS = (
    *("method", "encoder", "aux", "optim", "schedule", "difficulty", "views", "data", "engine"),
    *("probe", "metrics", "tracker"),
)
LEAST = {"epochs": 1, "keep_last": 1, "window": 1, "seed": 0}
MOST = {"all_epochs": MOST_EPOCHS, "seed": MOST_SEED}
LAUNCH_KEYS = ("cluster", "runs", "name", "resume", "wait", "dry_run", "format")
"""Keys that only the launcher reads; the training process ignores them."""
TOP = (*Run.__dataclass_fields__, *GROUPS, *LAUNCH_KEYS)


def top_level(config: Config) -> Run:
    """Return the values of the top-level keys, checked. Raises ConfigError for an unknown key or an invalid value."""
    for key in config:
        if key not in TOP:
            raise ConfigError(f"There is no key '{key}'.", nearest(key, TOP))
    run = Run(**keywords(Run, {key: config[key] for key in Run.__dataclass_fields__ if key in config}, ""))
    for key, least in LEAST.items():
        if getattr(run, key) < least:
            raise ConfigError(
                f"{key}={getattr(run, key)} is not possible: it must be at least {least}.", f"Set {key}=1, say."
            )
    for key, most in MOST.items():
        if (value := getattr(run, key)) > most:
            name = "epochs, with those of extend," if key == "all_epochs" else key
            raise ConfigError(f"{name} is {value}: that is not possible, it must be at most {most}.", "Lower it.")
    if run.ema is not None and not 0 < run.ema < 1:
        raise ConfigError(
            f"ema={run.ema:g} is not possible: it must be more than 0 and less than 1.",
            "Set ema=0.999, say, or ema=null.",
        )
    check_units("timeout", run.timeout, "seconds")
    check_units("start_timeout", run.start_timeout, "seconds")
    check_units("log_every", run.log_every, "steps")
    check_units("save_every", run.save_every, "seconds", "steps")
    for length in run.extend:
        check_units("extend", length, "epochs")
    if run.keep_every:
        check_units("keep_every", run.keep_every, "steps", "epochs")
    if run.precision not in PRECISION_NAMES:
        raise ConfigError(f"precision={run.precision} is not possible.", nearest(run.precision, PRECISION_NAMES))
    return run


def all_epochs(config: Config) -> int:
    """Return the number of epochs of all cycles of a checked config."""
    return sum([config["epochs"], *(int(Duration.parse(length).amount) for length in config.get("extend", ()))])


def method_of(config: Config) -> str:
    """Return the name of the method of a checked config: that of the module of its class, such as `mocov3`."""
    return str(config["method"]["_target_"]).split(".")[-2]


def check_units(key: str, duration: Duration, *units: str) -> None:
    """Raise ConfigError if the duration is not in one of these units."""
    if duration.unit not in units:
        raise ConfigError(
            f"{key} is in {duration.unit}: that is not possible.",
            f"Write it in {' or '.join(units)}" + (" (or minutes, hours)." if "seconds" in units else "."),
        )
