"""postpone: delays the import of a module until its first use."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


def postpone(name: str) -> None:
    """Delay the import of a module, which others import but hardly ever use, until one of its attributes is used.

    For a program of our own only: who imports *name* gets a stand-in, and is told only then that it is not installed.
    """
    sys.modules.setdefault(name, _Postponed(name))


class _Postponed(ModuleType):
    def __getattr__(self, attribute: str) -> Any:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(import_module(self.__name__), attribute)
