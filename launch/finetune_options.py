"""The keys of launch/finetune.py."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dist_ssl.config.bounds import MOST_SEED
from dist_ssl.data.storage.reader_options import CACHE_BYTES
from dist_ssl.errors import ConfigError
from launch import credentials
from launch.command_options import check_least, one_encoder, parse, place_among
from shards.command_line import HeldOut, NotNegative

ENCODER_LR = 1e-4


@dataclass(frozen=True)
class FinetuneOptions:
    """Options of the command; exactly one of `run` and `encoder` is given."""

    data_path: str
    out: Path
    run: str | None = None
    encoder: str | None = None
    train: Literal["all", "head"] = "all"
    val: HeldOut | None = None
    epochs: int = 20
    batch: int = 64
    lr: float = 1e-3
    """Largest learning rate of the classifier."""
    encoder_lr: float | None = None
    """Largest learning rate of the encoder, by default ENCODER_LR."""
    weight_decay: NotNegative = NotNegative(0.05)
    flip: bool = True
    """Whether half of the views are mirrored."""
    seed: int = 0
    workers: int = 4
    """Processes that decode."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    data_cache: str = "auto"
    data_cache_bytes: str = CACHE_BYTES

    @classmethod
    def parse(cls, arguments: list[str]) -> "FinetuneOptions":
        """Return the options of a command line. Raises ConfigError."""
        usage = "python launch/finetune.py run=runs/NAME data.path=pictures out=finetuned"
        found = parse(cls, credentials.set_aside(arguments), usage)
        one_encoder(found.run, found.encoder)
        check_least(found, epochs=1, batch=2)
        if found.seed > MOST_SEED:
            raise ConfigError(f"seed={found.seed} is too large.", f"Use at most {MOST_SEED}.")
        if found.train == "head" and found.encoder_lr is not None:
            raise ConfigError("encoder_lr=... has no effect with train=head.", "Leave one of them out.")
        if place_among()[1] > 1:
            raise ConfigError("Several processes cannot share this training.", "Start it without torchrun.")
        return found
