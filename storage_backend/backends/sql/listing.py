"""Lists objects page by page in the order of names, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from storage_backend import identifiers
from storage_backend.backends.sql.object_row import ObjectRow
from storage_backend.base import Identifiers
from storage_backend.errors import InvalidIdentifierError
from storage_backend.scanning import OnSkip, report_skip

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from storage_backend.backends.sql.database import Database
    from storage_backend.info import ObjectInfo

PAGE = 1000  # rows that are held at a time

Row = TypeVar("Row")
Fetch: TypeAlias = Callable[["Connection", bytes, bytes | None, int], Sequence[Row]]
"""Gives the first rows of [low, high), at most so many."""


def matching(database: Database, pattern: str | None) -> Identifiers:
    """The identifiers that match *pattern*, ascending."""
    glob = identifiers.glob(pattern) if pattern is not None else None
    depth = glob.depth if glob and not glob.recursive else None
    names = _paged(database, database.statements.names, _itself, glob.stem if glob else "", depth)
    found = (_identifier(database, name, None) for name in names)
    return [
        identifier
        for identifier in found
        if identifier is not None and (glob is None or glob.matches(identifier))
    ]


def scan(
    database: Database, prefix: str, on_skip: OnSkip | None, depth: int | None = None
) -> Iterator[ObjectInfo]:
    """Every object whose identifier begins with *prefix*, ascending.

    Args:
        database: where they are.
        prefix: a literal string.
        on_skip: is told of rows that are no object.
        depth: leave out most of those with more segments; None leaves out none.
    """
    for row in _paged(database, database.statements.page, _name_of, prefix, depth):
        identifier = _identifier(database, row.name, on_skip)
        if identifier is not None:
            yield row.info(identifier)


def _paged(
    database: Database,
    fetch: Fetch[Row],
    name_of: Callable[[Row], bytes],
    prefix: str,
    depth: int | None = None,
) -> Iterator[Row]:
    try:
        low = prefix.encode()
    except UnicodeEncodeError:
        return  # a lone surrogate begins no identifier here
    high = _after(low)
    while True:
        rows = database.run(lambda connection, low=low: fetch(connection, low, high, PAGE))  # type: ignore[misc] # a default binds the loop's name
        yield from rows
        if len(rows) < PAGE:
            return
        last = name_of(rows[-1])
        low = last + b"\0"
        if depth is not None and last.count(b"/") >= depth:
            # Past all that is beneath: "0" comes after "/".
            low = b"/".join(last.split(b"/")[:depth]) + b"0"


def _after(prefix: bytes) -> bytes | None:
    """Upper bound of all names that begin with *prefix*; None if there is none."""
    head = prefix.rstrip(b"\xff")
    return head[:-1] + bytes([head[-1] + 1]) if head else None


def _name_of(row: ObjectRow) -> bytes:
    return row.name


def _itself(name: bytes) -> bytes:
    return name


def _identifier(database: Database, name: bytes, on_skip: OnSkip | None) -> str | None:
    """The identifier of a row; None, after a report, if another program stored an invalid one."""
    try:
        identifier = name.decode()
        identifiers.check(identifier)
    except UnicodeDecodeError:
        error = InvalidIdentifierError(f"invalid identifier {name!r}: it is not UTF-8")
    except InvalidIdentifierError as reason:
        error = reason
    else:
        return identifier
    report_skip(on_skip, error, database.address.location)
    return None
