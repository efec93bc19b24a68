"""The files of a run folder that ranks and launchers share. This module does not import torch."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run, by the paths of what ranks and launchers share there; none of them need exist."""

    folder: Path

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.folder / "checkpoints"

    @property
    def config_file(self) -> Path:
        """File of the resolved config that the run started with, and of the cycles appended since."""
        return self.folder / "config.yaml"

    @property
    def evaluations(self) -> Path:
        """File of the evaluations of checkpoints, one JSON object a line."""
        return self.folder / "evaluations.jsonl"

    @property
    def ledger(self) -> Path:
        """Folder of the records of the samples that were trained, by attempt and rank."""
        return self.folder / "ledger"

    @property
    def metrics(self) -> Path:
        """File of the reports, one JSON object a line."""
        return self.folder / "metrics.jsonl"

    @property
    def plans(self) -> Path:
        """File of the plans of the epochs, one JSON object a line."""
        return self.folder / "plan.jsonl"

    @property
    def quarantine(self) -> Path:
        """File of the samples that could not be read, one JSON object a line."""
        return self.folder / "quarantine.jsonl"

    @property
    def status(self) -> Path:
        """File of the newest report, which progress bars read."""
        return self.folder / "status.json"
