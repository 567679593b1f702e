"""The program's output: lines, error messages, and the options that control them."""

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

if TYPE_CHECKING:  # imported by the commands that use it
    from storage_backend.info import ObjectInfo

F = TypeVar("F", bound=Callable[..., Any])

# "Select Graphic Rendition" of ECMA-48.
_FOLDER = "1;34"  # bold blue, as directories in GNU ls
_DIFFERENCES = {"missing": "31", "extra": "32"}  # red and green, as deleted and new lines in a diff
_CHANGED = "33"  # yellow

ONE_LEVEL = '"*" stays inside a segment, "**/*" is every level'  # the hint for a glob that matched nothing

DISPLAY = "storage_backend.display"  # the key of the live display in click's `Context.meta`


def _make_room() -> None:
    """Erase the live display before other output; the next event draws it again."""
    context = click.get_current_context(silent=True)
    display = context.meta.get(DISPLAY) if context is not None else None
    if display is not None:
        display.clear()


def print_error(message: str) -> None:
    """Print one line on stderr, after the output so far."""
    with suppress(OutputError):  # raised again at the end
        sys.stdout.flush()
    _make_room()
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)
    click.echo(f"storage-backend: {text}", err=True)


def quoted(name: str) -> str:
    """*name* for a terminal: unchanged if it is printable, else as a $'...' string of the shell."""
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
    """Prints lines. On a terminal, unprintable names are quoted; colours follow --color.

    Args:
        null: end lines with NUL, without quotes and colours.

    Attributes:
        quotes: whether unprintable names are quoted.
    """

    def __init__(self, *, null: bool = False) -> None:
        self._stream = sys.stdout.buffer
        self._live = sys.stdout.isatty()
        self._end = b"\0" if null else b"\n"
        self.quotes = self._live and not null
        self._colour = not null and _in_colour(self._live)

    def name(self, name: str, before: str = "", after: str = "") -> None:
        """Print a line with *name*, which is a folder if it ends in "/"."""
        shown = quoted(name) if self.quotes else name
        self._put(f"{before}{self._painted(shown, _FOLDER) if name.endswith('/') else shown}{after}")

    def difference(self, word: str, name: str) -> None:
        """Print a line that says how *name* differs."""
        colour = _DIFFERENCES.get(word, _CHANGED)
        self._put(f"{self._painted(f'{word:<8}', colour)} {quoted(name) if self.quotes else name}")

    def text(self, text: str) -> None:
        """Print a line without a name."""
        self._put(text)

    def record(self, record: Mapping[str, Any]) -> None:
        """Print a line of JSON. It is ASCII, so lone surrogates are escaped."""
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
    """Whether to use colours: as --color says, else on a terminal unless NO_COLOR is set (no-color.org)."""
    context = click.get_current_context(silent=True)
    if context is not None and context.color is not None:
        return context.color
    return live and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def record_of(info: ObjectInfo) -> dict[str, Any]:
    """The known fields of *info* as JSON values."""
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
    """Collects the outcomes of an operation on several objects. A failure is reported and does not stop the rest."""

    def __init__(self) -> None:
        self.errors: list[BaseException] = []
        self.done = 0

    @contextmanager
    def each(self) -> Iterator[None]:
        """Run the body for one object.

        Raises:
            OSError: an error that concerns all objects, or the output cannot be written.
        """
        try:
            yield
        except (*FATAL, OutputError):
            raise
        except OSError as error:
            logging.getLogger(__name__).debug("traceback", exc_info=error)
            print_error(str(error))
            self.errors.append(error)
        else:
            self.done += 1

    @property
    def code(self) -> Exit:
        """The exit code."""
        return code_of_failures(self.errors, self.done)


def common(command: F) -> F:
    """Add the options of every command: -q, passed as `quiet`, and -v."""
    command = click.option(
        "-v",
        "--verbose",
        is_flag=True,
        expose_value=False,
        callback=_start_logging,
        help="Log all operations, with tracebacks.",
    )(command)
    return click.option("-q", "--quiet", is_flag=True, is_eager=True, help="Print errors only.")(command)


def coloured(command: F) -> F:
    """Add --color."""
    return click.option(
        "--color",
        type=click.Choice(["auto", "always", "never"]),
        default="auto",
        expose_value=False,
        callback=_choose_colour,
        help="Colour folders and differences. [default: on a terminal, unless NO_COLOR is set or TERM is dumb]",
    )(command)


def _choose_colour(context: click.Context, option: click.Parameter, value: str) -> None:  # noqa: ARG001 - click's signature
    context.color = {"always": True, "never": False}.get(value)


def _start_logging(context: click.Context, option: click.Parameter, verbose: bool) -> None:  # noqa: ARG001 - click's signature
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
