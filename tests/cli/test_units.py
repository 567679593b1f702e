"""Sizes and times as people write and read them."""

from datetime import UTC, datetime, timedelta

import pytest

from storage_backend.cli.units import SizeRange, amount, in_unit_of, moment_of, sizes_of, unit_of

pytestmark = pytest.mark.quick

GIB = 1 << 30
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (10_240, "10.0 KiB"),
        (1 << 20, "1.00 MiB"),
        (999 << 30, "999 GiB"),
    ],
)
def test_amount(count: int, text: str) -> None:
    assert amount(count) == text


def test_two_amounts_share_a_unit() -> None:
    assert (
        f"{in_unit_of(GIB // 2, 3 * GIB)}/{in_unit_of(3 * GIB, 3 * GIB)} {unit_of(3 * GIB)}" == "0.5/3.0 GiB"
    )
    assert in_unit_of(5, 10) == "5"


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [
        ("0", 0, 0),
        ("4096", 4096, 4096),
        ("12B", 12, 12),
        ("+10M", 10 << 20, None),
        ("+10MiB", 10 << 20, None),
        ("-1k", 0, 1024),
        ("-1.5KiB", 0, 1536),
        ("1k..2g", 1024, 2 << 30),
        ("0..1P", 0, 1 << 50),
    ],
)
def test_sizes(text: str, least: int, most: int | None) -> None:
    sizes = sizes_of(text)
    assert sizes == SizeRange(least, most)
    assert least in sizes
    assert least - 1 not in sizes
    assert (most is None) == (1 << 60 in sizes)
    assert None not in sizes


@pytest.mark.parametrize(
    "text",
    ["", "k", "+", "-", "--1", "1x", "1kB", "1 k", "..", "1..", "..1", "2k..1k", "+1..2", "1e3", "\u0663"],
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a size: write \+10M|ends before"):
        sizes_of(text)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("90s", NOW - timedelta(seconds=90)),
        ("30m", NOW - timedelta(minutes=30)),
        ("1.5h", NOW - timedelta(minutes=90)),
        ("7d", NOW - timedelta(days=7)),
        ("2w", NOW - timedelta(days=14)),
        ("2026-01-31", datetime(2026, 1, 31, tzinfo=UTC)),
        ("2026-01-31T12:30", datetime(2026, 1, 31, 12, 30, tzinfo=UTC)),
        ("2026-01-31T12:30Z", datetime(2026, 1, 31, 12, 30, tzinfo=UTC)),
        ("2026-01-31T12:30+02:00", datetime(2026, 1, 31, 10, 30, tzinfo=UTC)),
    ],
)
def test_moments(text: str, moment: datetime) -> None:
    assert moment_of(text, NOW) == moment


@pytest.mark.parametrize(
    "text", ["", "7", "d", "-7d", "7y", "yesterday", "2026-13-01", "9999999w", "\u0667d"]
)
def test_what_is_no_moment_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="neither an age"):
        moment_of(text, NOW)
