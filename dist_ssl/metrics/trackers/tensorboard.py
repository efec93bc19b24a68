"""The tracker TensorBoard: event files in `runs/NAME/tensorboard`, without what a resume repeats."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dist_ssl.metrics.trackers.detached import Tracker, require


class TensorBoard(Tracker):
    """Event files of a run. `folder`: of the run. Raises ConfigError where tensorboard is not installed."""

    def __init__(self, folder: Path) -> None:
        require("tensorboard")
        self.folder = folder / "tensorboard"
        self.writer: Any = None

    def open(self, step: int) -> None:
        """Start an event file; of a resumed run, TensorBoard drops all that other files have beyond this step."""
        from torch.utils.tensorboard import SummaryWriter

        purged = step + 1 if step else None
        self.writer = SummaryWriter(str(self.folder), purge_step=purged)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write the values at this step to the disk."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self) -> None:
        """Close the event file."""
        self.writer.close()
