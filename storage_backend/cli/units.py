"""Parses and formats sizes and times."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")

_SIZE = re.compile(r"(\d+(?:\.\d+)?)(?:([kmgtp])(?:ib)?|b)?", re.ASCII | re.IGNORECASE)
_AGE = re.compile(r"(\d+(?:\.\d+)?)([smhdw])", re.ASCII)
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}


class SizeRange(NamedTuple):
    """A range of sizes in bytes, from *least* to *most* inclusive; *most* None means no limit."""

    least: int
    most: int | None

    def __contains__(self, size: object) -> bool:
        return isinstance(size, int) and self.least <= size and (self.most is None or size <= self.most)


def sizes_of(text: str) -> SizeRange:
    """Parse a range of sizes: "+10M" at least, "-1k" at most, "1k..10M" from and to, "4096" exactly.

    Units are powers of 1024: k, M, G, T, P, or KiB and so on, in upper or lower case.

    Raises:
        ValueError: *text* is none of these.
    """
    least, dots, most = text.partition("..")
    if dots:
        found = SizeRange(_bytes(least, text), _bytes(most, text))
        if found.most is not None and found.most < found.least:
            raise ValueError(f"{text!r} ends before it begins")
        return found
    size = _bytes(text.removeprefix("+") if text[:1] == "+" else text.removeprefix("-"), text)
    if text[:1] == "+":
        return SizeRange(size, None)
    return SizeRange(0 if text[:1] == "-" else size, size)


def _bytes(number: str, text: str) -> int:
    found = _SIZE.fullmatch(number)
    if found is None:
        raise ValueError(
            f"{text!r} is not a size: write +10M (at least), -1k (at most), 1k..10M or 4096; units: k, M, G, T, P"
        )
    power = " kmgtp".index(found[2].lower()) if found[2] else 0
    return round(float(found[1]) * (1 << 10 * power))


def moment_of(text: str, now: datetime) -> datetime:
    """Parse an age, which is subtracted from *now* ("90s", "30m", "12h", "7d", "2w"), or a date or time in ISO 8601.

    A date means its first instant. Without a time zone it is UTC, as are all times that the program prints.

    Raises:
        ValueError: *text* is neither.
    """
    found = _AGE.fullmatch(text)
    try:
        if found is not None:
            return now - timedelta(seconds=float(found[1]) * _SECONDS[found[2]])
        moment = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise ValueError(
            f"{text!r} is neither an age (90s, 30m, 12h, 7d, 2w) nor a date or time (2026-01-31, 2026-01-31T12:30Z)"
        ) from None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


def unit_of(count: float) -> str:
    """The largest unit of which *count* bytes are at least 1."""
    unit = 0
    while count >= 1024 and unit < len(UNITS) - 1:
        count /= 1024
        unit += 1
    return UNITS[unit]


def in_unit_of(count: float, other: float) -> str:
    """*count* bytes in the unit of *other*."""
    unit = UNITS.index(unit_of(other))
    return f"{count / 1024**unit:,.1f}" if unit else f"{count:,.0f}"


def amount(count: float) -> str:
    """*count* bytes with three digits and a unit."""
    unit = unit_of(count)
    value = count / 1024 ** UNITS.index(unit)
    if unit == "B":
        return f"{value:.0f} B"
    return (
        f"{value:.2f} {unit}"
        if value < 10
        else f"{value:.1f} {unit}"
        if value < 100
        else f"{value:,.0f} {unit}"
    )


def shown_size(count: int, *, human: bool) -> str:
    """*count* bytes for a column of sizes: exact, or with *human* as `amount`."""
    return amount(count) if human else str(count)


def size_width(*, human: bool) -> int:
    """The width of a column of sizes."""
    return 9 if human else 15
