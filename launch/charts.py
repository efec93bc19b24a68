"""Charts as SVG text: curves, stacked bars and a time line. Colours are CSS variables of the page that shows them.

Sizes are in px of a drawing that the page scales to the width that it has.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape

WIDTH, HEIGHT = 560, 240
LEFT, RIGHT, TOP, BOTTOM = 68, 14, 34, 30
ROW, BAR, NAME, UNIT, CHARACTER = 46, 18, 18, 60, 9
"""Heights of a row, of its bar and of the line with its name above that; widths of a unit and of a character."""
LONGEST = 48
"""Characters of a row's name that have room above its bar on a narrow screen; of a longer one both ends are shown."""
MOST_POINTS = 400
"""Points of a curve that are drawn; more are averaged in groups."""
MAGNITUDES = ((1e9, "G"), (1e6, "M"), (1e3, "k"))
COLOURS = 8
"""Number of colours for runs or parts; more of them share colours."""


@dataclass(frozen=True)
class Trace:
    """One curve: its name, and its points (x, y) by rising x."""

    name: str
    points: Sequence[tuple[float, float]]

    def thinned(self) -> list[tuple[float, float]]:
        """Return at most MOST_POINTS points: means of equally many neighbours."""
        size = -(-len(self.points) // MOST_POINTS) or 1
        groups = [self.points[start : start + size] for start in range(0, len(self.points), size)]
        return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


def number(value: float, digits: int = 3) -> str:
    """Return a number as a label of an axis: `0.25`, `12`, `3.5k`, `1.2M`, `3e-05`."""
    for size, word in MAGNITUDES:
        if abs(value) >= size:
            return f"{value / size:.{digits}g}{word}"
    return f"{value:.{digits}g}"


def percent(value: float, digits: int = 3) -> str:
    """Return a share as a percentage."""
    return f"{100 * value:.{digits}g} %"


FINER: dict[Callable[[float], str], Callable[[float], str]] = {
    number: partial(number, digits=5),
    percent: partial(percent, digits=5),
}
"""Formats for the labels of an axis that would be equal otherwise."""


def duration(seconds: float) -> str:
    """Return seconds as `40 s`, `12 min` or `3.5 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def ticks(low: float, high: float) -> list[float]:
    """Return at most seven round numbers within the bounds, at equal distances."""
    if high <= low:
        return [low]
    raw = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw)
    first = math.ceil(low / step - 1e-9)
    return [step * k for k in range(first, first + 12) if step * k <= high + 1e-9 * step]


def bounds(values: Iterable[float]) -> tuple[float, float]:
    """Return bounds of an axis that hold all values, apart even where all are equal; (0, 1) without any."""
    known = [value for value in values if math.isfinite(value)]
    low, high = min(known, default=0.0), max(known, default=1.0)
    low = 0.0 if 0 < low < high / 10 else low  # an axis that nearly begins at 0 does so
    return (low, high) if high > low else (low - (abs(low) or 1) / 10, high + (abs(high) or 1) / 10)


def curves(title: str, traces: Sequence[Trace], across: str, label: Callable[[float], str] = number) -> str:
    """Return a chart of curves. `across`: the name of the x axis; `label`: formats numbers of the y axis."""
    drawn = [(colour, trace.name, trace.thinned()) for colour, trace in enumerate(traces) if trace.points]
    xs = bounds(x for _, _, points in drawn for x, _ in points)
    ys = bounds(y for _, _, points in drawn for _, y in points)

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            LEFT + (WIDTH - LEFT - RIGHT) * (x - xs[0]) / (xs[1] - xs[0]),
            HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (y - ys[0]) / (ys[1] - ys[0]),
        )

    parts = [text(LEFT, 16, title, "title"), text(WIDTH - RIGHT, HEIGHT - 14, across, "axis end")]
    marked = ticks(*ys)
    words = [label(y) for y in marked]
    if len({*words}) < len(words):
        words = [FINER.get(label, label)(y) for y in marked]
    for y, word in zip(marked, words, strict=True):
        _, height = at(xs[0], y)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height:.1f}" y2="{height:.1f}"/>')
        parts.append(text(LEFT - 6, height + 4, word, "axis end"))
    marks = [(at(x, ys[0])[0], number(x)) for x in ticks(*xs)]
    room = WIDTH - RIGHT - CHARACTER * (len(across) + 2)
    parts += [text(x, HEIGHT - 14, word, "axis middle") for x, word in marks if x < room]
    for colour, name, points in drawn:
        places = " ".join("{:.1f},{:.1f}".format(*at(*point)) for point in points)
        shape = f'<polyline class="c{colour % COLOURS}" points="{places}"><title>{escape(name)}</title></polyline>'
        x, y = at(*points[-1])
        parts += [shape, f'<circle class="c{colour % COLOURS}" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>']
    return svg(WIDTH, HEIGHT, parts)


def stacked(title: str, rows: Mapping[str, Mapping[str, float]], colours: Mapping[str, int]) -> str:
    """Return one bar per row, whose parts are shares of the row's sum. `colours`: the parts' colours."""
    parts, height = [text(0, 16, title, "title")], TOP
    for name, values in rows.items():
        total, left = sum(values.values()) or 1.0, 0.0
        parts.append(row_name(name, height))
        for part, value in values.items():
            width = WIDTH * value / total
            note = escape(f"{part}: {duration(value)}, {percent(value / total)}")
            place = f'x="{left:.1f}" y="{height + NAME}" width="{width:.1f}" height="{BAR}"'
            parts.append(f'<rect class="f{colours[part] % COLOURS}" {place}><title>{note}</title></rect>')
            left += width
        height += ROW
    return svg(WIDTH, height, parts)


@dataclass(frozen=True)
class Span:
    """A bar of a time line: the row's name, start and end in hours, what it was, and its colour."""

    row: str
    start: float
    end: float
    note: str
    colour: int


def timeline(title: str, spans: Sequence[Span]) -> str:
    """Return one row per name with its spans, over hours."""
    rows = list(dict.fromkeys(span.row for span in spans))
    low, high = bounds(hour for span in spans for hour in (span.start, span.end))
    scale, parts = WIDTH / (high - low), [text(0, 16, title, "title")]
    parts += [row_name(row, TOP + ROW * line) for line, row in enumerate(rows)]
    for span in spans:
        left, width = scale * (span.start - low), max(1.5, scale * (span.end - span.start))
        place = f'x="{left:.1f}" y="{TOP + ROW * rows.index(span.row) + NAME}" width="{width:.1f}" height="{BAR}"'
        parts.append(f'<rect class="f{span.colour}" {place}><title>{escape(span.note)}</title></rect>')
    height = TOP + ROW * len(rows)
    marks = [(scale * (x - low), number(x)) for x in ticks(low, high)]
    for x, word in marks:
        if x < WIDTH - UNIT:
            parts.append(text(x, height + 10, word, "axis middle" if x > CHARACTER else "axis"))
    return svg(WIDTH, height + 16, [*parts, text(WIDTH, height + 10, "hours", "axis end")])


def row_name(name: str, top: float) -> str:
    """Return the name of a row above its bar; of a long one both ends, and the whole of it under the pointer."""
    shown = name if len(name) <= LONGEST else f"{name[: LONGEST // 2 - 1]}…{name[-LONGEST // 2 :]}"
    return f'<text class="axis" x="0" y="{top + NAME - 6:.1f}">{escape(shown)}<title>{escape(name)}</title></text>'


def text(x: float, y: float, words: str, kind: str) -> str:
    """Return a text at a place; `kind`: its CSS classes."""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(words)}</text>'


def svg(width: float, height: float, parts: Iterable[str]) -> str:
    """Return a drawing."""
    return f'<svg viewBox="0 0 {width:g} {height:g}" role="img">{"".join(parts)}</svg>'
