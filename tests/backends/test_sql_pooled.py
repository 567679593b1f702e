"""DatabaseStorage and a proxy before PostgreSQL, which gives each transaction any session of the server."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("psycopg")

import psycopg

from storage_backend import DatabaseStorage, StorageTimeoutError
from tests.conftest import unavailable
from tests.servers import end_with_parent, free_port

if TYPE_CHECKING:
    from tests.servers import PostgreSQL


@pytest.fixture
def pooled(postgresql: PostgreSQL, postgresql_url: str, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty database behind pgbouncer, which has two sessions for all its clients."""
    program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
    if program is None:
        unavailable("pgbouncer is not installed: apt-get install pgbouncer")
    port = free_port()
    name = postgresql_url.partition("?")[0].rpartition("/")[2]
    (tmp_path / "settings").write_text(
        f"[databases]\n{name} = host={postgresql.directory} port={postgresql.port} user=postgres\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
        "auth_type = any\npool_mode = transaction\ndefault_pool_size = 2\n"
    )
    # It reads its settings before it becomes another user, which as root it insists on.
    as_nobody = ["-u", "nobody"] if os.geteuid() == 0 else []
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [program, *as_nobody, tmp_path / "settings"],
            stdout=log,
            stderr=log,
            preexec_fn=end_with_parent,  # noqa: PLW1509 - nothing but one system call
        )
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                psycopg.connect(f"host=127.0.0.1 port={port} user=postgres dbname={name}").close()
                break
            except psycopg.OperationalError:
                assert process.poll() is None, (tmp_path / "log").read_text()
                assert time.monotonic() < deadline, (tmp_path / "log").read_text()
                time.sleep(0.02)
        yield f"postgresql://postgres@127.0.0.1:{port}/{name}"
    finally:
        process.terminate()
        process.wait()


@pytest.mark.soak
def test_many_clients_of_few_sessions(pooled: str) -> None:
    with DatabaseStorage(pooled) as storage:

        def use(client: int) -> None:
            for number in range(12):  # a statement is prepared from its fifth execution on
                name, content = f"{client}/{number}", b"%d" % number * 1000
                storage.write(name, content)
                assert storage.read(name) == content
                assert storage.stat(name).size == len(content)
                assert name in storage.list(f"{client}/*")
            storage.write(f"{client}/big", bytes(9 << 20))
            assert storage.read(f"{client}/big") == bytes(9 << 20)

        with ThreadPoolExecutor(6) as threads:
            list(threads.map(use, range(6)))
        assert storage.delete_many(storage.list()) == 6 * 13


def test_limits_hold_and_are_not_left_to_others(pooled: str, postgresql_url: str) -> None:
    where = pooled.removeprefix("postgresql://postgres@127.0.0.1:").partition("/")
    address = f"host=127.0.0.1 port={where[0]} user=postgres dbname={where[2]}"
    with DatabaseStorage(pooled, timeout_seconds=0.5) as storage:
        storage.write("a", b"old")
        held, done = threading.Event(), threading.Event()

        def hold() -> None:
            with psycopg.connect(address) as other:
                other.execute("SELECT * FROM sb_objects FOR UPDATE")
                held.set()
                done.wait(60)

        holder = threading.Thread(target=hold)
        holder.start()
        try:
            assert held.wait(60)
            with pytest.raises(StorageTimeoutError):
                storage.write("a", b"new")
        finally:
            done.set()
            holder.join()
        for _ in range(4):
            with psycopg.connect(address, autocommit=True) as other:
                assert other.execute("SHOW lock_timeout").fetchone() == ("0",)


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_database_in_another_encoding(postgresql: PostgreSQL, encoding: str) -> None:
    name = f"test_{encoding.lower()}"
    postgresql.execute(f"CREATE DATABASE {name} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0")
    try:
        with DatabaseStorage(postgresql.url(name)) as storage:
            storage.write("\u00e9/\u20ac", b"1")
            storage.write("plain", b"2")
            assert storage.list() == ["plain", "\u00e9/\u20ac"]
            assert storage.read("\u00e9/\u20ac") == b"1"
            assert [info.identifier for info in storage.scan("\u00e9")] == ["\u00e9/\u20ac"]
            assert not storage.exists("\u20ac")
            assert storage.delete("\u00e9/\u20ac")
    finally:
        postgresql.execute(f"DROP DATABASE {name} WITH (FORCE)")
