"""What the tests of DatabaseStorage share: looking at the tables behind its back, and other processes."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, Any, cast

from storage_backend.backends.sql.address import parse

ROOT = Path(__file__).parents[2]
PATIENCE = 60.0  # seconds until what does not come is an error


def query(url: str, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
    """Run one statement, with `?` for parameters, as another program."""
    address = parse(url)
    if address.dialect == "sqlite":
        with closing(sqlite3.connect(address.path, timeout=PATIENCE)) as connection, connection:
            return connection.execute(statement, parameters).fetchall()
    import psycopg

    # Names and values as a connection string: as keywords, the type checker takes them for psycopg's own.
    conninfo = psycopg.conninfo.make_conninfo("", **cast("dict[str, Any]", dict(address.parameters)))
    with psycopg.connect(conninfo, autocommit=True) as session:
        cursor = session.execute(statement.replace("?", "%b").encode(), parameters or None)
        return list(cursor.fetchall()) if cursor.description else []


@contextmanager
def statements() -> Iterator[list[str]]:
    """What is asked of databases meanwhile, by whomever."""
    from sqlalchemy import Engine, event

    asked: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        asked.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield asked
    finally:
        event.remove(Engine, "before_cursor_execute", note)


def rows(url: str) -> dict[str, int]:
    """How many rows each table has."""
    return {
        table: query(url, f"SELECT count(*) FROM sb_{table}")[0][0]
        for table in ("objects", "chunks", "unpublished")
    }


def is_clean(url: str) -> bool:
    """Whether each chunk belongs to an object, and nothing waits to be swept."""
    orphans = query(
        url,
        "SELECT count(*) FROM sb_chunks c WHERE NOT EXISTS (SELECT 1 FROM sb_objects o WHERE o.version = c.version)",
    )
    return orphans == [(0,)] and rows(url)["unpublished"] == 0


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for what happens in another thread or process."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.01)


def program(source: str, *arguments: str) -> subprocess.Popen[str]:
    """Another process that runs *source*, with pipes to it."""
    return subprocess.Popen(
        [sys.executable, "-c", source, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def line_of(stream: IO[str] | None) -> str:
    """The next line that another process writes."""
    assert stream is not None
    return stream.readline().strip()
