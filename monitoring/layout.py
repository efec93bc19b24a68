"""Dashboards as rows of panels, without anything of Grafana's format.

A panel shows the metrics that the metric table puts under its title, or queries of its own. The boards themselves are
in `monitoring/boards.py`.
"""

from dataclasses import dataclass
from typing import Literal

from monitoring.queries import Query, of_panel, summed

Kind = Literal["timeseries", "stat", "table", "xychart"]


@dataclass(frozen=True)
class Panel:
    """A panel. `width`: of 24 columns; `height`: in grid rows; `own`: queries in place of those of the metric table.

    `limits`: values from which on the panel is yellow and red; falling limits warn of small values. `stacked`: the
    series add up to something, and are sums over the runs. `help`: what the panel says, where no help text of the table
    does. An `xychart` draws its second query over its first, a curve for each run.
    """

    title: str
    width: int = 8
    kind: Kind = "timeseries"
    own: tuple[Query, ...] = ()
    limits: tuple[float, float] | None = None
    stacked: bool = False
    help: str = ""
    height: int = 8

    @property
    def queries(self) -> tuple[Query, ...]:
        """Return the queries, in the order of the table; those of a stack are sums over the chosen runs."""
        found = self.own or of_panel(self.title)
        return tuple(summed(query) for query in found) if self.stacked else found


@dataclass(frozen=True)
class Row:
    """Panels under one heading, laid out from left to right in lines of 24 columns."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Board:
    """A dashboard. `uid`: its permanent name in links; `since`: the period that it shows at first."""

    uid: str
    title: str
    since: str
    rows: tuple[Row, ...]


def stat(title: str, limits: tuple[float, float] | None = None, own: Query | None = None, hint: str = "") -> Panel:
    """Return a small panel that shows the newest value of the metrics under a title, or of an own query."""
    return Panel(title, 3, "stat", (own,) if own else (), limits, help=hint, height=4)


def line(width: int, *titles: str) -> tuple[Panel, ...]:
    """Return panels of one width."""
    return tuple(Panel(title, width) for title in titles)
