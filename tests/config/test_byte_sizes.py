"""Sizes carry units."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist_ssl.config.byte_sizes import parse_bytes, show_bytes
from dist_ssl.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "size"), [("256MB", 256 * 10**6), ("1 KB", 1000), ("50gb", 50 * 10**9), ("2TB", 2e12)]
)
def test_a_number_and_a_unit(text: str, size: int) -> None:
    assert parse_bytes(text, "key") == size


@pytest.mark.parametrize("text", ["256", "MB", "0MB", "-1MB", "1.5GB", "50GiB", "", None, 3, "\u00b2MB"])
def test_anything_else_is_refused(text: object) -> None:
    with pytest.raises(ConfigError, match=r"data\.cache_bytes=.* is not a size"):
        parse_bytes(text, "data.cache_bytes")


@given(st.integers(1, 10**14))
def test_what_is_shown_can_be_written_and_is_enough(size: int) -> None:
    assert size <= parse_bytes(show_bytes(size), "key") <= max(2 * size, 1000)
