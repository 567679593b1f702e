"""LazyGroup, postpone: what is imported when it is wanted, so that each command pays for what it uses."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module
from types import ModuleType
from typing import Any

import click
from typing_extensions import override


class LazyGroup(click.Group):
    """A group of commands, each imported when it is first looked up. Help and completion work as for any group.

    Args:
        attributes: of `click.Group`.
        homes: the module that has each command, under the command's name.
    """

    def __init__(self, *, homes: Mapping[str, str], **attributes: Any) -> None:
        super().__init__(**attributes)
        self._homes = homes

    @override
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *self._homes})

    @override
    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in self._homes and cmd_name not in self.commands:
            self.add_command(getattr(import_module(self._homes[cmd_name]), cmd_name), cmd_name)
        return super().get_command(ctx, cmd_name)


def postpone(name: str) -> None:
    """Have a module that others import, and hardly ever use, imported when something of it is first used.

    For a program of our own only: who imports *name* gets a stand-in, and is told only then that it is not installed.
    """
    sys.modules.setdefault(name, _Postponed(name))


class _Postponed(ModuleType):
    def __getattr__(self, attribute: str) -> Any:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(import_module(self.__name__), attribute)
