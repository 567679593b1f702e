"""The directories of a batch over SFTP come to be with the first object in each, whoever takes them away."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from storage_backend import BatchError, RemoteStorage
from storage_backend.backends.remote.settings import SSHConfig
from tests.conftest import unavailable
from tests.servers import ServerUnavailableError
from tests.ssh_servers import OpenSSH, SSHPlace, sftp_server

ITEMS = [(f"{number // 50}/deep/{number % 5}/{number}", b"%d" % number) for number in range(100)]
DIRECTORIES = 2 + 2 + 10


def storage(place: SSHPlace, base: str) -> RemoteStorage:
    return RemoteStorage(cast(SSHConfig, place.config(shell="never")), base)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Where the server notes what it is asked for."""
    return tmp_path / "log"


@pytest.fixture
def logging_place(tmp_path: Path, log: Path) -> Iterator[SSHPlace]:
    wrapper = tmp_path / "wrapper"
    try:
        wrapper.write_text(f"#!/bin/sh\nexec {sftp_server()} -e -l INFO 2>>{log}\n")
        wrapper.chmod(0o755)
        server = OpenSSH(command_wrapper=wrapper)
    except ServerUnavailableError as error:
        unavailable(str(error))
    try:
        with server.place() as place:
            yield place
    finally:
        server.stop()


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("base", ["", "/new/base"])
def test_batch_asks_for_each_new_directory_once(
    logging_place: SSHPlace, log: Path, base: str, verify: bool
) -> None:
    with storage(logging_place, logging_place.base + base) as remote:
        if base:
            (logging_place.local / "new").mkdir()
        assert remote.write_many(ITEMS, verify=verify) == len(ITEMS)
        made = [line for line in log.read_text().splitlines() if line.startswith("mkdir ")]
        assert len(made) == DIRECTORIES + bool(base)
        assert dict(remote.read_many(name for name, _ in ITEMS)) == dict(ITEMS)


def test_directories_that_were_removed_are_made_again(openssh_place: SSHPlace) -> None:
    with storage(openssh_place, openssh_place.base) as remote:
        for _ in range(2):
            remote.write_many(ITEMS)
            assert sorted(remote.list()) == sorted(name for name, _ in ITEMS)
            shutil.rmtree(openssh_place.local / "0")
            shutil.rmtree(openssh_place.local / "1")


def test_file_in_place_of_a_directory_fails_its_objects_alone(openssh_place: SSHPlace) -> None:
    with storage(openssh_place, openssh_place.base) as remote:
        remote.write("1", b"a file")
        with pytest.raises(BatchError) as caught:
            remote.write_many(ITEMS)
        assert set(caught.value.failures) == {name for name, _ in ITEMS if name.startswith("1/")}
        assert remote.read("1") == b"a file"
        assert remote.read(ITEMS[0][0]) == ITEMS[0][1]
