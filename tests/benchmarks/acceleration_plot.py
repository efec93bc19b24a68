"""The plot of `acceleration.py`: accuracy against processor time, one chart per method, as an SVG file per data set."""

import re
from html import escape
from pathlib import Path

from launch.charts import COLOURS, HEIGHT, WIDTH, Trace, curves, percent
from launch.report_style import PALETTE
from tests.benchmarks.acceleration_report import CLOCKS, found_of
from tests.benchmarks.claims_curves import mean_curve
from tests.benchmarks.claims_table import DataSet
from tests.benchmarks.table_rows import Plan, Results

LINE = 18
"""Height of a line of the legend, px."""
STYLE = (
    "text { fill: #1f2328; font: 12px system-ui, sans-serif; } .title { font-weight: 600; font-size: 14px; } "
    ".axis { fill: #57606a; font-size: 11px; } .end { text-anchor: end; } .middle { text-anchor: middle; } "
    ".grid { stroke: #d8dee4; } polyline { fill: none; stroke-width: 1.6; } "
    + "".join(f".c{n} {{ stroke: {c}; }} circle.c{n}, .f{n} {{ fill: {c}; }} " for n, c in enumerate(PALETTE))
)


def plots(plan: Plan, results: Results, beside: Path, *, tuned: bool) -> list[Path]:
    """Write the plot of every data set that has rows, beside a file of results; return the files."""
    written = []
    for data in plan.data:
        families = {name: traces for name, traces in by_family(plan, results, data, tuned=tuned).items() if traces}
        if families:
            path = beside.with_name(f"{beside.stem}-{re.sub('[^a-z0-9]+', '-', data.name.lower()).strip('-')}.svg")
            path.write_text(page(data.name, families))
            written.append(path)
    return written


def by_family(plan: Plan, results: Results, data: DataSet, *, tuned: bool) -> dict[str, list[Trace]]:
    """Return the mean curves of a data set's variants, kNN over seconds at an even pace, by family."""
    found: dict[str, list[Trace]] = {}
    curves_of = found_of(plan, results, data, tuned=tuned)
    for variant in plan.variants:
        if own := curves_of.get(variant.name):
            trace = Trace(variant.label, mean_curve(own, sorted(own), "knn", CLOCKS[0]))
            found.setdefault(variant.family, []).append(trace)
    return found


def page(name: str, families: dict[str, list[Trace]]) -> str:
    """Return one drawing with a chart and a legend per family."""
    parts, top = [], 0
    for family, traces in families.items():
        chart = curves(f"{name}, {family}: kNN", traces, "seconds at an even pace", percent)
        parts.append(chart.replace("<svg ", f'<svg x="0" y="{top}" width="{WIDTH}" height="{HEIGHT}" ', 1))
        top += HEIGHT
        for number, trace in enumerate(traces):
            mark = f'<rect class="f{number % COLOURS}" x="68" y="{top + 3}" width="10" height="10"/>'
            parts.append(f'{mark}<text x="84" y="{top + 12}">{escape(trace.name)}</text>')
            top += LINE
        top += LINE
    size = f'width="{WIDTH}" height="{top}" viewBox="0 0 {WIDTH} {top}"'
    back = f'<rect width="{WIDTH}" height="{top}" fill="#fff"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}><style>{STYLE}</style>{back}{"".join(parts)}</svg>\n'
