"""The command that draws the pictures of monitoring/README.md from a run: its dashboard and its report.

    PYTHONPATH=. python tests/monitoring/pictures.py runs/NAME

The run's reports are put into a real Prometheus as if it had been scraped, and the dashboard's own JSON is drawn from
it.
"""

import json
import math
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dist_ssl.metrics.goodput import CAUSES
from dist_ssl.metrics.sinks import Series
from dist_ssl.runtime import jsonl
from launch.charts import HEIGHT, WIDTH, curves, percent, stacked, svg, text, timeline
from launch.report import RunRecord
from launch.report_style import PALETTE
from launch.run_dir import RunDir
from tests.monitoring import drawing
from tests.monitoring.prometheus import PROGRAM, Server, free_port, started

MONITORING = Path(__file__).resolve().parents[2] / "monitoring"
POINTS = 40
"""Points of a curve, so that a picture has a few kB."""
SHOWN = ("Loss", "kNN accuracy", "Effective rank", "Learning rate", "Throughput", "Step time")
"""Panels of the dashboard that are drawn below its first row."""
STYLE = """
svg { background: #fff; } text { fill: #1f2328; font: 12px system-ui, sans-serif; } .grid { stroke: #d8dee4; }
.title { font-size: 13px; font-weight: 600; } .axis { fill: #57606a; font-size: 11px; } .end { text-anchor: end; }
.middle { text-anchor: middle; } .big { font-size: 20px; font-weight: 600; } .card { fill: #f6f8fa; }
polyline { fill: none; stroke-width: 2; stroke-linejoin: round; }
"""


def exposed(run: Path, folder: Path) -> tuple[str, float, float]:
    """A run's reports as OpenMetrics with their times, and when they begin and end. `folder`: for counters."""
    reports, series, lines = jsonl.read(run / "metrics.jsonl"), Series(folder / "checkpoints"), {}
    method = RunDir.open(run).config["method"]["_target_"].rpartition(".")[2].lower()
    labels = f'run="{run.name}",method="{method}",instance="{run.name}",job="dist_ssl"'
    for report in reports:
        last = report.pop("time")
        series.write(report)
        series.values["report_timestamp", ""] = last
        for sample in [sample for family in series.collect() for sample in family.samples]:
            own = ",".join([labels, *(f'{name}="{value}"' for name, value in sample.labels.items())])
            lines.setdefault(f"{sample.name}{{{own}}}", []).append(f"{sample.value} {last:.3f}")
    first = float(next(iter(lines.values()))[0].split()[1])
    rows = [f"{name} {value}" for name in sorted(lines) for value in lines[name]]
    return "\n".join([*rows, "# EOF\n"]), first, last


def panels(run: Path, folder: Path) -> list[drawing.Drawn]:
    """The panels of the run's dashboard."""
    content, first, last = exposed(run, folder)
    (folder / "reports.txt").write_text(content)
    (folder / "prometheus.yml").write_text("global: {}\n")
    command = ["promtool", "tsdb", "create-blocks-from", "openmetrics", folder / "reports.txt", folder / "series"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    port = free_port()
    server = Server(port)
    options = [f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'series'}"]
    address = f"--web.listen-address=127.0.0.1:{port}"
    with started([str(PROGRAM), *options, address], folder / "prometheus.log", server.ready):
        board = json.loads((MONITORING / "dashboards" / "run.json").read_text())
        step = math.ceil((last - first) / POINTS)
        end = math.ceil(last)  # whole seconds: Prometheus cuts a step to milliseconds and would miss the last report
        return drawing.drawn(server, board, run.name, drawing.Span(end - POINTS * step, end, step))


def tile(x: float, y: float, width: float, height: float, title: str, content: str) -> str:
    """A card with a title, and a drawing or words in it."""
    box = f'<rect class="card" x="{x}" y="{y}" width="{width}" height="{height}" rx="8"/>'
    box += text(x + 10, y + 22, title, "title")
    if not content.startswith("<svg"):
        return box + text(x + 10, y + 58, content, "big")
    place = f'<svg x="{x + 10}" y="{y + 12}" width="{width - 20}" height="{height - 18}" preserveAspectRatio="xMidYMin"'
    return box + content.replace("<svg", place, 1)


def whole(width: float, height: float, parts: Iterable[str]) -> str:
    """A picture with its colours."""
    colours = "".join(f".c{n} {{ stroke: {c}; }} circle.c{n}, .f{n} {{ fill: {c}; }}" for n, c in enumerate(PALETTE))
    return svg(width, height, [f"<style>{STYLE}{colours}</style>", *parts]).replace(
        "<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1
    )


def dashboard(found: list[drawing.Drawn]) -> str:
    """The first row of a dashboard, and some of its curves."""
    first, second, *_ = (n for n, one in enumerate(found) if one.panel["type"] == "row")
    parts = []
    for n, one in enumerate(found[first + 1 : second]):
        parts.append(tile(5 + n * 119, 5, 112, 66, one.panel["title"], re.sub(r"<[^>]+>", "", one.html).strip()))
    known = {one.panel["title"]: one.html for one in found}
    for n, title in enumerate(SHOWN):
        x, y = 5 + n % 3 * 318, 80 + n // 3 * 166
        parts.append(tile(x, y, 310, 158, title, known[title].partition("<div")[0]))
        parts.append(legend(x + 40, y + 148, known[title]))
    return whole(960, 412, parts)


def legend(x: float, y: float, html: str) -> str:
    """The keys of a panel with several curves, one beside the other, without the name of the run."""
    keys = [(key, words.split()[1:]) for key, words in re.findall(r'class="key (f\d)"></span>(.*?)</span>', html)]
    parts = []
    for key, words in keys if len(keys) > 1 else ():
        parts.append(f'<rect class="{key}" x="{x}" y="{y - 9}" width="10" height="10"/>')
        parts.append(text(x + 15, y, " ".join(words), "axis"))
        x += 30 + 6 * len(" ".join(words))
    return "".join(parts)


def report(run: Path) -> str:
    """Curves, wall clock and attempts of the run's report."""
    known = RunRecord(RunDir.open(run))
    tiles: list[tuple[str, str]] = []
    for title, key, label in (("Loss", "loss", None), ("kNN accuracy", "knn_accuracy", percent)):
        drawn: dict[str, Any] = {"label": label} if label else {}
        tiles.append((f"{title} by samples seen", curves("", [known.trace(key, "samples")], "samples", **drawn)))
    parts = {cause: colour for colour, cause in enumerate(CAUSES)}
    tiles.append(("Wall clock by cause", stacked("", {known.name: known.spent()}, parts)))
    tiles.append(("Attempts", timeline("", known.attempts())))
    placed = [
        tile(5 + (n % 2) * 480, 5 + (n // 2) * 240, 470, 230 if n < 2 else 128, title, content)
        for n, (title, content) in enumerate(tiles)
    ]
    for n, cause in enumerate(parts):
        x, y = 20 + n % 4 * 112, 338 + n // 4 * 18
        placed.append(
            f'<rect class="f{n % 8}" x="{x}" y="{y}" width="10" height="10"/>{text(x + 16, y + 10, cause, "axis")}'
        )
    return whole(960, 380, placed)


def main(run: Path) -> None:
    """Draw both pictures."""
    with tempfile.TemporaryDirectory() as folder:
        (MONITORING / "dashboard.svg").write_text(dashboard(panels(run, Path(folder))))
    (MONITORING / "report.svg").write_text(report(run))


if __name__ == "__main__":
    assert (WIDTH, HEIGHT) == (560, 240)
    main(Path(sys.argv[1]))
