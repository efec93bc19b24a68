"""Documents are true where a test can see it: paths lead somewhere, commands compose, the picture is current."""

import re
import shlex
from pathlib import Path

import pytest

from dist_ssl.config.command_names import PROGRAM
from dist_ssl.metrics.ends import END_METRICS
from dist_ssl.metrics.node_table import NODE_METRICS
from dist_ssl.metrics.table import METRICS
from launch import settings
from launch.subcommands import SUBCOMMANDS
from tests.draw_readme import PICTURE, boxes, picture, source
from tests.golden.agreed import agree

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("configs", "dist_ssl", "launch", "monitoring", "shards", "tests/benchmarks")
DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", *(f"{room}/README.md" for room in ROOMS))]
DOCUMENTS += [ROOT / name for name in ("launch/SECURITY.md", "monitoring/RUNBOOK.md", "monitoring/METRICS.md")]
MOST_BYTES = 9000
LAUNCHER = re.compile(rf"python launch/slurm\.py|{PROGRAM} run")
EXAMPLES = {
    f"{folder}/x.py"
    for folder in (
        "launch",
        "dist_ssl/methods",
        "dist_ssl/engines",
        "dist_ssl/schedules",
        "dist_ssl/metrics/trackers",
        "shards/sources",
    )
}
EXAMPLES |= {
    f"configs/{group}/x.yaml" for group in ("method", "engine", "encoder", "recipe", "schedule", "optim", "tracker")
}
EXAMPLES |= {"configs/recipe/NAME.yaml", "dist_ssl/methods/uniform.py", "configs/method/uniform.yaml"}
EXAMPLES |= {"tests/schedules/golden/x.yaml"}
"""Files that a document tells to write."""


def name_of(document: Path) -> str:
    return str(document.relative_to(ROOT))


def places(document: Path) -> tuple[Path, ...]:
    """The folders from which a document may name a file."""
    return ROOT, ROOT / "dist_ssl", document.parent


def commands(document: Path) -> list[str]:
    """The lines of a document's code blocks that begin with a program, continued lines joined."""
    blocks = re.findall(r"```\n(.*?)```", document.read_text(), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith(("python ", "make ", "sh ", "pip ", f"{PROGRAM} "))]


def composed(command: str) -> list[str]:
    """The arguments of a command of the launcher that make a config; optional ones, in brackets, are included."""
    words = shlex.split(re.sub(r"\[((?:--)?[\w.]+=[^\]]*\]?)\](?=\s|$)", r"\1", command), comments=True)[2:]
    return [
        word for word in words if word not in ("-m", "...") and not word.startswith(("resume=", "follow=", "fork="))
    ]


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_bytes()) <= MOST_BYTES


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_links_and_paths_lead_somewhere(document: Path) -> None:
    text = document.read_text()
    links = re.findall(r"\]\(([^)#]+)\)", text)
    missing = [link for link in links if "://" not in link and not (document.parent / link).exists()]
    for path in re.findall(r"`([\w./-]*\w+\.(?:py|yaml|yml|md|sh|svg))`", text):
        if not any((place / path).exists() for place in places(document)) and path not in EXAMPLES:
            missing.append(path)
    assert not missing, f"{name_of(document)} names what does not exist: {', '.join(missing)}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_names_in_files_are_there(document: Path) -> None:
    for name, path in re.findall(r"`([\w.]+)` in\s`([\w./-]+\.py)`", document.read_text()):
        found = next(place / path for place in places(document) if (place / path).exists()).read_text()
        last = name.rpartition(".")[2]
        assert re.search(rf"^ *(def|class) {last}\b|^{last}\b.*=", found, re.MULTILINE), f"{path} has no {name}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_metrics_are_those_of_the_table(document: Path) -> None:
    named = set(re.findall(r"`(dist_ssl_\w+)`", document.read_text()))
    assert named <= {metric.name for metric in (*METRICS, *NODE_METRICS, *END_METRICS)}
    if document.parent.name == "monitoring":
        watched = document.read_text().partition("| to watch |")[2]
        keys = set(re.findall(r"`([a-z_]+)`", "".join(line for line in watched.splitlines() if line.startswith("| "))))
        assert keys - {"metrics"} <= {metric.key for metric in METRICS}


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_commands_name_scripts_and_targets_that_exist(document: Path) -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for command in commands(document):
        program, first = command.split()[:2]
        known = {"make": first in targets, "pip": True, PROGRAM: first in SUBCOMMANDS}
        assert known.get(program, (ROOT / first).is_file()), command


def test_the_readmes_show_the_installed_command() -> None:
    shown = [command for room in (".", "launch") for command in commands(ROOT / room / "README.md")]
    assert {"run", "follow"} <= {command.split()[1] for command in shown if command.startswith(f"{PROGRAM} ")}
    rows = re.findall(r"^\| `(\w+)` \| `(\w+/\w+\.py)`", (ROOT / "launch" / "README.md").read_text(), re.MULTILINE)
    assert rows == [(own.name, own.script) for own in SUBCOMMANDS.values()]


@pytest.mark.parametrize(
    "command",
    sorted({c for document in DOCUMENTS for c in commands(document) if LAUNCHER.match(c) and "resume=" not in c}),
)
def test_commands_of_the_launcher_compose(command: str) -> None:
    words = [word for word in composed(command) if not word.startswith("seed=")]
    settings.compose(words, ROOT / "configs")


def test_every_module_of_launch_has_a_row() -> None:
    rows = (ROOT / "launch" / "README.md").read_text().partition("\n## ")[0]
    missing = [name for path in (ROOT / "launch").glob("[a-z]*.py") if f"`{(name := path.name)}`" not in rows]
    assert not missing, f"launch/README.md has no row for {', '.join(missing)}"


@pytest.mark.golden
def test_the_picture_is_what_is_drawn() -> None:
    agree(PICTURE, picture())


def test_every_box_of_the_picture_names_a_file() -> None:
    missing = [box.file for box in boxes() if not source(box).is_file()]
    assert not missing, f"tests/draw_readme.py names what does not exist: {', '.join(missing)}"
