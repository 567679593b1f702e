"""CommandGroup and Program: click groups with the same exit codes in every version of click, and commands imported on first use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import click
from click.shell_completion import CompletionItem
from typing_extensions import override


class NoArgumentsError(click.UsageError):
    """A command that needs arguments got none.

    click 8.2 raises its own error; earlier versions print the help and exit with 0, so a script with empty variables would continue.

    Attributes:
        help: the help text of the command.
    """

    def __init__(self, context: click.Context) -> None:
        super().__init__("no arguments were given", context)
        self.help = context.get_help()


class PassingError(Exception):
    """Carries an error through click's `main`, which would handle every EPIPE and Ctrl-C itself."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(str(error))
        self.error = error


class CommandGroup(click.Group):
    """A group of commands. A command without its arguments is refused, and the shell completes arguments as file names."""

    @override
    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        for parameter in cmd.params:
            if isinstance(parameter, click.Argument) and parameter.type is click.STRING:
                parameter.type = _LOCATION
        super().add_command(cmd, name)

    @override
    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args and not ctx.resilient_parsing:
            raise NoArgumentsError(ctx)
        return super().parse_args(ctx, args)

    @override
    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        if command is not None and command.no_args_is_help and not rest and not ctx.resilient_parsing:
            raise NoArgumentsError(click.Context(command, ctx, name))
        return name, command, rest


class Program(CommandGroup):
    """The outermost group. Errors that click's `main` would handle itself leave it as `PassingError`.

    Args:
        homes: name of a command -> its module, which is imported when the command is looked up.
        attributes: of `click.Group`.
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

    @override
    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        with _passing():
            return super().make_context(info_name, args, parent, **extra)

    @override
    def invoke(self, ctx: click.Context) -> Any:
        with _passing():
            return super().invoke(ctx)


@contextmanager
def _passing() -> Iterator[None]:
    try:
        yield
    except (KeyboardInterrupt, EOFError, OSError) as error:
        raise PassingError(error) from error


class _Location(type(click.STRING)):  # type: ignore[misc] # its class has no public name
    """A string that the shell completes as a file name."""

    def shell_complete(
        self,
        ctx: click.Context,  # noqa: ARG002 - click's signature
        param: click.Parameter,  # noqa: ARG002
        incomplete: str,
    ) -> list[CompletionItem]:
        return [CompletionItem(incomplete, type="file")]


_LOCATION = _Location()
