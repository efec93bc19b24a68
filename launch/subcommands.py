"""The installed command: `dist-ssl run method=mocov3` is `python launch/slurm.py method=mocov3`, from any folder.

The first word names a script; the words after it, exit codes and signals are those of the script. A script is imported
when it is run and not before, so that the list of subcommands needs no torch and appears at once.
"""

import gc
import importlib
import shlex
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from rich.console import Console

from dist_ssl.config.command import INTERRUPTED_CODE, Screen, say
from dist_ssl.config.command_names import PROGRAM, show_as
from dist_ssl.errors import EXIT_CODE, ConfigError, nearest

HELP, VERSION = ("-h", "--help"), "--version"
PICTURES = "run=runs/NAME data.path=pictures"


@dataclass(frozen=True)
class Subcommand:
    """A subcommand: the script that it starts, a sentence about it, and an example of the words after it.

    `always`: words that are added to the user's.
    """

    name: str
    script: str
    does: str
    example: str
    always: tuple[str, ...] = ()

    @property
    def module(self) -> str:
        """Name of the script's module."""
        return self.script.removesuffix(".py").replace("/", ".")


GROUPS: dict[str, tuple[Subcommand, ...]] = {
    "Runs": (
        Subcommand("run", "launch/slurm.py", "Start, resume or fork a run.", "method=mocov3 nodes=4"),
        Subcommand("plan", "launch/plan.py", "Show the epochs of a run, their cost and time.", "method=mocov3 nodes=4"),
        Subcommand("status", "launch/status.py", "Show what all runs of a folder are doing.", "runs=runs"),
        Subcommand("follow", "launch/status.py", "Show one run live.", "run=runs/NAME", ("follow=true",)),
        Subcommand("audit", "launch/audit.py", "Prove that no sample was lost or repeated.", "run=runs/NAME"),
        Subcommand("report", "launch/report.py", "Write an HTML page about runs.", "run=runs/NAME out=report.html"),
    ),
    "Data sets": (
        Subcommand("shards", "shards/make.py", "Pack images into shards.", "source=demo out=data/demo"),
        Subcommand("show", "shards/show.py", "Show what shards hold, and a sheet of their images.", "data/demo"),
        Subcommand("verify", "shards/verify.py", "Read every image of a data set again.", "data/demo"),
    ),
    "Encoders": (
        Subcommand("evaluate", "launch/evaluate.py", "Measure the features of a checkpoint.", "run=runs/NAME"),
        Subcommand("export", "launch/export.py", "Write the encoder for another library.", "run=runs/NAME to=timm"),
        Subcommand("embed", "launch/embed.py", "Write the features of images.", f"{PICTURES} out=features"),
        Subcommand("finetune", "launch/finetune.py", "Train a classifier on the encoder.", f"{PICTURES} out=finetuned"),
    ),
    "Shell": (Subcommand("completion", "launch/completion.py", "Print what completes words in bash.", "bash"),),
}
SUBCOMMANDS = {own.name: own for group in GROUPS.values() for own in group}


def overview() -> str:
    """Return the list of subcommands, with a sentence and an example of each."""
    width = max(map(len, SUBCOMMANDS))
    lines = [f"{PROGRAM}: self-supervised pre-training of vision encoders. Usage: {PROGRAM} SUBCOMMAND [KEY=VALUE ...]"]
    for title, group in GROUPS.items():
        lines += ["", f"{title}:"]
        for own in group:
            lines += [f"  {own.name:{width}}  {own.does}", f"  {'':{width}}    {PROGRAM} {own.name} {own.example}"]
    lines += ["", f"{PROGRAM} SUBCOMMAND --help shows the keys of one; {PROGRAM} {VERSION} the version."]
    return "\n".join(lines)


def installed_version() -> str:
    """Return the version of the installed package; a word where it is not installed."""
    try:
        return version("dist_ssl")
    except PackageNotFoundError:
        return "not installed"


def found(word: str) -> Subcommand:
    """Return the subcommand of this name. Raises ConfigError, with the nearest one."""
    if word in SUBCOMMANDS:
        return SUBCOMMANDS[word]
    if "=" in word:
        start = shlex.join([PROGRAM, "run", word])
        raise ConfigError(f"{word} is a key: a subcommand comes first.", f"To start a run: {start}")
    raise ConfigError(f"There is no subcommand '{word}'.", nearest(word, SUBCOMMANDS))


def dispatch(arguments: list[str], console: Console) -> int:
    """Run what the arguments say; return the exit code. Raises ConfigError."""
    first = arguments[0] if arguments else HELP[0]
    if first in HELP:
        say(console, overview())
        return 0
    if first == VERSION:
        say(console, installed_version())
        return 0
    own = found(first)
    code: int = importlib.import_module(own.module).main([*arguments[1:], *own.always])
    return code


def main(arguments: list[str] | None = None) -> int:
    """Run a command line, by default this process's; return the exit code."""
    show_as({own.script: own.name for own in SUBCOMMANDS.values() if not own.always})
    console = Screen()
    try:
        code = dispatch(sys.argv[1:] if arguments is None else arguments, console)
    except ConfigError as error:  # a script shows its own errors
        say(console, str(error))
        return EXIT_CODE
    except KeyboardInterrupt:  # before the script listens
        say(console, "Interrupted.")
        return INTERRUPTED_CODE
    gc.freeze()  # torch's objects: the interpreter would take a second to collect them one by one
    return code


if __name__ == "__main__":
    sys.exit(main())
