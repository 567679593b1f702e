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

PAGE = 1000  # rows held in memory

Row = TypeVar("Row", ObjectRow, bytes)
Fetch: TypeAlias = Callable[["Connection", bytes, bytes | None, int], Sequence[Row]]
"""(connection, low, high, limit) -> at most *limit* rows with low <= name < high, ascending."""


def matching(database: Database, pattern: str | None) -> Identifiers:
    """The identifiers that match *pattern*, ascending."""
    glob = identifiers.glob(pattern) if pattern is not None else None
    depth = glob.depth if glob and not glob.recursive else None
    names = _paged(database, database.statements.names, glob.stem if glob else "", depth)
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
        database: the database.
        prefix: a literal string.
        on_skip: called for rows whose name is not a valid identifier.
        depth: skip objects with more segments than this; a few may still be returned, so the caller filters.
    """
    for row in _paged(database, database.statements.page, prefix, depth):
        identifier = _identifier(database, row.name, on_skip)
        if identifier is not None:
            yield row.info(identifier)


def _paged(database: Database, fetch: Fetch[Row], prefix: str, depth: int | None) -> Iterator[Row]:
    try:
        low: bytes = prefix.encode()
    except UnicodeEncodeError:
        return  # no identifier in a database has a lone surrogate
    high = _upper_bound(low)
    while True:
        rows = database.run(lambda connection, low=low: fetch(connection, low, high, PAGE))  # type: ignore[misc] # a default binds the loop's name
        yield from rows
        if len(rows) < PAGE:
            return
        last = rows[-1].name if isinstance(rows[-1], ObjectRow) else rows[-1]
        low = last + b"\0"
        if depth is not None and last.count(b"/") >= depth:
            # Past all names beneath this one: "0" sorts after "/".
            low = b"/".join(last.split(b"/")[:depth]) + b"0"


def _upper_bound(prefix: bytes) -> bytes | None:
    """What all names that begin with *prefix*, which is UTF-8 and so does not end in 0xFF, are less than; None for all names."""
    return prefix[:-1] + bytes([prefix[-1] + 1]) if prefix else None


def _identifier(database: Database, name: bytes, on_skip: OnSkip | None) -> str | None:
    """The identifier of a row; None, after reporting it, if another program stored an invalid name."""
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
