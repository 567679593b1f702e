"""The program's output: lines with names, which may hold any character, and error messages."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

import click

from storage_backend import identifiers
from storage_backend.cli.exit_codes import Exit, code_of_failures
from storage_backend.cli.standard_streams import OutputError
from storage_backend.errors import FATAL

if TYPE_CHECKING:  # at run time only the commands that have one need it
    from storage_backend.info import ObjectInfo

F = TypeVar("F", bound=Callable[..., Any])

# "Select Graphic Rendition" of ECMA-48.
_FOLDER = "1;34"  # bold blue, as GNU ls has directories
_DIFFERENCES = {"missing": "31", "extra": "32"}  # red and green, as diffs have what is gone and new
_CHANGED = "33"  # yellow

ONE_LEVEL = '"*" stays inside a segment, "**/*" is every level'  # of a glob that matched nothing

DISPLAY = "storage_backend.display"  # the key of the live display in click's `Context.meta`


def _make_room() -> None:
    """Erase a live display before other output; it is drawn again with the next event."""
    context = click.get_current_context(silent=True)
    display = context.meta.get(DISPLAY) if context is not None else None
    if display is not None:
        display.clear()


def complain(message: str) -> None:
    """One line on stderr, after what stdout has so far."""
    with suppress(OutputError):  # it comes again at the end
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
    """Lines of output, each with a name: quoted on a terminal, raw elsewhere; coloured as `coloured` says.

    Args:
        null: end lines with a NUL, quote and colour nothing.

    Attributes:
        quotes: whether a name that could do something to a terminal is quoted.
    """

    def __init__(self, *, null: bool = False) -> None:
        self._stream = sys.stdout.buffer
        self._live = sys.stdout.isatty()
        self._end = b"\0" if null else b"\n"
        self.quotes = self._live and not null
        self._colour = not null and _in_colour(self._live)

    def name(self, name: str, before: str = "", after: str = "") -> None:
        """A line with *name* in it; one that ends in "/" is a folder's."""
        shown = quoted(name) if self.quotes else name
        self._put(f"{before}{self._painted(shown, _FOLDER) if name.endswith('/') else shown}{after}")

    def difference(self, word: str, name: str) -> None:
        """A line that says how *name* differs."""
        colour = _DIFFERENCES.get(word, _CHANGED)
        self._put(f"{self._painted(f'{word:<8}', colour)} {quoted(name) if self.quotes else name}")

    def text(self, text: str) -> None:
        """A line without a name in it."""
        self._put(text)

    def record(self, record: Mapping[str, Any]) -> None:
        """A line of JSON. Lone surrogates are escaped, so it is valid in any encoding."""
        self._put(json.dumps(record))

    def flush(self) -> None:
        """Flush the stream."""
        self._stream.flush()

    def _painted(self, text: str, colour: str) -> str:
        return f"\x1b[{colour}m{text}\x1b[0m" if self._colour else text

    def _put(self, text: str) -> None:
        if self._live:
            _make_room()
        self._stream.write(identifiers.encode(text) + self._end)
        if self._live:
            self.flush()


def _in_colour(live: bool) -> bool:
    """Whether to colour: as --color says, else on a capable terminal unless NO_COLOR is set (no-color.org)."""
    context = click.get_current_context(silent=True)
    if context is not None and context.color is not None:
        return context.color
    return live and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


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


class Outcomes:
    """Collects the outcomes of the same work on several things: a failure is reported and does not stop the rest."""

    def __init__(self) -> None:
        self.errors: list[BaseException] = []
        self.done = 0

    @contextmanager
    def each(self) -> Iterator[None]:
        """Run the body for one thing.

        Raises:
            OSError: fatal for the others too, or our own output cannot be written.
        """
        try:
            yield
        except (*FATAL, OutputError):
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


def coloured(command: F) -> F:
    """Adds --color, which `Lines` follows."""
    return click.option(
        "--color",
        type=click.Choice(["auto", "always", "never"]),
        default="auto",
        expose_value=False,
        callback=_choose_colour,
        help="Colour folders and differences. [default: on a terminal, unless NO_COLOR is set or TERM is dumb]",
    )(command)


def _choose_colour(context: click.Context, option: click.Parameter, value: str) -> None:  # noqa: ARG001 - click's
    context.color = {"always": True, "never": False}.get(value)


def _start_logging(context: click.Context, option: click.Parameter, verbose: bool) -> None:  # noqa: ARG001 - click's
    quiet = context.params.get("quiet", False)
    if verbose and quiet:
        raise click.UsageError("--quiet and --verbose contradict each other; give one")
    handler = logging.StreamHandler()
    handler.setFormatter(
        logging.Formatter("%(name)s: %(message)s" if verbose else "storage-backend: warning: %(message)s")
    )
    root = logging.getLogger("storage_backend")
    root.handlers[:] = [handler]
    root.setLevel(logging.DEBUG if verbose else logging.ERROR if quiet else logging.WARNING)
