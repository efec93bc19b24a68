"""Pre-training from Python: `dist_ssl.fit(method="mocov3", epochs=10)` trains as the command does, on this machine.

The command runs in a process of its own, so that an interrupt stops the training in order and the caller's process
stays as it was. Its lines are printed here, in a notebook below the cell.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

from dist_ssl.errors import EXIT_CODE, ConfigError, TrainingError
from dist_ssl.saved_encoder import SavedEncoder, load_encoder
from launch import credentials
from launch.ending import STOPPED_CODE
from launch.last_lines import RUN_FOLDER
from launch.run_dir import PROJECT
from launch.variables import ADDRESS, ADDRESS_FILE

ALONE = ("nodes=1", "cluster=local")
"""Words that a call has where it does not say otherwise."""
SEVERAL = ("-m", "--multirun", "follow=", "dry_run=")
"""Beginnings of words with which a command trains no single run to its end."""


def fit(*words: str, **keys: Any) -> SavedEncoder:
    """Pre-train an encoder and return it; a run folder is written as by `dist-ssl run`.

    `words`: arguments of that command, as for keys with dots: `fit("data.path=pictures", "data=folder", epochs=10)`;
    `keys`: other keys and their values. One process trains unless `nodes` says otherwise. `fit(resume="runs/NAME")`
    goes on with a run that was interrupted.

    Raises ConfigError where the command refuses the words, TrainingError where the run fails; the lines above the error
    say why. An interrupt (KeyboardInterrupt) saves and stops the run first; a second one kills it.
    """
    arguments = arguments_of(words, keys)
    folder, code = trained(arguments)
    again = f"dist_ssl.fit(resume={str(folder)!r})" if folder else "the corrected call"
    if code == EXIT_CODE:
        raise ConfigError("The run is refused, as the lines above say.", f"Correct what they name, and call {again}.")
    if code == STOPPED_CODE:
        raise KeyboardInterrupt(f"The run is saved in {folder}. Go on: {again}")
    if code or folder is None:
        raise TrainingError(f"The run has ended with exit code {code}; the lines above say why.", f"Go on: {again}")
    return load_encoder(folder)


def arguments_of(words: tuple[str, ...], keys: dict[str, Any]) -> list[str]:
    """Return the arguments of the command. Raises ConfigError for those with which it would not train one run."""
    given = [*words, *(f"{key}={written(value)}" for key, value in keys.items())]
    if other := [word for word in given if word.startswith(SEVERAL)]:
        raise ConfigError(f"fit trains one run, and {other[0]} does something else.", "Use the command: dist-ssl run.")
    said = {word.partition("=")[0] for word in given}
    alone = ALONE[1:] if "resume" in said else ALONE  # a resume keeps its number of nodes
    return [*(word for word in alone if word.partition("=")[0] not in said), *given]


def written(value: Any) -> str:
    """Return a value as the command line has it: null, true, [a,b], or its text."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{','.join(map(written, value))}]"
    return str(value)


def trained(arguments: list[str]) -> tuple[Path | None, int]:
    """Run the command to its end and print its lines; return the run folder, if it has one, and the exit code.

    Raises ConfigError for an address that cannot be given to it without its credentials.
    """
    words, addresses = without_logins(arguments)
    command = [sys.executable, "-P", "-m", "launch.slurm", *words]
    path = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH", "")]))
    folders: list[Path] = []
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**{key: text for key, text in os.environ.items() if key != ADDRESS_FILE}, **addresses, "PYTHONPATH": path},
        start_new_session=True,  # an interrupt reaches it through this process alone: the command kills at a second one
    ) as process:
        assert process.stdout
        while True:
            try:
                show(process.stdout, folders)
                return (folders[0] if folders else None), process.wait()
            except KeyboardInterrupt:
                process.send_signal(signal.SIGINT)


def without_logins(arguments: list[str]) -> tuple[list[str], dict[str, str]]:
    """Return the words without credentials, and the variable that has these: other users can read the words.

    The environment of this process stays as it is. Raises ConfigError, see `credentials.set_aside`.
    """
    before = {name: os.environ.get(name) for name in (ADDRESS, ADDRESS_FILE)}
    try:
        words = credentials.set_aside(arguments)
        return words, {ADDRESS: text} if (text := os.environ.get(ADDRESS)) else {}
    finally:
        for name, text in before.items():
            os.environ.pop(name, None)
            if text is not None:
                os.environ[name] = text


def show(lines: IO[str], folders: list[Path]) -> None:
    """Print lines as they come, to their end; add to `folders` the run folders that they name."""
    for line in lines:
        print(line, end="", flush=True)
        if line.startswith(RUN_FOLDER):
            folders.append(Path(line.removeprefix(RUN_FOLDER).strip()))
