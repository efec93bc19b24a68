"""Shares are exact and carry their unit."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist_ssl.config.percentage import Share
from dist_ssl.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "whole", "most"),
    [
        ("1 %", 1200, 12),
        ("1%", 1199, 11),
        ("1 %", 60, 0),
        ("0 %", 10**9, 0),
        ("100 %", 7, 7),
        ("0.1 %", 1000, 1),
        ("2.5 %", 120, 3),
    ],
)
def test_a_share_of_so_many(text: str, whole: int, most: int) -> None:
    assert Share.parse(text).of(whole) == most


@given(st.integers(0, 100), st.integers(1, 10**9))
def test_a_share_is_never_more_than_it_says(percent: int, whole: int) -> None:
    most = Share.parse(f"{percent} %").of(whole)
    assert 100 * most <= percent * whole < 100 * (most + 1)


@pytest.mark.parametrize("text", ["1", "0.01", "-1 %", "101 %", "100.5 %", "one %", "", "%", "nan %", 1, None])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a share"):
        Share.parse(text)


def test_a_share_is_written_as_it_is_read() -> None:
    assert [str(Share.parse(text)) for text in ("1%", " 2.50 %")] == ["1 %", "2.5 %"]
