"""The reference of the metrics is what the table says."""

import pytest

from dist_ssl.metrics.node_table import NODE_METRICS
from dist_ssl.metrics.table import METRICS
from monitoring.metric_reference import FILE, OF_NODES, text
from tests.golden.agreed import agree


@pytest.mark.golden
def test_the_file_is_what_is_generated() -> None:
    agree(FILE, text())


def test_every_metric_has_a_row_of_as_many_cells() -> None:
    for part, table, cells in zip(text().split(OF_NODES), (METRICS, NODE_METRICS), (8, 7), strict=True):
        rows = [line for line in part.splitlines() if line.startswith("| ")]
        assert len(rows) == len(table) + 1
        assert {row.count("|") for row in rows} == {cells}
