"""How much a test does in each tier: see CONTRIBUTING.md."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import pytest
from hypothesis import settings

F = TypeVar("F", bound=Callable[..., Any])

SHARE = 10  # of the examples of a property, one in so many is tried in the default tier
LEAST = 20


class Tier:
    """The one that runs; `tests/conftest.py` says it before a test module is imported."""

    soak = False


def thorough(count: int, **options: Any) -> Callable[[F], F]:
    """Settings of a property: *count* examples in the soak tier, a tenth of them in the default one."""
    tried = count if Tier.soak else max(count // SHARE, LEAST)

    def decorate(test: F) -> F:
        chosen: F = pytest.mark.thorough(settings(max_examples=tried, **options)(test))
        return chosen

    return decorate


def spread(cases: Iterable[Any], times: int = 3) -> list[Any]:
    """The combinations of a table, of which the default tier runs enough to have each value *times* times; --soak runs the others.

    Args:
        cases: `pytest.param(...)`, or plain tuples.
        times: how often each value of each column is tried by default, where it occurs so often.
    """
    rows = [
        case if hasattr(case, "values") and hasattr(case, "marks") else pytest.param(*case) for case in cases
    ]
    seen: Counter[tuple[int, int]] = Counter()
    kept: set[int] = set()
    # Always in the same order, and not that of the table, whose first column would be tried with few of the second.
    for number in random.Random(0).sample(range(len(rows)), len(rows)):
        columns = [(column, id(value)) for column, value in enumerate(rows[number].values)]
        if any(seen[column] < times for column in columns):
            kept.add(number)
            seen.update(columns)
    return [
        row if number in kept else pytest.param(*row.values, id=row.id, marks=[*row.marks, pytest.mark.soak])
        for number, row in enumerate(rows)
    ]


def few(values: Iterable[Any], count: int = 2) -> list[Any]:
    """*values* for a test of which the default tier runs the first *count*, and --soak the others."""
    return [
        pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.soak)
        if number >= count
        else value
        for number, value in enumerate(values)
    ]
