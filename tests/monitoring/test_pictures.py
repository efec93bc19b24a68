"""The pictures of monitoring/README.md are those of the dashboard and of the report as these are now.

They are drawn from a run that is not kept, so what they are drawn by is compared: the panels of the dashboard, and the
looks of a report of a fixed run. Where these change, draw the pictures again, then `make golden`.
"""

import hashlib
import json
from pathlib import Path

import pytest

from tests.golden.agreed import agree
from tests.launch.test_report import REPORTS, run_folder
from tests.monitoring.pictures import MONITORING, SHOWN, report, tile, whole

GOLDEN = Path(__file__).parent / "golden" / "pictures.txt"


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def panels_shown() -> str:
    """What the dashboard's picture shows: the first row of panels, and some of the others."""
    board = json.loads((MONITORING / "dashboards" / "run.json").read_text())
    places = [n for n, panel in enumerate(board["panels"]) if panel["type"] == "row"]
    chosen = board["panels"][places[0] : places[1]]
    chosen += [panel for panel in board["panels"] if panel["title"] in SHOWN]
    return json.dumps(chosen, sort_keys=True) + whole(9, 9, [tile(1, 1, 7, 7, "title", "words")])


@pytest.mark.golden
def test_what_the_pictures_are_drawn_by_has_not_changed_since(tmp_path: Path) -> None:
    looks = {"dashboard": panels_shown(), "report": report(run_folder(tmp_path, "fixed", REPORTS, ("finished",)))}
    lines = [
        f"{name}.svg {sha((MONITORING / f'{name}.svg').read_text())} drawn by {sha(look)}\n"
        for name, look in looks.items()
    ]
    agree(GOLDEN, "".join(lines))
