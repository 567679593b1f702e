"""A pipe among a server's files: it is no object, and to open one holds nobody up, neither here nor there."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from storage_backend import BatchError, NotAFileError, RemoteStorage
from tests.ssh_servers import SSHPlace

SILENCE = 60.0  # seconds after which a connection is given up
AT_ONCE = 20.0  # seconds, on a machine with other things to do

SERVERS = ["openssh_place", "internal_sftp_place", "asyncssh_place", "paramiko_sftp_place"]


@pytest.fixture(params=SERVERS)
def place(request: pytest.FixtureRequest) -> SSHPlace:
    place: SSHPlace = request.getfixturevalue(request.param)
    os.mkfifo(place.local / "pipe")
    (place.local / "link").symlink_to("pipe")
    for name in "abc":
        (place.local / name).write_bytes(name.encode())
    return place


def reader_of(path: Path) -> bool:
    """Whether a process has the pipe open to be read, or waits to open it."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return False
    return True


def test_reading_a_pipe_is_refused_at_once_and_holds_nobody_up(place: SSHPlace, tmp_path: Path) -> None:
    config: Any = place.config(io_timeout=SILENCE)
    began = time.monotonic()
    done = threading.Event()
    others: list[bytes] = []

    with RemoteStorage(config, place.base) as backend:
        ways: list[Callable[[str], object]] = [
            backend.read,
            backend.open,
            lambda name: backend.read_range(name, 0, 1),
            lambda name: backend.download(name, tmp_path / "x"),
            backend.checksum,
            lambda name: backend.copy(name, "copy"),
        ]

        def read_on() -> None:
            while not done.is_set():
                others.append(backend.read("a"))

        thread = threading.Thread(target=read_on)
        thread.start()
        try:
            for way in ways:
                for name in ("pipe", "link"):
                    with pytest.raises(NotAFileError):
                        way(name)
            found: dict[str, bytes] = {}
            with pytest.raises(BatchError) as caught:
                found.update(backend.read_many(["a", "pipe", "b", "link", "c"]))
        finally:
            done.set()
            thread.join()
        assert found == {"a": b"a", "b": b"b", "c": b"c"}
        assert {name: type(error) for name, error in caught.value.failures.items()} == {
            "pipe": NotAFileError,
            "link": NotAFileError,
        }
        assert backend.read("b") == b"b"
    assert set(others) == {b"a"}
    assert time.monotonic() - began < AT_ONCE
    # No process of the server waits for somebody who writes to it.
    while reader_of(place.local / "pipe"):
        assert time.monotonic() - began < 2 * AT_ONCE
        time.sleep(0.01)
