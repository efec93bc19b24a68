"""The run folder: the files of a run, and its numbered attempts.

runs/NAME/config.yaml    the resolved config that the run started with, and the cycles appended since
          overrides.yaml the command-line overrides that made it
          code/          the code at submission; every attempt runs from there
          source.json    the commit that this code was copied from
          submitted.yaml the resolved config of the newest submission to Slurm
          forked.yaml    the run and step that a fork began with
          job            its id, and the number of attempts before it
          slurm/         batch files and logs of its jobs
          attempts/0001/ config.yaml rendezvous.json logs/ reasons/ outcome.json, {node,environment,energy}_0000.json
          init.safetensors     the weights that the encoder started from, where they are not random
          encoder.safetensors  the encoder of a finished run; exports/ others
          checkpoints/ ledger/ metrics.jsonl plan.jsonl quarantine.jsonl status.json
"""

import contextlib
import os
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dist_ssl.errors import ConfigError, nearest
from dist_ssl.runtime.files import write_atomically
from dist_ssl.runtime.run_folder import RunFolder
from dist_ssl.runtime.strange_files import read_regular
from dist_ssl.runtime.tries import may_go_away
from launch.compiled_code import copy_compiled
from launch.half_made import new_folder, was_left
from launch.run_files import read_report, read_words, read_yaml, write_yaml
from launch.run_names import check_name, check_place
from launch.source_commit import SNAPSHOT, copy_for_owner, write_source

FORMAT = 1
ATTEMPT_NAME = re.compile(r"[0-9]{4,18}")
JOB = re.compile(r"([0-9]+(?:_[0-9]+)?)\s+([0-9]+)\s*")
MOST_JOB = 100
"""Bytes of the file that holds a job's id and the number of attempts before it, at most."""
MOST_DAMAGED = 3  # configs of attempts that are passed over
REASON_BYTES = 4096
PROJECT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class RunDir(RunFolder):
    """One run folder."""

    @classmethod
    def create(cls, runs: Path, name: str | None, method: str) -> "RunDir":
        """Create a folder in `runs`, by default METHOD-MMDD-HHMM.

        Raises ConfigError if the name is taken or is not that of one folder, or no folder can be made there.
        """
        requested = str(name or f"{method}-{time.strftime('%m%d-%H%M')}")
        check_name(runs, requested)
        folder = runs / requested
        try:
            return cls(new_folder(runs, requested, alone=bool(name)))
        except FileExistsError as error:
            remedy = f"Resume it with resume={folder}, or choose another name=..."
            raise ConfigError(f"The run folder {folder} exists already.", remedy) from error
        except OSError as error:
            raise ConfigError(f"{folder} cannot be made: {error.strerror}.", "Choose another runs=...") from error

    @classmethod
    def open(cls, folder: Path) -> "RunDir":
        """Open the folder of a started run. Raises ConfigError if it is none, cannot be read, or has another format."""
        run = cls(folder)
        try:
            version = run.config.get("format")
        except PermissionError as error:
            raise ConfigError(f"{folder} may not be read.", "Ask its owner: chmod -R go+rX FOLDER.") from error
        except OSError as error:
            if may_go_away(error):
                raise
            version = None
        if version is None and was_left(folder):
            problem = f"{folder} is not a run folder: the command that made it has ended before it was complete."
            raise ConfigError(problem, "Start the run again with the words of that command: the folder is replaced.")
        if type(version) is not int or not 0 < version < 1 << 32:
            others = [path.parent.name for path in folder.parent.glob("*/config.yaml") if of_a_run(path)]
            start = "Start one: python launch/slurm.py method=mocov3."
            remedy = nearest(folder.name, others, str(folder.parent / "_")[:-1]) if others else start
            raise ConfigError(f"{folder} is not a run folder.", remedy)
        if version != FORMAT:
            raise ConfigError(
                f"{folder} has format {version}: this version reads {FORMAT}.",
                "Resume it with the version of dist_ssl that made it.",
            )
        return run

    @property
    def code(self) -> Path:
        """Folder of the code that every attempt runs."""
        return self.folder / "code"

    @property
    def config(self) -> dict[str, Any]:
        """The resolved config that the run started with, with the cycles appended since."""
        return read_yaml(self.config_file)

    @property
    def overrides(self) -> list[str]:
        """The command-line overrides that the run started with."""
        return read_words(self.folder / "overrides.yaml")

    def python_path(self) -> str:
        """Return the PYTHONPATH with which a process imports the run's own code. Raises ConfigError."""
        check_place(self.folder)
        return os.pathsep.join([str(self.code.resolve()), *filter(None, [os.environ.get("PYTHONPATH")])])

    def begin(self, config: dict[str, Any], overrides: list[str]) -> None:
        """Store the code, the overrides and the config; the config last, so that an incomplete folder is not a run."""
        for name in SNAPSHOT:
            copy_for_owner(PROJECT / name, self.code / name)
        copied = (path.relative_to(self.code) for path in self.code.rglob("*") if path.is_file())
        write_source(self.folder, PROJECT, sorted(map(str, copied)))
        copy_compiled(PROJECT, self.code)
        write_atomically(self.folder / "overrides.yaml", yaml.safe_dump(overrides), sync=True)
        write_yaml(self.config_file, {"format": FORMAT, **config})

    def extend(self, lengths: list[str]) -> None:
        """Store the lengths of the run's cycles after the first: these alone may change after the start."""
        write_yaml(self.config_file, {**self.config, "extend": lengths})

    def discard(self) -> None:
        """Remove the folder, unless the run has a job or an attempt of its own (a fork has a number of another run)."""
        if not self.job[0] and not AttemptDir(self, self.newest_attempt()).config_file.is_file():
            shutil.rmtree(self.folder)

    @property
    def submitted(self) -> dict[str, Any]:
        """The resolved config of the newest submission to Slurm, which its job gives to every attempt."""
        return read_yaml(self.folder / "submitted.yaml")

    def submit(self, config: dict[str, Any]) -> None:
        """Store the config of a submission to Slurm. Raises ConfigError where a batch script cannot name the folder."""
        check_place(self.folder)
        write_yaml(self.folder / "submitted.yaml", config)

    def note_job(self, job: str) -> None:
        """Store the id of the run's newest Slurm job, and the number of attempts before it."""
        write_atomically(self.folder / "job", f"{job} {self.newest_attempt()}\n", sync=True)

    @property
    def job(self) -> tuple[str, int]:
        """Id of the run's newest Slurm job, and the number of attempts before it; ("", 0) without one.

        Raises ConfigError where the file holds something else: the id becomes part of commands.
        """
        path = self.folder / "job"
        if not path.is_file():
            return "", 0
        with contextlib.suppress(ValueError):
            if found := JOB.fullmatch(read_regular(path, MOST_JOB).decode()):
                return found[1], int(found[2])
        raise ConfigError(
            f"{path} does not hold the number of a Slurm job.", "Remove it, if the run has no job in the queue."
        )

    def job_log(self, job: str, task: int) -> Path:
        """Return the log of a task of a Slurm job; that of task 0 includes the output of the batch script."""
        return self.folder / "slurm" / f"{job}_{task}_log.out"

    def new_attempt(self, config: dict[str, Any]) -> "AttemptDir":
        """Create the folder of the next attempt; exclusive creation makes its number unique. Raises ConfigError."""
        check_place(self.folder)
        number = 0
        while True:
            number = max(number, self.newest_attempt()) + 1
            attempt = AttemptDir(self, number)
            try:
                attempt.folder.mkdir(parents=True)
            except FileExistsError:
                continue
            (attempt.folder / "logs").mkdir()
            (attempt.folder / "reasons").mkdir()
            write_yaml(attempt.config_file, config)
            return attempt

    def last_config(self) -> dict[str, Any]:
        """Return the config of the newest attempt that has a whole one; else that of the run.

        A kill may leave an attempt without one, and a lost power supply an empty one; of damaged ones few are passed
        over, as somebody's may take seconds each.
        """
        found = [file for n in reversed(self.attempts()) if (file := AttemptDir(self, n).config_file).is_file()]
        for file in found[: MOST_DAMAGED + 1]:
            with contextlib.suppress(ConfigError):
                return read_yaml(file)
        return self.config

    def attempts(self) -> list[int]:
        """Return the numbers of the attempts that have a folder, in order."""
        names = [path.name for path in (self.folder / "attempts").glob("[0-9]*")]  # `0001_old` is none
        return sorted(int(name) for name in names if ATTEMPT_NAME.fullmatch(name) and name == f"{int(name):04d}")

    def newest_attempt(self) -> int:
        """Return the number of the newest attempt, 0 without one."""
        return max(self.attempts(), default=0)

    def outcome(self) -> str | None:
        """Return the outcome of the newest attempt; None if it has not ended."""
        outcome = (read_report(AttemptDir(self, self.newest_attempt()).outcome_file) or {}).get("outcome")
        return outcome if isinstance(outcome, str) else None


@dataclass(frozen=True)
class AttemptDir:
    """One attempt of a run."""

    run: RunDir
    number: int

    @property
    def folder(self) -> Path:
        """Folder of the attempt."""
        return self.run.folder / "attempts" / f"{self.number:04d}"

    @property
    def config(self) -> dict[str, Any]:
        """The resolved config of this attempt."""
        return read_yaml(self.config_file)

    @property
    def config_file(self) -> Path:
        """File of the attempt's resolved config, written when the attempt starts."""
        return self.folder / "config.yaml"

    @property
    def meeting(self) -> Path:
        """File through which the ranks find the rendezvous address."""
        return self.folder / "rendezvous.json"

    @property
    def outcome_file(self) -> Path:
        """File of how the attempt ended."""
        return self.folder / "outcome.json"

    @property
    def failure(self) -> Path:
        """Marker file that an agent creates as soon as a rank has failed, or was stopped too early to say so."""
        return self.folder / "failed"

    def log(self, name: str) -> Path:
        """Return the log of a process, called `rank_00000` or `node_0000`."""
        return self.folder / "logs" / f"{name}.log"

    def reserve_reason(self, rank: int) -> None:
        """Allocate the file for a rank's reason, so that it can still be written when the disk is full."""
        self._reason_file(rank).write_text(" " * REASON_BYTES)

    def give_reason(self, rank: int, text: str) -> None:
        """Write why a rank gave up into the allocated file, cut to REASON_BYTES; created if no agent allocated it."""
        self._reason_file(rank).touch()
        with self._reason_file(rank).open("r+b") as file:
            file.write(text.encode()[:REASON_BYTES])

    def reason(self, rank: int) -> str:
        """Return why a rank gave up; empty if it gave no reason."""
        try:
            return read_regular(self._reason_file(rank), REASON_BYTES).decode(errors="replace").strip()
        except (FileNotFoundError, ValueError):
            return ""

    def _reason_file(self, rank: int) -> Path:
        return self.folder / "reasons" / f"rank_{rank:05d}.txt"

    def node(self, number: int) -> Path:
        """Return the file in which the agent of a node reports how its ranks ended."""
        return self.folder / f"node_{number:04d}.json"

    def environment(self, node: int) -> Path:
        """Return the file in which the agent of a node records what it runs with."""
        return self.folder / f"environment_{node:04d}.json"

    def energy(self, node: int) -> Path:
        """Return the file in which the agent of a node records the joules that the node has taken, by source."""
        return self.folder / f"energy_{node:04d}.json"


def of_a_run(config: Path) -> bool:
    """Return whether a file is the config of a run."""
    try:
        return "format" in read_yaml(config)
    except (ConfigError, OSError):
        return False
