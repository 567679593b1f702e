"""postpone: delays the import of a module until its first use."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


def postpone(name: str) -> None:
    """Delay the import of a module that other packages import but rarely use until one of its attributes is used.

    Only for programs: importers get a placeholder, and notice only on use that the module is not installed.
    """
    sys.modules.setdefault(name, _Postponed(name))


class _Postponed(ModuleType):
    def __getattr__(self, attribute: str) -> Any:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(import_module(self.__name__), attribute)
