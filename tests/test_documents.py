"""Documents are true where a test can see it: links and paths lead somewhere, names are there, pictures are current."""

import re
from pathlib import Path

import pytest

from dist_ssl.config.command_names import PROGRAM
from dist_ssl.metrics.ends import END_METRICS
from dist_ssl.metrics.node_table import NODE_METRICS
from dist_ssl.metrics.table import METRICS
from launch.subcommands import SUBCOMMANDS
from tests.documented_commands import commands, documents, name_of
from tests.draw_readme import PICTURE, boxes, picture, source
from tests.golden.agreed import agree

ROOT = Path(__file__).resolve().parents[1]
MOST_BYTES = 9000
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


def places(document: Path) -> tuple[Path, ...]:
    """The folders from which a document may name a file."""
    return ROOT, ROOT / "dist_ssl", document.parent


def anchors(document: Path) -> set[str]:
    """The names by which a link can lead to a heading of a document, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE):
        plain = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        number = sum(known == plain or re.fullmatch(rf"{re.escape(plain)}-\d+", known) is not None for known in found)
        found.add(f"{plain}-{number}" if number else plain)
    return found


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_bytes()) <= MOST_BYTES


def leads_somewhere(document: Path, path: str, anchor: str) -> bool:
    """Whether a link of a document leads to a file, and to a heading of it where it names one."""
    there = document.parent / path if path else document
    return there.exists() and (not anchor or anchor in anchors(there))


@pytest.mark.parametrize("document", documents(), ids=name_of)
def test_links_and_paths_lead_somewhere(document: Path) -> None:
    text = document.read_text()
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    missing = [link for link in links if not leads_somewhere(document, *link.partition("#")[::2])]
    for path in re.findall(r"`([\w./-]*\w+\.(?:py|yaml|yml|md|sh|svg))`", text):
        if not any((place / path).exists() for place in places(document)) and path not in EXAMPLES:
            missing.append(path)
    assert not missing, f"{name_of(document)} names what does not exist: {', '.join(missing)}"


@pytest.mark.parametrize("document", documents(), ids=name_of)
def test_names_in_files_are_there(document: Path) -> None:
    for name, path in re.findall(r"`([\w.]+)` in\s`([\w./-]+\.py)`", document.read_text()):
        found = next(place / path for place in places(document) if (place / path).exists()).read_text()
        last = name.rpartition(".")[2]
        assert re.search(rf"^ *(def|class) {last}\b|^{last}\b.*=", found, re.MULTILINE), f"{path} has no {name}"


@pytest.mark.parametrize("document", documents(), ids=name_of)
def test_metrics_are_those_of_the_table(document: Path) -> None:
    named = set(re.findall(r"`(dist_ssl_\w+)`", document.read_text()))
    assert named <= {metric.name for metric in (*METRICS, *NODE_METRICS, *END_METRICS)}
    if document.parent.name == "monitoring":
        watched = document.read_text().partition("| to watch |")[2]
        keys = set(re.findall(r"`([a-z_]+)`", "".join(line for line in watched.splitlines() if line.startswith("| "))))
        assert keys - {"metrics"} <= {metric.key for metric in METRICS}


def test_the_readmes_show_the_installed_command() -> None:
    shown = [command for room in (".", "launch") for command in commands(ROOT / room / "README.md")]
    assert {"run", "follow"} <= {command.split()[1] for command in shown if command.startswith(f"{PROGRAM} ")}
    rows = re.findall(r"^\| `(\w+)` \| `(\w+/\w+\.py)`", (ROOT / "launch" / "README.md").read_text(), re.MULTILINE)
    assert rows == [(own.name, own.script) for own in SUBCOMMANDS.values()]


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
