"""LazyGroup: a group of commands that are imported when they are wanted, so that each pays for what it uses."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
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
