"""Figures as people read and write them."""

from __future__ import annotations

import pytest

from edgekiln.errors import UsageError
from edgekiln.units import parse_size, seconds, size


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (87_300_000, "87.3 MB"), (2e12, "2.0 TB")],
)
def test_size(count: float, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0.213, "0.21 s"), (12.49, "12.5 s"), (243.2, "4 min 03 s"), (7620, "2 h 07 min")],
)
def test_seconds(count: float, text: str) -> None:
    assert seconds(count) == text


@pytest.mark.parametrize(
    ("text", "count"),
    [("12g", 12 * 10**9), ("12GiB", 12 << 30), ("1.5 MB", 1_500_000), ("77", 77), ("8k", 8000)],
)
def test_parse_size(text: str, count: int) -> None:
    assert parse_size(text, where="--memory") == count


@pytest.mark.parametrize("text", ["", "much", "12x", "-1g", "1i", "0", "0g", "0.2"])
def test_a_size_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--memory"):
        parse_size(text, where="--memory")
