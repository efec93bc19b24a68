"""The tracker Weights & Biases: one of its runs for all attempts of a run."""

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from dist_ssl.metrics.trackers.detached import Tracker, require
from dist_ssl.metrics.trackers.sent import Sent, config_of


class WeightsAndBiases(Tracker):
    """A run of Weights & Biases. `folder`: of the run; `project`, `entity`: where it is kept (null: your default).

    `mode`: offline writes to `runs/NAME/wandb`, for `wandb sync`; online sends to the server that `wandb login` named.
    Raises ConfigError where wandb is not installed.
    """

    def __init__(
        self, folder: Path, project: str, entity: str | None = None, mode: Literal["offline", "online"] = "offline"
    ) -> None:
        require("wandb")
        self.folder, self.project, self.entity, self.mode = folder, project, entity, mode
        self.sent = Sent(folder / "wandb" / "sent.json")
        self.run: Any = None

    def open(self, step: int) -> None:
        """Start the run, or resume it under its id. Neither code nor the console's output is sent."""
        import wandb

        self.sent.path.parent.mkdir(exist_ok=True)
        self.sent.read()
        if not self.sent.id:
            self.sent.register(uuid.uuid4().hex)
        self.run = wandb.init(
            project=self.project,
            entity=self.entity,
            id=self.sent.id,
            resume="allow" if self.mode == "online" else None,
            name=self.folder.name,
            dir=str(self.folder),
            config=config_of(self.folder),
            settings=wandb.Settings(mode=self.mode, console="off", disable_git=True, save_code=False, silent=True),
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log the values that the run does not have yet, at this step of the run."""
        new = self.sent.advance(step, values)
        if new:
            self.run.log(new, step=step)

    def close(self) -> None:
        """Write out and end the run's part of this attempt."""
        self.run.finish()
