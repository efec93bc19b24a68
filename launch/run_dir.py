"""The run folder: what a run is on disk, and how its attempts are numbered.

runs/NAME/config.yaml    the resolved config that the run began with
          overrides.yaml the words on the command line that made it
          code/          the code at submission; every attempt runs from there
          submitted.yaml the resolved config of the newest submission to Slurm; job: its id, attempts before it
          slurm/         batch files and logs of its jobs
          attempts/0001/ config.yaml, rendezvous.json, logs/, reasons/, node_0000.json, outcome.json
          checkpoints/ ledger/ metrics.jsonl plan.jsonl quarantine.jsonl status.json
"""

import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dist_ssl.errors import ConfigError, nearest

FORMAT = 1
REASON_BYTES = 4096
PROJECT = Path(__file__).resolve().parent.parent
SNAPSHOT = ("dist_ssl", "launch", "shards", "configs")


@dataclass(frozen=True)
class RunDir:
    """One run folder."""

    folder: Path

    @classmethod
    def create(cls, runs: Path, name: str | None, method: str) -> "RunDir":
        """A new folder in `runs`; without a name METHOD-MMDD-HHMM. Raises ConfigError where the name is taken."""
        wanted = name or f"{method}-{time.strftime('%m%d-%H%M')}"
        for number in range(1, 1000):
            folder = runs / (wanted if number == 1 else f"{wanted}-{number}")
            try:
                folder.mkdir(parents=True)
                return cls(folder)
            except FileExistsError:
                if name:
                    break
        raise ConfigError(
            f"The run folder {runs / wanted} exists already.", f"Resume it with resume={runs / wanted}, or rename."
        )

    @classmethod
    def open(cls, folder: Path) -> "RunDir":
        """A run that has begun. Raises ConfigError where there is none or another version made it."""
        run = cls(folder)
        if not (folder / "config.yaml").is_file():
            others = [p.parent.name for p in folder.parent.glob("*/config.yaml")]
            remedy = nearest(folder.name, others) if others else "Start one: python launch/slurm.py method=mocov3."
            raise ConfigError(f"{folder} is not a run folder.", remedy)
        if (version := run.config.get("format")) != FORMAT:
            raise ConfigError(
                f"{folder} has format {version}: this version reads {FORMAT}.",
                "Resume it with the version of dist_ssl that made it.",
            )
        return run

    @property
    def code(self) -> Path:
        """The code that the run runs."""
        return self.folder / "code"

    @property
    def config(self) -> dict[str, Any]:
        """The resolved config that the run began with."""
        return read_yaml(self.folder / "config.yaml")

    @property
    def overrides(self) -> list[str]:
        """The command line that the run began with."""
        words: list[str] = yaml.safe_load((self.folder / "overrides.yaml").read_text())
        return words

    def begin(self, config: dict[str, Any], overrides: list[str]) -> None:
        """Keep the code, the words and the config; the config last, so that a half-made folder is no run."""
        for name in SNAPSHOT:
            ignore = shutil.ignore_patterns("__pycache__", "*.pyc")
            shutil.copytree(PROJECT / name, self.code / name, ignore=ignore)
        (self.folder / "overrides.yaml").write_text(yaml.safe_dump(overrides))
        write_yaml(self.folder / "config.yaml", {"format": FORMAT, **config})

    def discard(self) -> None:
        """Remove the folder of a run of which there was neither a job nor an attempt."""
        if not self.job[0] and not self.newest_attempt():
            shutil.rmtree(self.folder)

    @property
    def submitted(self) -> dict[str, Any]:
        """The resolved config of the newest submission to Slurm: that of the attempts which its job makes."""
        return read_yaml(self.folder / "submitted.yaml")

    def submit(self, config: dict[str, Any]) -> None:
        """Keep the config of a submission to Slurm."""
        write_yaml(self.folder / "submitted.yaml", config)

    def note_job(self, job: str) -> None:
        """Remember the id of the run's newest Slurm job, and how many attempts there were before it."""
        (self.folder / "job").write_text(f"{job} {self.newest_attempt()}\n")

    @property
    def job(self) -> tuple[str, int]:
        """The id of the newest Slurm job of this run and the number of attempts before it; ("", 0) without one."""
        path = self.folder / "job"
        if not path.is_file():
            return "", 0
        job, before = path.read_text().split()
        return job, int(before)

    def job_log(self, job: str, task: int) -> Path:
        """What a task of a Slurm job printed; that of task 0 holds the batch script's words too."""
        return self.folder / "slurm" / f"{job}_{task}_log.out"

    def new_attempt(self, config: dict[str, Any]) -> "AttemptDir":
        """The next attempt's folder, made by exclusive creation: nobody else has its number."""
        while True:
            attempt = AttemptDir(self, self.newest_attempt() + 1)
            try:
                attempt.folder.mkdir(parents=True)
            except FileExistsError:
                continue
            (attempt.folder / "logs").mkdir()
            (attempt.folder / "reasons").mkdir()
            write_yaml(attempt.folder / "config.yaml", config)
            return attempt

    def newest_attempt(self) -> int:
        """The number of the newest attempt, 0 where there is none."""
        return max((int(p.name) for p in (self.folder / "attempts").glob("[0-9]*")), default=0)

    def outcome(self) -> str | None:
        """How the newest attempt ended."""
        path = AttemptDir(self, self.newest_attempt()).folder / "outcome.json"
        return str(json.loads(path.read_text())["outcome"]) if path.is_file() else None


@dataclass(frozen=True)
class AttemptDir:
    """One attempt of a run."""

    run: RunDir
    number: int

    @property
    def folder(self) -> Path:
        """Its folder."""
        return self.run.folder / "attempts" / f"{self.number:04d}"

    @property
    def config(self) -> dict[str, Any]:
        """The resolved config of this attempt."""
        return read_yaml(self.config_file)

    @property
    def config_file(self) -> Path:
        """Written when the attempt begins."""
        return self.folder / "config.yaml"

    @property
    def meeting(self) -> Path:
        """The file through which the ranks find each other."""
        return self.folder / "rendezvous.json"

    @property
    def failure(self) -> Path:
        """The file that is there as soon as a rank has failed."""
        return self.folder / "failed"

    def log(self, who: str) -> Path:
        """The log of `rank_00000` or `node_0000`."""
        return self.folder / "logs" / f"{who}.log"

    def reserve_reason(self, rank: int) -> None:
        """Keep room for a reason, so that a rank can still give one when the disk is full."""
        self._reason_file(rank).write_text(" " * REASON_BYTES)

    def give_reason(self, rank: int, text: str) -> None:
        """Say in words why a rank gave up, in the room kept for it; without an agent there is none."""
        self._reason_file(rank).touch()
        with self._reason_file(rank).open("r+b") as file:
            file.write(text.encode()[:REASON_BYTES])

    def reason(self, rank: int) -> str:
        """Why a rank gave up; empty where it gave no reason."""
        path = self._reason_file(rank)
        return path.read_text(errors="replace").strip() if path.is_file() else ""

    def _reason_file(self, rank: int) -> Path:
        return self.folder / "reasons" / f"rank_{rank:05d}.txt"

    def node(self, number: int) -> Path:
        """Where an agent says how its node's ranks ended."""
        return self.folder / f"node_{number:04d}.json"


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping."""
    values: dict[str, Any] = yaml.safe_load(path.read_text())
    return values


def write_yaml(path: Path, values: dict[str, Any]) -> None:
    """Write a YAML mapping in one move."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(yaml.safe_dump(values, sort_keys=False))
    part.replace(path)
