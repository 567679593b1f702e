"""What the program prints: names, which may hold any character, and complaints."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import click

from storage_backend import identifiers
from storage_backend.cli.exits import Exit, code_of_failures
from storage_backend.errors import FATAL
from storage_backend.info import ObjectInfo

F = TypeVar("F", bound=Callable[..., Any])

DISPLAY = "storage_backend.display"  # the key of the live display in click's `Context.meta`


def _make_room() -> None:
    """Take a live display away, so that what is written does not end inside it; it comes again by itself."""
    context = click.get_current_context(silent=True)
    display = context.meta.get(DISPLAY) if context is not None else None
    if display is not None:
        display.clear()


def complain(message: str) -> None:
    """One line on stderr, after what stdout has so far."""
    sys.stdout.flush()
    _make_room()
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)
    click.echo(f"storage-backend: {text}", err=True)


def quoted(name: str) -> str:
    """*name* for a terminal: as it is, or if a character of it could do something there, as $'...' of the shell."""
    if name.isprintable():
        return name
    return "$'" + "".join(map(_escaped, name)) + "'"


def _escaped(character: str) -> str:
    if character in "'\\":
        return f"\\{character}"
    if character.isprintable():
        return character
    named = {"\n": r"\n", "\t": r"\t", "\r": r"\r"}.get(character)
    return named or "".join(f"\\x{byte:02x}" for byte in identifiers.encode(character))


class Lines:
    """Lines of output, each with a name: quoted on a terminal, raw elsewhere.

    Args:
        null: end lines with a NUL and quote nothing.
    """

    def __init__(self, *, null: bool = False) -> None:
        self._stream = sys.stdout.buffer
        self._live = sys.stdout.isatty()
        self._end = b"\0" if null else b"\n"
        self._quote = self._live and not null

    def name(self, name: str, before: str = "", after: str = "") -> None:
        """A line with *name* in it."""
        self._put(f"{before}{quoted(name) if self._quote else name}{after}")

    def text(self, text: str) -> None:
        """A line of ours."""
        self._put(text)

    def record(self, record: Mapping[str, Any]) -> None:
        """A line of JSON. Lone surrogates are escaped, so it is valid in any encoding."""
        self._put(json.dumps(record))

    def flush(self) -> None:
        """Hand on what was written so far."""
        self._stream.flush()

    def _put(self, text: str) -> None:
        if self._live:
            _make_room()
        self._stream.write(identifiers.encode(text) + self._end)
        if self._live:
            self.flush()


def record_of(info: ObjectInfo) -> dict[str, Any]:
    """*info* as JSON values, without what is unknown."""
    fields = {
        "identifier": info.identifier,
        "size": info.size,
        "modified": info.modified and info.modified.isoformat(),
        "etag": info.etag,
        "sha256": info.sha256,
        "content_type": info.content_type,
    }
    return {name: value for name, value in fields.items() if value is not None}


class Tally:
    """Does the same for each of several things: one that fails is complained of and does not stop the rest."""

    def __init__(self) -> None:
        self.errors: list[BaseException] = []
        self.done = 0

    @contextmanager
    def each(self) -> Iterator[None]:
        """Run the body for one thing.

        Raises:
            OSError: fatal for the others too, or our own output has no reader any more.
        """
        try:
            yield
        except (*FATAL, BrokenPipeError):
            raise
        except OSError as error:
            logging.getLogger(__name__).debug("traceback", exc_info=error)
            complain(str(error))
            self.errors.append(error)
        else:
            self.done += 1

    @property
    def code(self) -> Exit:
        """The exit code."""
        return code_of_failures(self.errors, self.done)


def common(command: F) -> F:
    """Adds what every command takes: -q and -v. The command is given `quiet`."""
    command = click.option(
        "-v",
        "--verbose",
        is_flag=True,
        expose_value=False,
        callback=_start_logging,
        help="Log what is done, with tracebacks.",
    )(command)
    return click.option("-q", "--quiet", is_flag=True, is_eager=True, help="Print errors only.")(command)


def _start_logging(context: click.Context, option: click.Parameter, verbose: bool) -> None:  # noqa: ARG001 - click's
    handler = logging.StreamHandler()
    handler.setFormatter(
        logging.Formatter("%(name)s: %(message)s" if verbose else "storage-backend: warning: %(message)s")
    )
    quiet = context.params.get("quiet", False)
    root = logging.getLogger("storage_backend")
    root.handlers[:] = [handler]
    root.setLevel(logging.DEBUG if verbose else logging.ERROR if quiet else logging.WARNING)
