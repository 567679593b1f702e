"""How much a test does in each tier: see CONTRIBUTING.md."""

from __future__ import annotations

from collections.abc import Callable
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
