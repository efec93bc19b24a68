"""The commands that the documents show, in code blocks and within sentences, and the words to try each with."""

import re
import shlex
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
    found = (path for path in sorted(ROOT.rglob("*.md")) if path.name != HISTORY)
    return tuple(
        path
        for path in found
        if not {part for part in path.relative_to(ROOT).parts if part in ELSEWHERE or part.startswith(".")}
    )


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
