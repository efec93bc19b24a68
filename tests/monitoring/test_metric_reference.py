"""The reference of the metrics is what the table says."""

import pytest

from dist_ssl.metrics.table import METRICS
from monitoring.metric_reference import FILE, text
from tests.golden.agreed import agree


@pytest.mark.golden
def test_the_file_is_what_is_generated() -> None:
    agree(FILE, text())


def test_every_metric_has_a_row_of_as_many_cells() -> None:
    rows = [line for line in text().splitlines() if line.startswith("| ")]
    assert len(rows) == len(METRICS) + 1
    assert {row.count("|") for row in rows} == {8}
