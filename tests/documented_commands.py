"""The commands that the documents show, in code blocks and within sentences, and the words to try each with."""

import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from dist_ssl.config.command_names import PROGRAM
from launch.subcommands import SUBCOMMANDS

ROOT = Path(__file__).resolve().parents[1]
HISTORY = "CHANGELOG.md"
"""It says what commands were at their time."""
ELSEWHERE = {".venv", "runs", "data", "build", "node_modules"}
"""Folders of a checkout that are no part of the project."""
ENVIRONMENT = ("pyvenv.cfg", "conda-meta")
"""What an environment of Python has in its folder."""
PROGRAMS = ("python", PROGRAM, "torchrun", "make", "pip", "sh", "bash", "docker", "apt-get", "apt", "sbatch", "mkdir")
PROGRAMS += ("chmod", "eval", "ln", "scontrol", "sinfo", "sacctmgr", "kubectl")
CONTINUED = re.compile(r"\\\n\s*")
OPTIONAL = re.compile(r"(?<=\s)\[((?:--)?[\w.]+=(?:\[[^\]]*\]|'[^']*'|[^\]\s'])*)\](?=\s|$)")
"""An optional word, in brackets."""


@dataclass(frozen=True)
class Block:
    """A code block of a document, and the language that it names."""

    document: Path
    language: str
    text: str


@cache
def documents() -> tuple[Path, ...]:
    """All documents of the project but the history of its changes."""
    return tuple(path for path in documents_in(ROOT) if path.name != HISTORY)


def documents_in(root: Path) -> list[Path]:
    """The documents of a checkout, sorted: those that git tracks; all but those of other programs, where it has none.

    A person's notes and the documents of installed packages are none: tests run the commands of documents.
    """
    found = tracked(root) or [path for path in root.rglob("*.md") if not installed(path, root)]
    return sorted(path for path in found if not ELSEWHERE.intersection(path.relative_to(root).parts) and path.is_file())


def tracked(root: Path) -> list[Path]:
    """The documents that git tracks in a folder, but those in hidden folders; none where git knows nothing of it."""
    command = ["git", "-C", str(root), "ls-files", "-z", "*.md"]
    try:
        names = subprocess.run(command, capture_output=True, check=True, text=True).stdout.split("\0")
    except (OSError, subprocess.CalledProcessError):
        return []
    return [root / name for name in names if name and not hidden(Path(name))]


def hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def installed(path: Path, root: Path) -> bool:
    """Whether a file is in a hidden folder, or in an environment of Python that somebody made in the folder `root`."""
    inside = path.relative_to(root)
    folders = [root / place for place in inside.parents][:-1]
    return hidden(inside) or any((place / mark).exists() for place in folders for mark in ENVIRONMENT)


def name_of(document: Path) -> str:
    return str(document.relative_to(ROOT))


@cache
def blocks(document: Path) -> tuple[Block, ...]:
    """The code blocks of a document."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", document.read_text(), re.DOTALL | re.MULTILINE)
    return tuple(Block(document, language, text) for language, text in found)


def spans(document: Path) -> Iterator[str]:
    """The pieces of code within the sentences of a document, in one line each."""
    sentences = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)
    for paragraph in re.split(r"\n\s*\n|\n(?=[|*#])", sentences):
        yield from (" ".join(piece.split()) for piece in paragraph.split("`")[1::2])


@cache
def commands(document: Path) -> tuple[str, ...]:
    """All commands of a document without their comments, each once, in order; continued lines are joined."""
    lines = [
        line for block in blocks(document) if not block.language for line in CONTINUED.sub("", block.text).splitlines()
    ]
    shown = (bare(line) for line in [*lines, *spans(document)])
    return tuple(dict.fromkeys(line for line in shown if re.match(rf"({'|'.join(PROGRAMS)}) (?!\w+\()", line)))


def bare(line: str) -> str:
    """A line without what follows ` #`, and without the signs that others print before a command."""
    return re.sub(r"\s+#\s.*$", "", line.strip()).rstrip()


def words_of(command: str) -> list[str]:
    """The words of a command, optional ones included; those that a document leaves open, `...`, are left out."""
    words = shlex.split(OPTIONAL.sub(r"\1", command))
    return [word for word in words if word != "..." and not word.endswith("=...")]


def script_of(words: list[str]) -> tuple[str, list[str]]:
    """The script that a command starts, and the words after it; of torchrun and sbatch, those of what they start."""
    program, rest = words[0], words[1:]
    if program == "python" and rest[0].endswith(".py"):
        return rest[0], rest[1:]
    if program == PROGRAM:
        own = SUBCOMMANDS[rest[0]]
        return own.script, [*rest[1:], *own.always]
    if program == "torchrun":
        return script_of(under_torchrun(rest))
    if program == "sbatch":
        (inner,) = (word.removeprefix("--wrap=") for word in rest if word.startswith("--wrap="))
        return script_of(shlex.split(inner))
    raise AssertionError(f"{shlex.join(words)} starts no script of ours: say in this file what runs it")


def under_torchrun(words: list[str]) -> list[str]:
    """The command that torchrun starts in every process; torchrun's own options are checked by its own parser."""
    from torch.distributed.run import get_args_parser

    given = get_args_parser().parse_args(words)
    start = [given.training_script, *given.training_script_args]
    return start if given.no_python else ["python", *start]
