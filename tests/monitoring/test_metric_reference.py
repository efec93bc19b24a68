"""The reference of the metrics is what the table says."""

import pytest

from dist_ssl.metrics.ends import END_METRICS
from dist_ssl.metrics.node_table import NODE_METRICS
from dist_ssl.metrics.table import METRICS
from monitoring.metric_reference import FILE, OF_ENDS, OF_NODES, text
from tests.golden.agreed import agree


@pytest.mark.golden
def test_the_file_is_what_is_generated() -> None:
    agree(FILE, text())


def test_every_metric_has_a_row_of_as_many_cells() -> None:
    first, _, rest = text().partition(OF_NODES)
    parts = first, *rest.split(OF_ENDS)
    for part, table, cells in zip(parts, (METRICS, NODE_METRICS, END_METRICS), (9, 7, 7), strict=True):
        rows = [line for line in part.splitlines() if line.startswith("| ")]
        assert len(rows) == len(table) + 1
        assert {row.count("|") for row in rows} == {cells}
